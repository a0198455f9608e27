"""The task ``capacity``: the highest rate a configuration holds within its objectives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.build import Builder
from sim.errors import ConfigError
from sim.probe import Prober
from sim.report.page import name_of
from sim.report.rates import Limit, Probe, rate_table, write_rates
from sim.report.words import count, percent, rate
from sim.units import FAR, NS_PER_S, PS_PER_S

if TYPE_CHECKING:
    from rich.console import Console

    from sim.record import Result
    from sim.step import CostModel

SPARE_FRAC = 0.5  # of what the cost model allows: with less than half in use there is room, whatever the objectives
MOST_DOUBLINGS = 12  # from scenario.rate up, and down; beyond, the rate is not what limits


@dataclass(frozen=True, slots=True)
class Bound:
    """What the cost model allows at most, whatever the scheduler does."""

    per_s: float  # requests
    prefill_s: float  # of a mean request, computing nothing but prompts in the best batch [s]
    decode_s: float  # of a mean request, nothing but answers in the best batch
    decode_seqs: int  # of that batch

    @property
    def busy(self) -> str:
        """With what the device would be, in words."""
        if self.prefill_s > self.decode_s:
            return "computing prompts and nothing else"
        return f"decoding {count(self.decode_seqs)} at once and nothing else"


@dataclass(slots=True)
class Search:
    """Bisection over rates that are powers of two times the first, so that every search meets the same rates.

    Objectives that are looser are kept wherever tighter ones are. So of two searches that differ in them alone, the
    looser never ends lower: where both ask the same rate it goes up whenever the other does.
    """

    holds: Callable[[float], bool]
    first: float
    precision_frac: float
    asked: dict[float, bool] = field(default_factory=dict)

    def __call__(self) -> tuple[float | None, float | None]:
        """The highest rate found to be held, and the lowest above it that is not; None where there is none."""
        step = 0.0  # log2 of the rate over the first
        if self.ask(step):
            while self.ask(step + 1.0):
                step += 1.0
                if step >= MOST_DOUBLINGS:
                    return self.at(step), None
        else:
            step -= 1.0
            while not self.ask(step):
                step -= 1.0
                if step < -MOST_DOUBLINGS:
                    return None, self.at(step + 1.0)
        width = 1.0
        for _ in range(max(0, ceil(-log2(log2(1.0 + self.precision_frac))))):
            width /= 2.0
            if self.ask(step + width):
                step += width
        return self.at(step), self.at(step + width)

    def at(self, step: float) -> float:
        """The rate so many doublings above the first."""
        return float(self.first * 2.0**step)

    def ask(self, step: float) -> bool:
        """Whether a rate is held; each is asked once."""
        one = self.at(step)
        if one not in self.asked:
            self.asked[one] = self.holds(one)
        return self.asked[one]


@dataclass(frozen=True, slots=True)
class Capacity:
    """Offers rates until it is known which is held: all see the same requests, closer together (`sim.probe`).

    Parameters
    ----------
    attainment_frac : float
        Share of the requests that must meet their objectives, above 0 and at most 1. A refused one meets none.
    precision_frac : float
        The search ends where a rate is held and one higher by this share is not.
    window_s : float
        How long traffic is offered [s].

    References
    ----------
    MLPerf Inference, server scenario: the highest Poisson rate at which the 99th percentile keeps the limits.
    """

    attainment_frac: float = 0.99
    precision_frac: float = 0.05
    window_s: float = 120.0

    def __post_init__(self) -> None:
        if not 0.0 < self.attainment_frac <= 1.0:
            raise ConfigError(f"task.attainment_frac must be > 0 and <= 1, got {self.attainment_frac!r}")
        if not 0.001 <= self.precision_frac <= 1.0:
            raise ConfigError(f"task.precision_frac must be >= 0.001 and <= 1, got {self.precision_frac!r}")

    def __call__(self, *, config: Mapping[str, Any], out: Path, console: "Console") -> float:
        """Search, print what was found, write ``capacity.json`` and ``capacity.html``; the requests/s that are held.

        Raises
        ------
        ConfigError
            If no objective is set, or one is not kept at any rate; the message has the number that would be.
        """
        prober = Prober(config, self.window_s)
        if not prober.slo.is_set:
            raise ConfigError("task=capacity needs an objective: take slo=server, or slo.ttft_ms=500")
        probes: dict[float, Probe] = {}

        def holds(one: float) -> bool:
            probes[one] = prober(one)
            return self.is_held(probes[one])

        first = float(config["scenario"]["rate"])
        held, too_much = Search(holds, first, self.precision_frac)()
        if held is None:
            raise ConfigError(self.impossible(probes[min(probes)]))
        best = probes[held]
        bound = bound_of(best, config)
        ordered = [probes[one] for one in sorted(probes)]
        said = self.in_words(best, None if too_much is None else probes[too_much], bound)
        heading = f"Capacity: {name_of(config)}"
        found = {
            "rate": held,
            "rate_not_held": too_much,
            "requests_per_s": best.offered_per_s,
            "attainment_frac": best.attainment_frac,
            "bound_requests_per_s": bound.per_s,
            "bound_prefill_s": bound.prefill_s,
            "bound_decode_s": bound.decode_s,
            "bound_decode_seqs": bound.decode_seqs,
            "seed": config["seed"],
        }
        write_rates(ordered, "capacity", heading, out, found, said)
        console.print(rate_table(ordered, heading))
        for line in said:
            console.print(line, soft_wrap=True, highlight=False)
        console.print(f"Page: {out / 'capacity.html'}", soft_wrap=True)
        return best.offered_per_s

    def is_held(self, probe: Probe) -> bool:
        """Whether enough requests meet their objectives, and the queue does not grow."""
        return probe.attainment_frac >= self.attainment_frac and not probe.is_saturated

    def in_words(self, best: Probe, over: Probe | None, bound: Bound) -> list[str]:
        """What was found."""
        said = [
            f"Holds {best.rate:,.4g}/s ({rate(best.offered_per_s)} requests/s arrive): "
            f"{percent(best.attainment_frac)} of {count(best.n_requests)} requests within the objectives."
        ]
        if over is None:
            said.append("Nothing higher was tried: the rate is not what limits.")
        else:
            why = [self.needed(one) for one in over.limits if one.kept_frac() < self.attainment_frac]
            if over.is_saturated:
                why.append(f"{rate(over.offered_per_s)} requests/s arrive and {rate(over.served_per_s)} are served")
            together = f"{percent(over.attainment_frac)} meet all objectives together"
            said.append(f"Not {over.rate:,.4g}/s: {'; '.join(why) or together}.")
        share = best.offered_per_s / bound.per_s
        said.append(
            f"The cost model allows at most {rate(bound.per_s)} requests/s ({bound.busy}); "
            f"{percent(share)} of that is held."
        )
        return said

    def needed(self, limit: Limit) -> str:
        """An objective that is broken, and the number that would be kept."""
        return (
            f"{limit.key}={limit.most_ms:g} is kept by {percent(limit.kept_frac())}, "
            f"{percent(self.attainment_frac)} need {limit.needed_ms(self.attainment_frac):,.4g} ms"
        )

    def impossible(self, idle: Probe) -> str:
        """Why not even the lowest rate is held."""
        if idle.n_refused > (1.0 - self.attainment_frac) * idle.n_requests:
            refused = f"{count(idle.n_refused)} of {count(idle.n_requests)} requests are refused"
            return f"no rate is held: {refused}, {idle.refusal}"
        broken = [self.needed(one) for one in idle.limits if one.kept_frac() < self.attainment_frac]
        if broken:
            return f"no rate is held: {'; '.join(broken)}, at {idle.rate:,.3g}/s"
        return (
            f"no rate is held: at {idle.rate:,.3g}/s {percent(idle.attainment_frac)} meet all objectives together, "
            f"task.attainment_frac asks for {self.attainment_frac:g}"
        )


class MeanRequest(NamedTuple):
    """Of a run's requests."""

    computed_tokens: float  # of the prompt, not found in the cache
    output_tokens: float
    context_tokens: float  # halfway through the answer


def mean_request(result: "Result") -> MeanRequest:
    """Of those that were served, at least one."""
    prompt, cached, output = (
        float(result.requests.column(name).mean()) for name in ("prompt_tokens", "cached_tokens", "output_tokens")
    )
    return MeanRequest(prompt - cached, output, prompt + output / 2.0)


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether there are ``replicas`` all the time and each serves its requests alone: of others there is no bound."""
    parts = {"fleet": "sim.spec.Aggregated", "scaler": "sim.scaler.Fixed"}
    return all(config.get(part, {}).get("_target_", target) == target for part, target in parts.items())


def could_hold(result: "Result") -> str | None:
    """What the device could serve of a run's requests, beside what came, in words; None where there is no bound."""
    if not is_plain(result.config):
        return None
    arrival_ns = result.requests.column("arrival_ns")
    span_s = float(arrival_ns.max() - arrival_ns.min()) / NS_PER_S
    bound = bound_of(mean_request(result), result.config)
    most = f"the cost model allows at most {rate(bound.per_s)} requests/s like these ({bound.busy}), objectives aside"
    if not span_s:
        return f"All came at once; {most}. task=capacity finds what is held within the objectives."
    came = len(arrival_ns) / span_s
    if came > bound.per_s:
        return f"More came than can be served: {rate(came)} requests/s, and {most}."
    more = "The device could hold more" if came < SPARE_FRAC * bound.per_s else "The device is near what it could hold"
    return f"{more}: {rate(came)} requests/s came, and {most}. task=capacity finds what is held within the objectives."


def bound_of(probe: Probe | MeanRequest, config: Mapping[str, Any]) -> Bound:
    """Most requests/s that any schedule could serve, by the cost model, of requests like those of a probe.

    An iteration takes at least as long as its prompts alone would, and as its decoding sequences alone would. So a
    device serves no more than it could if it computed only the prompts (without what the cache was found to hold), and
    no more than if it did nothing but decode, each in the batch that is best for it and that its memory and the
    scheduler have room for. Attention to a prompt is convex in its length, so the mean prompt costs no more than the
    mean of their costs.
    """
    made = Builder(config)
    cost, scheduler = made.cost, made.scheduler
    context = max(1, round(probe.context_tokens))
    most_seqs = max(1, min(scheduler.most_seqs, made.capacity().n_tokens // context))
    decode_s, seqs = min((decode_s_per_token(cost, n, context), n) for n in sizes(most_seqs))
    prompt = max(1, round(probe.computed_tokens))
    most_prompts = max(1, scheduler.most_tokens // prompt)
    piece = min(prompt, scheduler.most_tokens)
    prefill_s = min(prefill_s_per_token(cost, piece, n) for n in sizes(most_prompts)) * probe.computed_tokens
    decode_s *= max(0.0, probe.output_tokens - 1.0)  # the first token comes with the prompt
    stages = made.hardware.pipeline_parallel  # while one works on this batch, the others may on others
    return Bound(config["replicas"] * stages / max(prefill_s, decode_s), prefill_s, decode_s, seqs)


def sizes(most: int) -> list[int]:
    """Batch sizes to try: powers of two up to the most, and that."""
    return sorted({*(1 << i for i in range(most.bit_length())), most})


def decode_s_per_token(cost: "CostModel", n_seqs: int, context: int) -> float:
    """Time of one token of one of ``n_seqs`` that decode together, equally long [s]."""
    first_ps, _, _ = cost.pace(((), n_seqs, n_seqs * context, context, n_seqs, 0.0, 0.0, 0))
    return first_ps / PS_PER_S / n_seqs


def prefill_s_per_token(cost: "CostModel", piece: int, n_prompts: int) -> float:
    """Time of one prompt token among ``n_prompts`` pieces computed together, with nothing cached before them [s]."""
    first_ps, _, _ = cost.pace((((piece, 0, FAR),) * n_prompts, 0, 0, 0, 0, 0.0, 0.0, 0))
    return first_ps / PS_PER_S / (piece * n_prompts)

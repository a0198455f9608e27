"""The task ``recommend``: the cheapest deployment that serves a rate within its objectives, and why none cheaper."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.build import Builder
from sim.capacity import Bound, bound_of, is_plain
from sim.config import check_choices, compose
from sim.errors import ConfigError
from sim.override import argument
from sim.probe import Prober
from sim.report.page import name_of
from sim.report.rates import Probe
from sim.report.recommend import (
    Choice,
    Option,
    Recommendation,
    recommendation_table,
    serve_command,
    write_recommendation,
)

if TYPE_CHECKING:
    from rich.console import Console

DEARER = "not simulated: dearer, even with as few replicas as the cost model allows"
ENDLESS_BLOCKS = 1 << 24  # of 16 tokens: no traffic that fits a window fills them


@dataclass(slots=True)
class Candidate:
    """One combination of choices, to be tried with more and more replicas."""

    choices: dict[str, Any]
    config: Mapping[str, Any]
    cost_each: float  # of a replica: its price per hour, or its accelerators where prices are not known
    n_devices: int  # of a replica
    bound: Bound | None = None
    fewest: int | None = None  # replicas, by the bound
    probes: dict[int, Probe] = field(default_factory=dict)  # by replicas


@dataclass(frozen=True, slots=True)
class Recommend:
    """Tries all combinations, the cheapest first, until one holds; which cannot is told without simulating it.

    A combination does not fit if its weights leave no room for KV; and it needs at least so many replicas as the cost
    model allows, whatever the scheduler does (`sim.capacity.bound_of`), for requests whose prompts are found in a cache
    as often as in one that forgets nothing. From there on replicas are added one at a time, always to what is then
    cheapest: so nothing cheaper than the answer is left untried, and nothing dearer is simulated but for the runner-up.

    Parameters
    ----------
    target_rate : float
        In place of ``scenario.rate`` [1/s].
    hardware, cache, eviction, batching : sequence of str or None
        Names of files in ``conf/``; None is the run's own.
    tensor_parallel, block_tokens : sequence of int or None
        Accelerators a replica; tokens a block, of caches that have blocks.
    max_replicas : int
        No combination gets more.
    price_per_hour : mapping of str to float
        Of one accelerator, by the name of its file; else ``hardware.price_per_hour``.
    attainment_frac, window_s : float
        As of `sim.capacity.Capacity`.
    """

    target_rate: float | None = None
    hardware: Sequence[str] | None = None
    tensor_parallel: Sequence[int] | None = None
    cache: Sequence[str] | None = None
    block_tokens: Sequence[int] | None = None
    eviction: Sequence[str] | None = None
    batching: Sequence[str] | None = None
    max_replicas: int = 16
    price_per_hour: Mapping[str, float] = field(default_factory=dict)
    attainment_frac: float = 0.99
    window_s: float = 60.0

    def __post_init__(self) -> None:
        rate = self.target_rate
        if type(rate) not in (int, float) or not 0.0 < rate < float("inf"):  # type: ignore[operator]
            raise ConfigError(f"target_rate must be given, a finite number > 0 [1/s], for example 20, got {rate!r}")
        for key in ("hardware", "tensor_parallel", "cache", "block_tokens", "eviction", "batching"):
            values = getattr(self, key)
            if values is not None and (isinstance(values, str) or not values):
                raise ConfigError(f"search.{key} must be null or a list of at least one, got {values!r}")
            if "_" not in key:
                check_choices([f"{key}={name}" for name in values or ()])
        if self.max_replicas < 1:
            raise ConfigError(f"search.max_replicas must be >= 1, got {self.max_replicas}")
        for name, price in self.price_per_hour.items():
            if type(price) not in (int, float) or not 0.0 < price < float("inf"):
                raise ConfigError(f"search.price_per_hour.{name} must be a finite number > 0, got {price!r}")
        if not 0.0 < self.attainment_frac <= 1.0:
            raise ConfigError(f"task.attainment_frac must be > 0 and <= 1, got {self.attainment_frac!r}")

    def __call__(
        self, *, config: Mapping[str, Any], overrides: Sequence[str], out: Path, console: "Console"
    ) -> float | None:
        """Search, print the answer, write ``recommend.json`` and ``recommend.html`` into ``out``; its cost.

        Raises
        ------
        ConfigError
            If no objective is set, or nothing within ``max_replicas`` holds the rate.
        """
        if not Prober(config, self.window_s).slo.is_set:
            raise ConfigError("task=recommend needs an objective: take slo=server, or slo.ttft_ms=500")
        if not is_plain(config):
            raise ConfigError(
                "task=recommend tries replicas that serve alone: it goes with fleet=aggregated, scaler=none"
            )
        candidates, options, is_priced = self.candidates(overrides)
        reference = self.reference(config)
        found = self.search(candidates, reference)
        held = [one for one in found if one.is_held]
        if not held:
            raise ConfigError(self.nothing(found, options))
        best, *others = held
        answer = Recommendation(
            heading=f"Recommendation: {name_of(config).partition(' on ')[0]} at {self.target_rate:,.4g}/s",
            target_rate=float(self.target_rate or 0.0),
            attainment_frac=self.attainment_frac,
            is_priced=is_priced,
            best=best,
            runner_up=others[0] if others else None,
            options=[*found, *options],
            command=serve_command(best.config),
            n_simulated=sum(len(one.probes) for one in candidates) + 1,
            seed=config["seed"],
        )
        write_recommendation(answer, out)
        console.print(recommendation_table(answer))
        for line in answer.in_words():
            console.print(line, soft_wrap=True, highlight=False)
        console.print(f"Page: {out / 'recommend.html'}", soft_wrap=True)
        return best.cost

    def candidates(self, overrides: Sequence[str]) -> tuple[list[Candidate], list[Option], bool]:
        """All combinations that can be built, those that cannot with the reason, and whether all have a price."""
        axes = {
            "hardware": self.hardware,
            "hardware.tensor_parallel": self.tensor_parallel,
            "cache": self.cache,
            "cache.block_tokens": self.block_tokens,
            "eviction": self.eviction,
            "batching": self.batching,
        }
        tried = {key: values for key, values in axes.items() if values is not None}
        built: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
        cannot: list[Option] = []
        for values in product(*tried.values()):
            choices = dict(zip(tried, values, strict=True))
            kept = [one for one in overrides if argument(one).key not in choices]
            mine = [f"{key}={value}" for key, value in choices.items()]
            one: Mapping[str, Any]
            try:
                one = compose([*kept, *mine])
            except ConfigError as error:
                if "cache.block_tokens" not in choices or "block_tokens is not a setting" not in str(error):
                    cannot.append(Option(choices, str(error)))
                    continue
                del choices["cache.block_tokens"]  # a cache without blocks is tried once
                if any(other == choices for other, _ in built):
                    continue
                one = compose([*kept, *(f"{key}={value}" for key, value in choices.items())])
            built.append((choices, one))
        prices = [self.price(one) for _, one in built]
        is_priced = bool(prices) and None not in prices
        candidates = []
        for (choices, one), price in zip(built, prices, strict=True):
            made = Builder(one)
            ranks = made.hardware.n_devices
            try:
                made.capacity()
            except ConfigError as error:
                cannot.append(Option(choices, str(error)))
                continue
            candidates.append(
                Candidate(choices, one, ranks * (price if is_priced and price is not None else 1.0), ranks)
            )
        return candidates, cannot, is_priced

    def price(self, config: Mapping[str, Any]) -> float | None:
        """Of one accelerator and hour."""
        named = self.price_per_hour.get(config.get("choices", {}).get("hardware", ""))
        given: float | None = config["hardware"].get("price_per_hour")
        return given if named is None else float(named)

    def reference(self, config: Mapping[str, Any]) -> Probe:
        """What requests are like, served by one replica whose cache forgets nothing."""
        endless = {"_target_": "sim.kv.paged.PagedCache", "_partial_": True, "block_tokens": 16, "prefix_caching": True}
        plain = {"_target_": "sim.kv.preemption.Recompute"}
        hardware = {**config["hardware"], "kv_blocks": ENDLESS_BLOCKS}
        sized = {**config, "cache": endless, "preemption": plain, "hardware": hardware, "replicas": 1}
        return Prober(sized, self.window_s)(float(self.target_rate or 0.0))

    def search(self, candidates: Sequence[Candidate], reference: Probe) -> list[Option]:
        """All that was tried, best first: what holds the rate by cost, the rest by how near it came.

        Of equal cost the one with more to spare is better.
        """
        heap: list[tuple[float, int, int]] = []
        for index, one in enumerate(candidates):
            one.bound = self.bound(one, reference)
            one.fewest = max(1, ceil(reference.offered_per_s / one.bound.per_s - 1e-9))
            if one.fewest <= self.max_replicas:
                heapq.heappush(heap, (one.fewest * one.cost_each, index, one.fewest))
        held: list[tuple[int, int]] = []
        while heap:
            cost, index, n = heapq.heappop(heap)
            if len(held) > 1 and cost > self.cost(candidates, held[1]):
                break
            one = candidates[index]
            probe = one.probes[n] = Prober({**one.config, "replicas": n}, self.window_s)(float(self.target_rate or 0.0))
            if self.is_held(probe):
                held.append((index, n))
                held.sort(key=lambda at: (self.cost(candidates, at), -self.spare(candidates[at[0]].probes[at[1]]), at))
            elif n < self.max_replicas:
                heapq.heappush(heap, ((n + 1) * one.cost_each, index, n + 1))
        options = [self.option(candidates[index], n, True) for index, n in held]
        seen = {index for index, _ in held}
        rest = [
            self.option(one, max(one.probes) if one.probes else 0, False)
            for index, one in enumerate(candidates)
            if index not in seen
        ]
        return options + sorted(rest, key=lambda one: -(one.attainment_frac or 0.0))

    @staticmethod
    def cost(candidates: Sequence[Candidate], at: tuple[int, int]) -> float:
        """Of one candidate with so many replicas."""
        return candidates[at[0]].cost_each * at[1]

    def bound(self, one: Candidate, reference: Probe) -> Bound:
        """What one replica serves at most; a cache that drops tokens may read next to nothing."""
        drops = "retention" in one.config["cache"] or "classes" in one.config["cache"]
        like = replace(reference, context_tokens=1.0) if drops else reference
        return bound_of(like, {**one.config, "replicas": 1})

    def is_held(self, probe: Probe) -> bool:
        """Whether enough requests meet their objectives, and the queue does not grow."""
        return probe.attainment_frac >= self.attainment_frac and not probe.is_saturated

    def spare(self, probe: Probe) -> float:
        """Share of the tightest objective that is left where enough requests meet it."""
        shares = [1.0 - one.needed_ms(self.attainment_frac) / one.most_ms for one in probe.limits]
        return min(shares, default=1.0)

    def option(self, one: Candidate, n: int, is_held: bool) -> Option:
        """As it is reported."""
        if one.bound is None or not n:
            most = one.bound.per_s if one.bound else 0.0
            words = f"more than {self.max_replicas} replicas, for the cost model allows each {most:.3g} requests/s"
            return Option(one.choices, words if not self.is_spared(one) else DEARER, config=one.config)
        probe = one.probes[n]
        return Option(
            one.choices,
            "" if is_held else self.why_not(probe),
            config=one.config,
            choice=Choice(
                replicas=n,
                accelerators=n * one.n_devices,
                cost=n * one.cost_each,
                spare_frac=self.spare(probe),
                bound_frac=probe.offered_per_s / (n * one.bound.per_s),
                probe=probe,
            ),
            is_held=is_held,
        )

    def is_spared(self, one: Candidate) -> bool:
        """Whether it was not simulated because it is dearer than what holds."""
        return one.fewest is not None and one.fewest <= self.max_replicas

    def why_not(self, probe: Probe) -> str:
        """What breaks, in words."""
        if probe.n_refused:
            return probe.refusal
        broken = [
            f"{one.key}={one.most_ms:g} is kept by {100 * one.kept_frac():.1f} %"
            for one in probe.limits
            if one.kept_frac() < self.attainment_frac
        ]
        if probe.is_saturated:
            broken.append(f"{probe.offered_per_s:.3g} requests/s arrive and {probe.served_per_s:.3g} are served")
        return "; ".join(broken) or f"{100 * probe.attainment_frac:.1f} % meet all objectives together"

    def nothing(self, found: Sequence[Option], cannot: Sequence[Option]) -> str:
        """Why there is no answer."""
        if not found:
            return f"nothing can be built: {cannot[0].why}" if cannot else "nothing to try"
        return (
            f"nothing holds {self.target_rate:g}/s with up to {self.max_replicas} replicas; nearest: "
            f"{found[0].in_words()}"
        )

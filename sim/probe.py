"""One configuration offered one rate: what it makes of it while the load lasts.

A run to the end says little about a rate: it begins empty and ends with stragglers. So traffic is offered for a window,
and judged are the requests that arrive in the `JUDGED` part of it: after a first half in which queues build up, and
before a last eighth that keeps the load up while they are served. Turns that would come later than the window do not
come, so of conversations with long pauses the rate of requests stays below what an endless stream of them would reach;
it is counted, and is the rate to compare with. All rates see the same random numbers: the same requests in the same
order, closer together; of a mix, those of each part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.build import Builder, contracts
from sim.config import make, trusted_packages
from sim.errors import ConfigError
from sim.metrics import Slo
from sim.metrics.latency import latencies, meets
from sim.metrics.slo import LIMITS
from sim.metrics.steady import slope
from sim.record import Result
from sim.report.rates import Limit, Probe
from sim.request import FollowUp, Request, Scenario, follow_up_of
from sim.run import run
from sim.units import MS_PER_S, NS_PER_S

if TYPE_CHECKING:
    from sim.step import CostModel

JUDGED = (0.5, 0.875)
FEWEST = 200  # arrivals from outside in a window, which is longer at a rate that would bring fewer
QUANTILES = (50, 90, 99)


class Until:
    """Traffic that ends: what would arrive later than that does not."""

    def __init__(self, scenario: Scenario, end_ns: int) -> None:
        self._scenario, self._end_ns = scenario, end_ns
        follow_up = follow_up_of(scenario)
        if follow_up is not None:
            self.follow_up = self._ended(follow_up)

    def requests(self, seed: int) -> Iterator[Request]:
        """The open stream's, as long as they arrive in time."""
        for request in self._scenario.requests(seed):
            if request.arrival_ns >= self._end_ns:
                return
            yield request

    def _ended(self, follow_up: FollowUp) -> FollowUp:
        def next_one(finished: Any) -> Request | None:
            request = follow_up(finished)
            return None if request is None or request.arrival_ns >= self._end_ns else request

        return next_one


@dataclass(slots=True)
class Prober:
    """Offers rates to a configuration.

    Parameters
    ----------
    config : mapping
        From `sim.config.compose`.
    window_s : float
        How long traffic is offered [s].
    """

    config: Mapping[str, Any]
    window_s: float
    _cost: "CostModel" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1.0 <= self.window_s < float("inf"):
            raise ConfigError(f"task.window_s must be >= 1 [s], got {self.window_s!r}")
        scenario, name = self.config["scenario"], self.config.get("choices", {}).get("scenario")
        if "rate" not in scenario or not {"duration_s", "n_requests"} & scenario.keys():
            raise ConfigError(f"scenario={name} has no rate to change: take an open stream, as scenario=chatbot")
        self._cost = Builder(self.config).cost  # its tables serve all rates

    @property
    def slo(self) -> Slo:
        """The objectives."""
        slo: Slo = make(self.config["slo"], "slo", trusted_packages(self.config), contracts()["slo"])
        return slo

    def __call__(self, rate: float) -> Probe:
        """Offer one rate [1/s, as ``scenario.rate`` counts]."""
        window_s = max(self.window_s, FEWEST / rate)
        node = at_rate(self.config["scenario"], rate, window_s)
        config = {**self.config, "scenario": node}
        scenario = make(node, "scenario", trusted_packages(config), contracts()["scenario"])
        result = run(config, Until(scenario, round(window_s * NS_PER_S)), cost=self._cost)
        return judged(result, self.slo, rate, window_s)


def at_rate(scenario: Mapping[str, Any], rate: float, window_s: float) -> dict[str, Any]:
    """A scenario's configuration that offers a rate for so long."""
    if "duration_s" in scenario:
        limits = {key: None for key in ("n_sessions", "n_requests") if key in scenario}
        return {**scenario, **limits, "rate": rate, "duration_s": window_s}
    return {**scenario, "rate": rate, "n_requests": ceil(2.0 * rate * window_s)}  # more than come; `Until` ends them


def judged(result: Result, slo: Slo, rate: float, window_s: float) -> Probe:
    """What becomes of the requests that arrive in the judged part of the window."""
    requests, refused = result.requests, result.refused
    begin_ns, end_ns = (share * window_s * NS_PER_S for share in JUDGED)
    span_s = (end_ns - begin_ns) / NS_PER_S

    def inside(times_ns: Any) -> Any:
        return (times_ns >= begin_ns) & (times_ns < end_ns)

    arrived, finished = inside(requests.column("arrival_ns")), inside(requests.column("finish_ns"))
    n_refused = int(inside(refused.column("arrival_ns")).sum())
    latency_ms = latencies(requests)
    is_good = meets(latency_ms, requests.column("slo_class"), result.slo_classes, slo)[arrived]
    n = int(arrived.sum()) + n_refused
    n_prompt = int(requests.column("prompt_tokens")[arrived].sum())
    n_cached = int(requests.column("cached_tokens")[arrived].sum())
    n_output = int(requests.column("output_tokens")[arrived].sum())
    quantiles = {}
    for name in LIMITS:
        known = latency_ms[name][arrived]
        known = known[~np.isnan(known)]
        for q in QUANTILES:
            quantiles[f"{name.removesuffix('_ms')}_p{q}_ms"] = float(np.percentile(known, q)) if len(known) else None
    limits = []
    classes = requests.column("slo_class")[arrived]
    for index, slo_class in enumerate(result.slo_classes):
        for name, most in slo.limits(slo_class).items():
            values = latency_ms[name][arrived][classes == index]
            if most is not None and len(values):
                limits.append(Limit(name, slo_class if slo_class in slo.classes else "", float(most), np.sort(values)))
    return Probe(
        rate=rate,
        window_s=window_s,
        n_requests=n,
        n_refused=n_refused,
        n_good=int(is_good.sum()),
        offered_per_s=n / span_s,
        served_per_s=int(finished.sum()) / span_s,
        output_tokens_per_s=int(requests.column("output_tokens")[finished].sum()) / span_s,
        wait_growth=slope(requests.column("arrival_ns")[arrived] / NS_PER_S, latency_ms["ttft_ms"][arrived] / MS_PER_S),
        goodput_per_s=int(is_good.sum()) / span_s if slo.is_set else None,
        prefix_hit_frac=n_cached / n_prompt if n_prompt else None,
        latency_ms=quantiles,
        computed_tokens=(n_prompt - n_cached) / max(1, n - n_refused),
        output_tokens=n_output / max(1, n - n_refused),
        context_tokens=(n_prompt + n_output / 2.0) / max(1, n - n_refused),
        limits=tuple(limits),
        refusal=next(iter(result.refusals.values()), ""),
    )

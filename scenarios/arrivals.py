"""When requests (or sessions) arrive: streams of clock ticks at a mean rate that the scenario sets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scenarios.distributions import Floats, Gamma, Ints, Weibull, is_number, require, require_positive
from sim.errors import ConfigError
from sim.request import Stage
from sim.units import LAST_NS, NS_PER_S, ns_from_s

LEAST_PER_CYCLE, MOST_PER_CYCLE = 1e-6, 1e7  # of bursts: fewer hang, more take all memory
BATCH = 4096  # drawn at once; fixed, so that a longer run begins with the very requests of a shorter one


class Arrivals(Protocol):
    """A stream of arrival times."""

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Endless batches of non-decreasing arrival times at a long-run mean rate [ns]."""
        ...


def _ticks(gaps_s: Floats, start_ns: int) -> Ints:
    """Arrival times after gaps, counted from a tick [ns]; those past the clock's end are at it, and refused there."""
    with np.errstate(over="ignore"):
        since_ns = np.minimum(np.rint(np.cumsum(gaps_s) * NS_PER_S), float(LAST_NS - min(start_ns, LAST_NS)))
    times_ns: Ints = start_ns + since_ns.astype(np.int64)
    return times_ns


def ticks_ns(seconds: Floats) -> Ints:
    """Times or waits as ticks; those past the clock's end are at it, and refused there [ns]."""
    with np.errstate(over="ignore"):
        return whole_ticks(seconds * NS_PER_S)


def whole_ticks(ticks: Floats) -> Ints:
    """The nearest whole ticks, none past the clock's end [ns]."""
    is_before = ticks < LAST_NS
    whole: Ints = np.where(is_before, np.rint(ticks), 0).astype(np.int64)
    whole[~is_before] = LAST_NS
    return whole


def require_before_end(key: str, waits_ns: Ints) -> None:
    """Refuse waits that are longer than the clock goes."""
    require(
        key, "a longer one", int(waits_ns.max(initial=0)) < LAST_NS, f"waits of less than {LAST_NS / NS_PER_S:.3g} s"
    )


def _renewals(gaps_s: Callable[[], Floats]) -> Iterator[Ints]:
    """Arrival times one gap after the other, a batch of gaps at a time [ns]."""
    last_ns = 0
    while True:
        times = _ticks(gaps_s(), last_ns)
        last_ns = int(times[-1])
        yield times


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals: exponential gaps, coefficient of variation 1."""

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]."""
        return _renewals(lambda: rng.exponential(1 / rate_per_s, BATCH))


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Gamma-distributed gaps with coefficient of variation ``cv``; shape 1 / cv^2 is vLLM's ``--burstiness``."""

    cv: float

    def __post_init__(self) -> None:
        require_positive("scenario.arrivals", cv=self.cv)
        require("scenario.arrivals.cv", self.cv, is_number(self.cv, 1e-6, 1e6), "from 1e-6 to 1e6")

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]."""
        gaps = Gamma(shape=1 / self.cv**2, scale=self.cv**2 / rate_per_s)
        return _renewals(lambda: gaps.draw(rng, BATCH))


@dataclass(frozen=True, slots=True)
class WeibullArrivals:
    """Weibull-distributed gaps; a shape below 1 is burstier than Poisson."""

    shape: float

    def __post_init__(self) -> None:
        require_positive("scenario.arrivals", shape=self.shape)

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]."""
        gaps = Weibull(self.shape, 1 / (rate_per_s * Weibull(self.shape, 1.0).mean))
        return _renewals(lambda: gaps.draw(rng, BATCH))


@dataclass(frozen=True, slots=True)
class Regular:
    """Equal gaps."""

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:  # noqa: ARG002
        """Arrival times [ns]."""
        number = np.arange(1, BATCH + 1, dtype=np.float64)
        while True:
            yield whole_ticks(number * (NS_PER_S / rate_per_s))
            number += BATCH


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """Everyone at time zero, whatever the rate."""

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:  # noqa: ARG002
        """Zeros [ns]."""
        while True:
            yield np.zeros(BATCH, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Two-state Markov-modulated Poisson process: calm, and bursts that bring ``burst_factor`` times the calm rate.

    Parameters
    ----------
    burst_factor : float
        Rate in a burst over the rate in calm; infinite means that nothing arrives in calm.
    burst_s, calm_s : float
        Mean lengths of the states, exponentially distributed [s].

    References
    ----------
    Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", 1993.
    """

    burst_factor: float
    burst_s: float
    calm_s: float

    def __post_init__(self) -> None:
        require_positive("scenario.arrivals", burst_s=self.burst_s, calm_s=self.calm_s)
        is_allowed = is_number(self.burst_factor, 1.0) or self.burst_factor == float("inf")
        require("scenario.arrivals.burst_factor", self.burst_factor, is_allowed, "at least 1")

    def rates_per_s(self, rate_per_s: float) -> tuple[float, float]:
        """Rate in a burst and in calm that give a mean rate [1/s]."""
        burst_frac = self.burst_s / (self.burst_s + self.calm_s)
        if self.burst_factor == float("inf"):
            return rate_per_s / burst_frac, 0.0
        calm = rate_per_s / (1 + burst_frac * (self.burst_factor - 1))
        return calm * self.burst_factor, calm

    def index_of_dispersion(self, rate_per_s: float) -> float:
        """Long-run variance of counts over their mean: 1 + 2 d^2 p q / ((r1 + r2) rate), with d the rates' difference.

        ``p`` and ``q`` are the shares of time in the states, ``r1`` and ``r2`` the rates of leaving them.
        """
        burst, calm = self.rates_per_s(rate_per_s)
        leaving = 1 / self.burst_s + 1 / self.calm_s
        burst_frac = self.burst_s / (self.burst_s + self.calm_s)
        return 1 + 2 * (burst - calm) ** 2 * burst_frac * (1 - burst_frac) / (leaving * rate_per_s)

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]."""
        burst, calm = self.rates_per_s(rate_per_s)
        n_per_cycle = rate_per_s * (self.burst_s + self.calm_s)
        if n_per_cycle < LEAST_PER_CYCLE:
            raise ConfigError(
                f"scenario.rate (or a part's share of it, by scenario.weights) must bring at least {LEAST_PER_CYCLE:g} "
                f"arrivals in a burst and a calm of scenario.arrivals on average, got {n_per_cycle:.3g}"
            )
        if n_per_cycle > MOST_PER_CYCLE:
            raise ConfigError(
                f"scenario.rate must bring at most {MOST_PER_CYCLE:g} arrivals in a burst and a calm of "
                f"scenario.arrivals on average, which are drawn at once, got {n_per_cycle:.3g}"
            )
        is_burst = bool(rng.random() < self.burst_s / (self.burst_s + self.calm_s))
        start_s = 0.0
        while True:
            spell_s = float(rng.exponential(self.burst_s if is_burst else self.calm_s))
            n = int(rng.poisson((burst if is_burst else calm) * spell_s))
            times_s = start_s + np.sort(rng.random(n)) * spell_s
            if n:
                yield np.rint(times_s * NS_PER_S).astype(np.int64)
            start_s += spell_s
            is_burst = not is_burst


@dataclass(frozen=True, slots=True)
class Modulated:
    """Arrivals under a rate that changes over time: ``base`` in a clock that runs faster when the rate is higher.

    Parameters
    ----------
    base : Arrivals
        What arrivals look like at constant rate; their burstiness survives.
    factors : list of float
        Relative rates at equally spaced times; between them the rate is the mean of its ends, in steps.
    period_s : float
        Time that the factors span [s].
    repeats : bool
        Whether the profile starts again after its period (a day) or stays at its last factor (a ramp).
    """

    base: Arrivals
    factors: list[float]
    period_s: float
    repeats: bool = True

    def __post_init__(self) -> None:
        require_positive("scenario.arrivals", period_s=self.period_s)
        is_allowed = len(self.factors) >= 1 and all(is_number(f, 0.0) for f in self.factors) and sum(self.factors) > 0
        is_allowed = is_allowed and (self.repeats or self.factors[-1] > 0)
        require("scenario.arrivals.factors", self.factors, is_allowed, "numbers >= 0, some (the last of a ramp) > 0")

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]. The mean rate is that of the whole period."""
        factors = np.asarray(self.factors, dtype=np.float64)
        factors = factors / factors.mean()
        step_s = self.period_s / len(factors)
        clock_s = np.concatenate([[0.0], np.cumsum(factors * step_s)])  # operational time at each knot
        real_s = np.arange(len(factors) + 1) * step_s
        for ticks in self.base.times_ns(rate_per_s, rng):
            at_s = ticks / NS_PER_S
            if self.repeats:
                periods, within = np.divmod(at_s, self.period_s)
                times_s = periods * self.period_s + np.interp(within, clock_s, real_s)
            else:
                after = np.maximum(at_s - self.period_s, 0.0) / factors[-1]
                times_s = np.interp(at_s, clock_s, real_s) + after
            yield np.rint(times_s * NS_PER_S).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Arrivals under a rate that swings like a day: peak over trough is ``swing``, and the trough comes first."""

    base: Arrivals
    swing: float
    period_s: float = 86_400.0

    def __post_init__(self) -> None:
        require("scenario.arrivals.swing", self.swing, is_number(self.swing, 1.0), "at least 1 (peak over trough)")
        require_positive("scenario.arrivals", period_s=self.period_s)

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]."""
        depth = (self.swing - 1) / (self.swing + 1)
        steps = 288  # five minutes of a day
        phase = (np.arange(steps) + 0.5) * (2 * np.pi / steps)
        factors = (1 - depth * np.cos(phase)).tolist()
        return Modulated(self.base, factors, self.period_s).times_ns(rate_per_s, rng)


@dataclass(frozen=True, slots=True)
class Ramp:
    """Arrivals whose rate climbs (or falls) linearly for ``ramp_s`` and then stays.

    ``rate`` of the scenario is the mean over the ramp; it starts at ``start_factor`` times that and ends at
    ``2 - start_factor`` times.
    """

    base: Arrivals
    start_factor: float
    ramp_s: float

    def __post_init__(self) -> None:
        is_allowed = is_number(self.start_factor, 0.0, 2.0) and self.start_factor < 2
        require("scenario.arrivals.start_factor", self.start_factor, is_allowed, "at least 0, below 2")
        require_positive("scenario.arrivals", ramp_s=self.ramp_s)

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]."""
        steps = 256
        middle = (np.arange(steps) + 0.5) / steps
        factors = (self.start_factor + 2 * (1 - self.start_factor) * middle).tolist()
        return Modulated(self.base, factors, self.ramp_s, repeats=False).times_ns(rate_per_s, rng)


@dataclass(frozen=True, slots=True)
class Stages:
    """Arrivals at one rate after the other, each for a time: the stages of a load generator.

    ``rate`` of the scenario multiplies all of them. After the last one nobody comes.

    Parameters
    ----------
    base : Arrivals
        What arrivals look like at each rate; it begins anew with each stage.
    stages : list of [float, float]
        Rate and length of each [1/s, s].
    """

    base: Arrivals
    stages: list[list[float]]

    def __post_init__(self) -> None:
        is_allowed = len(self.stages) >= 1 and all(
            len(stage) == 2 and is_number(stage[0], 0.0) and is_number(stage[1], 1e-9) for stage in self.stages
        )
        is_allowed = is_allowed and any(rate > 0 for rate, _ in self.stages)
        require("scenario.arrivals.stages", self.stages, is_allowed, "[rate >= 0, seconds > 0] each, some rate > 0")

    def windows(self, rate_per_s: float) -> list[Stage]:
        """When each stage begins and ends, and its rate."""
        found, begin_ns = [], 0
        for rate, length_s in self.stages:
            end_ns = begin_ns + ns_from_s(float(length_s))
            found.append(Stage(rate * rate_per_s, begin_ns, end_ns))
            begin_ns = end_ns
        return found

    def times_ns(self, rate_per_s: float, rng: np.random.Generator) -> Iterator[Ints]:
        """Arrival times [ns]; they end with the last stage."""
        for stage in self.windows(rate_per_s):
            if not stage.rate:
                continue
            length_ns = stage.end_ns - stage.begin_ns
            for times in self.base.times_ns(stage.rate, rng):
                inside = times[: int(times.searchsorted(length_ns))]
                if len(inside):
                    yield stage.begin_ns + inside
                if len(inside) < len(times):
                    break


def stages_of_arrivals(arrivals: Arrivals, rate_per_s: float) -> list[Stage]:
    """The stages in which some arrivals come; none where they come in none."""
    return arrivals.windows(rate_per_s) if isinstance(arrivals, Stages) else []

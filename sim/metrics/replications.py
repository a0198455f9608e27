"""What several runs that differ in nothing but their random numbers say together: means, intervals, differences."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.metrics.latency import Bools, Floats
from sim.metrics.slo import LIMITS
from sim.metrics.summary import PERCENTILES, Measures
from sim.record import Ints, Result

CONFIDENCE = 0.95
BEYOND = 10
"""Requests that must lie beyond a percentile for it to be more than a few of them: as many as a p99 of 1,000 has."""
MSER_BATCH = 5
FEWEST_BATCHES = 10  # of a series that a beginning is cut off
SEED = "kvtwin.seed"


class Estimate(NamedTuple):
    """A mean over replications, and how far the true one may be off it with 95 % confidence."""

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        """Where the interval begins."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Where it ends."""
        return self.mean + self.half_width

    @property
    def is_significant(self) -> bool:
        """Of a difference: whether it is one, rather than chance."""
        return abs(self.mean) > self.half_width


def estimate(values: Sequence[float] | Floats) -> Estimate:
    """The mean of independent values, one a replication, with Student's t interval.

    Examples
    --------
    >>> estimate([9.0, 10.0, 11.0])
    Estimate(mean=10.0, half_width=2.484..., n=3)

    References
    ----------
    Law, "Simulation Modeling and Analysis", 5th ed., section 4.5, equation 4.12.
    """
    from scipy.special import stdtrit

    known = np.asarray(values, dtype=np.float64)
    n = len(known)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 values, got {n}")
    error = float(known.std(ddof=1)) / sqrt(n)
    return Estimate(float(known.mean()), float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2.0)) * error, n)


def paired(values: Sequence[float] | Floats, others: Sequence[float] | Floats) -> Estimate:
    """How much higher values are than those of the same replications of another configuration.

    Both have seen the same random numbers, so that what chance does to both alike is not in the difference.

    Examples
    --------
    >>> paired([10.0, 20.0, 30.0], [11.0, 21.0, 31.0])
    Estimate(mean=-1.0, half_width=0.0, n=3)

    References
    ----------
    Law, "Simulation Modeling and Analysis", 5th ed., section 10.2.1: the paired-t confidence interval.
    """
    return estimate(np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64))


def warm_up(series: npt.ArrayLike) -> tuple[int, bool]:
    """How many observations at the beginning of a series are not like the rest, and whether it settles at all.

    Means of 5 observations are cut from the front until the squared standard error of what is left is least. A minimum
    in the second half means that the series does not settle: half of it is cut, and said not to.

    References
    ----------
    White, Cobb, Spratt, "A comparison of five steady-state truncation heuristics for simulation", WSC 2000: MSER-5.
    """
    known = np.asarray(series, dtype=np.float64)
    known = known[: len(known) // MSER_BATCH * MSER_BATCH]
    batches = known.reshape(-1, MSER_BATCH).mean(axis=1)
    k = len(batches)
    if k < FEWEST_BATCHES:
        return 0, True
    left = np.arange(k, 0, -1)  # batches that a cut before each leaves
    centred = batches - batches.mean()
    total, squares = (np.cumsum(x[::-1])[::-1] for x in (centred, centred**2))
    error = np.maximum(squares - total**2 / left, 0.0) / left**2
    best = int(np.argmin(error[: k - FEWEST_BATCHES // 2 + 1]))  # the last few agree by chance
    return min(best, k // 2) * MSER_BATCH, best <= k // 2


class Course(NamedTuple):
    """A run's requests in order of arrival: arrays of shape (n_requests,)."""

    latency_ms: Mapping[str, Floats]
    prompt_tokens: Ints
    cached_tokens: Ints
    is_good: Bools


def course(result: Result, measures: Measures) -> Course:
    """What `steady` needs of a run, which is little of its result."""
    requests = result.requests
    order = np.argsort(requests.column("arrival_ns"), kind="stable")
    return Course(
        {name: values[order] for name, values in measures.latency_ms.items()},
        requests.column("prompt_tokens")[order],
        requests.column("cached_tokens")[order],
        measures.is_good[order],
    )


class Steady(NamedTuple):
    """What is left of replications when their warm-up is cut off."""

    n_cut: int  # requests, of each
    is_settled: bool
    numbers: list[dict[str, float]]  # of each


def steady(courses: Sequence[Course]) -> Steady:
    """The warm-up of all replications, cut off each, and numbers of the requests after it.

    It ends where time to first token and time per output token have both settled, on average over the replications:
    cut off each by its own numbers it would end where that one happens to be fast, and intervals would miss the truth.
    """
    n = min(len(one.is_good) for one in courses)
    cut, is_settled = 0, True
    for name in ("ttft_ms", "tpot_ms"):
        stacked = np.array([one.latency_ms[name][:n] for one in courses])
        known = ~np.isnan(stacked)
        places = np.flatnonzero(known.any(axis=0))
        mean = np.where(known, stacked, 0.0).sum(axis=0)[places] / known.sum(axis=0)[places]
        n_cut, has_ended = warm_up(mean)
        is_settled &= has_ended
        cut = max(cut, int(places[n_cut]) if n_cut else 0)
    return Steady(cut, is_settled, [_after(cut, one) for one in courses])


def _after(cut: int, one: Course) -> dict[str, float]:
    """Numbers of the requests after so many; those that are undefined are left out."""
    numbers: dict[str, float] = {"requests": float(len(one.is_good) - cut)}
    for name in LIMITS:
        values = one.latency_ms[name][cut:]
        values = values[~np.isnan(values)]
        if len(values):
            found = np.percentile(values, [50, *PERCENTILES])
            names = ("mean", "median", *(f"p{q}" for q in PERCENTILES))
            numbers |= {f"{key}_{name}": float(x) for key, x in zip(names, (values.mean(), *found), strict=True)}
    n_prompt = int(one.prompt_tokens[cut:].sum())
    if n_prompt:
        numbers["prefix_hit_frac"] = int(one.cached_tokens[cut:].sum()) / n_prompt
    if cut < len(one.is_good):
        numbers["slo_attainment_frac"] = float(one.is_good[cut:].mean())
    return numbers


def numbers_in(summary: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All numbers of a summary by dotted key."""
    found: dict[str, float] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            found |= numbers_in(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            found[f"{prefix}{key}"] = float(value)
    return found


def doubts(runs: Sequence[Mapping[str, float]], is_settled: bool) -> list[str]:
    """What a reader must know before trusting intervals of runs with such numbers."""
    said = []
    fewest = int(min(run["completed"] for run in runs))
    thin = [q for q in (50, *PERCENTILES) if fewest * (100 - q) < 100 * BEYOND]
    if thin:
        needed = " and ".join(f"{100 * BEYOND // (100 - q):,} for p{q}" for q in dict.fromkeys((thin[0], thin[-1])))
        said.append(
            f"Percentiles from p{thin[0]} on rest on too few: of {fewest:,} requests a replication fewer than {BEYOND} "
            f"lie beyond. It takes {needed}."
        )
    if not is_settled:
        said.append(
            "The replications do not settle: latencies still change in their second half, so longer runs have other "
            "ones. An overload does that, and traffic that comes and goes."
        )
    if all({**run, SEED: 0.0} == {**runs[0], SEED: 0.0} for run in runs):
        said.append("All replications are the same: this traffic has no random numbers.")
    return said

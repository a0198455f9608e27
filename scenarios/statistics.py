"""Numbers that say what traffic is like: lengths, arrivals, distances to distributions. Pure functions of arrays."""

from dataclasses import dataclass

import numpy as np

from scenarios.distributions import Distribution, Floats, Ints
from sim.units import NS_PER_S


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity's distribution in numbers."""

    n: int
    mean: float
    p10: float
    p50: float
    p90: float
    p99: float
    most: float


def spread(values: Floats | Ints) -> Spread:
    """Count, mean, percentiles (linear between samples, as numpy's) and maximum."""
    p10, p50, p90, p99 = (float(p) for p in np.percentile(values, [10, 50, 90, 99]))
    return Spread(len(values), float(np.mean(values)), p10, p50, p90, p99, float(np.max(values)))


@dataclass(frozen=True, slots=True)
class ArrivalStats:
    """How requests are spread over time."""

    span_s: float  # from the first to the last
    rate_per_s: float  # requests over span
    gap_cv: float  # standard deviation of gaps over their mean; 1 for Poisson
    dispersion: dict[float, float]  # by window [s]: variance of counts over their mean; 1 for Poisson
    peak_over_mean: float  # busiest whole minute over the mean minute
    n_instants: int  # distinct arrival times
    bucket_s: float | None  # time between them, where the trace rounds several requests into each [s]


def arrival_stats(arrival_ns: Ints, windows_s: tuple[float, ...] = (1.0, 10.0, 60.0)) -> ArrivalStats | None:
    """Statistics of arrival times in order; None where all requests arrive at once.

    The index of dispersion counts windows from the first arrival, the last, shorter one included.
    """
    at_s = (arrival_ns - arrival_ns[0]) / NS_PER_S
    span_s = float(at_s[-1])
    if span_s <= 0:
        return None
    gaps = np.diff(at_s)
    n_minutes = max(1, int(span_s // 60))
    whole_minutes = busy_windows(at_s[at_s < 60.0 * n_minutes], 60.0)
    instants = np.unique(arrival_ns)
    is_rounded = len(instants) < len(arrival_ns) / 2
    return ArrivalStats(
        span_s,
        len(at_s) / span_s,
        float(gaps.std() / gaps.mean()),
        {window: dispersion_of(at_s, window) for window in windows_s},
        float(whole_minutes.max() * n_minutes / whole_minutes.sum()),
        len(instants),
        float(np.median(np.diff(instants))) / NS_PER_S if is_rounded else None,
    )


def busy_windows(at_s: Floats, window_s: float) -> Ints:
    """Arrivals in each of the consecutive windows that have any: as many numbers as arrivals, however long the span."""
    return np.unique(at_s // window_s, return_counts=True)[1].astype(np.int64)


def dispersion_of(at_s: Floats, window_s: float) -> float:
    """Index of dispersion of arrivals per window, from the first to the last one's; those without any are counted.

    Examples
    --------
    >>> dispersion_of(np.array([0.0, 1.0, 1.0, 3.0]), 1.0)
    0.5
    """
    busy = busy_windows(at_s, window_s)
    n_windows = int(at_s[-1] // window_s) + 1
    mean = int(busy.sum()) / n_windows
    squares = float(((busy - mean) ** 2).sum()) + (n_windows - len(busy)) * mean**2
    return squares / n_windows / mean


def correlation(x: Ints, y: Ints) -> tuple[float, float] | None:
    """Pearson's and Spearman's correlation; None where one of the two never varies."""
    from scipy.stats import rankdata

    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    return float(np.corrcoef(x, y)[0, 1]), float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def ks_distance(values: Floats | Ints, of: Distribution, step: float = 0.0) -> float:
    """Kolmogorov and Smirnov's distance: the largest gap between the samples' distribution function and another.

    Parameters
    ----------
    values : array, shape (n,)
    of : Distribution
    step : float
        What the samples were rounded to: 1 for tokens, which the distributions here draw as real numbers and then
        round; 0 for real numbers.

    Examples
    --------
    >>> from scenarios.distributions import UniformInteger
    >>> ks_distance(np.array([1, 2, 3, 4]), UniformInteger(1, 4), step=1.0)
    0.0
    """
    x, n_equal = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    at_or_below = np.cumsum(n_equal) / n_equal.sum()
    below = at_or_below - n_equal / n_equal.sum()
    return float(max(np.abs(of.cdf(x + step / 2) - at_or_below).max(), np.abs(of.cdf(x - step / 2) - below).max()))

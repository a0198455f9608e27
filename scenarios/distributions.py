"""Distributions of one quantity, each with its mean, variance and distribution function.

They say nothing of units: lengths are tokens, gaps are seconds, and the key that holds a distribution says which.
"""

from dataclasses import dataclass, field
from math import exp, gamma, inf, log, sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sim.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_SHOWN = 80  # characters of a wrong value in a message
NORMAL_P90 = 1.2815515655446004  # 90 % quantile of the standard normal distribution


def require(key: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Refuse a configured value: ``key must be allowed, got value``."""
    if not is_allowed:
        got = repr(value)
        raise ConfigError(f"{key} must be {allowed}, got {got if len(got) <= MAX_SHOWN else got[:MAX_SHOWN] + '…'}")


def require_room(key: str, n: int, most: int, what: str, raised_by: str) -> None:
    """Refuse what would take all memory before anything is said, unless its user raises the cap."""
    if n > most:
        raise ConfigError(
            f"{key} asks for {n:,} {what}, all held in memory before the first request; {raised_by}={n} allows it"
        )


def is_number(value: object, low: float = -inf, high: float = inf) -> bool:
    """Whether a value is a finite number between low and high; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value <= high and abs(value) < inf


def require_positive(owner: str, **values: float) -> None:
    """Refuse values that are not finite and positive, naming ``owner.key``."""
    for key, value in values.items():
        require(f"{owner}.{key}", value, is_number(value) and value > 0, "a finite number > 0")


class Distribution(Protocol):
    """A random quantity."""

    @property
    def mean(self) -> float:
        """Expected value."""
        ...

    @property
    def variance(self) -> float:
        """Expected squared distance from the mean."""
        ...

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, shape (n,)."""
        ...

    def cdf(self, x: Floats) -> Floats:
        """Probability of a value of at most ``x``, elementwise."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same value."""

    value: float

    def __post_init__(self) -> None:
        require("constant.value", self.value, is_number(self.value, 0.0), "a finite number >= 0")

    @property
    def mean(self) -> float:
        """The value."""
        return self.value

    @property
    def variance(self) -> float:
        """Nothing varies."""
        return 0.0

    def draw(self, rng: np.random.Generator, n: int) -> Floats:  # noqa: ARG002  (the protocol's signature)
        """The value, n times."""
        return np.full(n, float(self.value))

    def cdf(self, x: Floats) -> Floats:
        """A step at the value."""
        return (np.asarray(x) >= self.value).astype(np.float64)


@dataclass(frozen=True, slots=True)
class UniformInteger:
    """Whole numbers from ``low`` to ``high``, both included, equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        is_whole = isinstance(self.low, int) and isinstance(self.high, int)
        require("uniform.low", self.low, is_whole and self.low >= 0, "a whole number >= 0")
        require("uniform.high", self.high, self.high >= self.low, f"at least uniform.low ({self.low})")

    @property
    def mean(self) -> float:
        """The middle."""
        return (self.low + self.high) / 2

    @property
    def variance(self) -> float:
        """Of n equally likely neighbours: (n^2 - 1) / 12."""
        return ((self.high - self.low + 1) ** 2 - 1) / 12

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, shape (n,)."""
        return rng.integers(self.low, self.high + 1, n).astype(np.float64)

    def cdf(self, x: Floats) -> Floats:
        """A staircase."""
        return np.clip((np.floor(x) - self.low + 1) / (self.high - self.low + 1), 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lognormal, given by its median and its 90 % quantile, as measurements of gaps are published."""

    median: float
    p90: float

    def __post_init__(self) -> None:
        require_positive("lognormal", median=self.median, p90=self.p90)
        require("lognormal.p90", self.p90, self.p90 > self.median, f"above lognormal.median ({self.median})")

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return log(self.p90 / self.median) / NORMAL_P90

    @property
    def mean(self) -> float:
        """Median * exp(sigma^2 / 2)."""
        return self.median * exp(self.sigma**2 / 2)

    @property
    def variance(self) -> float:
        """Mean^2 * (exp(sigma^2) - 1)."""
        return self.mean**2 * (exp(self.sigma**2) - 1)

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, shape (n,)."""
        return rng.lognormal(log(self.median), self.sigma, n)

    def cdf(self, x: Floats) -> Floats:
        """Normal distribution function of the logarithm."""
        return _lognormal_cdf(x, log(self.median), self.sigma)


def _lognormal_cdf(x: Floats, mu: float, sigma: float) -> Floats:
    from scipy.special import ndtr

    z = (np.log(np.maximum(x, np.finfo(float).tiny)) - mu) / sigma
    values: Floats = ndtr(z)
    return values


@dataclass(frozen=True, slots=True)
class LogNormalMixture:
    """Several lognormals, each with a weight: what fits lengths of real prompts and answers.

    Parameters
    ----------
    weights : list of float
        Shares of the components; published to three digits, so a sum within 1 % of 1 is normalised.
    mus, sigmas : list of float
        Mean and standard deviation of each component's logarithm.
    """

    weights: list[float]
    mus: list[float]
    sigmas: list[float]

    def __post_init__(self) -> None:
        n = len(self.weights)
        require("mixture.mus", self.mus, len(self.mus) == n and n >= 1, f"{n} numbers, as many as mixture.weights")
        require("mixture.sigmas", self.sigmas, len(self.sigmas) == n, f"{n} numbers, as many as mixture.weights")
        require("mixture.weights", self.weights, abs(sum(self.weights) - 1) < 0.01, "shares that sum to 1")
        for weight, mu, sigma in zip(self.weights, self.mus, self.sigmas, strict=True):
            require_positive("mixture", weights=weight, sigmas=sigma)
            require("mixture.mus", mu, is_number(mu), "finite numbers")

    @property
    def shares(self) -> Floats:
        """Weights that sum to exactly 1."""
        weights = np.asarray(self.weights, dtype=np.float64)
        return np.asarray(weights / weights.sum())

    def _moment(self, order: int) -> float:
        mu, sigma = np.asarray(self.mus), np.asarray(self.sigmas)
        return float(self.shares @ np.exp(order * mu + order**2 * sigma**2 / 2))

    @property
    def mean(self) -> float:
        """Weighted exp(mu + sigma^2 / 2)."""
        return self._moment(1)

    @property
    def variance(self) -> float:
        """Second moment less the squared mean."""
        return self._moment(2) - self._moment(1) ** 2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, shape (n,)."""
        part = np.searchsorted(np.cumsum(self.shares)[:-1], rng.random(n), side="right")
        with np.errstate(over="ignore"):  # infinite, and bounded by whoever asked
            return np.exp(np.asarray(self.mus)[part] + np.asarray(self.sigmas)[part] * rng.standard_normal(n))

    def cdf(self, x: Floats) -> Floats:
        """Weighted lognormal distribution functions."""
        parts = zip(self.shares, self.mus, self.sigmas, strict=True)
        return np.asarray(sum(share * _lognormal_cdf(x, mu, sigma) for share, mu, sigma in parts))


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma with density proportional to x^(shape - 1) exp(-x / scale)."""

    shape: float
    scale: float

    def __post_init__(self) -> None:
        require_positive("gamma", shape=self.shape, scale=self.scale)

    @property
    def mean(self) -> float:
        """Shape * scale."""
        return self.shape * self.scale

    @property
    def variance(self) -> float:
        """Shape * scale^2."""
        return self.shape * self.scale**2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, shape (n,)."""
        return rng.gamma(self.shape, self.scale, n)

    def cdf(self, x: Floats) -> Floats:
        """Regularised lower incomplete gamma function."""
        from scipy.special import gammainc

        values: Floats = gammainc(self.shape, np.maximum(x, 0.0) / self.scale)
        return values


@dataclass(frozen=True, slots=True)
class Weibull:
    """Weibull with survival function exp(-(x / scale)^shape)."""

    shape: float
    scale: float

    def __post_init__(self) -> None:
        require_positive("weibull", shape=self.shape, scale=self.scale)

    @property
    def mean(self) -> float:
        """Scale * gamma(1 + 1 / shape)."""
        return self.scale * gamma(1 + 1 / self.shape)

    @property
    def variance(self) -> float:
        """Scale^2 * gamma(1 + 2 / shape) less the squared mean."""
        return self.scale**2 * gamma(1 + 2 / self.shape) - self.mean**2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, shape (n,)."""
        return self.scale * rng.weibull(self.shape, n)

    def cdf(self, x: Floats) -> Floats:
        """One less the survival function."""
        return -np.expm1(-((np.maximum(x, 0.0) / self.scale) ** self.shape))


@dataclass(frozen=True, slots=True)
class Turns:
    """Turns of a session: one in ``single_frac`` of them, else two or more, geometric with mean ``mean_if_more``."""

    single_frac: float
    mean_if_more: float

    def __post_init__(self) -> None:
        require("turns.single_frac", self.single_frac, is_number(self.single_frac, 0.0, 1.0), "between 0 and 1")
        require("turns.mean_if_more", self.mean_if_more, is_number(self.mean_if_more, 2.0), "at least 2 [turns]")

    @property
    def _stop_frac(self) -> float:
        return 1 / (self.mean_if_more - 1)

    @property
    def mean(self) -> float:
        """Turns per session."""
        return self.single_frac + (1 - self.single_frac) * self.mean_if_more

    @property
    def variance(self) -> float:
        """Second moment less the squared mean."""
        spread = (1 - self._stop_frac) / self._stop_frac**2
        second = self.single_frac + (1 - self.single_frac) * (spread + self.mean_if_more**2)
        return second - self.mean**2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, whole numbers >= 1, shape (n,)."""
        more = 1.0 + rng.geometric(self._stop_frac, n)
        return np.where(rng.random(n) < self.single_frac, 1.0, more)

    def cdf(self, x: Floats) -> Floats:
        """A staircase."""
        k = np.floor(x)
        more = 1 - (1 - self._stop_frac) ** np.maximum(k - 1, 0)
        return np.where(k < 1, 0.0, self.single_frac + (1 - self.single_frac) * more)


@dataclass(slots=True)
class Empirical:
    """Values of one column of a CSV file, drawn with replacement; the file is read at the first use."""

    path: str
    column: str
    _values: Floats | None = field(init=False, default=None, repr=False, compare=False)

    @property
    def values(self) -> Floats:
        """The column, sorted.

        Raises
        ------
        TraceError
            If the file or the column cannot be read.
        """
        if self._values is None:
            from scenarios.traces.column import column

            self._values = np.sort(column(self.path, self.column))
        return self._values

    @property
    def mean(self) -> float:
        """Of the column."""
        return float(self.values.mean())

    @property
    def variance(self) -> float:
        """Of the column."""
        return float(self.values.var())

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Independent samples, shape (n,)."""
        return rng.choice(self.values, n)

    def cdf(self, x: Floats) -> Floats:
        """Share of the column at or below x."""
        return np.searchsorted(self.values, x, side="right") / len(self.values)


def coefficient_of_variation(of: Distribution) -> float:
    """Standard deviation over mean."""
    return sqrt(of.variance) / of.mean

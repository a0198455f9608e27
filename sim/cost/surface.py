"""The formula of a kernel's time that is fitted and served: a roofline with soft corners times a learnt correction.

    seconds = (sum over kinds of work of (work / rate)^p + floor^p)^(1/p) * exp(residual(features))

The roofline carries the physics, so that it extrapolates sanely; the residual, the mean of a Gaussian process over the
logarithms of the shape, carries what it misses (caches, tiles, waves of blocks). Residuals of training data are
compressed into inducing points, which is what a profile holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import ProfileError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SoftRoofline:
    """Time as the p-norm of what each resource alone would take, and of a floor.

    ``rates`` maps a kind of work to how much of it is done per second; ``p`` 1 adds, a large ``p`` takes the maximum.
    """

    rates: Mapping[str, float]  # [work/s]
    floor_s: float
    p: float

    def seconds(self, work: Mapping[str, Array]) -> Array:
        """Time of amounts of work, one array of the same shape per kind [s]."""
        total = self.floor_s**self.p + sum((work[kind] / rate) ** self.p for kind, rate in self.rates.items())
        result: Array = np.asarray(total, dtype=np.float64) ** (1.0 / self.p)
        return result


def soft_s(moved_s: float, floor_s: float, p: float) -> float:
    """A time and a floor under it, with a soft corner [s]."""
    total: float = (moved_s**p + floor_s**p) ** (1.0 / p)
    return total


def matern32(x: Array, points: Array) -> Array:
    """Correlation (1 + sqrt(3) d) exp(-sqrt(3) d) at distance d, shapes (n, f), (m, f) -> (n, m).

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.17.
    """
    squared = (x**2).sum(1)[:, None] + (points**2).sum(1)[None, :] - 2.0 * x @ points.T
    scaled = np.sqrt(3.0 * np.maximum(squared, 0.0))
    result: Array = (1.0 + scaled) * np.exp(-scaled)
    return result


@lru_cache(maxsize=64)
def expected(x: bytes, points: bytes, weights: bytes, n_axes: int) -> Array:
    """Mean of a Gaussian process at ``x``, by the bytes of arrays (n, n_axes), (m, n_axes), (m,): shape (n,).

    Kept, because every point of a sweep asks for the tables of the same profile, and they take a tenth of a second.
    """
    at, inducing, by = (np.frombuffer(one, dtype=np.float64) for one in (x, points, weights))
    at, inducing = at.reshape(-1, n_axes), inducing.reshape(-1, n_axes)
    blocks = [matern32(at[i : i + 4096], inducing) @ by for i in range(0, len(at), 4096)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


@dataclass(frozen=True, slots=True)
class Residual:
    """Mean of a Gaussian process over ``log2(axis + shift)`` of each axis of a shape."""

    axes: tuple[str, ...]
    shifts: tuple[float, ...]
    length_scales: tuple[float, ...]  # in octaves
    points: Array  # inducing points in the axes' own units, shape (m, n_axes)
    weights: Array  # shape (m,)

    def features(self, shape: Mapping[str, Array]) -> Array:
        """Scaled coordinates of shapes, (n, n_axes)."""
        columns = [
            np.log2(np.asarray(shape[axis], dtype=np.float64) + shift) / scale
            for axis, shift, scale in zip(self.axes, self.shifts, self.length_scales, strict=True)
        ]
        return np.stack(columns, axis=-1)

    def __call__(self, shape: Mapping[str, Array]) -> Array:
        """Log of measured over roofline time, expected at shapes; (n,)."""
        points = self.features({axis: self.points[:, i] for i, axis in enumerate(self.axes)})
        x = self.features(shape)
        weights = np.asarray(self.weights, dtype=np.float64)
        return expected(x.tobytes(), points.tobytes(), weights.tobytes(), len(self.axes)).copy()


@dataclass(frozen=True, slots=True)
class StandardError:
    """Standard deviation of the log of measured over predicted time, against the predicted time.

    Straight lines between ``knots_s``, constant outside: short kernels are the less certain ones. Fitted on data kept
    out of the fit, so it holds what the formula gets wrong as well as the noise of the measurement.
    """

    knots_s: tuple[float, ...]
    log_sd: tuple[float, ...]

    def __call__(self, seconds: Array) -> Array:
        """Standard error of predictions of ``seconds``, as a fraction of them."""
        logs = np.log(np.maximum(seconds, 1e-12))
        result: Array = np.interp(logs, np.log(self.knots_s), self.log_sd)
        return result


@dataclass(frozen=True, slots=True)
class Surface:
    """Time of one operation over its shapes, as a profile holds it."""

    roofline: SoftRoofline | None  # None: the residual corrects another surface's time
    residual: Residual
    error: StandardError

    def seconds(self, shape: Mapping[str, Array], work: Mapping[str, Array] | None = None) -> Array:
        """Time [s] of shapes (arrays by axis) that do ``work`` (arrays by kind); without a roofline a factor."""
        correction = np.exp(self.residual(shape))
        if self.roofline is None:
            return correction
        if work is None:
            raise ProfileError("a surface with a roofline needs the work of the shapes")
        seconds: Array = self.roofline.seconds(work) * correction
        return seconds


def surface_from(form: Mapping[str, Any]) -> Surface:
    """The surface that an operation of a profile describes.

    Raises
    ------
    ProfileError
        If a key is missing or the arrays do not fit together.
    """
    try:
        line, learnt = form["roofline"], form["residual"]
        residual = Residual(
            axes=tuple(learnt["axes"]),
            shifts=tuple(learnt["shifts"]),
            length_scales=tuple(learnt["length_scales"]),
            points=np.array(learnt["points"], dtype=np.float64).reshape(-1, len(learnt["axes"])),
            weights=np.array(learnt["weights"], dtype=np.float64),
        )
        roofline = None if line is None else roofline_from(form)
        spread = error_from(form)
    except (KeyError, TypeError, ValueError) as problem:
        raise ProfileError(f"a fitted operation lacks or garbles {problem}; run step=fit again") from None
    if len(residual.points) != len(residual.weights):
        raise ProfileError(f"{len(residual.points)} inducing points but {len(residual.weights)} weights; run step=fit")
    return Surface(roofline, residual, spread)


def roofline_from(form: Mapping[str, Any]) -> SoftRoofline:
    """The roofline of an operation of a profile."""
    line = form["roofline"]
    return SoftRoofline(dict(line["rates"]), line["floor_s"], line["p"])


def error_from(form: Mapping[str, Any]) -> StandardError:
    """How far an operation of a profile may be off."""
    error = form["standard_error"]
    return StandardError(tuple(error["knots_s"]), tuple(error["log_sd"]))


def monotone(values: Array) -> Array:
    """The values made non-decreasing along every axis: midway between the running maximum and the minimum to come.

    Changes nothing where they already are; what is changed is noise of the measurement and of the fit.

    Examples
    --------
    >>> monotone(np.array([1.0, 3.0, 2.0, 4.0])).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    for axis in range(values.ndim):
        rising = np.maximum.accumulate(values, axis=axis)
        falling = np.flip(np.minimum.accumulate(np.flip(values, axis=axis), axis=axis), axis=axis)
        values = (rising + falling) / 2.0
    return values

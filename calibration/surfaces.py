"""Fit one operation: a soft roofline first, then a Gaussian process of what it leaves over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.gp import Process, condense, learn
from sim.cost.surface import SoftRoofline

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

START_RATES = {
    # where the search for rates starts, in work per second: of no consequence for where it ends
    "flops": 1e14,
    "padded_flops": 1e14,
    "bytes": 1e12,
    "blocks": 1e7,
    "serial_tokens": 5e7,
    "pieces": 1e6,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How an operation is fitted: axes of its residual with their shifts, kinds of work, number of inducing points."""

    axes: tuple[str, ...]
    shifts: tuple[float, ...]
    kinds: tuple[str, ...]  # of work, in the roofline; none: the residual corrects another surface
    n_points: int


def fit_roofline(work: Mapping[str, Array], seconds: Array, kinds: Sequence[str]) -> SoftRoofline:
    """Rates, floor and exponent that fit the logarithms of times best, outliers damped."""
    from scipy.optimize import least_squares

    logs = np.log(seconds)
    some = np.random.default_rng(0).permutation(len(logs))[:4000]

    def line(theta: Array) -> SoftRoofline:
        rates = {kind: float(x) for kind, x in zip(kinds, np.exp(theta[:-2]), strict=True)}
        return SoftRoofline(rates, float(np.exp(theta[-2])), float(np.exp(theta[-1])))

    def residual(theta: Array) -> Array:
        result: Array = np.log(line(theta).seconds({kind: work[kind][some] for kind in kinds})) - logs[some]
        return result

    floor = np.log(seconds.min())
    start = np.array([*(np.log(START_RATES[kind]) for kind in kinds), floor, np.log(2.0)])
    low = np.array([*([0.0] * len(kinds)), floor - 5.0, 0.0])
    high = np.array([*([60.0] * len(kinds)), floor + 3.0, np.log(8.0)])
    found = line(least_squares(residual, start, bounds=(low, high), loss="soft_l1", f_scale=0.1, max_nfev=200).x)
    form = roofline_json(found)  # rounded as a profile has it: what is learnt on top is learnt on what is served
    return SoftRoofline(form["rates"], form["floor_s"], form["p"])


def plain_roofline(work: Mapping[str, Array], seconds: Array, kinds: Sequence[str]) -> Array:
    """Times by the plain roofline t0 + max(work / rate), fitted likewise: what the soft one is compared with."""
    from scipy.optimize import least_squares

    logs = np.log(seconds)

    def predict(theta: Array) -> Array:
        each = [work[kind] / np.exp(x) for kind, x in zip(kinds, theta, strict=False)]
        result: Array = np.exp(theta[-1]) + np.max(each, axis=0)
        return result

    start = np.array([*(np.log(START_RATES[kind]) for kind in kinds), np.log(seconds.min())])
    found = least_squares(lambda theta: np.log(predict(theta)) - logs, start, loss="soft_l1", f_scale=0.1, max_nfev=200)
    return np.asarray(found.x)


def fit_residual(plan: Plan, shape: Mapping[str, Array], logs: Array, rng: np.random.Generator) -> dict[str, Any]:
    """Gaussian process over log residuals, as the profile's JSON has it."""
    x = np.log2(columns_of(plan.axes, shape) + np.array(plan.shifts))
    process = learn(x, logs, rng)
    learnt = {
        "axes": list(plan.axes),
        "shifts": list(plan.shifts),
        "length_scales": [round(float(scale), 4) for scale in process.length_scales],
        "signal_sd": round(float(np.sqrt(process.variance)), 5),
        "noise_sd": round(float(np.sqrt(process.noise)), 5),
        "n_points": plan.n_points,
    }
    return condensed(learnt, shape, logs)


def condensed(learnt: Mapping[str, Any], shape: Mapping[str, Array], logs: Array) -> dict[str, Any]:
    """A learnt residual told from these rows, its hyperparameters as they are.

    So a fit scored on rows kept out of it becomes one of all rows, and the other way round.
    """
    columns = columns_of(learnt["axes"], shape)
    process = Process(np.array(learnt["length_scales"]), learnt["signal_sd"] ** 2, learnt["noise_sd"] ** 2)
    chosen, weights = condense(process, np.log2(columns + np.array(learnt["shifts"])), logs, learnt["n_points"])
    return {
        **learnt,
        "points": [[int(v) if v == int(v) else float(f"{v:.4g}") for v in row] for row in columns[chosen]],
        "weights": [float(f"{w:.7g}") for w in weights],  # neighbours nearly cancel: fewer digits would be noise
    }


def columns_of(axes: Sequence[str], shape: Mapping[str, Array]) -> Array:
    """Shapes as an array, (n, n_axes)."""
    return np.stack([np.asarray(shape[axis], dtype=np.float64) for axis in axes], axis=1)


def standard_error(predicted_s: Array, measured_s: Array, n_knots: int = 6) -> dict[str, list[float]]:
    """Spread of log errors against the predicted time: root mean square in bins of equally many points.

    Points must be ones the fit has not seen.
    """
    order = np.argsort(predicted_s)
    logs = np.log(predicted_s[order] / measured_s[order])
    bins = np.array_split(np.arange(len(logs)), max(1, min(n_knots, len(logs) // 20)))
    return {
        "knots_s": [float(f"{np.exp(np.log(predicted_s[order][b]).mean()):.4g}") for b in bins],
        "log_sd": [float(f"{np.sqrt((logs[b] ** 2).mean()):.3g}") for b in bins],
    }


def roofline_json(line: SoftRoofline) -> dict[str, Any]:
    """A roofline as the profile's JSON has it: rates in work per second, floor in seconds."""
    return {
        "rates": {kind: float(f"{rate:.6g}") for kind, rate in line.rates.items()},
        "floor_s": float(f"{line.floor_s:.6g}"),
        "p": round(line.p, 5),
    }

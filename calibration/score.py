"""How far predictions are off."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def relative_errors(predicted_s: Array, measured_s: Array) -> Array:
    """|predicted / measured - 1|, elementwise, as fractions."""
    result: Array = np.abs(predicted_s / measured_s - 1.0)
    return result


def score(predicted_s: Array, measured_s: Array) -> dict[str, Any]:
    """Mean, median and 90th percentile of relative errors, bias, and number of points."""
    if not len(measured_s):
        return {"n": 0, "mape": None, "median": None, "p90": None, "bias": None}
    errors = relative_errors(predicted_s, measured_s)
    return {
        "n": len(errors),
        "mape": round(float(errors.mean()), 5),
        "median": round(float(np.median(errors)), 5),
        "p90": round(float(np.quantile(errors, 0.9)), 5),
        "bias": round(float((predicted_s / measured_s).mean() - 1.0), 5),
    }

"""Curves of layers measured whole: time against tokens, or against sequences."""

from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.score import score
from calibration.split import held_out
from sim.cost.dense import CALLS, Curve
from sim.cost.surface import monotone

Array = npt.NDArray[np.float64]
Form = dict[str, Any]


def fit_curve(counts: Array, seconds: Array, seed: int) -> tuple[Form, npt.NDArray[np.bool_], Array]:
    """A monotone curve through all counts; also which were held out on trial, and what a curve without them tells.

    All curves of the same counts hold out the same ones, so that sums over layers are held out too.
    """
    order = np.argsort(counts)
    counts, seconds = counts[order], seconds[order]
    test = held_out("layers", {"count": counts}, seed)
    told = monotone_curve(counts[~test], seconds[~test]).at(counts)
    curve = monotone_curve(counts, seconds)
    form = {
        "knots": list(curve.knots),
        "seconds": list(curve.seconds),
        "error": {"held_out": score(told[test], seconds[test])},
    }
    return form, test, told


def monotone_curve(counts: Array, seconds: Array) -> Curve:
    """A curve through ascending counts."""
    return Curve([int(x) for x in counts], [float(f"{y:.5g}") for y in monotone(seconds)])


def fit_layers(rows: Any, sequence_rows: Any, seed: int) -> Form:
    """Curves of every layer, and the error of what is served: a decoder layer's sum, and lm_head with sampler.

    Returns
    -------
    dict
        ``curves``: name -> knots (tokens or sequences) and seconds; ``error`` of the sums; ``standard_error`` of the
        sum of a layer.
    """
    curves: Form = {}
    error: Form = {}
    spread: list[float] = []
    for table, count, total in ((rows, "new_tokens", "layer"), (sequence_rows, "decode_seqs", "sequences")):
        test = np.zeros(0, dtype=np.bool_)
        predicted_sum, measured_sum = np.zeros(0), np.zeros(0)
        for name, group in table.groupby("detail", sort=True):
            counts, seconds = group[count].to_numpy(dtype=np.float64), group["seconds"].to_numpy()
            curves[name], test, predicted = fit_curve(counts, seconds, seed)
            times = CALLS.get(name, ("layer", 1))[1] if total == "layer" else 1
            if total == "layer" and CALLS[name][0] != "layer":
                continue
            if not len(predicted_sum):
                predicted_sum, measured_sum = np.zeros(len(counts)), np.zeros(len(counts))
            predicted_sum += times * predicted
            measured_sum += times * seconds[np.argsort(counts)]
        error[total] = score(predicted_sum[test], measured_sum[test])
        spread.append(float(np.sqrt((np.log(predicted_sum[test] / measured_sum[test]) ** 2).mean())))
    return {
        "curves": curves,
        "standard_error": {"layers_log_sd": round(spread[0], 5), "sequences_log_sd": round(spread[1], 5)},
        "range": {
            "new_tokens": [1.0, float(rows["new_tokens"].max())],
            "decode_seqs": [1.0, float(sequence_rows["decode_seqs"].max())],
        },
        "error": {"held_out": error["layer"], "held_out_sequences": error["sequences"]},
    }

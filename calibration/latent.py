"""Fit latent attention: blocks timed whole, their matrices taken off as the device's are served."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.score import score
from calibration.split import held_out
from calibration.surfaces import Plan, condensed, fit_residual, fit_roofline, roofline_json, standard_error
from sim.cost.dense import gemm_curve
from sim.cost.latent import KINDS, SERVED, dimensions, latent_work, tabulated, with_heads
from sim.errors import ProfileError
from sim.spec import DTYPE_BYTES, Mla

Array = npt.NDArray[np.float64]
Form = dict[str, Any]

N_POINTS = 400
LEAST_LEFT = 0.02  # of a block's time: what is left without its matrices; less is noise of both, and not learnt from


def fit_latent(
    name: str,
    rows: Any,
    operations: Mapping[str, Any],
    attention: Mla,
    d_model: int,
    gemm: str,
    kv_dtype: str,
    seed: int,
) -> Form:
    """One operation of `SERVED`, judged on whole blocks held out.

    Parameters
    ----------
    rows : DataFrame
        ``n_seqs``, ``n_tokens`` each, ``n_heads``, ``seconds`` of the whole block.
    operations : mapping
        Of the device's profile: its matrices.
    attention : Mla
        Of the model that was timed.
    gemm : str
        The operation its matrices are served by.
    """
    n, tokens, heads = (rows[axis].to_numpy(dtype=np.float64) for axis in ("n_seqs", "n_tokens", "n_heads"))
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    computed = n if name == "latent_decode" else n * tokens
    matrices, work = np.zeros(len(rows)), {kind: np.empty(len(rows)) for kind in KINDS[name]}
    kv_bytes = DTYPE_BYTES[kv_dtype]
    for n_heads in np.unique(heads):
        at, one = np.flatnonzero(heads == n_heads), with_heads(attention, int(n_heads))
        for matrix in one.gemms(d_model):
            curve = gemm_curve(operations[gemm], matrix.outputs, matrix.inputs, 1.0 if gemm != "gemm" else 2.0, 0.0)
            matrices[at] += curve.at(computed[at])
        for kind, amount in latent_work(one, name, n[at], tokens[at], kv_bytes).items():
            work[kind][at] = amount
    left = seconds - matrices
    is_told = left > LEAST_LEFT * seconds
    if is_told.mean() < 0.5:
        raise ProfileError(f"{name}: matrices alone take longer than most blocks, by the profile's {gemm}")
    axes = (*SERVED[name], "n_heads")
    shape = dict(zip(axes, (n, tokens, heads), strict=True))
    test = held_out(name, shape, seed)
    train = ~test & is_told
    kinds = KINDS[name]
    line = fit_roofline({kind: work[kind][train] for kind in kinds}, left[train], kinds)
    soft = line.seconds(work)
    logs = np.log(np.maximum(left, LEAST_LEFT * seconds) / soft)
    plan = Plan(axes, (0.0,) * len(axes), kinds, N_POINTS)
    rng = np.random.default_rng([seed, 9])
    learnt = fit_residual(plan, {axis: x[train] for axis, x in shape.items()}, logs[train], rng)
    form: Form = {
        "roofline": roofline_json(line),
        "residual": learnt,
        "standard_error": {"knots_s": [1e-6], "log_sd": [0.0]},
        "of": {**dimensions(attention), "d_model": d_model},
        "range": {axis: [float(x.min()), float(x.max())] for axis, x in shape.items()},
    }
    predicted = matrices + serve(name, form, attention, shape, kv_bytes)
    form["standard_error"] = standard_error((predicted - matrices)[test & is_told], left[test & is_told])
    form["error"] = {
        "held_out": score(predicted[test], seconds[test]),
        "training": score(predicted[train], seconds[train]),
        "matrices_alone": score(matrices[test], seconds[test]),
    }
    form["residual"] = condensed(learnt, {axis: x[is_told] for axis, x in shape.items()}, logs[is_told])
    return form


def serve(name: str, form: Form, attention: Mla, shape: Mapping[str, Array], kv_bytes: float) -> Array:
    """What is served beside the matrices for measured blocks: by table, one per number of heads [s]."""
    result = np.empty(len(shape["n_heads"]))
    first, second = SERVED[name]
    for n_heads in np.unique(shape["n_heads"]):
        table = tabulated(name, form, with_heads(attention, int(n_heads)), kv_bytes, 0.0)
        at = np.flatnonzero(shape["n_heads"] == n_heads)
        result[at] = [table(a, b) for a, b in zip(shape[first][at].tolist(), shape[second][at].tolist(), strict=True)]
    return result

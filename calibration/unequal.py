"""Fit what equal batches without cached context do not tell: chunks after a context, unequal sequences, both launches.

Everything is told by the attention the simulator serves (`SeparateAttention`), so an error here is one of a simulation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.points_gpu import read_batch
from calibration.score import score
from calibration.split import held_out
from calibration.surfaces import Plan, condensed, fit_residual, standard_error
from sim.cost.attention import CACHED_AXES, Heads, SeparateAttention
from sim.step import Chunk

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Form = dict[str, Any]
HEADS = ("n_heads", "n_kv_heads", "head_dim")
THIRD = 1.0 / 3.0  # of unequal batches is kept out of the fit
SHIFTS = (0.0, 0.0, 64.0)
UNEQUAL = ("cached_prefill_attention", "ragged_decode_attention", "varlen_prefill_attention", "mixed_launches")


def batch_of(row: Any) -> tuple[tuple[Chunk, ...], list[int]]:
    """Chunks of a measured row, and KV entries read by each of its decoding sequences."""
    if row.detail:
        chunks, decoding = read_batch(row.detail)
        return tuple(chunks), decoding
    return (Chunk(row.new_tokens, row.context_tokens),) * row.prefill_seqs, []


def kept_out(name: str, rows: Any, seed: int) -> Flags:
    """A third of the rows, drawn before anything is fitted."""
    axes = ("prefill_seqs", "new_tokens", "context_tokens", "decode_seqs", "decode_total_tokens", *HEADS)
    return held_out(name, {axis: rows[axis].to_numpy(dtype=np.float64) for axis in axes}, seed, THIRD)


def served_batches(rows: Any, operations: Mapping[str, Any]) -> tuple[Array, Array]:
    """Times of measured batches as served, and tokens of sequences * longest - total times a token's bytes [s], [B].

    Rows were measured without the append of new keys and values, so that is left out.
    """
    operations = {name: form for name, form in operations.items() if name != "append"}
    seconds, gap_bytes = np.zeros(len(rows)), np.zeros(len(rows))
    for key, group in rows.groupby(list(HEADS), sort=True):
        heads = Heads(*(int(x) for x in key))
        attention = SeparateAttention(operations, heads, {})
        for i, row in zip(group.index, group.itertuples(), strict=True):
            chunks, decoding = batch_of(row)
            if chunks:
                seconds[i] += attention.chunks_s(chunks)
            if n := len(decoding):
                gap = n * max(decoding) - sum(decoding)
                gap_bytes[i] = gap * heads.token_bytes()
                seconds[i] += attention.decode_s(n, sum(decoding) / n) + attention.decode_skew_s(n) * gap
    return seconds, gap_bytes


def fit_cached_prefill(rows: Any, operations: Mapping[str, Any], seed: int) -> Form:
    """Factor on the modelled time of chunks after a cached context, over `CACHED_AXES`; 1 without any."""
    test = kept_out("cached_prefill_attention", rows, seed)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    modelled, _ = served_batches(rows, operations)
    plan, rng = Plan(CACHED_AXES, SHIFTS, (), 200), np.random.default_rng([seed, 4])
    everything, _ = cached_shape(rows, modelled, np.zeros_like(test))
    form: Form = {
        "roofline": None,
        "residual": fit_residual(plan, *cached_shape(rows, modelled, test), rng),
        "standard_error": {"knots_s": [1e-6], "log_sd": [0.0]},
        "range": {axis: [float(x.min()), float(x.max())] for axis, x in everything.items()},
    }
    predicted, _ = served_batches(rows, {**operations, "cached_prefill_attention": form})
    at = test if test.any() else ~test  # so few rows that none was drawn
    form["standard_error"] = standard_error(predicted[at], seconds[at])
    form["error"] = {
        "held_out": score(predicted[test], seconds[test]),
        "training": score(predicted[~test], seconds[~test]),
        "compared": {"as_modelled_without_measurement": score(modelled[test], seconds[test])},
    }
    form["residual"] = condensed(form["residual"], *cached_shape(rows, modelled, np.zeros_like(test)))
    return form


def cached_shape(rows: Any, modelled: Array, test: Flags) -> tuple[dict[str, Array], Array]:
    """Chunks not kept out, and each without its context: `CACHED_AXES`, and logarithms of the factor on their time."""
    found = np.stack([rows[axis].to_numpy(dtype=np.float64) for axis in CACHED_AXES], axis=1)
    none = np.unique(found * (1.0, 1.0, 0.0), axis=0)  # without context the factor is 1
    logs = np.log(rows["seconds"].to_numpy(dtype=np.float64) / modelled)
    shape = dict(zip(CACHED_AXES, np.concatenate([found[~test], none]).T, strict=True))
    return shape, np.concatenate([logs[~test], np.zeros(len(none))])


def blinded(name: str, rows: Any, operations: Mapping[str, Any], test: Flags) -> dict[str, Any]:
    """The operations as they were scored: the one of these rows fitted without those kept out."""
    others = {key: form for key, form in operations.items() if key != name}
    form = operations[name]
    if name == "cached_prefill_attention":
        modelled, _ = served_batches(rows, others)
        form = {**form, "residual": condensed(form["residual"], *cached_shape(rows, modelled, test))}
    elif name == "ragged_decode_attention":
        form = {**form, "seconds_per_byte": ragged_slope(rows, *served_batches(rows, others), test)}
    return {**others, name: form}


def ragged_slope(rows: Any, equal: Array, gap_bytes: Array, test: Flags) -> float:
    """Relative least squares of the excess over equal contexts, from rows not kept out [s/B]."""
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    x, y = (gap_bytes / seconds)[~test], ((seconds - equal) / seconds)[~test]
    return float(f"{max(0.0, float(x @ y / (x @ x))) if x.any() else 0.0:.4g}")


def fit_ragged_decode(rows: Any, operations: Mapping[str, Any], seed: int) -> Form:
    """Cost of unequal contexts: seconds per byte of sequences * longest - total, the same for all heads.

    Least squares of the relative excess over the served time of equal contexts with as many tokens.
    """
    test = kept_out("ragged_decode_attention", rows, seed)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    equal, gap_bytes = served_batches(rows, operations)
    predicted = equal + ragged_slope(rows, equal, gap_bytes, test) * gap_bytes
    return {
        "seconds_per_byte": ragged_slope(rows, equal, gap_bytes, np.zeros_like(test)),
        "error": {
            "held_out": score(predicted[test], seconds[test]),
            "compared": {"as_if_equal": score(equal[test], seconds[test])},
        },
    }


def fit_unequal(name: str, rows: Any, operations: Mapping[str, Any], seed: int) -> Form:
    """Batches nothing is fitted to: how far what is served for them is off, and by which factor it would be less.

    Two launches add; how nearly is the factor on their sum, the median over the rows not kept out.
    """
    test = kept_out(name, rows, seed)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    predicted, _ = served_batches(rows, operations)
    factor = float(np.median((seconds / predicted)[~test]))
    return {
        "factor_not_served": round(factor, 4),
        "error": {
            "held_out": score(predicted[test], seconds[test]),
            "compared": {"times_the_factor": score(factor * predicted[test], seconds[test])},
        },
    }

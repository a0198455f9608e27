"""Fit attention: of decoding batches, of prompts, of both in one launch, and what unequal contexts add."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.score import score
from calibration.split import held_out
from calibration.surfaces import (
    Plan,
    condensed,
    fit_residual,
    fit_roofline,
    plain_roofline,
    roofline_json,
    standard_error,
)
from sim.cost.attention import SERVED, SKEW_AXES, Heads, factor_table, tabulate
from sim.cost.surface import surface_from
from sim.cost.table import Space, Table
from sim.cost.work import attention_work

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Form = dict[str, Any]

HEADS = ("n_heads", "n_kv_heads", "head_dim")
SERVED_MEANS, MOST_SPREAD = (500.0, 4_000.0), 4.0
"""Contexts of decoding batches in traffic [tokens], and longest over mean. Source: recorded ShareGPT runs of an RTX PRO
6000 and an RTX 4090, batches of 16 to 128: means from 900 to 2,000, spreads from 1.3 to 3.7."""

SHIFTS = {"context_tokens": 64.0}  # of log2(x + shift): the axis starts at 0
KINDS = {
    "decode_attention": ("bytes", "blocks", "serial_tokens"),
    "prefill_attention": ("flops", "bytes", "serial_tokens"),
    "batched_prefill_attention": ("flops", "bytes", "serial_tokens"),
    "mixed_attention": ("flops", "bytes", "blocks", "serial_tokens"),
}
N_POINTS = {
    "decode_attention": 900,
    "prefill_attention": 250,
    "batched_prefill_attention": 900,
    "mixed_attention": 800,
}


def shape_of(rows: Any, axes: tuple[str, ...]) -> dict[str, Array]:
    """Axes of a surface from the columns of a measurement table."""

    def axis(name: str) -> Array:
        if name == "decode_mean_tokens":
            mean: Array = rows["decode_total_tokens"].to_numpy(dtype=np.float64) / rows["decode_seqs"].to_numpy()
            return mean
        column: Array = rows[name].to_numpy(dtype=np.float64)
        return column

    return {name: axis(name) for name in axes}


def heads_of(rows: Any, kv_bytes: float) -> Heads:
    """The heads that rows of one head shape share."""
    n_heads, n_kv_heads, head_dim = (int(rows[name].iloc[0]) for name in HEADS)
    return Heads(n_heads, n_kv_heads, head_dim, kv_bytes)


def work_of(rows: Any, kv_bytes: float) -> dict[str, Array]:
    """Work of measured attention shapes."""
    names = ("prefill_seqs", "new_tokens", "context_tokens", "decode_seqs", "decode_total_tokens")
    columns = shape_of(rows, (*HEADS, *names, "decode_longest_tokens"))
    return attention_work(kv_bytes=kv_bytes, **columns)


def fit_attention(name: str, rows: Any, kv_bytes: float, seed: int, compare: bool, n_points: int) -> Form:
    """Fit one operation without the rows held out, score it on them as served, and tell it from all rows then.

    Parameters
    ----------
    name : str
        A key of `SERVED`.
    rows : DataFrame
        Its measurements, of one or many head shapes.
    kv_bytes : float
        Per cached element [B].

    Returns
    -------
    dict
        The operation as a profile holds it.
    """
    served = tuple(SERVED[name])
    varying = tuple(head for head in HEADS if rows[head].nunique() > 1)
    axes = (*served, *varying)
    shape, work = shape_of(rows, axes), work_of(rows, kv_bytes)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    test = held_out(name, shape, seed)
    train = ~test
    kinds = KINDS[name]
    line = fit_roofline({kind: work[kind][train] for kind in kinds}, seconds[train], kinds)
    soft = line.seconds(work)
    plan = Plan(axes, tuple(SHIFTS.get(axis, 0.0) for axis in axes), kinds, n_points)
    logs = np.log(seconds / soft)
    rng = np.random.default_rng([seed, 1])
    learnt = fit_residual(plan, {axis: x[train] for axis, x in shape.items()}, logs[train], rng)
    form: Form = {
        "roofline": roofline_json(line),
        "residual": learnt,
        "standard_error": {"knots_s": [1e-6], "log_sd": [0.0]},
        "range": {axis: [float(x.min()), float(x.max())] for axis, x in shape.items()},
    }
    predicted = serve(name, form, rows, kv_bytes)
    at = test if test.any() else train  # so few shapes that none was drawn
    form["standard_error"] = standard_error(predicted[at], seconds[at])
    form["error"] = {
        "held_out": score(predicted[test], seconds[test]),
        "training": score(predicted[train], seconds[train]),
        "thinned_to": len(learnt["weights"]),
    }
    if compare:
        form["error"]["compared"] = compared(shape, work, seconds, test, kinds, soft)
    form["residual"] = condensed(learnt, shape, logs)
    return form


def without(form: Mapping[str, Any], shape: Mapping[str, Array], base: Array, seconds: Array, test: Flags) -> Form:
    """A fitted operation told from all rows but those kept out; ``base`` are times without its residual [s]."""
    kept = {axis: x[~test] for axis, x in shape.items()}
    return {**form, "residual": condensed(form["residual"], kept, np.log(seconds / base)[~test])}


def attention_without(form: Mapping[str, Any], rows: Any, kv_bytes: float, test: Flags) -> Form:
    """`without` for an operation that `fit_attention` made."""
    line = surface_from(form).roofline
    assert line is not None, "attention has a roofline"
    base = line.seconds(work_of(rows, kv_bytes))
    return without(form, shape_of(rows, tuple(form["residual"]["axes"])), base, rows["seconds"].to_numpy(), test)


def serve(name: str, form: Mapping[str, Any], rows: Any, kv_bytes: float) -> Array:
    """Times of measured shapes as the simulator will serve them: by table, one per head shape [s]."""
    result = np.empty(len(rows))
    for _, group in rows.groupby(list(HEADS), sort=True):
        table = tabulate(name, form, heads_of(group, kv_bytes), 0.0)
        points = np.stack(list(shape_of(group, tuple(SERVED[name])).values()), axis=1).tolist()
        result[group.index.to_numpy()] = [table(*point) for point in points]
    return result


def compared(
    shape: Mapping[str, Array],
    work: Mapping[str, Array],
    seconds: Array,
    test: npt.NDArray[np.bool_],
    kinds: tuple[str, ...],
    soft: Array,
) -> Form:
    """What simpler and other forms reach on the same held-out rows; the forest only where scikit-learn is."""
    train = ~test
    theta = plain_roofline({kind: work[kind][train] for kind in kinds}, seconds[train], kinds)
    plain = np.exp(theta[-1]) + np.max([work[kind] / np.exp(x) for kind, x in zip(kinds, theta, strict=False)], axis=0)
    result = {
        "plain_roofline": score(plain[test], seconds[test]),
        "soft_roofline": score(soft[test], seconds[test]),
    }
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError:
        return result
    x = np.log2(np.stack(list(shape.values()), axis=1) + 1.0)
    forest = RandomForestRegressor(n_estimators=30, min_samples_leaf=2, random_state=0)
    forest.fit(x[train], np.log(seconds[train]))
    result["random_forest"] = score(np.exp(forest.predict(x[test])), seconds[test])
    return result


def as_served_for(rows: Any) -> Any:
    """Unequal batches with contexts as in traffic, of those measured.

    Short contexts alone show several times the cost per token: a fixed one that the slope through the rest is not.
    """
    mean = rows["decode_total_tokens"] / rows["decode_seqs"]
    return rows[mean.between(*SERVED_MEANS) & (rows["decode_longest_tokens"] <= MOST_SPREAD * mean)].reset_index(
        drop=True
    )


def fit_decode_skew(rows: Any, seed: int) -> Form:
    """Cost of unequal contexts in pure decode batches: seconds per token of sequences * longest - total.

    One coefficient per batch size, least squares of the relative excess over the same batch with equal contexts, from
    batches `as_served_for`. Between two sizes the coefficient is interpolated, as the simulator does.
    """
    rows = as_served_for(rows)
    axes = ("decode_seqs", "decode_mean_tokens", "decode_longest_tokens")
    shape = shape_of(rows, axes)
    n = shape["decode_seqs"]
    gap = n * (shape["decode_longest_tokens"] - shape["decode_mean_tokens"])
    seconds, uniform = rows["seconds"].to_numpy(), rows["uniform_s"].to_numpy()
    test = held_out("decode_skew", shape, seed)
    sizes = np.unique(n)
    slopes = decode_slopes(n, gap, seconds, uniform, test)
    predicted = uniform + np.interp(np.log2(n), np.log2(sizes), slopes) * gap
    slopes = decode_slopes(n, gap, seconds, uniform, np.zeros_like(test))
    return {
        "decode_seqs": [int(size) for size in sizes],
        "seconds_per_token": [float(f"{slope:.4g}") for slope in slopes],
        "error": {
            "held_out": score(predicted[test], seconds[test]),
            "compared": {"no_skew": score(uniform[test], seconds[test])},
        },
    }


def decode_slopes(n: Array, gap: Array, seconds: Array, uniform: Array, test: Flags) -> list[float]:
    """Relative least squares of the excess over equal contexts, by batch size, from rows not kept out [s/token]."""
    slopes = []
    for size in np.unique(n):
        at = (n == size) & ~test
        x, y = gap[at] / seconds[at], (seconds[at] - uniform[at]) / seconds[at]
        slopes.append(max(0.0, float(x @ y / (x @ x))))
    return slopes


def fit_mixed_skew(rows: Any, uniform_rows: Any, mixed: Mapping[str, Any], kv_bytes: float, seed: int) -> Form:
    """Factor on a mixed launch for unequal contexts, over `SKEW_AXES`; 1 at equal contexts.

    It is fitted on what the table of `mixed` makes of the same batch with equal contexts, not on the measurement, so
    that it also takes back some of that table's error. Uniform batches join the training with a spread of 1.
    """
    axes = tuple(SERVED["mixed_attention"])
    table = tabulate("mixed_attention", mixed, heads_of(rows, kv_bytes), 0.0)
    test = held_out("mixed_skew", shape_of(rows, (*axes, "decode_longest_tokens")), seed)
    shape, base = skew_shape(rows, table)
    rng = np.random.default_rng([seed, 2])
    joined, logs, is_kept = with_uniform(rows, uniform_rows, table, test, seed)
    plan = Plan(SKEW_AXES, (0.0,) * len(SKEW_AXES), (), 700)
    learnt = fit_residual(plan, {axis: x[is_kept] for axis, x in joined.items()}, logs[is_kept], rng)
    form: Form = {
        "roofline": None,
        "residual": learnt,
        "standard_error": {"knots_s": [1e-6], "log_sd": [0.0]},
        "range": {axis: [float(x.min()), float(x.max())] for axis, x in joined.items()},
    }
    factor = factor_table(form, Space)
    predicted = base * np.array([factor(*point) for point in np.stack(list(shape.values()), axis=1).tolist()])
    seconds = rows["seconds"].to_numpy()
    form["standard_error"] = standard_error(predicted[test], seconds[test])
    form["error"] = {
        "held_out": score(predicted[test], seconds[test]),
        "compared": {"no_skew": score(base[test], seconds[test])},
    }
    form["residual"] = condensed(learnt, joined, logs)
    return form


def with_uniform(
    rows: Any, uniform_rows: Any, table: Table, test: Flags, seed: int
) -> tuple[dict[str, Array], Array, Flags]:
    """Skewed batches and, with a factor of 1, some uniform ones: shapes, logs, which are not kept out."""
    shape, base = skew_shape(rows, table)
    n_uniform = min(len(uniform_rows), len(rows) // 4)
    order = np.random.default_rng([seed, 5]).permutation(len(uniform_rows))[:n_uniform]
    equal, _ = skew_shape(uniform_rows.iloc[order].reset_index(drop=True), table)
    joined = {axis: np.concatenate([shape[axis], equal[axis]]) for axis in SKEW_AXES}
    logs = np.concatenate([np.log(rows["seconds"].to_numpy() / base), np.zeros(n_uniform)])
    return joined, logs, np.concatenate([~test, np.ones(n_uniform, dtype=np.bool_)])


def skew_shape(rows: Any, table: Table) -> tuple[dict[str, Array], Array]:
    """`SKEW_AXES` of mixed batches, and the time the table gives them with equal contexts."""
    names = (*SERVED["mixed_attention"], "decode_longest_tokens")
    new, context, n, mean, longest = shape_of(rows, names).values()
    base = np.array([table(*p) for p in np.stack([new, context, n, mean], axis=1).tolist()])
    alone = np.array([table(a, b, 1.0, c) for a, b, c in np.stack([new, context, longest], axis=1).tolist()])
    return {
        "alone": alone / base,
        "spread": longest / mean,
        "decode_seqs": n,
        "decode_mean_tokens": mean,
    }, base

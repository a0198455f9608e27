"""Fit matrix products, and all-reduces.

Products measured on a whole grid of shapes are kept as they are (`sim.cost.grid`). Of those measured here and there, a
surface tells the others, and the shapes of the models we ship keep curves of their own.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.score import score
from calibration.split import held_out
from calibration.stairs import settled, tile_of, unseen
from calibration.surfaces import Plan, condensed, fit_residual, fit_roofline, roofline_json, standard_error
from sim.config import make
from sim.cost.dense import Curve, gemm_seconds
from sim.cost.grid import MatrixGrid, grid_of, unpacked
from sim.cost.surface import surface_from
from sim.cost.work import gemm_work
from sim.errors import ConfigError
from sim.spec import ModelSpec

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Form = dict[str, Any]

AXES = ("m", "n", "k")
KINDS = ("flops", "bytes")
RANKS = (1, 2, 4, 8)
ELEMENT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp32": 4.0}
LEAST_GRID_FRAC = 0.9  # of all combinations of the axes, from which on measurements are a grid


def shipped_shapes(conf: Path) -> set[tuple[int, int]]:
    """(n, k) of every layer matrix of the models in ``conf/model``, at all tensor-parallel degrees that fit."""
    import yaml  # type: ignore[import-untyped]

    shapes = set()
    for path in sorted((conf / "model").glob("*.yaml")):
        model: ModelSpec = make(yaml.safe_load(path.read_text(encoding="utf-8")), "model")
        for ranks in RANKS:
            with suppress(ConfigError):  # so many ranks cannot share the model's heads
                for layers in model.rank_stack(ranks):
                    shapes |= {
                        (gemm.outputs, gemm.inputs) for gemm in layers.gemms(model.d_model) if gemm.n_matrices == 1
                    }
    return shapes


def isotonic(values: Array) -> Array:
    """The non-decreasing values nearest to ``values`` in the logarithm's least squares: adjacent violators pooled.

    Examples
    --------
    >>> isotonic(np.array([1.0, 4.0, 1.0, 8.0])).tolist()
    [1.0, 2.0, 2.0, 8.0]
    """
    pools: list[list[float]] = []  # mean of the log, count
    for value in np.log(values):
        pools.append([float(value), 1.0])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            mean, n = pools.pop()
            last, n_last = pools[-1]
            pools[-1] = [(last * n_last + mean * n) / (n_last + n), n_last + n]
    result: Array = np.exp(np.concatenate([np.full(int(n), mean) for mean, n in pools]))
    return result


def fit_gemm(rows: Any, shapes: Collection[tuple[int, int]], seed: int, n_points: int, compare: bool) -> Form:
    """Products of one number format: their grid where they were measured on one, else a surface and curves."""
    counts = [rows[axis].nunique() for axis in AXES]
    if min(counts) > 2 and len(rows) >= LEAST_GRID_FRAC * float(np.prod(counts)):
        return fit_grid(rows, shapes)
    return fit_surface(rows, shapes, seed, n_points, compare)


def fit_grid(rows: Any, shapes: Collection[tuple[int, int]]) -> Form:
    """The grid, its scatter taken out (`stairs`), and how far off it is on measurements that it is made to forget.

    A shape forgotten is told twice, from those beside it in width and in depth, and the mean of the two is judged; a
    token count from those on its stair, or else from the next ones below and above. Only counts within a stretch are
    forgotten: where m and m + 1 were measured there may be a step between them, which neither side tells of the other.
    """
    element_bytes = ELEMENT_BYTES[rows["dtype"].iloc[0]]
    m, n, k = (rows[axis].to_numpy(dtype=np.float64) for axis in AXES)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    work = gemm_work(m, n, k, element_bytes)
    line = fit_roofline({kind: work[kind] for kind in KINDS}, seconds, KINDS)
    measured = grid_of(m, n, k, seconds)
    tile = tile_of(measured)
    grid = unpacked(settled(measured, tile).packed())  # as it is served
    rows_of = np.searchsorted(grid.m, measured.m)
    (i, j), told = forgotten(grid)
    told, found = told[:, rows_of], measured.seconds[:, i, j].T
    is_known = ~np.isnan(found)
    is_shipped = np.array([shape in shapes for shape in zip(grid.n[i], grid.k[j], strict=True)], dtype=np.bool_)
    return {
        "roofline": roofline_json(line),
        "grid": grid.packed(),
        "tile_tokens": tile,
        "standard_error": standard_error(told[is_known], found[is_known]),
        "range": {axis: [float(x.min()), float(x.max())] for axis, x in zip(AXES, (m, n, k), strict=True)},
        "error": {
            "held_out": score(told[is_known], found[is_known]),
            "held_out_shapes_of_shipped_models": score(
                told[is_shipped][is_known[is_shipped]], found[is_shipped][is_known[is_shipped]]
            ),
            "held_out_tokens_of_shipped_models": score(*forgotten_counts(measured, tile, shapes)),
            "neighbouring_token_counts_differ_by": neighbours(rows),
        },
    }


def forgotten(grid: MatrixGrid) -> tuple[tuple[Indices, Indices], Array]:
    """Every shape inside the grid as its neighbours tell it: places of its n and k, and times [s], (n_shapes, n_m)."""
    inner, told = [], []
    for i, n in list(enumerate(grid.n))[1:-1]:
        beside = grid.without(i=i)
        for j, k in list(enumerate(grid.k))[1:-1]:
            if not np.isnan(grid.seconds[:, i, j]).any():
                inner.append((i, j))
                told.append(0.5 * (beside.along(n, k) + grid.without(j=j).along(n, k)))
    places: Indices = np.array(inner).T
    return (places[0], places[1]), np.array(told)


def forgotten_counts(grid: MatrixGrid, tile: int, shapes: Collection[tuple[int, int]]) -> tuple[Array, Array]:
    """Token counts inside a stretch, of shipped shapes, as the grid without them tells them and as measured [s]."""
    is_shipped = np.array([[(n, k) in shapes for k in grid.k] for n in grid.n], dtype=np.bool_)
    told, found = [], []
    for at, times in unseen(grid, tile):
        is_known = is_shipped & ~np.isnan(times) & ~np.isnan(grid.seconds[at])
        told.append(times[is_known])
        found.append(grid.seconds[at][is_known])
    return np.concatenate(told), np.concatenate(found)


def fit_surface(rows: Any, shapes: Collection[tuple[int, int]], seed: int, n_points: int, compare: bool) -> Form:
    """Surface and curves of one number format.

    Whole (n, k) shapes are held out for the surface, never one of ``shapes``: theirs are the curves. Scored without
    them, the surface is then told from all. A curve keeps all
    token counts of its shape, made monotone; how well such a curve tells a token count it has not seen is scored by
    leaving some out and fitting again.
    """
    element_bytes = ELEMENT_BYTES[rows["dtype"].iloc[0]]
    m, n, k = (rows[axis].to_numpy(dtype=np.float64) for axis in AXES)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    whole = whole_curves(rows, shapes)
    is_kept = np.array([shape in whole for shape in zip(rows["n"], rows["k"], strict=True)], dtype=np.bool_)
    test = held_out("gemm", {"n": n, "k": k}, seed, whole=True) & ~is_kept
    train = ~test
    work = gemm_work(m, n, k, element_bytes)
    line = fit_roofline({kind: work[kind][train] for kind in KINDS}, seconds[train], KINDS)
    soft = line.seconds(work)
    plan = Plan(AXES, (0.0, 0.0, 0.0), KINDS, n_points)
    rng = np.random.default_rng([seed, 3])
    logs = np.log(seconds / soft)
    shape = dict(zip(AXES, (m, n, k), strict=True))
    form: Form = {
        "roofline": roofline_json(line),
        "residual": fit_residual(plan, {axis: x[train] for axis, x in shape.items()}, logs[train], rng),
        "standard_error": {"knots_s": [1e-6], "log_sd": [0.0]},
        "range": {axis: [float(x.min()), float(x.max())] for axis, x in shape.items()},
    }
    predicted = gemm_seconds(surface_from(form), m, n, k, element_bytes)
    at = test if test.any() else train  # so few shapes that none was drawn
    form["standard_error"] = standard_error(predicted[at], seconds[at])
    form["curves"], kept, unseen = fit_curves(rows[is_kept], seed)
    form["error"] = {
        "held_out": score(predicted[test], seconds[test]),
        "training": score(predicted[train], seconds[train]),
        "kept_curves": kept,
        "held_out_tokens_of_kept_curves": unseen,
        "neighbouring_token_counts_differ_by": neighbours(rows[is_kept]),
    }
    if compare:
        from calibration.attention import compared

        form["error"]["compared"] = compared(shape, work, seconds, test, KINDS, soft)
    form["residual"] = condensed(form["residual"], shape, logs)
    return form


def whole_curves(rows: Any, shapes: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of ``shapes`` measured at the most token counts that one was: curves share their counts.

    After a run that was cut off, other shapes lack some; the surface tells those.
    """
    counts = {shape: tuple(sorted(group["m"])) for shape, group in rows.groupby(["n", "k"]) if shape in shapes}
    most = max(counts.values(), key=len, default=())
    return {shape for shape, found in counts.items() if found == most}


def fit_curves(rows: Any, seed: int) -> tuple[Form, Form, Form]:
    """Monotone curves over tokens by shape; their error on the counts they keep, and on counts left out on trial."""
    curves: dict[str, list[float]] = {}
    pairs: list[tuple[Array, Array]] = []
    trials: list[tuple[Array, Array]] = []
    tokens: list[int] = []
    for (n, k), group in rows.groupby(["n", "k"], sort=True):
        group = group.sort_values("m")
        m, seconds = group["m"].to_numpy(dtype=np.float64), group["seconds"].to_numpy(dtype=np.float64)
        tokens = [int(x) for x in m]
        kept = [float(f"{s:.4g}") for s in isotonic(seconds)]
        curves[f"{n}x{k}"] = kept
        pairs.append((np.array(kept), seconds))
        test = held_out(f"curve {n}x{k}", {"m": m}, seed)
        trial = Curve(m[~test].tolist(), isotonic(seconds[~test]).tolist())
        trials.append((np.array([trial(x) for x in m[test]]), seconds[test]))
    if not curves:
        return {"m": [], "seconds": {}}, score(np.zeros(0), np.zeros(0)), score(np.zeros(0), np.zeros(0))
    kept_score, trial_score = (score(*(np.concatenate(side) for side in zip(*x, strict=True))) for x in (pairs, trials))
    return {"m": tokens, "seconds": curves}, kept_score, trial_score


def neighbours(rows: Any) -> float | None:
    """Mean relative difference between token counts m and m + 1 of one shape: the floor under any error here.

    Pairs that share a tile of 16 rows alone, which do the same work.
    """
    table = rows.assign(above=rows["m"] + 1)
    pairs = table.merge(rows, left_on=["above", "n", "k"], right_on=["m", "n", "k"])
    pairs = pairs[(pairs["m_x"] - 1) // 16 == (pairs["m_y"] - 1) // 16]
    if not len(pairs):
        return None
    return round(float((pairs["seconds_y"] / pairs["seconds_x"] - 1.0).abs().mean()), 5)


def fit_all_reduce(rows: Any) -> Form:
    """Curves over message bytes, one per number of devices.

    Every size is kept; the error is of each size but the least and greatest, left out in turn.
    """
    curves: Form = {}
    trials: list[tuple[Array, Array]] = []
    for devices, group in rows.groupby("devices", sort=True):
        group = group.sort_values("bytes")
        n_bytes = group["bytes"].to_numpy(dtype=np.float64)
        seconds: Array = group["seconds"].to_numpy(dtype=np.float64)
        curves[str(devices)] = {
            "bytes": [int(x) for x in n_bytes],
            "seconds": [float(f"{s:.5g}") for s in isotonic(seconds)],
        }
        for i in range(1, len(n_bytes) - 1):
            trial = Curve(np.delete(n_bytes, i).tolist(), isotonic(np.delete(seconds, i)).tolist())
            trials.append((np.array([trial(n_bytes[i])]), seconds[i : i + 1]))
    predicted, measured = (np.concatenate(side) for side in zip(*trials, strict=True))
    return {
        "curves": curves,
        "standard_error": {"log_sd": round(float(np.sqrt((np.log(predicted / measured) ** 2).mean())), 4)},
        "range": {"bytes": [float(rows["bytes"].min()), float(rows["bytes"].max())]},
        "error": {"held_out": score(predicted, measured)},
    }

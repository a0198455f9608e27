"""Fit experts: a roofline over all shapes of one number format, and what each shape leaves over.

Held out are whole shapes, a fifth at a time, until each was; whole models with all their shares among ranks; and token
counts inside the table, each told by those on both sides. The first says how well a share among ranks of a model in
the table is known that was not measured, the second a model nobody measured, the third counts between.
"""

import zlib
from base64 import b64encode
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.score import score
from calibration.surfaces import fit_roofline, roofline_json, standard_error
from sim.cost.experts import KINDS, PER_E, ExpertShape, ExpertTable, expected, expert_work, features, measured_loads
from sim.cost.surface import SoftRoofline, matern32
from sim.errors import ProfileError
from sim.spec import DTYPE_BYTES

Array = npt.NDArray[np.float64]
Form = dict[str, Any]

N_FOLDS = 5
LEAST_MEASURED = 0.5  # of all shapes: token counts and routings that fewer have are left out, then shapes that lack one
SHAPE_COLUMNS = ("hidden", "width", "top_k", "n_experts", "tensor_ranks", "expert_ranks")


def fit_experts(rows: Any, seed: int) -> Form:
    """Experts of one number format as a profile holds them."""
    shapes, skews, tokens, seconds = grid_of_shapes(rows)
    weight_bytes = DTYPE_BYTES[str(rows["dtype"].iloc[0])]
    work = {kind: np.empty_like(seconds) for kind in KINDS}
    for i, shape in enumerate(shapes):
        for j, skew in enumerate(skews):
            for kind, amount in expert_work(shape, measured_loads(shape, skew, tokens), weight_bytes).items():
                work[kind][i, j] = amount
    flat = {kind: amount.ravel() for kind, amount in work.items()}
    line = fit_roofline(flat, seconds.ravel(), KINDS)
    base = line.seconds(work)
    kept = np.round(PER_E * np.log(seconds / base))
    table = ExpertTable(shapes, skews, tokens, kept / PER_E, np.full(5, 4.0), 0.05)
    table = learnt(table, seed)
    told = held_out_shapes(table, list(shapes), seed)
    by_model = held_out_shapes(table, [shape[:4] for shape in shapes], seed)
    counts = held_out_tokens(table, line, work)
    steps = np.diff(kept, axis=2, prepend=0.0).astype("<i2")
    return {
        "roofline": roofline_json(line),
        "shapes": [list(shape) for shape in shapes],
        "skews": skews.tolist(),
        "tokens": [int(n) for n in tokens],
        "thousandths_of_log": b64encode(zlib.compress(steps.tobytes(), 9)).decode(),
        "length_scales": [round(float(x), 4) for x in table.length_scales],
        "noise": round(table.noise, 5),
        "standard_error": standard_error(told.ravel(), np.exp(table.residuals).ravel(), 1),
        "range": {
            "n_tokens": [float(tokens[0]), float(tokens[-1])],
            **{
                name: [float(min(column)), float(max(column))]
                for name, column in zip(SHAPE_COLUMNS, zip(*shapes, strict=True), strict=True)
            },
        },
        "error": {
            "held_out": score(told.ravel(), np.exp(table.residuals).ravel()),
            "held_out_tokens": score(*counts),
            "held_out_models": score(by_model.ravel(), np.exp(table.residuals).ravel())
            if len({shape[:4] for shape in shapes}) > 1
            else score(np.zeros(0), np.zeros(0)),
            "roofline_alone": score(base.ravel(), seconds.ravel()),
        },
    }


def grid_of_shapes(rows: Any) -> tuple[tuple[ExpertShape, ...], Array, Array, Array]:
    """Shapes measured at all token counts and routings, and their times (n_shapes, n_routings, n_tokens) [s].

    Raises
    ------
    ProfileError
        If there is none.
    """
    pivot = rows.pivot_table(index=list(SHAPE_COLUMNS), columns=["skew", "m"], values="seconds", aggfunc="mean")
    pivot = pivot.loc[:, pivot.notna().mean() >= LEAST_MEASURED].dropna().sort_index().sort_index(axis=1)
    skews, tokens = (np.unique(pivot.columns.get_level_values(level)).astype(np.float64) for level in ("skew", "m"))
    if not len(pivot) or len(pivot.columns) != len(skews) * len(tokens):
        raise ProfileError("experts: no shape was measured at all token counts and routings that others were")
    shapes = tuple(ExpertShape(*map(int, index)) for index in pivot.index)
    return shapes, skews, tokens, pivot.to_numpy(dtype=np.float64).reshape(len(shapes), len(skews), len(tokens))


def learnt(table: ExpertTable, seed: int) -> ExpertTable:
    """The table with the length scales and the noise that make its residuals most likely.

    Shapes are few, and all columns share the process: the likelihood is the mean of the columns'.
    """
    from scipy.optimize import minimize

    x = features(table.shapes)
    if len(x) < 2 * x.shape[1]:
        return table
    rows = table.residuals.reshape(len(x), -1)
    some = np.random.default_rng([seed, 7]).permutation(len(x))[:300]
    x, y = x[some], (rows - rows.mean(0))[some]

    def unlikely(theta: Array) -> float:
        scaled = x / np.exp(theta[:-1])
        gram = matern32(scaled, scaled) + np.exp(theta[-1]) * np.eye(len(x))
        try:
            root = np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            return 1e9
        variance = float((np.linalg.solve(root, y) ** 2).mean())
        return float(0.5 * len(x) * np.log(variance) + np.log(np.diag(root)).sum())

    n_axes = x.shape[1]
    start = np.concatenate([np.ones(n_axes), [np.log(0.05)]])
    bounds = [(-0.5, 3.5)] * n_axes + [(np.log(1e-3), 0.0)]
    theta = minimize(unlikely, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 25}).x
    return replace(table, length_scales=np.exp(theta[:-1]), noise=float(np.exp(theta[-1])))


def held_out_shapes(table: ExpertTable, groups: list[Any], seed: int) -> Array:
    """Factors exp(residual) of all shapes, each group's told by the shapes of other groups alone."""
    names = sorted(set(groups))
    order = np.random.default_rng([seed, 8]).permutation(len(names))
    fold_of = {names[at]: i % N_FOLDS for i, at in enumerate(order)}
    folds = np.array([fold_of[group] for group in groups])
    told = np.empty_like(table.residuals)
    for fold in set(folds.tolist()):
        out = folds == fold
        if out.all():
            told[out] = table.residuals.mean()
            continue
        rest = replace(
            table,
            shapes=tuple(s for s, is_out in zip(table.shapes, out, strict=True) if not is_out),
            residuals=table.residuals[~out],
        )
        told[out] = expected(rest, features([s for s, is_out in zip(table.shapes, out, strict=True) if is_out]))
    result: Array = np.exp(told)
    return result


def held_out_tokens(table: ExpertTable, line: SoftRoofline, work: Form) -> tuple[Array, Array]:
    """Times at every token count but the first and last, told by the counts on both sides, and as measured [s]."""
    base = line.seconds(work)
    logs = np.log(table.tokens)
    told, found = [], []
    for i in range(1, len(logs) - 1):
        share = (logs[i] - logs[i - 1]) / (logs[i + 1] - logs[i - 1])
        between = (1.0 - share) * table.residuals[:, :, i - 1] + share * table.residuals[:, :, i + 1]
        told.append(base[:, :, i] * np.exp(between))
        found.append(base[:, :, i] * np.exp(table.residuals[:, :, i]))
    return np.concatenate(told).ravel(), np.concatenate(found).ravel()

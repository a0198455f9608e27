"""What a profile says of measurements, point by point: scored in the tests, drawn in the report.

Predictions come from the profile's file as the simulator reads it, never from the fit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.attention import (
    HEADS,
    as_served_for,
    attention_without,
    decode_slopes,
    heads_of,
    serve,
    shape_of,
    skew_shape,
    with_uniform,
    without,
    work_of,
)
from calibration.gemms import ELEMENT_BYTES, forgotten
from calibration.layers import fit_curve
from calibration.measurements import KV_BYTES, Measurements, formats
from calibration.score import score
from calibration.split import held_out
from calibration.surfaces import condensed
from calibration.unequal import UNEQUAL, blinded, kept_out, served_batches
from sim.cost.attention import SERVED, SKEW_AXES, factor_table, tabulate
from sim.cost.dense import CALLS, curve_from, gemm_seconds
from sim.cost.grid import unpacked
from sim.cost.surface import surface_from
from sim.cost.table import Space
from sim.cost.work import gemm_work
from sim.profile import KernelProfile

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Proof:
    """One operation's measured shapes, and what the profile makes of them. All arrays of shape (n_rows,)."""

    name: str
    measured_s: Array
    predicted_s: Array
    is_held_out: Flags
    flops: Array | None = None  # for the roofline plot, where the operation has them
    n_bytes: Array | None = None

    @property
    def held_out(self) -> dict[str, Any]:
        """Score on the rows the fit has not seen."""
        return score(self.predicted_s[self.is_held_out], self.measured_s[self.is_held_out])


def prove(profile: KernelProfile, measured: Measurements) -> Iterator[Proof]:
    """Predict every measured row with the profile.

    A profile is fitted to all rows. So rows held out are told by the same formula without them: its hyperparameters
    are those of the file, only the rows it is condensed from differ. Rows of shapes whose curves are kept whole are
    told by their curve, and are not held out.
    """
    seed = profile.provenance["held_out_seed"]
    operations = profile.operations
    for served in SERVED:
        for name, rows in formats(measured, served, "kv_dtype"):
            yield _attention(name, served, operations[name], rows, seed)
    for name, rows in formats(measured, "gemm", "dtype"):
        yield from _gemms(name, operations[name], rows, seed)
    for name in UNEQUAL:
        if name in operations:
            rows = measured.of(name)
            test = kept_out(name, rows, seed)
            seen, blind = (served_batches(rows, o)[0] for o in (operations, blinded(name, rows, operations, test)))
            yield Proof(name, rows["seconds"].to_numpy(dtype=np.float64), np.where(test, blind, seen), test)
    if "decode_skew" in operations:
        skewed = measured.of("skewed_attention")
        yield _decode_skew(operations, skewed[skewed["prefill_seqs"] == 0].reset_index(drop=True), seed)
        mixed = skewed[skewed["prefill_seqs"] > 0].reset_index(drop=True)
        yield _mixed_skew(operations, mixed, measured.of("mixed_attention"), seed)
    if "layers" in operations:
        yield _layers(operations["layers"], measured.of("layer"), seed)


def _attention(name: str, served: str, form: Mapping[str, Any], rows: Any, seed: int) -> Proof:
    kv_bytes = KV_BYTES[rows["kv_dtype"].iloc[0]]
    varying = tuple(head for head in HEADS if rows[head].nunique() > 1)
    work = work_of(rows, kv_bytes)
    test = held_out(served, shape_of(rows, (*SERVED[served], *varying)), seed)
    predicted = serve(served, form, rows, kv_bytes)
    if test.any():
        unseen = rows[test].reset_index(drop=True)
        predicted[test] = serve(served, attention_without(form, rows, kv_bytes, test), unseen, kv_bytes)
    return Proof(name, rows["seconds"].to_numpy(dtype=np.float64), predicted, test, work["flops"], work["bytes"])


def _gemms(name: str, form: Mapping[str, Any], rows: Any, seed: int) -> Iterator[Proof]:
    element_bytes = ELEMENT_BYTES[rows["dtype"].iloc[0]]
    m, n, k = (rows[axis].to_numpy(dtype=np.float64) for axis in ("m", "n", "k"))
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    work = gemm_work(m, n, k, element_bytes)
    if "grid" in form:
        yield _grid(name, form, rows, element_bytes)
        return
    curves = form["curves"]["seconds"]
    keys = [f"{a}x{b}" for a, b in zip(rows["n"], rows["k"], strict=True)]
    is_kept = np.array([key in curves for key in keys], dtype=np.bool_)
    test = held_out("gemm", {"n": n, "k": k}, seed, whole=True) & ~is_kept
    surface = surface_from(form)
    predicted = gemm_seconds(surface, m, n, k, element_bytes)
    if test.any() and surface.roofline is not None:
        shape = {"m": m, "n": n, "k": k}
        blind = surface_from(without(form, shape, surface.roofline.seconds(work), seconds, test))
        predicted[test] = gemm_seconds(blind, m[test], n[test], k[test], element_bytes)
    yield Proof(name, seconds, predicted, test, work["flops"], work["bytes"])
    if is_kept.any():
        place = {int(tokens): i for i, tokens in enumerate(form["curves"]["m"])}
        kept = np.array([curves[keys[i]][place[int(m[i])]] for i in np.flatnonzero(is_kept)])
        none = np.zeros(len(kept), dtype=np.bool_)
        yield Proof(
            f"{name}, kept curves", seconds[is_kept], kept, none, *(work[x][is_kept] for x in ("flops", "bytes"))
        )


def _grid(name: str, form: Mapping[str, Any], rows: Any, element_bytes: float) -> Proof:
    """Every shape inside the grid as the others tell it; those at its edge as they are kept."""
    m, n, k = (rows[axis].to_numpy(dtype=np.float64) for axis in ("m", "n", "k"))
    grid = unpacked(form["grid"])
    at = tuple(np.searchsorted(axis, x) for axis, x in ((grid.m, m), (grid.n, n), (grid.k, k)))
    told = grid.seconds.copy()
    inner, seconds = forgotten(grid)
    told[:, inner[0], inner[1]] = seconds.T
    is_inner = np.zeros(told.shape[1:], dtype=np.bool_)
    is_inner[inner] = True
    work = gemm_work(m, n, k, element_bytes)
    measured: Array = rows["seconds"].to_numpy(dtype=np.float64)
    return Proof(name, measured, told[at], is_inner[at[1:]], work["flops"], work["bytes"])


def _decode_skew(operations: Mapping[str, Any], rows: Any, seed: int) -> Proof:
    """As served: the table of equal contexts, and the skew on top; of contexts as in traffic."""
    rows = as_served_for(rows)
    shape = shape_of(rows, ("decode_seqs", "decode_mean_tokens", "decode_longest_tokens"))
    n, mean, longest = shape.values()
    table = tabulate("decode_attention", operations["decode_attention"], heads_of(rows, KV_BYTES["bf16"]), 0.0)
    equal = np.array([table(*point) for point in zip(n.tolist(), mean.tolist(), strict=True)])
    form, gap = operations["decode_skew"], n * (longest - mean)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    test = held_out("decode_skew", shape, seed)
    blind = decode_slopes(n, gap, seconds, rows["uniform_s"].to_numpy(), test)
    sizes = np.log2(form["decode_seqs"])
    slope = np.where(test, np.interp(np.log2(n), sizes, blind), np.interp(np.log2(n), sizes, form["seconds_per_token"]))
    return Proof("decode_attention, unequal contexts", seconds, equal + slope * gap, test)


def _mixed_skew(operations: Mapping[str, Any], rows: Any, uniform_rows: Any, seed: int) -> Proof:
    heads = heads_of(rows, KV_BYTES["bf16"])
    table = tabulate("mixed_attention", operations["mixed_attention"], heads, 0.0)
    shape, base = skew_shape(rows, table)
    form = operations["mixed_skew"]
    test = held_out("mixed_skew", shape_of(rows, (*SERVED["mixed_attention"], "decode_longest_tokens")), seed)
    joined, logs, is_kept = with_uniform(rows, uniform_rows, table, test, seed)
    kept = {axis: x[is_kept] for axis, x in joined.items()}
    without = {**form, "residual": condensed(form["residual"], kept, logs[is_kept])}
    seen, blind = factor_table(form, Space), factor_table(without, Space)
    points = np.stack([shape[axis] for axis in SKEW_AXES], axis=1).tolist()
    factors = [(blind if unseen else seen)(*point) for point, unseen in zip(points, test, strict=True)]
    measured_s: Array = rows["seconds"].to_numpy(dtype=np.float64)
    return Proof("mixed_attention, unequal contexts", measured_s, base * np.array(factors), test)


def _layers(form: Mapping[str, Any], rows: Any, seed: int) -> Proof:
    """One decoder layer without its attention: the sum of its parts."""
    predicted: Any = 0.0
    measured: Any = 0.0
    tokens = np.zeros(0)
    for name, group in rows.groupby("detail", sort=True):
        if CALLS[name][0] != "layer":
            continue
        group = group.sort_values("new_tokens")
        tokens, seconds = (group[column].to_numpy(dtype=np.float64) for column in ("new_tokens", "seconds"))
        _, test, told = fit_curve(tokens, seconds, seed)
        served = np.where(test, told, curve_from(form["curves"][name]).at(tokens))
        predicted = predicted + CALLS[name][1] * served
        measured = measured + CALLS[name][1] * seconds
    return Proof("decoder layer but attention", measured, predicted, held_out("layers", {"count": tokens}, seed))

"""What a profile says of measurements, point by point: scored in the tests, drawn in the report.

Predictions come from the profile's file as the simulator reads it, never from the fit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.attention import HEADS, heads_of, serve, shape_of, skew_shape, work_of
from calibration.gemms import ELEMENT_BYTES
from calibration.measurements import KV_BYTES, Measurements, formats
from calibration.score import score
from calibration.split import held_out
from calibration.unequal import UNEQUAL, kept_out, served_batches
from sim.cost.attention import SERVED, SKEW_AXES, skew_table, tabulate
from sim.cost.dense import CALLS, curve_from, gemm_seconds
from sim.cost.surface import surface_from
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

    Rows of shapes whose curves are kept whole are told by their curve, and are not held out.
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
            predicted, _ = served_batches(rows, operations)
            yield Proof(name, rows["seconds"].to_numpy(dtype=np.float64), predicted, kept_out(name, rows, seed))
    if "decode_skew" in operations:
        skewed = measured.of("skewed_attention")
        yield _decode_skew(operations, skewed[skewed["prefill_seqs"] == 0].reset_index(drop=True), seed)
        yield _mixed_skew(operations, skewed[skewed["prefill_seqs"] > 0].reset_index(drop=True), seed)
    if "layers" in operations:
        yield _layers(operations["layers"], measured.of("layer"), seed)


def _attention(name: str, served: str, form: Mapping[str, Any], rows: Any, seed: int) -> Proof:
    kv_bytes = KV_BYTES[rows["kv_dtype"].iloc[0]]
    varying = tuple(head for head in HEADS if rows[head].nunique() > 1)
    work = work_of(rows, kv_bytes)
    return Proof(
        name,
        rows["seconds"].to_numpy(dtype=np.float64),
        serve(served, form, rows, kv_bytes),
        held_out(served, shape_of(rows, (*SERVED[served], *varying)), seed),
        work["flops"],
        work["bytes"],
    )


def _gemms(name: str, form: Mapping[str, Any], rows: Any, seed: int) -> Iterator[Proof]:
    element_bytes = ELEMENT_BYTES[rows["dtype"].iloc[0]]
    m, n, k = (rows[axis].to_numpy(dtype=np.float64) for axis in ("m", "n", "k"))
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    work = gemm_work(m, n, k, element_bytes)
    curves = form["curves"]["seconds"]
    keys = [f"{a}x{b}" for a, b in zip(rows["n"], rows["k"], strict=True)]
    is_kept = np.array([key in curves for key in keys], dtype=np.bool_)
    test = held_out("gemm", {"n": n, "k": k}, seed, whole=True) & ~is_kept
    predicted = gemm_seconds(surface_from(form), m, n, k, element_bytes)
    yield Proof(name, seconds, predicted, test, work["flops"], work["bytes"])
    if is_kept.any():
        place = {int(tokens): i for i, tokens in enumerate(form["curves"]["m"])}
        kept = np.array([curves[keys[i]][place[int(m[i])]] for i in np.flatnonzero(is_kept)])
        none = np.zeros(len(kept), dtype=np.bool_)
        yield Proof(
            f"{name}, kept curves", seconds[is_kept], kept, none, *(work[x][is_kept] for x in ("flops", "bytes"))
        )


def _decode_skew(operations: Mapping[str, Any], rows: Any, seed: int) -> Proof:
    """As served: the table of equal contexts, and the skew on top."""
    shape = shape_of(rows, ("decode_seqs", "decode_mean_tokens", "decode_longest_tokens"))
    n, mean, longest = shape.values()
    table = tabulate("decode_attention", operations["decode_attention"], heads_of(rows, KV_BYTES["bf16"]), 0.0)
    equal = np.array([table(*point) for point in zip(n.tolist(), mean.tolist(), strict=True)])
    form = operations["decode_skew"]
    slope = np.interp(np.log2(n), np.log2(form["decode_seqs"]), form["seconds_per_token"])
    return Proof(
        "decode_attention, unequal contexts",
        rows["seconds"].to_numpy(dtype=np.float64),
        equal + slope * n * (longest - mean),
        held_out("decode_skew", shape, seed),
    )


def _mixed_skew(operations: Mapping[str, Any], rows: Any, seed: int) -> Proof:
    heads = heads_of(rows, KV_BYTES["bf16"])
    table = tabulate("mixed_attention", operations["mixed_attention"], heads, 0.0)
    shape, base = skew_shape(rows, table)
    factor = skew_table(operations["mixed_skew"])
    points = np.stack([shape[axis] for axis in SKEW_AXES], axis=1).tolist()
    axes = (*SERVED["mixed_attention"], "decode_longest_tokens")
    return Proof(
        "mixed_attention, unequal contexts",
        rows["seconds"].to_numpy(dtype=np.float64),
        base * np.array([factor(*point) for point in points]),
        held_out("mixed_skew", shape_of(rows, axes), seed),
    )


def _layers(form: Mapping[str, Any], rows: Any, seed: int) -> Proof:
    """One decoder layer without its attention: the sum of its parts."""
    predicted: Any = 0.0
    measured: Any = 0.0
    tokens = np.zeros(0)
    for name, group in rows.groupby("detail", sort=True):
        if CALLS[name][0] != "layer":
            continue
        group = group.sort_values("new_tokens")
        tokens = group["new_tokens"].to_numpy(dtype=np.float64)
        curve = curve_from(form["curves"][name])
        predicted = predicted + CALLS[name][1] * np.array([curve(x) for x in tokens])
        measured = measured + CALLS[name][1] * group["seconds"].to_numpy()
    return Proof("decoder layer but attention", measured, predicted, held_out("layers", {"count": tokens}, seed))

"""Whether imported times can be times of the device at all: the rate each operation reaches, against the data sheet.

A column read in the wrong unit is off by a factor that no fit and no held-out error shows; a rate does. NVIDIA's
all-reduce tables count elements and not bytes, and one of their tables holds attention 19 times faster than the
device multiplies. So each kind of rows is brought to the best rate it reaches, which has to lie within bounds: below
what the data sheet allows, above what half the slowest table at hand reaches.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.measurements import KV_BYTES, Measurements
from sim.config import conf_dir
from sim.errors import ProfileError
from sim.profile import is_of
from sim.spec import ACTIVATION_BYTES, DeviceSpec

Array = npt.NDArray[np.float64]

BEYOND_CACHE_BYTES = 3e8
"""KV from here on is read from memory: the largest L2 caches, of B200 and L40S, hold 126 and 96 MB."""

OVERCLOCKED = 1.1
"""Arithmetic may be so much faster than the data sheet's boost clock allows: an RTX 4090 multiplies at 1.005 of it."""


@dataclass(frozen=True, slots=True)
class Check:
    """The rate that rows of an operation reach, and between which rates it must lie."""

    operation: str
    by: tuple[str, ...]  # columns that tell kinds of rows apart
    unit: str
    rate: Callable[[Any, Any], Array]  # of rows of a kind, given what model they are of; 0: not to be judged
    bounds: Callable[[DeviceSpec, Any], tuple[float, float]]
    can_spare: Callable[[DeviceSpec, Any], bool]  # whether a profile is of use without the kind


def data_sheet(device: str) -> DeviceSpec | None:
    """The data sheet in ``conf/hardware`` of a device as CUDA names it."""
    import yaml  # type: ignore[import-untyped]

    for file in sorted(conf_dir().glob("hardware/*.yaml")):
        sheet = yaml.safe_load(file.read_text(encoding="utf-8"))["device"]
        if is_of(sheet["name"], device):
            return DeviceSpec(**{key: value for key, value in sheet.items() if key != "_target_"})
    return None


def plausible(measured: Measurements) -> Measurements:
    """The measurements without kinds of rows that cannot be the device's and can be spared; the notes say which.

    A device without a data sheet cannot be checked: the notes say that.

    Raises
    ------
    ProfileError
        If a kind that cannot be spared is out of bounds.
    """
    sheet = data_sheet(measured.device)
    if sheet is None:
        return replace(measured, notes=(*measured.notes, "units unchecked: conf/hardware has no data sheet of it"))
    keep = np.ones(len(measured.rows), dtype=np.bool_)
    notes = list(measured.notes)
    for check in CHECKS:
        rows = measured.rows[measured.rows["operation"] == check.operation]
        for _, kind in rows.groupby(list(check.by), sort=True):
            best, (least, most) = float(check.rate(kind, measured.subject).max()), check.bounds(sheet, kind)
            if least <= best <= most or not best:
                continue
            which = ", ".join(f"{column} {kind[column].iloc[0]}" for column in check.by)
            said = f"{check.operation} of {which} reaches {best:.3g} {check.unit}, must be {least:.3g} to {most:.3g}"
            if not check.can_spare(sheet, kind):
                raise ProfileError(f"{measured.device}: {said}, by the data sheet; is a column in another unit?")
            keep[kind.index.to_numpy()] = False
            notes.append(f"left out: {said}")
    return replace(measured, rows=measured.rows[keep].reset_index(drop=True), notes=tuple(notes))


def _column(rows: Any, name: str) -> Array:
    column: Array = rows[name].to_numpy(dtype=np.float64)
    return column


def _gemm_rate(rows: Any, _: Any) -> Array:
    result: Array = 2.0 * _column(rows, "m") * _column(rows, "n") * _column(rows, "k") / _column(rows, "seconds")
    return result


def _layer_rate(rows: Any, subject: Any) -> Array:
    """Of the widest matrix of a layer; the others are not judged."""
    if rows["detail"].iloc[0] != "gate_up_proj":
        return np.zeros(len(rows))
    columns = 2.0 * subject["d_ff"] / subject["tensor_parallel"]
    result: Array = 2.0 * _column(rows, "new_tokens") * subject["d_model"] * columns / _column(rows, "seconds")
    return result


def _prompt_rate(rows: Any, _: Any) -> Array:
    new, context = _column(rows, "new_tokens"), _column(rows, "context_tokens")
    pairs = _column(rows, "prefill_seqs") * new * (context + (new + 1.0) / 2.0)
    result: Array = 4.0 * _column(rows, "n_heads") * _column(rows, "head_dim") * pairs / _column(rows, "seconds")
    return result


def _decode_rate(rows: Any, _: Any) -> Array:
    """KV read per second, of batches too large for a cache."""
    width = _column(rows, "n_kv_heads") * _column(rows, "head_dim")
    read = 2.0 * KV_BYTES[rows["kv_dtype"].iloc[0]] * width * _column(rows, "decode_total_tokens")
    return np.where(read >= BEYOND_CACHE_BYTES, read / _column(rows, "seconds"), 0.0)


def _head_rate(rows: Any, subject: Any) -> Array:
    """Weights of lm_head read per second."""
    if rows["detail"].iloc[0] != "lm_head":
        return np.zeros(len(rows))
    weights = ACTIVATION_BYTES * subject["d_model"] * subject["vocab"] / subject["tensor_parallel"]
    result: Array = weights / _column(rows, "seconds")
    return result


def _bus_rate(rows: Any, _: Any) -> Array:
    """What each rank would send and receive in a ring, per second: NCCL's bus bandwidth."""
    ranks = _column(rows, "devices")
    result: Array = 2.0 * (ranks - 1.0) / ranks * _column(rows, "bytes") / _column(rows, "seconds")
    return result


def _multiplies(least_frac: float) -> Callable[[DeviceSpec, Any], tuple[float, float]]:
    def bounds(sheet: DeviceSpec, rows: Any) -> tuple[float, float]:
        peak = sheet.flops_per_s(rows["dtype"].iloc[0])
        return least_frac * peak, OVERCLOCKED * peak

    return bounds


def _reads(sheet: DeviceSpec, _: Any) -> tuple[float, float]:
    return sheet.bandwidth_bytes_per_s / 3.0, sheet.bandwidth_bytes_per_s


def _talks(sheet: DeviceSpec, rows: Any) -> tuple[float, float]:
    """Half the link to the whole of it; a switch that sums on the way spares a rank the second half of a ring.

    NVSwitch does since Hopper (NVLink SHARP): eight H200 reach a bus bandwidth of 470 GB/s over links of 450. A third
    of the link as the least would let half the true rate of two H200 pass, 165 GB/s.
    """
    ranks, link = int(rows["devices"].iloc[0]), sheet.link_bytes_per_s
    return link / 2.0, link * (2.0 * (ranks - 1) / ranks if sheet.interconnect == "nvlink" else 1.0)


def _never(_sheet: DeviceSpec, _rows: Any) -> bool:
    return False


def _is_fp8(_: DeviceSpec, rows: Any) -> bool:
    return "fp8" in (rows["dtype"].iloc[0], rows["kv_dtype"].iloc[0])


def _is_over_pcie(sheet: DeviceSpec, _: Any) -> bool:
    """Such links are the host's: four and eight L40S on two sockets reach 4 and 3 GB/s, two 19."""
    return sheet.interconnect == "pcie"


CHECKS = (
    # least share of the peak; tables at hand reach: matrices 0.63 to 0.98, a layer's 0.85, prompts 0.50 to 0.87,
    # decoding and lm_head 0.85 to 0.95
    Check("gemm", ("dtype",), "FLOP/s", _gemm_rate, _multiplies(0.4), _is_fp8),
    Check("layer", ("detail",), "FLOP/s", _layer_rate, _multiplies(0.4), _never),
    Check("batched_prefill_attention", ("kv_dtype",), "FLOP/s", _prompt_rate, _multiplies(0.2), _is_fp8),
    Check("prefill_attention", ("kv_dtype",), "FLOP/s", _prompt_rate, _multiplies(0.2), _is_fp8),
    Check("decode_attention", ("kv_dtype",), "B/s", _decode_rate, _reads, _is_fp8),
    Check("sequence_layer", ("detail",), "B/s", _head_rate, _reads, _never),
    Check("all_reduce", ("devices", "detail"), "B/s", _bus_rate, _talks, _is_over_pcie),
)

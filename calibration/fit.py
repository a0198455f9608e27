"""Fit a profile to measurements: every operation they hold, scored on rows kept out of the fit."""

import json
import subprocess
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from calibration.attention import N_POINTS, fit_attention, fit_decode_skew, fit_mixed_skew
from calibration.copies import COPIES, fit_beside, fit_copy, fit_link
from calibration.gemms import fit_all_reduce, fit_gemm, shipped_shapes
from calibration.layers import fit_layers
from calibration.measurements import KV_BYTES, Measurements, formats, replace
from calibration.split import SEED
from calibration.unequal import fit_cached_prefill, fit_ragged_decode, fit_unequal
from sim.cost.attention import SERVED
from sim.errors import ProfileError
from sim.profile import MAX_BYTES, SCHEMA, content_sha256

CONF = Path(__file__).resolve().parent.parent / "conf"
UNITS = {
    "seconds": "s",
    "floor_s": "s",
    "knots_s": "s",
    "rates": "work per second: flops FLOP, bytes B, blocks thread blocks, serial_tokens KV entries",
    "tokens, seqs": "counts",
    "length_scales": "octaves",
    "weights, log_sd": "natural logarithm of a time ratio",
    "mape, p90, bias": "fractions",
}


def fit_profile(
    measured: Measurements, seed: int = SEED, compare: bool = True, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Content of a profile file, its hash included.

    Parameters
    ----------
    measured : Measurements
    seed : int
        Of the held-out sets, which are drawn before anything is fitted.
    compare : bool
        Whether other forms are fitted too and their errors written beside.
    say : callable
        Told of every operation done.

    Raises
    ------
    ProfileError
        If the measurements hold nothing that can be fitted, or the profile would be too large.
    """
    operations: dict[str, Any] = {}
    present = set(measured.rows["operation"])
    for served in SERVED:
        for name, rows in formats(measured, served, "kv_dtype"):
            kv_bytes = KV_BYTES[rows["kv_dtype"].iloc[0]]
            n_points = N_POINTS[served] if name == served else N_POINTS[served] // 2
            operations[name] = fit_attention(served, rows, kv_bytes, seed, compare, n_points)
            say(told(name, operations))
    for name, rows in formats(measured, "gemm", "dtype"):
        points = 900 if name == "gemm" else 500
        operations[name] = fit_gemm(rows, shipped_shapes(CONF), seed, points, compare)
        say(told(name, operations))
    if "all_reduce" in present:
        rows = measured.of("all_reduce")
        own = rows[rows["detail"] != "nccl"] if (rows["detail"] != "nccl").any() else rows
        operations["all_reduce"] = fit_all_reduce(own)
        say(told("all_reduce", operations))
    if "skewed_attention" in present and "mixed_attention" in operations:
        rows = measured.of("skewed_attention")
        pure = rows[rows["prefill_seqs"] == 0].reset_index(drop=True)
        mixed = rows[rows["prefill_seqs"] > 0].reset_index(drop=True)
        operations["decode_skew"] = fit_decode_skew(pure, seed)
        say(told("decode_skew", operations))
        operations["mixed_skew"] = fit_mixed_skew(
            mixed, measured.of("mixed_attention"), operations["mixed_attention"], KV_BYTES["bf16"], seed
        )
        say(told("mixed_skew", operations))
    if "layer" in present:
        operations["layers"] = fit_layers(measured.of("layer"), measured.of("sequence_layer"), seed)
        say(told("layers", operations))
    if {"decode_attention", "batched_prefill_attention"} <= set(operations):  # in this order: later ones stand on them
        for name, fit in (
            ("cached_prefill_attention", fit_cached_prefill),
            ("ragged_decode_attention", fit_ragged_decode),
            ("varlen_prefill_attention", partial(fit_unequal, "varlen_prefill_attention")),
            ("mixed_launches", partial(fit_unequal, "mixed_launches")),
        ):
            if name in present:
                operations[name] = fit(measured.of(name), operations, seed)
                say(told(name, operations))
    for name in COPIES:
        if name in present:
            operations[name] = fit_copy(measured.of(name))
            say(told(name, operations))
    if "transfer" in present:
        operations["link"] = fit_link(measured.of("transfer"), measured.of("block_transfer"))
        say(told("link", operations))
    if "transfer_beside_decode" in present:
        names = ("transfer_beside_decode", "transfer", "decode_beside_transfer")
        operations["beside"] = fit_beside(*(measured.of(name) for name in names))
        say(told("beside", operations))
    if not operations:
        raise ProfileError(f"nothing to fit: the measurements hold {', '.join(sorted(present)) or 'no rows'}")
    content = {
        "schema": SCHEMA,
        "device": measured.device,
        "source": measured.source,
        "convention": measured.convention,
        "units": UNITS,
        "subject": dict(measured.subject),
        "provenance": {
            **measured.provenance,
            "notes": list(measured.notes),
            "measurements_sha256": measured.sha256,
            "n_rows": len(measured.rows),
            "held_out_seed": seed,
            "fitted_to": "all rows; errors are those of the same formulas without the rows held out",
            "fitted": date.today().isoformat(),
            "commit": commit(),
        },
        "operations": operations,
    }
    for name, floor in dict(measured.provenance.get("repeats_differ_by", {})).items():
        if name in operations:
            operations[name]["error"]["repeat_floor"] = floor
    content["sha256"] = content_sha256(content)
    return content


def told(name: str, operations: Mapping[str, Any]) -> str:
    """An operation's errors in a line: mean and 90th percentile over the rows of each kind that it was judged on."""
    kinds = operations[name].get("error", {})
    errors = [
        f"{kind.replace('_', ' ')} {one['mape']:.1%} / {one['p90']:.1%} of {one['n']:,}"
        for kind, one in kinds.items()
        if isinstance(one, Mapping) and one.get("mape") is not None
    ]
    return f"{name}: {', '.join(errors) or 'nothing held out'}"


def commit() -> str:
    """The commit of this checkout, or "unknown" outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def write_profile(content: dict[str, Any], path: Path) -> None:
    """Write a profile whole, one operation a line.

    Raises
    ------
    ProfileError
        If it is larger than `sim.profile` accepts.
    """
    head = {key: value for key, value in content.items() if key != "operations"}
    lines = [
        f"  {json.dumps(name)}: {json.dumps(form, separators=(',', ':'))}"
        for name, form in content["operations"].items()
    ]
    text = json.dumps(head, indent=1)[:-2] + ',\n "operations": {\n' + ",\n".join(lines) + "\n }\n}\n"
    if len(text) > MAX_BYTES:
        raise ProfileError(f"{path}: the profile would have {len(text)} [B], at most {MAX_BYTES}; fit fewer points")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, text.encode())

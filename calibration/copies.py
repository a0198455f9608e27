"""Fit what moves bytes: the append of new keys and values, copies of blocks, and transfers over the host link."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.score import score
from calibration.surfaces import fit_roofline, roofline_json
from sim.cost.surface import SoftRoofline

Array = npt.NDArray[np.float64]
Form = dict[str, Any]
COPIES = ("append", "block_copy")


def left_out(work: Mapping[str, Array], seconds: Array, kinds: tuple[str, ...]) -> tuple[Array, Array]:
    """Times told of each row but those of the least and most bytes by a fit without it, and as measured [s]."""
    inner = np.argsort(work["bytes"], kind="stable")[1:-1]
    told = np.zeros(len(inner))
    for i, row in enumerate(inner):
        rest = np.arange(len(seconds)) != row
        line = fit_roofline({kind: x[rest] for kind, x in work.items()}, seconds[rest], kinds)
        told[i] = line.seconds({kind: x[[row]] for kind, x in work.items()})[0]
    return told, seconds[inner]


def fit_copy(rows: Any) -> Form:
    """A floor and a bandwidth with a soft corner between them, scored on each size left out in turn.

    Returns
    -------
    dict
        ``roofline`` over ``bytes``: those of the keys and values that are moved, each counted once.
    """
    n_bytes, seconds = (rows[column].to_numpy(dtype=np.float64) for column in ("bytes", "seconds"))
    work = {"bytes": n_bytes}
    told, measured = left_out(work, seconds, ("bytes",))
    return {
        "roofline": roofline_json(fit_roofline(work, seconds, ("bytes",))),
        "standard_error": {"log_sd": round(float(np.sqrt((np.log(told / measured) ** 2).mean())), 4)},
        "range": {"bytes": [float(n_bytes.min()), float(n_bytes.max())]},
        "error": {"held_out": score(told, measured)},
    }


def fit_link(rows: Any, block_rows: Any) -> Form:
    """Bandwidth and latency of transfers by way and kind of host memory, and what scattered pieces cost by method.

    Returns
    -------
    dict
        ``paths``: "h2d pinned" -> ``bytes_per_s``, ``latency_s``, ``p``; of "both", bytes each way. ``blocks``:
        "h2d each" -> the same, and ``per_piece_s``: fixed cost of a piece moved by that method.
    """
    told, measured = [np.zeros(0)], [np.zeros(0)]
    paths: Form = {}
    blocks: Form = {}
    for table, kept, kinds in ((rows, paths, ("bytes",)), (block_rows, blocks, ("bytes", "pieces"))):
        for detail, group in table.groupby("detail", sort=True):
            work = {kind: group[{"pieces": "n"}.get(kind, kind)].to_numpy(dtype=np.float64) for kind in kinds}
            seconds = group["seconds"].to_numpy(dtype=np.float64)
            kept[detail] = path_json(fit_roofline(work, seconds, kinds))
            for so_far, new in zip((told, measured), left_out(work, seconds, kinds), strict=True):
                so_far.append(new)
    return {
        "paths": paths,
        "blocks": blocks,
        "error": {"held_out": score(np.concatenate(told), np.concatenate(measured))},
    }


def fit_beside(rows: Any, alone_rows: Any, decode_rows: Any) -> Form:
    """By which factor transfers are slower while sequences decode, and decoding while transfers run.

    A factor is the median over sizes against the same measured alone; the error is of each size, told by the others.
    Simulated transfers and iterations do not slow one another down: the factors say what that leaves out.

    Parameters
    ----------
    rows, alone_rows, decode_rows : DataFrame
        Of ``transfer_beside_decode``, ``transfer`` and ``decode_beside_transfer``.
    """
    told, measured = [np.zeros(0)], [np.zeros(0)]
    transfers: Form = {}
    both = rows.merge(alone_rows, on=["detail", "bytes"], suffixes=("", "_alone"))
    for detail, group in both.groupby("detail", sort=True):
        alone, seconds = (group[column].to_numpy(dtype=np.float64) for column in ("seconds_alone", "seconds"))
        factors = seconds / alone
        transfers[detail] = round(float(np.median(factors)), 4)
        if len(group) > 1:
            told.append(np.array([alone[i] * np.median(np.delete(factors, i)) for i in range(len(group))]))
            measured.append(seconds)
    times = decode_rows.groupby("detail")["seconds"].median()
    beside = times.drop("none", errors="ignore")
    decoding = {str(way): round(float(s / times["none"]), 4) for way, s in beside.items()} if "none" in times else {}
    return {
        "transfer_slower_by_not_served": transfers,
        "decode_slower_by_not_served": decoding,
        "error": {"held_out": score(np.concatenate(told), np.concatenate(measured))},
    }


def path_json(line: SoftRoofline) -> Form:
    """Bandwidth, latency and fixed cost per piece of a path."""
    form = {
        "bytes_per_s": float(f"{line.rates['bytes']:.5g}"),
        "latency_s": float(f"{line.floor_s:.5g}"),
        "p": round(line.p, 4),
    }
    if "pieces" in line.rates:
        form["per_piece_s"] = float(f"{1.0 / line.rates['pieces']:.5g}")
    return form

"""A split fleet, pool by pool, and what its requests spent their time on, stage by stage."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.metrics.load import Load, load
from sim.record import PoolFacts, Result, Table, table_of
from sim.units import MS_PER_S, NS_PER_S

NS_PER_MS = NS_PER_S / MS_PER_S
STAGES = (
    ("queue", "scheduled_ns", "arrival_ns"),
    ("prefill", "first_token_ns", "scheduled_ns"),
    ("memory", "admitted_ns", "ready_ns"),
    ("link", "come_ns", "admitted_ns"),
    ("next_token", "next_token_ns", "come_ns"),
    ("decode", "finish_ns", "next_token_ns"),
)
"""What a handed-over request does one after the other: name, end and begin. The first two are its TTFT."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Times of every answer that was handed over and got its next token, arrays of one shape [ms]."""

    ms: Mapping[str, npt.NDArray[np.float64]]  # by stage
    tpot_ms: npt.NDArray[np.float64]  # mean time of a token after the second; NaN where there is none


def stages(result: Result) -> Stages:
    """The stages of what was handed over, not preempted before its next token, and served to its end.

    Of several answers to a prompt each has its own hand-over; they end when the last of them has.
    """
    handed = result.handovers.rows()
    at = {name: i for i, name in enumerate(result.handovers.columns)}
    handed = handed[(handed[:, at["come_ns"]] >= 0) & (handed[:, at["next_token_ns"]] >= 0)]
    requests = result.requests.rows()
    order = np.argsort(requests[:, 0], kind="stable")
    requests = requests[order]
    handed = handed[np.isin(handed[:, 0], requests[:, 0])]  # a run that was stopped has some that never ended
    place = np.searchsorted(requests[:, 0], handed[:, 0])
    column = {name: handed[:, i] for name, i in at.items()}
    column |= {name: requests[place, i] for i, name in enumerate(result.requests.columns) if name not in at}
    ms = {name: (column[end] - column[begin]) / NS_PER_MS for name, end, begin in STAGES}
    n_left = column["output_tokens"] // np.maximum(column["n_samples"], 1) - 2
    return Stages(ms, ms["decode"] / np.where(n_left > 0, n_left, np.nan))


def of_pool(result: Result, pool: PoolFacts) -> Result:
    """The iterations of one pool, and the requests that ended there."""
    return replace(
        result,
        iterations=_rows(result.iterations, pool),
        requests=_rows(result.requests, pool),
        preemptions=_rows(result.preemptions, pool),
        capacity_tokens=pool.capacity_tokens,
    )


def _rows(table: Table, pool: PoolFacts) -> Table:
    from array import array

    rows = table.rows()[np.isin(table.column("replica"), pool.replicas)]
    return table_of(table.columns, array("q", rows.tobytes()))


def pool_numbers(result: Result) -> dict[str, Any]:
    """What ``summary.json`` says of a split fleet; nothing where there is one pool alone.

    Returns
    -------
    dict
        ``pools`` by name, and ``hand_over``: how many, what was sent and found, and the mean, median and p99 of each
        stage [ms].
    """
    if len(result.pools) < 2:
        return {}
    handed, found = result.handovers, stages(result)
    duration_s = result.duration_ns / NS_PER_S
    return {
        "pools": {pool.name: _pool(load(of_pool(result, pool)), pool, duration_s) for pool in result.pools},
        "hand_over": {
            "n": len(handed),
            "lost": int((handed.column("come_ns") < 0).sum()),
            "tokens": int(handed.column("n_tokens").sum()),
            "found_tokens": int(handed.column("found_tokens").sum()),
            "bytes": int(handed.column("n_bytes").sum()),
            "stages_ms": {name: _statistics(values) for name, values in found.ms.items()},
            "decode_tpot_ms": _statistics(found.tpot_ms[~np.isnan(found.tpot_ms)]),
        },
    }


def _pool(of: Load, pool: PoolFacts, duration_s: float) -> dict[str, Any]:
    n = len(pool.replicas)
    return {
        "device": pool.device,
        "n_replicas": n,
        "n_devices": pool.n_devices,
        "capacity_tokens": pool.capacity_tokens,
        "busy_frac": of.busy_s / (duration_s * n) if duration_s else 0.0,
        "held_frac": of.mean_held_tokens / max(1, pool.capacity_tokens),
        "peak_held_frac": of.peak_held_tokens / max(1, pool.capacity_tokens),
        "prefill_tokens": of.prefill_tokens,
        "decoded_tokens": of.decoded_tokens,
        "mean_decode_seqs": of.mean_decode_seqs,
        "peak_waiting_requests": of.peak_waiting_seqs,
    }


def _statistics(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(("mean", "median", "p99"))
    median, p99 = np.percentile(values, [50, 99])
    return {"mean": float(values.mean()), "median": float(median), "p99": float(p99)}

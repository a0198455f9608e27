"""Goodput, waits and who starved, by class of requests and by tenant."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.metrics.latency import NS_PER_MS, Bools, Floats
from sim.metrics.slo import LIMITS, Slo
from sim.record import Ints, Result, Table

NOBODYS = "none"


def by_class(result: Result, slo: Slo, is_good: Bools, duration_s: float) -> dict[str, Any]:
    """Of each class its objectives and `numbers_of` it, where any objective is set."""
    if not slo.is_set:
        return {}
    groups = numbers_of(result, slo, is_good, duration_s, *(_class(t) for t in (result.requests, result.refused)))
    return {
        name or "default": {**{key: slo.limits(name)[key] for key in LIMITS}, **groups[index]}
        for index, name in enumerate(result.slo_classes)
        if index in groups
    }


def by_tenant(result: Result, slo: Slo, is_good: Bools, duration_s: float) -> dict[str, Any]:
    """Of each tenant `numbers_of` it, where requests have any."""
    if not result.tenants:
        return {}
    names = [*result.tenants, NOBODYS]
    of = [_tenant(table, result) for table in (result.requests, result.refused)]
    groups = numbers_of(result, slo, is_good, duration_s, *of)
    return {names[index]: groups[index] for index in sorted(groups)}


def starving(tenants: Mapping[str, Any]) -> list[str]:
    """Which of several tenants starved, in a line.

    Examples
    --------
    >>> starving({"a": {"starved": 3, "completed": 9}, "b": {"starved": 0, "completed": 5}})
    ['Starved: 3 of 9 requests of a waited in the queue alone for longer than their time to first token may last.']
    """
    said = [
        f"{of['starved']:,} of {of['completed']:,} requests of {name}" for name, of in tenants.items() if of["starved"]
    ]
    if len(tenants) < 2 or not said:
        return []
    return [f"Starved: {', '.join(said)} waited in the queue alone for longer than their time to first token may last."]


def numbers_of(
    result: Result, slo: Slo, is_good: Bools, duration_s: float, group: Ints, refused: Ints
) -> dict[int, dict[str, Any]]:
    """Of each group of requests: how many there were, what they got, and how long they waited.

    A refused request meets no objective, as in the total. ``starved`` are requests that waited in the queue alone for
    longer than their time to first token may last: whatever came then, they had lost.

    Parameters
    ----------
    group, refused : int array
        The group of each completed and of each refused request.
    """
    requests = result.requests
    queue_ms = (requests.column("scheduled_ns") - requests.column("arrival_ns")) / NS_PER_MS
    limit_ms = _ttft_limits(result, slo)
    outputs = requests.column("output_tokens")
    found = {}
    for index in np.union1d(group, refused).tolist():
        mine = group == index
        n_good, n, n_refused = int(is_good[mine].sum()), int(mine.sum()), int((refused == index).sum())
        waits, limits = queue_ms[mine], limit_ms[mine]
        found[int(index)] = {
            "completed": n,
            "failed": n_refused,
            "goodput": n_good / duration_s if duration_s else 0.0,
            "attainment_frac": n_good / (n + n_refused) if slo.is_set else None,
            "output_tokens": int(outputs[mine].sum()),
            "mean_queue_ms": float(waits.mean()) if n else None,
            "p99_queue_ms": float(np.percentile(waits, 99)) if n else None,
            "longest_queue_ms": float(waits.max()) if n else None,
            "starved": int((waits > limits).sum()) if np.isfinite(limits).any() else None,
        }
    return found


def _ttft_limits(result: Result, slo: Slo) -> Floats:
    """How long each request's first token may take, infinite where nothing is said [ms]."""
    limits = [slo.limits(name)["ttft_ms"] for name in result.slo_classes] or [None]
    by_index = np.array([np.inf if limit is None else limit for limit in limits])
    return by_index[_class(result.requests)]


def _class(table: Table) -> Ints:
    return table.column("slo_class")


def _tenant(table: Table, result: Result) -> Ints:
    """Index of each request's tenant; of those without one, the one after the last."""
    nobodys = len(result.tenants)
    ids: Sequence[int] = table.column("id").tolist()
    return np.array([result.tenant_of.get(number, nobodys) for number in ids], dtype=np.int64)

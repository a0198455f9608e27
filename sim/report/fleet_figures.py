"""The fleet of a run that scales: how many replicas there were when, and what they cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.metrics.fleet import lives
from sim.record import FLEET_EVENTS, Ints, Result
from sim.report.figure import Figure, line, numbers, time_axis, time_layout
from sim.report.html import Section, Table
from sim.report.words import count, duration, rate
from sim.units import MS_PER_S, NS_PER_S

MAX_LISTED = 24


def fleet_section(result: Result, ours: Mapping[str, Any]) -> Section | None:
    """The number of replicas over time, None where it never changed.

    Parameters
    ----------
    result : Result
    ours : mapping
        The ``kvtwin`` part of the run's summary.
    """
    if not ours["fleet"]["changes"]:
        return None
    return Section(
        "fleet",
        "Replicas",
        "A replica that is asked for takes its first request when its weights are loaded; one that is drained serves "
        "those it has. It costs from the one to the other.",
        [_over_time(result)],
        [_costs(ours), _events(result)],
    )


def _over_time(result: Result) -> Figure:
    all_lives = lives(result)
    unit, unit_s = time_axis(result.duration_ns / NS_PER_S)
    traces, columns = [], []
    for name, colour, (times_ns, n) in (
        ("there", "--grey", all_lives.there_over_time()),
        ("taking requests", "--blue", all_lives.open_over_time()),
    ):
        times_ns, n = _to_the_end(times_ns, n, result)
        x = numbers((times_ns - result.start_ns) / NS_PER_S / unit_s)
        traces.append(line(x, numbers(n), name, colour, line={"shape": "hv"}))
        columns.append((times_ns, n))
    when = np.unique(np.concatenate([times_ns for times_ns, _ in columns]))[:MAX_LISTED]
    cells = [n[np.searchsorted(times_ns, when, side="right") - 1] for times_ns, n in columns]
    rows = [
        (f"{(at - result.start_ns) / NS_PER_S / unit_s:.4g}", count(there), count(is_open))
        for at, there, is_open in zip(when.tolist(), *(cell.tolist() for cell in cells), strict=True)
    ]
    return Figure(
        "replicas",
        "Replicas over time",
        "What lies between the lines is starting, or serves its last requests.",
        traces,
        {"yaxis": {"rangemode": "tozero", "dtick": 1 if max(columns[0][1]) < 12 else None}, **time_layout(unit)},
        (f"from [{unit}]", "there", "taking requests"),
        rows,
        height_px=230,
    )


def _to_the_end(times_ns: Ints, n: Ints, result: Result) -> tuple[Ints, Ints]:
    """A step function from the begin of a run to its end, at which it keeps its last value."""
    inside = times_ns < result.end_ns
    times_ns, n = times_ns[inside], n[inside]
    if not len(times_ns) or times_ns[0] > result.start_ns:
        times_ns, n = np.append(result.start_ns, times_ns), np.append(0, n)
    return np.append(times_ns, result.end_ns), np.append(n, n[-1])


def _costs(ours: Mapping[str, Any]) -> Table:
    fleet = ours["fleet"]
    rows = [
        ("replicas, mean", rate(fleet["mean_replicas"]), "starting and draining ones too"),
        ("replicas, at most", count(fleet["peak_replicas"]), "at once"),
        ("accelerator hours", rate(fleet["gpu_hours"]), ""),
    ]
    if fleet["cost"] is not None:
        rows.append(("cost", rate(fleet["cost"]), f"at {rate(fleet['price_per_hour'])} an accelerator and hour"))
    return Table(rows, title="What it cost", style="facts")


def _events(result: Result) -> Table:
    """What happened to replicas, but for those that were there at the beginning."""
    rows = [
        (duration((at_ns - result.start_ns) / NS_PER_S * MS_PER_S), f"replica {replica} {FLEET_EVENTS[event]}")
        for at_ns, replica, event in result.fleet.rows().tolist()
        if at_ns >= result.start_ns and at_ns > 0
    ]
    if len(rows) > MAX_LISTED:
        rows = [*rows[:MAX_LISTED], ("", f"and {len(rows) - MAX_LISTED:,} more")]
    return Table(rows, title="What happened when", style="facts", is_folded=True)

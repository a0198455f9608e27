"""A split fleet on the page and on the terminal: its pools, and where a request's time went on the way through."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.metrics.pools import STAGES
from sim.record import Result
from sim.report.figure import Figure, coarse, line, numbers, table_rows, time_axis, time_layout
from sim.report.html import Section, Table
from sim.report.links import link_uses
from sim.report.words import count, duration, gibibytes, percent, rate
from sim.spec import POOLS
from sim.units import NS_PER_S

N_BINS = 400
COLOURS = ("--blue", "--orange", "--purple", "--teal")
STAGE_WORDS = {
    "queue": ("waits in the prefill pool", "from its arrival until its prompt is begun"),
    "prefill": ("prompt computed", "until the first token: with the wait before it the time to first token"),
    "memory": (
        "waits to be admitted",
        "its KV stays where it was computed until a decode replica has room and plans anew",
    ),
    "link": ("KV on the link", "what is there already is not sent; then its source is free"),
    "next_token": ("until the next token", "rest of the iteration under way, and the one that it joins"),
    "decode": ("other tokens", "from the second token to the last"),
}


def pools_section(result: Result, ours: Mapping[str, Any]) -> Section | None:
    """The pools of a run, None where there is one alone.

    Parameters
    ----------
    result : Result
    ours : mapping
        The ``kvtwin`` part of the run's summary.
    """
    if "pools" not in ours:
        return None
    handed = ours["hand_over"]
    edges_ns = np.linspace(0, max(result.duration_ns, 1), N_BINS + 1)
    unit, unit_s = time_axis(edges_ns[-1] / NS_PER_S)
    x = numbers((edges_ns[1:] + edges_ns[:-1]) / 2 / NS_PER_S / unit_s)
    uses = [use for use in link_uses(result, edges_ns) if use.name.startswith("hand-over")]
    rows = [
        (
            name,
            count(pool["n_replicas"]),
            f"{pool['n_devices']} × {pool['device']}",
            percent(pool["busy_frac"]),
            percent(pool["held_frac"]),
            percent(pool["peak_held_frac"]),
            rate(pool["mean_decode_seqs"]),
            count(pool["peak_waiting_requests"]),
        )
        for name, pool in in_order(ours["pools"])
    ]
    headings = ("pool", "replicas", "each", "busy", "KV held, mean", "at most", "decode together", "waited at most")
    stages = [
        (STAGE_WORDS[name][0], *(duration(handed["stages_ms"][name][kind]) for kind in KINDS), STAGE_WORDS[name][1])
        for name, _, _ in STAGES
    ]
    tpot = handed["decode_tpot_ms"]
    stages.append(
        ("a token of these", *(duration(tpot[kind]) for kind in KINDS), "time per output token while decoding")
    )
    links = [
        (
            use.name,
            count(use.n_transfers),
            gibibytes(use.n_bytes),
            duration(_known(use.p50_ms)),
            duration(_known(use.p99_ms)),
        )
        for use in uses
    ]
    return Section(
        "pools",
        "Prefill and decode apart",
        f"{count(handed['n'])} sequences were handed over with {gibibytes(handed['bytes'])} of KV; "
        f"{count(handed['found_tokens'])} tokens were there already. A prompt's KV stays in the prefill pool until the "
        "decode pool has room and the link has delivered it.",
        [_held(result, edges_ns, x, unit), _links(uses, x, unit)],
        [
            Table(rows, headings, "Pools", style="wide"),
            Table(stages, ("stage", *KINDS, ""), "A request's way, stage by stage", style="wide"),
            Table(links, ("", "transfers", "moved", "a transfer, median", "p99"), "Links", style="wide"),
        ],
    )


KINDS = ("mean", "median", "p99")


def in_order(pools: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Pools in the order in which requests pass them."""
    return sorted(pools.items(), key=lambda one: POOLS.index(one[0]))


def hand_over_ms(numbers: Mapping[str, Any]) -> float | None:
    """From a first token to the next, elsewhere, on average; None where nothing was handed over [ms]."""
    stages = numbers["kvtwin"].get("hand_over", {}).get("stages_ms", {})
    means = [stages[name]["mean"] for name in ("memory", "link", "next_token") if name in stages]
    return sum(means) if means and None not in means else None


def pool_rows(ours: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pools of a run in words, for the terminal."""
    if "pools" not in ours:
        return []
    handed = ours["hand_over"]
    rows = [
        (
            f"{name} pool",
            f"{count(pool['n_replicas'])} × {pool['device']}: busy {percent(pool['busy_frac'])}, "
            f"{percent(pool['held_frac'])} of {count(pool['capacity_tokens'])} slots held while working, "
            f"{percent(pool['peak_held_frac'])} at most",
        )
        for name, pool in in_order(ours["pools"])
    ]
    mean = {name: duration(of["mean"]) for name, of in handed["stages_ms"].items()}
    said = (
        f"{count(handed['n'])}, {gibibytes(handed['bytes'])}; on average {mean['memory']} until it is admitted, "
        f"{mean['link']} on the link, {mean['next_token']} until the next token"
    )
    return [*rows, ("hand-overs", said)]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _held(result: Result, edges_ns: np.ndarray[Any, Any], x: list[float | None], unit: str) -> Figure:
    """Share of each pool's slots that sequences hold, over time: what its rows of iterations say."""
    traces, columns = [], []
    start_ns = result.iterations.column("start_ns") - result.start_ns
    replica, held = result.iterations.column("replica"), result.iterations.column("held_tokens")
    middle_ns = (edges_ns[1:] + edges_ns[:-1]) / 2
    for pool, colour in zip(result.pools, COLOURS, strict=False):
        total = np.zeros(len(middle_ns))
        for index in pool.replicas:
            mine = replica == index
            if mine.any():
                place = np.searchsorted(start_ns[mine], middle_ns, side="right")
                total += np.append(0, held[mine])[place]
        share = 100 * total / max(1, pool.capacity_tokens * len(pool.replicas))
        traces.append(line(x, numbers(share), pool.name, colour, line={"width": 1.5}))
        columns.append(coarse(share, np.mean))
    return Figure(
        "pools-held",
        "KV held by pool",
        "Share of the slots that sequences hold, as of each replica's last iteration. KV that waits in the prefill "
        "pool for room in the decode pool is in it.",
        traces,
        {"yaxis": {"ticksuffix": " %", "rangemode": "tozero"}, **time_layout(unit)},
        (f"time [{unit}]", *(pool.name for pool in result.pools)),
        table_rows(x, columns, lambda v: f"{v:.1f} %"),
        height_px=250,
    )


def _links(uses: list[Any], x: list[float | None], unit: str) -> Figure:
    """Gigabytes per second that go over the links."""
    traces = [
        line(x, numbers(use.bytes_per_s / 1e9), use.name, colour, line={"width": 1.5})
        for use, colour in zip(uses, COLOURS, strict=False)
    ]
    return Figure(
        "pools-links",
        "KV on the links",
        "Gigabytes per second, all replicas together, out of the prefill pool and into the decode pool.",
        traces,
        {"yaxis": {"ticksuffix": " GB/s", "rangemode": "tozero"}, **time_layout(unit)},
        (f"time [{unit}]", *(use.name for use in uses)),
        table_rows(x, [coarse(use.bytes_per_s / 1e9, np.mean) for use in uses], rate),
        height_px=230,
    )

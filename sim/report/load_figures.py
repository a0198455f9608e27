"""Charts of load and memory: what happened over time, where the memory went."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.metrics import Measures
from sim.metrics.steady import Steady
from sim.metrics.summary import slot_bytes, total_counts, waste_frac
from sim.record import Result
from sim.report.figure import Figure, Json, band, coarse, line, numbers, shares, table_rows, time_axis, time_layout
from sim.report.timeline import Floats, Level, Timelines, timelines
from sim.report.words import count, gibibytes, percent, rate
from sim.units import GIB, NS_PER_S


def shown_s(result: Result, steady: Steady) -> tuple[float, float]:
    """From when to when charts over time are drawn: where the work is, and a fifth of that on both sides."""
    whole_s, margin_s = max(result.duration_ns, 1) / NS_PER_S, (steady.end_s - steady.begin_s) / 5.0
    begin_s, end_s = max(0.0, steady.begin_s - margin_s), min(whole_s, steady.end_s + margin_s)
    return (begin_s, end_s) if end_s - begin_s < 0.7 * whole_s else (0.0, whole_s)


def over_time(result: Result, span_s: tuple[float, float] | None = None) -> list[Figure]:
    """What happened over time, or in a part of it. Charts of what never happened are left out."""
    lines = timelines(result, span_s=span_s)
    unit, unit_s = time_axis(float(lines.edges_s[-1]))
    x = numbers(lines.centres_s / unit_s)
    whose = f" Per replica: the average of {result.n_replicas}, the extremes of any." if result.n_replicas > 1 else ""
    figures = [
        _kv(result, lines, x, unit),
        _level(lines.levels["decode_seqs"], x, unit, "batch", "Batch size", _BATCH + whose, "--green"),
        _level(lines.waiting, x, unit, "queue", "Queue", _QUEUE + whose, "--orange"),
        _tokens(lines, x, unit),
        _iterations(lines, x, unit),
    ]
    window = window_tokens(result.config)
    if window:
        figures.append(_window(lines, x, unit, window))
    if lines.recomputed.any() or lines.swapped.any():
        figures.append(_preemptions(lines, x, unit))
    if lines.cached_tokens.any():
        figures.append(_hits(lines, x, unit))
    return figures


_BATCH = (
    "Sequences that get a token in the same engine iteration. The line is the average over time, the band reaches from "
    "the lowest to the highest."
)
_QUEUE = (
    "Requests that have arrived and are not being served; one that was preempted counts until its next token. A queue "
    "that only grows means more traffic than the engine can serve."
)


def _kv(result: Result, lines: Timelines, x: list[float | None], unit: str) -> Figure:
    capacity = max(1, result.capacity_tokens)
    held, live, idle = (
        100 * lines.levels[name].mean / capacity for name in ("held_tokens", "live_tokens", "idle_tokens")
    )
    peak, empty = 100 * lines.levels["used_tokens"].high / capacity, np.maximum(0.0, held - live)
    traces = [line(x, numbers(live), "keys and values in use", "--blue", stackgroup="kv", fillcolor="--blue-soft")]
    if empty.any():
        thin = {"width": 0.5}
        traces.append(
            line(x, numbers(empty), "held, but empty", "--red", line=thin, stackgroup="kv", fillcolor="--red-soft")
        )
    if idle.any():
        traces.append(line(x, numbers(idle), "kept for reuse", "--teal", stackgroup="kv", fillcolor="--teal-soft"))
    traces.append(line(x, numbers(peak), "highest", "--grey", line={"width": 1, "dash": "dot"}))
    top = max(1e-3, float(np.max(peak, initial=0.0)))
    layout: Json = {
        "yaxis": {"ticksuffix": " %", "range": [0, min(104.0, 1.15 * top)]},
        "legend": {"traceorder": "normal"},
        **time_layout(unit),
    }
    if 1.15 * top > 100:
        layout["shapes"] = [
            {
                "type": "line",
                "x0": 0,
                "x1": 1,
                "xref": "paper",
                "y0": 100,
                "y1": 100,
                "line": {"color": "--red", "width": 1.5, "dash": "dash"},
            }
        ]
    return Figure(
        "kv",
        "KV cache in use",
        f"Share of the {count(capacity)} token slots of one replica. "
        + (
            "The dashed line is its capacity."
            if 1.15 * top > 100
            else f"The axis ends below the capacity, at {1.15 * top:.2g} %."
        ),
        traces,
        layout,
        (f"time [{unit}]", "in use", "held, but empty", "kept for reuse", "highest"),
        table_rows(
            x, [*(coarse(values, np.mean) for values in (live, empty, idle)), coarse(peak, np.max)], _percent_words
        ),
    )


def _level(level: Level, x: list[float | None], unit: str, key: str, title: str, words: str, colour: str) -> Figure:
    return Figure(
        key,
        title,
        words,
        [
            *band(x, numbers(level.low), numbers(level.high), "lowest to highest", f"{colour}-soft"),
            line(x, numbers(level.mean), "average", colour),
        ],
        {"yaxis": {"rangemode": "tozero"}, **time_layout(unit)},
        (f"time [{unit}]", "average", "lowest", "highest"),
        table_rows(x, [coarse(level.mean, np.mean), coarse(level.low, np.min), coarse(level.high, np.max)], rate),
        height_px=230,
        is_wide=False,
    )


def _tokens(lines: Timelines, x: list[float | None], unit: str) -> Figure:
    return Figure(
        "tokens",
        "Tokens per second",
        "All replicas together: tokens generated, and prompt tokens computed (those found in the cache cost nothing).",
        [
            line(x, numbers(lines.prefilled_per_s), "prompt", "--blue", line={"width": 1.5}),
            line(x, numbers(lines.decoded_per_s), "output", "--green"),
        ],
        {"yaxis": {"rangemode": "tozero"}, **time_layout(unit)},
        (f"time [{unit}]", "output/s", "prompt/s"),
        table_rows(x, [coarse(values, np.mean) for values in (lines.decoded_per_s, lines.prefilled_per_s)], rate),
    )


def _iterations(lines: Timelines, x: list[float | None], unit: str) -> Figure:
    level = lines.iteration_ms
    return Figure(
        "iteration",
        "Iteration time",
        "How long one step of the engine takes, of those under way: the average over time, and the shortest to the "
        "longest. Prompts make it long; between two of an answer's tokens lies at least one.",
        [
            *band(x, numbers(level.low), numbers(level.high), "shortest to longest", "--purple-soft"),
            line(x, numbers(level.mean), "average", "--purple"),
        ],
        {"yaxis": {"type": "log", "title": {"text": "ms"}}, **time_layout(unit)},
        (f"time [{unit}]", "average [ms]", "shortest", "longest"),
        table_rows(x, [coarse(v, _some_mean) for v in (level.mean, level.low, level.high)], rate),
        height_px=230,
        is_wide=False,
    )


def _some_mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def window_tokens(config: Mapping[str, Any]) -> int | None:
    """Tokens that a sequence's window keeps, its sinks among them; None where the cache keeps all."""
    retention = (config.get("cache") or {}).get("retention")
    if not isinstance(retention, Mapping) or "window" not in retention:
        return None
    return int(retention["window"]) + int(retention.get("sinks") or 0)


def _window(lines: Timelines, x: list[float | None], unit: str, window: int) -> Figure:
    running = lines.levels["decode_seqs"].mean + lines.levels["partial_seqs"].mean
    live = lines.levels["live_tokens"].mean
    used = np.divide(100.0 * live, running * window, out=np.full(len(live), np.nan), where=running > 1e-9)
    return Figure(
        "window",
        "Window utilisation",
        f"Tokens that a running sequence keeps, as a share of the {count(window)} that its window and sinks hold: an "
        "average over sequences and time. Below 100 %, most have not filled it; above, a prompt is under computation.",
        [line(x, numbers(used), "of the window", "--teal")],
        {"yaxis": {"rangemode": "tozero", "ticksuffix": " %"}, **time_layout(unit)},
        (f"time [{unit}]", "of the window"),
        table_rows(x, [coarse(used, _some_mean)], _percent_words),
        height_px=230,
        is_wide=False,
    )


def _preemptions(lines: Timelines, x: list[float | None], unit: str) -> Figure:
    kinds = [("computed again", lines.recomputed, "--red")]
    if lines.swapped.any():
        kinds.append(("loaded from below (swap)", lines.swapped, "--purple"))
    return Figure(
        "preemptions",
        "Preemptions",
        "Running requests thrown out because the KV cache was full, by what became of their keys and values.",
        [
            {
                "type": "bar",
                "x": x,
                "y": numbers(values),
                "name": name,
                "marker": {"color": colour, "line": {"width": 0}},
            }
            for name, values, colour in kinds
        ],
        {
            "yaxis": {"rangemode": "tozero"},
            "bargap": 0,
            "barmode": "stack",
            "showlegend": len(kinds) > 1,
            **time_layout(unit),
        },
        (f"time [{unit}]", *(name for name, _, _ in kinds)),
        table_rows(x, [coarse(values, np.sum) for _, values, _ in kinds], count),
        height_px=230,
        is_wide=False,
    )


def _hits(lines: Timelines, x: list[float | None], unit: str) -> Figure:
    hit = _hit_percent(lines.cached_tokens, lines.prompt_tokens)
    total = 100 * np.cumsum(lines.cached_tokens) / np.maximum(np.cumsum(lines.prompt_tokens), 1)
    return Figure(
        "hits",
        "Prefix hit rate",
        "Prompt tokens whose keys and values were already in the cache, by the time the request was first scheduled.",
        [
            line(x, numbers(hit), "in this time", "--teal-soft", line={"width": 1}),
            line(x, numbers(total), "so far", "--teal"),
        ],
        {"yaxis": {"range": [0, 103], "ticksuffix": " %"}, **time_layout(unit)},
        (f"time [{unit}]", "in this time", "so far"),
        table_rows(
            x,
            [
                _hit_percent(coarse(lines.cached_tokens, np.sum), coarse(lines.prompt_tokens, np.sum)),
                coarse(total, lambda values: values[-1]),
            ],
            _percent_words,
        ),
        height_px=230,
        is_wide=False,
    )


def _hit_percent(cached: Floats, asked: Floats) -> Floats:
    """Share of the prompt tokens that were found; NaN where there were none."""
    return np.where(asked > 0, 100 * cached / np.maximum(asked, 1), np.nan)


def _percent_words(value: float) -> str:
    return f"{value:.1f} %"


def capacity(result: Result) -> Figure | None:
    """How the KV cache's size follows from the device's memory."""
    terms = dict(result.memory)
    if len(terms) < 2:
        return None
    names, sizes = list(terms), [size / GIB for size in terms.values()]
    left = sum(sizes[:-1])
    unused = left - sizes[-1]
    if unused > 0.005 * abs(left):  # the configuration gave a smaller cache than fits
        names.insert(-1, "left unused")
        sizes.insert(-1, -unused)
    measures = ["absolute", *["relative"] * (len(sizes) - 2), "total"]
    tokens = count(result.capacity_tokens)
    share_bytes = slot_bytes(result, total_counts(result)) * result.n_replicas / max(1, result.n_devices)
    return Figure(
        "capacity",
        "Where the KV cache's size comes from",
        f"Memory of one accelerator, what else lives in it, and what is left for keys and values: "
        f"{gibibytes(sizes[-1] * GIB)} at {share_bytes / 1024:,.4g} KiB per token "
        f"make room for {tokens} tokens per replica.",
        [
            {
                "type": "waterfall",
                "orientation": "v",
                "x": names,
                "y": numbers(sizes),
                "measure": measures,
                "text": [
                    f"{size:+.1f}" if kind == "relative" else f"{size:.1f}"
                    for size, kind in zip(sizes, measures, strict=True)
                ],
                "textposition": "outside",
                "cliponaxis": False,
                "connector": {"line": {"color": "--line", "width": 1}},
                "decreasing": {"marker": {"color": "--grey"}},
                "increasing": {"marker": {"color": "--orange"}},
                "totals": {"marker": {"color": "--blue"}},
                "hovertemplate": "%{x}: %{delta:.2f} GiB<extra></extra>",
            }
        ],
        {
            "yaxis": {"title": {"text": "GiB"}, "rangemode": "tozero", "range": [0, 1.12 * max(sizes[0], 1e-9)]},
            "showlegend": False,
        },
        ("term", "bytes", "GiB"),
        [(name, f"{size * GIB:,.0f}", f"{size:.2f}") for name, size in zip(names, sizes, strict=True)],
    )


def memory_split(result: Result, measures: Measures) -> Figure:
    """What the KV cache held on average."""
    load, size = measures.load, max(1, result.capacity_tokens)
    held, live, idle = load.mean_held_tokens / size, load.mean_live_tokens / size, load.mean_idle_tokens / size
    reserved, internal = load.mean_reserved_tokens / size, load.mean_internal_tokens / size
    shared, external = load.mean_shared_tokens / size, load.mean_external_tokens / size
    free = max(0.0, 1 - held - idle)
    gib = size * slot_bytes(result, total_counts(result)) / GIB
    parts = [
        ("keys and values in use", live, "--blue"),
        ("reserved for tokens to come", reserved, "--orange"),
        ("lost to rounding", internal, "--red"),
        ("kept for reuse", idle, "--teal"),
        ("free", free - external, "--line"),
    ]
    if external:
        parts.append(("free, but not in one piece", external, "--grey"))
    caption = (
        "Average over the time the engine worked. Running requests hold what is in use, what is reserved, and what is "
        f"lost at the ends of blocks or extents: {percent(waste_frac(load))} of it is empty."
    )
    if external:
        caption += " Of what is free, the slots outside the longest hole can take no extent longer than their own hole."
    if shared:
        caption += f" Sharing prefixes and prompts saved another {percent(shared)} of the capacity."
    return Figure(
        "memory",
        "What the KV cache held",
        caption,
        *shares(parts),
        ("slots", "share of capacity", "GiB"),
        [(name, percent(share), f"{share * gib:.2f}") for name, share, _ in [*parts, ("saved by sharing", shared, "")]],
        height_px=190,
    )

"""Charts that compare finished runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.metrics.slo import LIMITS
from sim.report.figure import LOG_ABOVE, Figure, Json, line, numbers
from sim.report.overlay import COLOURS, overlay
from sim.report.points import Point, differences, said
from sim.report.tier_figures import DEVICE, hits_by_tier, tier_words
from sim.report.words import rate
from sim.units import GIB

MAX_CURVES = 8
RATE_KEY = "scenario.rate"
TITLES = {"ttft_ms": "Time to first token", "tpot_ms": "Time per output token", "e2el_ms": "End-to-end latency"}


def speed(points: Sequence[Point], names: Sequence[str]) -> list[Figure]:
    """Goodput, throughput and latencies of each point as bars."""
    figures = []
    if any(point.numbers["request_goodput"] is not None for point in points):
        goodput = {"goodput": [point.numbers["request_goodput"] for point in points]}
        figures.append(
            _bars("goodput", "Goodput", "Requests per second within their objectives.", names, goodput, "req/s")
        )
    output = {"output": [point.numbers["output_throughput"] for point in points]}
    figures.append(_bars("throughput", "Output throughput", "Tokens generated per second.", names, output, "tok/s"))
    for key in ("ttft_ms", "tpot_ms"):
        both = {"p50": [p.numbers[f"median_{key}"] for p in points], "p99": [p.numbers[f"p99_{key}"] for p in points]}
        figures.append(_bars(key[:4], TITLES[key], "Median and 99th percentile.", names, both, "ms"))
    return figures


def memory(points: Sequence[Point], names: Sequence[str]) -> list[Figure]:
    """KV memory held and live, and what was found again."""
    kv = [point.numbers["kvtwin"]["kv"] for point in points]
    sizes = {
        name: [facts[f"{key}_frac"] * facts["capacity_tokens"] * facts["bytes_per_token"] / GIB for facts in kv]
        for name, key in (("in use", "live"), ("reserved", "reserved"), ("lost to rounding", "internal"))
    }
    shares = {
        "waste": [100 * facts["waste_frac"] for facts in kv],
        "prefix hit rate": [100 * (point.numbers["kvtwin"]["prefix_hit_frac"] or 0.0) for point in points],
    }
    held = (
        "Per replica, average while the engine worked: slots of running requests that hold keys and values, that are "
        "reserved for tokens to come, and that no token is meant for."
    )
    found = "Held slots that are empty, and prompt tokens found in the cache."
    return [
        _bars("kv", "KV memory held, and what for", held, names, sizes, "GiB", is_stacked=True),
        _bars("waste", "Waste and hit rate", found, names, shares, "%"),
    ]


def reuse(points: Sequence[Point], names: Sequence[str]) -> list[Figure]:
    """What was found in memory against the time it saves; nothing where all points found the same share."""
    known = [
        (name, point.numbers)
        for name, point in zip(names, points, strict=True)
        if point.numbers["kvtwin"]["prefix_hit_frac"] is not None and point.numbers["mean_ttft_ms"] is not None
    ]
    hits = [100 * of["kvtwin"]["prefix_hit_frac"] for _, of in known]
    if len(set(hits)) < 2:
        return []
    ttft = {key: [of[f"{key}_ttft_ms"] for _, of in known] for key in ("mean", "p99")}
    yaxis: Json = {"title": {"text": "ms"}, "rangemode": "tozero"}
    if is_far_apart([value for values in ttft.values() for value in values]):
        yaxis = {"title": {"text": "ms, logarithmic"}, "type": "log"}
    shown = [name for name, _ in known]
    traces: list[Json] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": numbers([hit]),
            "y": numbers([values[i]]),
            "name": name,
            "legendgroup": name,
            "showlegend": key == "mean",
            "marker": {
                "size": 11,
                "color": COLOURS[i % len(COLOURS)],
                "symbol": "circle" if key == "mean" else "triangle-up-open",
            },
            "hovertemplate": f"%{{x:.1f}} % found<br>{key} %{{y:.4g}} ms",
            "cliponaxis": False,
        }
        for i, (name, hit) in enumerate(zip(shown, hits, strict=True))
        for key, values in ttft.items()
    ]
    figures = [
        Figure(
            "hits-ttft",
            "Hit rate against time to first token",
            "Share of prompt tokens found in memory, and how long users waited, on average (dots) and at the 99th "
            "percentile (triangles): right and low is best.",
            traces,
            {
                "xaxis": {"title": {"text": "prompt tokens found [%]"}},
                "yaxis": yaxis,
                "hovermode": "closest",
            },
            ("", "hit rate", "TTFT mean [ms]", "TTFT p99 [ms]"),
            [
                (name, f"{hit:.1f} %", rate(mean), rate(p99))
                for name, hit, mean, p99 in zip(shown, hits, ttft["mean"], ttft["p99"], strict=True)
            ],
            height_px=360,
        )
    ]
    by_tier = {name: hits_by_tier(of["kvtwin"]) or {DEVICE: of["kvtwin"]["cached_tokens"]} for name, of in known}
    tiers = list(dict.fromkeys(tier for found in by_tier.values() for tier in found))
    if len(tiers) > 1:
        shares = {
            tier_words(tier): [
                100 * by_tier[name].get(tier, 0) / max(1, of["total_input_tokens"]) for name, of in known
            ]
            for tier in tiers
        }
        figures.append(_found(shown, shares))
    return figures


def _found(names: Sequence[str], shares: Mapping[str, Sequence[float]]) -> Figure:
    """Prompt tokens by the tier that they were found in, of each point that has tiers."""
    colours = ("--blue", "--purple", "--orange", "--teal", "--red")
    return Figure(
        "found",
        "Where they were found",
        "Prompt tokens by the memory that held their keys and values.",
        [
            {
                "type": "bar",
                "orientation": "h",
                "x": numbers(values),
                "y": list(names),
                "name": tier,
                "marker": {"color": colour, "line": {"width": 0}},
                "hovertemplate": f"%{{y}}: %{{x:.1f}} %<extra>{tier}</extra>",
            }
            for (tier, values), colour in zip(shares.items(), colours, strict=False)
        ],
        {
            "barmode": "stack",
            "xaxis": {"title": {"text": "prompt tokens [%]"}, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed", "type": "category"},
            "hovermode": "closest",
            "legend": {"traceorder": "normal"},
        },
        ("", *shares),
        [(name, *(f"{values[i]:.1f} %" for values in shares.values())) for i, name in enumerate(names)],
        height_px=110 + 24 * len(names),
    )


def pareto(points: Sequence[Point], names: Sequence[str]) -> Figure:
    """Throughput per accelerator against speed for one user: nothing lies above and to the right of the line."""
    names = [name for name, point in zip(names, points, strict=True) if point.numbers["median_tpot_ms"]]
    points = [point for point in points if point.numbers["median_tpot_ms"]]
    x = [point.numbers["kvtwin"]["tokens_per_s_per_user"] for point in points]
    y = [point.numbers["kvtwin"]["total_token_throughput_per_device"] for point in points]
    front = frontier(x, y)
    are_named = len(points) <= MAX_CURVES
    dots = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": numbers([a]),
            "y": numbers([b]),
            "name": name,
            "marker": {"size": 11, "color": COLOURS[i] if are_named else "--green" if i in front else "--grey"},
            "hovertemplate": "%{x:.4g} tok/s for one user<br>%{y:.5g} tok/s per accelerator",
            "cliponaxis": False,
        }
        for i, (name, a, b) in enumerate(zip(names, x, y, strict=True))
    ]
    edge = line(
        numbers([x[i] for i in front]),
        numbers([y[i] for i in front]),
        "",
        "--green",
        line={"width": 1.5, "dash": "dot"},
        showlegend=False,
        hoverinfo="skip",
    )
    return Figure(
        "pareto",
        "Throughput against speed for the user",
        "Tokens per second of each accelerator (prompt and output) against tokens per second that one user sees "
        "(1 / median TPOT). The points on the line are beaten by none in both. Axes do not start at zero.",
        [edge, *dots],
        {
            "xaxis": {"title": {"text": "tok/s for one user"}},
            "yaxis": {"title": {"text": "tok/s per accelerator"}},
            "showlegend": are_named,
            "hovermode": "closest",
        },
        ("", "tok/s for one user", "tok/s per accelerator"),
        [(name, rate(a), rate(b)) for name, a, b in zip(names, x, y, strict=True)],
        height_px=380,
    )


def frontier(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Points that no other beats in both coordinates, from left to right.

    Examples
    --------
    >>> frontier([1, 2, 3, 2], [5, 4, 1, 3])
    [0, 1, 2]
    """
    kept: list[int] = []
    highest = -np.inf
    for i in sorted(range(len(x)), key=lambda i: (-x[i], -y[i])):
        if y[i] > highest:
            kept.append(i)
            highest = y[i]
    return kept[::-1]


def over_rate(points: Sequence[Point]) -> list[Figure]:
    """Latency, throughput and goodput against the offered rate, a line per other choice; none if it never varies."""
    told = differences(points)
    if not all(isinstance(point.settings.get(RATE_KEY), int | float) for point in points) or not any(
        RATE_KEY in mine for mine in told
    ):
        return []
    groups: dict[str, list[Point]] = {}
    for point, mine in zip(points, told, strict=True):
        others = said({key: value for key, value in mine.items() if key != RATE_KEY})
        groups.setdefault(others, []).append(point)
    for group in groups.values():
        group.sort(key=lambda point: point.settings[RATE_KEY])
    charts: list[tuple[str, str, str, list[tuple[str, str]]]] = [
        ("ttft", "Time to first token", "ms", [("median_ttft_ms", "p50"), ("p99_ttft_ms", "p99")]),
        ("tpot", "Time per output token", "ms", [("median_tpot_ms", "p50"), ("p99_tpot_ms", "p99")]),
        (
            "throughput",
            "Requests served",
            "req/s",
            [("request_throughput", "served"), ("request_goodput", "within objectives")],
        ),
        ("output", "Output throughput", "tok/s", [("output_throughput", "output")]),
    ]
    return [_over_rate(groups, *chart) for chart in charts]


def _over_rate(groups: dict[str, list[Point]], key: str, title: str, unit: str, kinds: list[tuple[str, str]]) -> Figure:
    traces, rows = [], []
    for i, (name, group) in enumerate(groups.items()):
        x = [point.settings[RATE_KEY] for point in group]
        for (number, words), dash in zip(kinds, ("solid", "dot"), strict=False):
            y = [point.numbers[number] for point in group]
            if any(value is not None for value in y):
                style = {"dash": dash}
                label = f"{name} {words}".strip()
                shown_y = numbers([np.nan if value is None else value for value in y])
                traces.append(
                    {**line(numbers(x), shown_y, label, COLOURS[i % len(COLOURS)], line=style), "mode": "lines+markers"}
                )
        rows += [
            (name, f"{a:g}", *(rate(point.numbers[number]) for number, _ in kinds))
            for a, point in zip(x, group, strict=True)
        ]
    return Figure(
        f"rate-{key}",
        title,
        f"{' and '.join(words for _, words in kinds)}, against what scenario.rate asked for.",
        traces,
        {
            "xaxis": {"title": {"text": "offered rate [1/s]"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        },
        ("", "rate", *(words for _, words in kinds)),
        rows,
        height_px=300,
        is_wide=False,
    )


def distributions(points: Sequence[Point], names: Sequence[str]) -> list[Figure]:
    """Latency distributions of the points over one another, read from their requests; the best few by goodput.

    A point that wrote its summary alone has none.
    """
    import pyarrow.parquet as pq

    def merit(i: int) -> float:
        numbers = points[i].numbers
        goodput = numbers["request_goodput"]
        return -float(numbers["request_throughput"] if goodput is None else goodput)

    kept = [i for i, point in enumerate(points) if (point.path / "requests.parquet").is_file()]
    chosen = sorted(sorted(kept, key=merit)[:MAX_CURVES])
    if not chosen:
        return []
    tables = {names[i]: pq.read_table(points[i].path / "requests.parquet", columns=list(LIMITS)) for i in chosen}
    caption = f"The {MAX_CURVES} points of the best goodput." if len(kept) > MAX_CURVES else ""
    return [
        overlay(f"cdf-{key[:4]}", title, {name: _values(table, key) for name, table in tables.items()}, caption)
        for key, title in TITLES.items()
    ]


def _values(table: Any, key: str) -> Any:
    return table.column(key).to_numpy(zero_copy_only=False).astype(np.float64)


def is_far_apart(sizes: Sequence[float]) -> bool:
    """Whether the smaller ones could not be told from zero, or from one another, beside the largest."""
    return bool(sizes) and max(sizes) > LOG_ABOVE * min(sizes) > 0.0


def _bars(
    key: str,
    title: str,
    caption: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    unit: str,
    is_stacked: bool = False,
) -> Figure:
    traces = []
    colours = ("--blue", "--orange", "--red") if is_stacked else ("--blue", "--teal")
    xaxis: Json = {"title": {"text": unit}, "rangemode": "tozero"}
    sizes = [value for values in series.values() for value in values if value]
    if unit != "%" and not is_stacked and is_far_apart(sizes):
        ends = np.log10([0.5 * min(sizes), 1.2 * max(sizes)])
        xaxis = {"title": {"text": f"{unit}, logarithmic"}, "type": "log", "range": numbers(ends)}
    for (name, values), colour in zip(series.items(), colours, strict=False):
        shown_x = numbers([np.nan if value is None else value for value in values])
        hover = f"%{{y}}: %{{x:.4g}} {unit}<extra>{name}</extra>"
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": shown_x,
                "y": list(names),
                "name": name,
                "marker": {"color": colour},
                "hovertemplate": hover,
            }
        )
    columns = list(series.values())
    return Figure(
        f"bars-{key}",
        title,
        caption,
        traces,
        {
            "barmode": "stack" if is_stacked else "group",
            "xaxis": xaxis,
            "yaxis": {"autorange": "reversed", "type": "category"},
            "showlegend": len(series) > 1,
            "hovermode": "closest",
            "legend": {"traceorder": "normal"},
        },
        ("", *series),
        [(name, *(rate(column[i]) for column in columns)) for i, name in enumerate(names)],
        height_px=110 + (26 if len(series) > 1 and not is_stacked else 20) * len(names),
        is_wide=False,
    )

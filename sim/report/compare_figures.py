"""Charts that compare finished runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.metrics.slo import LIMITS
from sim.report.figure import LOG_ABOVE, Figure, Json, latency_axis, line, numbers, time_axis
from sim.report.overlay import COLOURS, overlay
from sim.report.points import Point, differences, said, short, telling
from sim.report.tier_figures import DEVICE, hits_by_tier, tier_words
from sim.report.words import percent, rate
from sim.units import GIB, NS_PER_S

Floats = npt.NDArray[np.float64]

MAX_CURVES = 8
MOST_PANELS = 12  # small charts of memory over time
MOST_SWEPT = 2  # numbers that curves are drawn over
N_BINS = 160
TITLES = {"ttft_ms": "Time to first token", "tpot_ms": "Time per output token", "e2el_ms": "End-to-end latency"}


def memory(points: Sequence[Point], names: Sequence[str]) -> list[Figure]:
    """KV memory held and live, and what was found again."""
    kv = [point.numbers["kvtwin"]["kv"] for point in points]
    sizes = {
        name: [facts[f"{key}_frac"] * facts["capacity_tokens"] * facts["bytes_per_token"] / GIB for facts in kv]
        for name, key in (("in use", "live"), ("reserved", "reserved"), ("lost to rounding", "internal"))
    }
    held = (
        "Per replica, average while the engine worked: slots of running requests that hold keys and values, that are "
        "reserved for tokens to come, and that no token is meant for."
    )
    return [_stacked("kv", "KV memory held, and what for", held, names, sizes, "GiB")]


def memory_course(points: Sequence[Point], names: Sequence[str]) -> list[Figure]:
    """KV memory over time, a small chart for each point on the same axes; of points that wrote their iterations."""
    import pyarrow.parquet as pq

    kept = [i for i, point in enumerate(points) if (point.path / "iterations.parquet").is_file()]
    shown = [i for i in kept if points[i].numbers["completed"]][:MOST_PANELS]
    if len(shown) < 2:
        return []
    columns = ("start_ns", "replica", "held_tokens", "idle_tokens", "live_tokens", "shared_tokens")
    end_s = max(points[i].numbers["kvtwin"]["steady"]["end_s"] * 1.2 for i in shown)
    n_columns = min(4, len(shown))
    n_rows = -(-len(shown) // n_columns)
    traces: list[Json] = []
    layout: Json = {"showlegend": True, "annotations": [], "hovermode": "closest"}
    highest = 0.0
    unit, unit_s = time_axis(end_s)
    for panel, i in enumerate(shown):
        table = pq.read_table(points[i].path / "iterations.parquet", columns=list(columns))
        column = {name: table.column(name).to_numpy() for name in columns}
        of_first = column["replica"] == 0
        start_s = (column["start_ns"][of_first] - column["start_ns"].min()) / NS_PER_S
        is_shown = start_s <= end_s
        capacity = max(1, points[i].numbers["kvtwin"]["kv"]["capacity_tokens"])
        live, held, idle = (
            100.0 * column[name][of_first][is_shown] / capacity
            for name in ("live_tokens", "held_tokens", "idle_tokens")
        )
        live = np.minimum(live - 100.0 * column["shared_tokens"][of_first][is_shown] / capacity, held)
        x, (live, empty, idle) = _binned(start_s[is_shown], end_s, (live, held - live, idle))
        highest = max(highest, float((live + empty + idle).max(initial=0.0)))
        n = "" if not panel else str(panel + 1)
        row, col = divmod(panel, n_columns)
        left, top = col / n_columns, 1.0 - row / n_rows
        domain = [left + (0.03 if col else 0.0), left + 1.0 / n_columns - 0.01]
        layout[f"xaxis{n}"] = {
            "domain": numbers(domain),
            "anchor": f"y{n}",
            "range": [0, end_s / unit_s],
            **({"title": {"text": unit}} if row == n_rows - 1 else {}),
        }
        height = 1.0 / n_rows
        layout[f"yaxis{n}"] = {
            "domain": numbers([top - height + 0.18 * height, top - 0.12 * height]),
            "anchor": f"x{n}",
            "ticksuffix": " %",
            "nticks": 4,
            "showticklabels": col == 0,
        }
        layout["annotations"].append(
            {
                "text": names[i],
                "x": (domain[0] + domain[1]) / 2.0,
                "y": top - 0.11 * height,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": "--ink", "size": 12},
            }
        )
        for name, values, colour in (
            ("in use", live, "--blue"),
            ("held, but empty", empty, "--red"),
            ("kept for reuse", idle, "--teal"),
        ):
            traces.append(
                line(
                    numbers(x / unit_s),
                    numbers(values),
                    name,
                    colour,
                    line={"width": 0.8},
                    stackgroup=f"kv{n}",
                    fillcolor=f"{colour}-soft",
                    xaxis=f"x{n}",
                    yaxis=f"y{n}",
                    legendgroup=name,
                    showlegend=panel == 0,
                )
            )
    for key in layout:
        if key.startswith("yaxis"):
            layout[key]["range"] = [0, min(104.0, 1.1 * highest)]
    layout["annotations"] = layout["annotations"]
    more = f" The first {MOST_PANELS} of {len(points)}." if len(points) > MOST_PANELS else ""
    return [
        Figure(
            "memory-course",
            "KV memory over time",
            "Share of one replica's slots, on the same axes for all, as long as most of the work lasts." + more,
            traces,
            layout,
            ("", "held at most", "in use at most"),
            [
                (names[i], percent(kv["peak_used_frac"]), percent(kv["peak_held_frac"]))
                for i in shown
                for kv in [points[i].numbers["kvtwin"]["kv"]]
            ],
            height_px=60 + 170 * n_rows,
        )
    ]


def _binned(start_s: Floats, end_s: float, columns: Sequence[Floats]) -> tuple[Floats, list[Floats]]:
    """Of each stretch of time what its first row says; stretches without a row keep what was before."""
    edges = np.linspace(0.0, end_s, N_BINS, endpoint=False)
    at = np.clip(np.searchsorted(start_s, edges, side="right") - 1, 0, max(0, len(start_s) - 1))
    if not len(start_s):
        return edges, [np.zeros(N_BINS) for _ in columns]
    return edges, [np.asarray(column)[at] for column in columns]


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
    every = [value for values in ttft.values() for value in values]
    yaxis: Json = {"title": {"text": "ms"}, "rangemode": "tozero"}
    if is_far_apart(every):
        yaxis = latency_axis(min(every) / 1.2, 1.2 * max(every))
    shown = [name for name, _ in known]
    traces: list[Json] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": numbers([hits[members[0]]]),
            "y": numbers([values[members[0]]]),
            "name": " = ".join(shown[i] for i in members),
            "legendgroup": shown[members[0]],
            "showlegend": key == "mean",
            "marker": {
                "size": 11,
                "color": COLOURS[n % len(COLOURS)],
                "symbol": "circle" if key == "mean" else "triangle-up-open",
            },
            "hovertemplate": f"%{{x:.1f}} % found<br>{key} %{{y:.4g}} ms",
            "cliponaxis": False,
        }
        for n, members in enumerate(ties(hits, ttft["mean"]))
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
    y = [per_accelerator(point) for point in points]
    tied = ties(x, y)
    front = frontier([x[i] for i, *_ in tied], [y[i] for i, *_ in tied])
    are_named = len(tied) <= MAX_CURVES
    dots = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": numbers([x[members[0]]]),
            "y": numbers([y[members[0]]]),
            "name": " = ".join(names[i] for i in members),
            "marker": {
                "size": 11 + 3 * (len(members) > 1),
                "color": COLOURS[n] if are_named else "--green" if n in front else "--grey",
                "symbol": "circle" if len(members) == 1 else "circle-open-dot",
                "line": {"width": 3 * (len(members) > 1), "color": COLOURS[n] if are_named else "--ink"},
            },
            "hovertemplate": "%{x:.4g} tok/s for one user<br>%{y:.5g} tok/s per accelerator",
            "cliponaxis": False,
        }
        for n, members in enumerate(tied)
    ]
    edge = line(
        numbers([x[tied[n][0]] for n in front]),
        numbers([y[tied[n][0]] for n in front]),
        "",
        "--green",
        line={"width": 1.5, "dash": "dot"},
        showlegend=False,
        hoverinfo="skip",
    )
    caption = (
        "Tokens per second of each accelerator (prompt and output, while the work lasts) against tokens per second "
        "that one user sees (1 / median TPOT). The points on the line are beaten by none in both. A ring with a dot is "
        "several points in one place. Axes do not start at zero."
    )
    return Figure(
        "pareto",
        "Throughput against speed for the user",
        caption,
        [edge, *dots],
        {
            "xaxis": {"title": {"text": "tok/s for one user"}, "range": spread(x)},
            "yaxis": {"title": {"text": "tok/s per accelerator"}, "range": spread(y)},
            "showlegend": are_named,
            "hovermode": "closest",
        },
        ("", "tok/s for one user", "tok/s per accelerator"),
        [(name, rate(a), rate(b)) for name, a, b in zip(names, x, y, strict=True)],
        height_px=380,
    )


def per_accelerator(point: Point) -> float:
    """Tokens per second, prompts' and answers', of each accelerator while the work lasts."""
    ours = point.numbers["kvtwin"]
    return float(ours["steady"]["total_tokens_per_s"]) / max(1, int(ours["n_devices"]))


def ties(x: Sequence[float], y: Sequence[float]) -> list[list[int]]:
    """Points in groups that lie in one place, as far as anybody could see: within a hundredth of both axes.

    Examples
    --------
    >>> ties([10.0, 10.01, 12.0], [5.0, 5.0, 5.0])
    [[0, 1], [2]]
    """
    found: list[list[int]] = []
    if not len(x):
        return found
    spans = [0.01 * (ends[1] - ends[0]) for ends in (spread(x), spread(y))]
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        for members in found:
            if abs(x[members[0]] - a) < spans[0] and abs(y[members[0]] - b) < spans[1]:
                members.append(i)
                break
        else:
            found.append([i])
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Ends of an axis that does not stretch a small difference over its length: at least a fifth of the values wide.

    Examples
    --------
    >>> spread([499.0, 499.5])
    [449.32, 549.18]
    """
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    width = max(1.12 * (high - low), 0.2 * abs(high), 1e-9)
    middle = (low + high) / 2.0
    return [float(f"{end:.5g}") for end in (middle - width / 2.0, middle + width / 2.0)]


def curves(points: Sequence[Point]) -> list[Figure]:
    """Latency, throughput and hits over every number that was swept, a line for each other choice."""
    told = differences(points)
    figures = []
    for key in dict.fromkeys(key for mine in told for key in mine):
        values = [mine.get(key) for mine in told]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            names = telling(told)
            others: dict[str, list[Point]] = {}
            for point, mine in zip(points, told, strict=True):
                rest = said({name: value for name, value in mine.items() if name != key}, names)
                others.setdefault(rest, []).append(point)
            if max(len({point.settings[key] for point in group}) for group in others.values()) > 1:
                figures += _over(
                    key, {name: sorted(group, key=lambda p: p.settings[key]) for name, group in others.items()}
                )
    return figures[: MOST_SWEPT * len(CURVES)]


CURVES: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ("ttft", "Time to first token", "ms", (("median_ttft_ms", "p50"), ("p99_ttft_ms", "p99"))),
    ("tpot", "Time per output token", "ms", (("median_tpot_ms", "p50"), ("p99_tpot_ms", "p99"))),
    ("served", "Requests served", "req/s", (("served_per_s", "served"), ("goodput_per_s", "within objectives"))),
    ("output", "Output tokens", "tok/s", (("output_tokens_per_s", "output"),)),
    ("hits", "Prefix hit rate", "%", (("prefix_hit_frac", "found"),)),
    ("waste", "Empty share of held memory", "%", (("waste_frac", "empty"),)),
)


def _number(point: Point, name: str) -> float:
    ours = point.numbers["kvtwin"]
    for where in (point.numbers, ours, ours["steady"], ours["kv"]):
        if name in where:
            return np.nan if where[name] is None else float(where[name])
    return np.nan


def _over(key: str, groups: Mapping[str, Sequence[Point]]) -> list[Figure]:
    figures = []
    swept = sorted({point.settings[key] for group in groups.values() for point in group})
    is_crowded = len(groups) > MAX_CURVES // 2
    is_log = swept[0] > 0 and swept[-1] > 10 * swept[0]
    xaxis: Json = {"title": {"text": f"{key}, logarithmic" if is_log else key}}
    xaxis |= {"type": "log", "tickvals": swept, "ticktext": [f"{v:g}" for v in swept]} if is_log else {}
    for name, title, unit, kinds in CURVES:
        traces, rows, every = [], [], []
        for i, (group_name, group) in enumerate(groups.items()):
            x = [point.settings[key] for point in group]
            for (of, words), dash in zip(kinds[: 1 if is_crowded else 2], ("solid", "dot"), strict=False):
                y = [(100 if unit == "%" else 1) * _number(point, of) for point in group]
                every += [value for value in y if np.isfinite(value)]
                if np.isfinite(y).any():
                    label = f"{group_name} {words}".strip() if len(kinds) > 1 or not group_name else group_name
                    style = {"dash": dash}
                    traces.append(
                        line(numbers(x), numbers(y), label, COLOURS[i % len(COLOURS)], line=style, mode="lines+markers")
                    )
            rows += [
                (group_name, f"{a:g}", *(rate(_number(point, of)) for of, _ in kinds))
                for a, point in zip(x, group, strict=True)
            ]
        if not every or not max(every):
            continue
        yaxis: Json = {"title": {"text": unit}, "rangemode": "tozero"}
        if unit == "ms" and min(every) > 0:
            yaxis = latency_axis(min(every) / 1.1, 1.1 * max(every))
        figures.append(
            Figure(
                f"over-{short(key)}-{name}",
                f"{title} over {short(key)}",
                f"{' and '.join(words for _, words in kinds[: 1 if is_crowded else 2])}.".capitalize(),
                traces,
                {"xaxis": xaxis, "yaxis": yaxis, "hovermode": "closest"},
                ("", short(key), *(words for _, words in kinds)),
                rows,
                height_px=300,
                is_wide=False,
            )
        )
    return figures


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


def _stacked(
    key: str, title: str, caption: str, names: Sequence[str], series: Mapping[str, Sequence[float]], unit: str
) -> Figure:
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "x": numbers(values),
            "y": list(names),
            "name": name,
            "marker": {"color": colour},
            "hovertemplate": f"%{{y}}: %{{x:.4g}} {unit}<extra>{name}</extra>",
        }
        for (name, values), colour in zip(series.items(), ("--blue", "--orange", "--red"), strict=True)
    ]
    return Figure(
        f"bars-{key}",
        title,
        caption,
        traces,
        {
            "barmode": "stack",
            "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed", "type": "category"},
            "hovermode": "closest",
            "legend": {"traceorder": "normal"},
        },
        ("", *series),
        [(name, *(rate(values[i]) for values in series.values())) for i, name in enumerate(names)],
        height_px=110 + 20 * len(names),
    )

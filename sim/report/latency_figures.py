"""Charts of latency: cumulative distributions, and the life of single requests."""

import numpy as np
import numpy.typing as npt

from sim.metrics import Measures, Slo
from sim.metrics.summary import PS_PER_MS, QUANTILES
from sim.record import Result
from sim.report.figure import LOG_LATENCY_ABOVE, Figure, Json, curve, latency_axis, line, numbers
from sim.report.words import duration, milliseconds, percent
from sim.units import NS_PER_S

METRICS = {
    "ttft_ms": (
        "TTFT",
        "Time to first token",
        "From a request's arrival until its answer begins: waiting in the queue, then computing the prompt.",
        "--blue",
    ),
    "tpot_ms": (
        "TPOT",
        "Time per output token",
        "How fast an answer flows once it has begun: its mean time per token, the first one left out.",
        "--green",
    ),
    "itl_ms": (
        "ITL",
        "Inter-token latency",
        "Every single gap between two tokens. A long tail is a stutter that the mean per answer hides.",
        "--purple",
    ),
    "e2el_ms": (
        "E2EL",
        "End-to-end latency",
        "From a request's arrival until its answer is complete.",
        "--orange",
    ),
}
MAX_GANTT = 70

Floats = npt.NDArray[np.float64]


def distributions(measures: Measures, slo: Slo) -> list[Figure]:
    """Cumulative distributions of the four latencies, with the objectives."""
    limits = slo.limits()
    figures = []
    for key, (short, title, words, colour) in METRICS.items():
        if key == "itl_ms":
            x, y = measures.itl_ps.cdf()
            x, quantiles = x / PS_PER_MS, measures.itl_quantiles_ms
        else:
            values = measures.latency_ms[key]
            x, y = curve(values)
            quantiles = np.percentile(values[~np.isnan(values)], QUANTILES) if len(x) else np.zeros(0)
        if len(x):
            own = [name or "default" for name in slo.classes if slo.limits(name).get(key) != limits.get(key)]
            note = f" Requests of the class {' and '.join(own)} are judged by another objective." if own else ""
            figures.append(
                _distribution(key, f"{title} ({short})", words, colour, x, y, quantiles, limits.get(key), note)
            )
    return figures


def _distribution(
    key: str,
    title: str,
    words: str,
    colour: str,
    x: Floats,
    y: Floats,
    quantiles: Floats,
    limit_ms: float | None,
    note: str,
) -> Figure:
    median, p99 = quantiles[QUANTILES.index(50)], quantiles[QUANTILES.index(99)]
    caption = f"{words} Half are within {duration(median)}, 99 % within {duration(p99)}."
    shapes: list[Json] = []
    annotations: list[Json] = []
    is_log = bool(x[0] > 0 and x[-1] > LOG_LATENCY_ABOVE * x[0])
    span = [x[0], max(x[-1], x[0] * 1.01 + 1e-6)]
    if limit_ms is not None:
        met = float(np.interp(limit_ms, x, y, left=0.0, right=1.0))
        caption += f" The objective of {limit_ms:,g} ms is met by {percent(met)}."
        if limit_ms > span[1] * (20 if is_log else 2.5):
            annotations.append(
                {
                    "text": f"objective {limit_ms:,g} ms, far to the right →",
                    "x": 1,
                    "y": 0.04,
                    "xref": "paper",
                    "yref": "paper",
                    "xanchor": "right",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"color": "--red", "size": 12},
                }
            )
        else:
            span[1] = max(span[1], limit_ms * 1.02)
            at = float(np.log10(limit_ms)) if is_log else limit_ms
            is_right = limit_ms > (span[0] * span[1]) ** 0.5 if is_log else limit_ms > sum(span) / 2
            shapes.append(
                {
                    "type": "line",
                    "x0": limit_ms,
                    "x1": limit_ms,
                    "y0": 0,
                    "y1": 1,
                    "yref": "paper",
                    "line": {"color": "--red", "width": 1.5, "dash": "dash"},
                }
            )
            annotations.append(
                {
                    "text": f"objective {limit_ms:,g} ms",
                    "x": at,
                    "y": 0.04,
                    "yref": "paper",
                    "xanchor": "right" if is_right else "left",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"color": "--red", "size": 12},
                }
            )
    ends = np.log10(span) if is_log else np.array(span)
    pad = 0.02 * (ends[1] - ends[0])
    xaxis: Json = {"title": {"text": "ms"}, "range": numbers([ends[0] - pad, ends[1] + pad])}
    if is_log:
        xaxis = latency_axis(*span)
    places = [((np.log10(mark) if is_log else mark) - ends[0]) / (ends[1] - ends[0]) for mark in (median, p99)]
    marks = {
        "type": "scatter",
        "mode": "markers+text",
        "x": numbers([median, p99]),
        "y": [50, 99],
        "text": [f" p50 {duration(median)} ", f" p99 {duration(p99)} "],
        "textposition": ["bottom right" if place < 0.75 else "top left" for place in places],  # away from the curve
        "marker": {"color": colour, "size": 8},
        "hoverinfo": "skip",
        "cliponaxis": False,
    }
    return Figure(
        f"cdf-{key.removesuffix('_ms')}",
        title,
        caption + note,
        [
            line(
                numbers(x), numbers(100 * y), "", colour, hovertemplate="%{y:.1f} % within %{x:.4g} ms<extra></extra>"
            ),
            marks,
        ],
        {
            "xaxis": xaxis,
            "yaxis": {"range": [0, 112], "ticksuffix": " %", "dtick": 25},
            "shapes": shapes,
            "annotations": annotations,
            "showlegend": False,
        },
        ("percentile", "ms"),
        [(f"p{q:g}", milliseconds(value)) for q, value in zip(QUANTILES, quantiles.tolist(), strict=True)],
        height_px=250,
        is_wide=False,
    )


def gantt(result: Result) -> Figure | None:
    """The lives of consecutive requests from the busiest time of the run."""
    table = result.requests
    if not len(table):
        return None
    column = {name: table.column(name) for name in table.columns}
    order = np.argsort(column["arrival_ns"], kind="stable")
    waits = (column["first_token_ns"] - column["arrival_ns"])[order]
    size = min(MAX_GANTT, len(order))
    waited = np.concatenate([[0], np.cumsum(waits)])
    first = int(np.argmax(waited[size:] - waited[: len(waited) - size]))
    shown = order[first : first + size]
    origin_ns = column["arrival_ns"][shown].min()
    into_run = duration((origin_ns - result.start_ns) / 1e6)
    phases = (
        ("waiting in the queue", "arrival_ns", "scheduled_ns", "--grey"),
        ("computing the prompt", "scheduled_ns", "first_token_ns", "--blue"),
        ("generating", "first_token_ns", "finish_ns", "--green"),
    )
    names = [f"#{i}" for i in column["id"][shown]]
    traces = []
    for name, begin, end, colour in phases:
        length_s = (column[end] - column[begin])[shown] / NS_PER_S
        traces.append(_bars(names, (column[begin][shown] - origin_ns) / NS_PER_S, length_s, name, colour))
    away = result.preemptions
    ids = away.column("request_id")
    rows = np.flatnonzero(np.isin(ids, column["id"][shown]) & (away.column("next_token_ns") >= 0))
    if len(rows):
        begin_ns, end_ns = away.column("preempted_ns")[rows], away.column("next_token_ns")[rows]
        preempted = [f"#{i}" for i in ids[rows]]
        length_s = (end_ns - begin_ns) / NS_PER_S
        traces.append(_bars(preempted, (begin_ns - origin_ns) / NS_PER_S, length_s, "preempted", "--red"))
    body = []
    for i in shown[:20]:
        times = [duration((column[end][i] - column[begin][i]) / 1e6) for _, begin, end, _ in phases]
        body.append(
            (f"#{column['id'][i]}", f"{column['prompt_tokens'][i]:,}", f"{column['output_tokens'][i]:,}", *times)
        )
    return Figure(
        "gantt",
        f"{size} requests, one line each",
        f"Consecutive arrivals from the time of the longest waits, {into_run} into the run."
        if len(order) > size
        else "All requests in order of arrival.",
        traces,
        {
            "barmode": "overlay",
            "bargap": 0.25,
            "xaxis": {"title": {"text": "s since the first of them arrived"}, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed", "showticklabels": False, "showgrid": False, "type": "category"},
            "hovermode": "closest",
        },
        ("request", "prompt tokens", "output tokens", "queue", "prompt", "generation"),
        body,
        height_px=max(220, 90 + 7 * size),
    )


def _bars(y: list[str], base_s: Floats, length_s: Floats, name: str, colour: str) -> Json:
    return {
        "type": "bar",
        "orientation": "h",
        "y": y,
        "base": numbers(base_s),
        "x": numbers(length_s),
        "name": name,
        "marker": {"color": colour, "line": {"width": 0}},
        "hovertemplate": "%{y} " + name + " %{x:.3g} s<extra></extra>",
    }

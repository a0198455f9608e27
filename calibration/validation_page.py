"""The page of ``step=validate``: recorded and simulated laid over one another."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.comparison import METRICS, Line, predicted_latencies, recorded_latencies
from calibration.engine_run import EngineRun
from calibration.prediction import Predicted
from sim.record import Ints
from sim.report.figure import Figure, line, numbers
from sim.report.html import Page, Section, Table, render
from sim.report.overlay import COLOURS, overlay
from sim.units import NS_PER_S

TITLES = {"ttft": "Time to first token", "tpot": "Time per output token", "e2el": "End-to-end latency"}


def validation_page(
    run: EngineRun, predictions: Mapping[str, Predicted], lines: Mapping[str, list[Line]], notes: list[str]
) -> str:
    """The page as HTML text."""
    real = recorded_latencies(run)
    simulated = {name: predicted_latencies(run, predicted) for name, predicted in predictions.items()}
    distributions = [
        overlay(
            f"cdf-{metric}",
            TITLES[metric],
            {"recorded": real[metric], **{name: values[metric] for name, values in simulated.items()}},
            "From the time the engine's loop took the request into its queue.",
        )
        for metric in METRICS
    ]
    scatters = [scatter(metric, real[metric], {k: v[metric] for k, v in simulated.items()}) for metric in METRICS]
    settings = run.settings
    page = Page(
        title=f"kvtwin: {run.path.name} predicted",
        heading=f"{settings.model}, vLLM {settings.vllm_version}: predicted",
        lead=f"{len(run)} recorded requests, simulated with a profile of the device's kernels.",
        sections=[
            Section("errors", "Errors", "Simulated against recorded.", tables=[errors(lines)]),
            Section("distributions", "Distributions", "", distributions),
            Section("requests", "Request by request", "On the diagonal, a request was predicted exactly.", scatters),
            Section("time", "Over time", "The same traffic, second by second.", over_time(run, predictions)),
            Section("notes", "Notes", "", tables=[Table([("", note) for note in notes], style="facts")]),
        ],
        footer="Made by kvtwin. Recorded times are the engine's own; simulated ones are marked as such.",
    )
    return render(page)


def errors(lines: Mapping[str, list[Line]]) -> Table:
    """Every statistic with the error of every prediction."""
    headings = ["", *(f"{name}: {what}" for name in lines for what in ("recorded", "simulated", "error"))]
    rows = []
    for group in zip(*lines.values(), strict=True):
        cells = [f"{group[0].metric.upper()} {group[0].statistic} [{group[0].unit}]"]
        for one in group:
            cells += [f"{one.real:,.1f}", f"{one.simulated:,.1f}", f"{one.error_frac:+.1%}"]
        rows.append(cells)
    return Table(rows, headings, style="wide")


def scatter(metric: str, real: Any, simulated: Mapping[str, Any]) -> Figure:
    """A point a request: recorded across, simulated up."""
    top = float(np.nanmax([np.nanmax(real), *(np.nanmax(values) for values in simulated.values())]))
    traces = [line([0.0, top], [0.0, top], "exact", "--grey", line={"dash": "dot"})]
    rows = []
    for i, (name, values) in enumerate(simulated.items()):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers(real),
                "y": numbers(values),
                "name": name,
                "marker": {"color": COLOURS[i + 1], "size": 4, "opacity": 0.7},
                "hovertemplate": "recorded %{x:.4g} ms, simulated %{y:.4g} ms",
            }
        )
        known = ~np.isnan(real)
        off = np.abs(values[known] / real[known] - 1.0)
        rows.append((name, f"{np.mean(off):.2%}", f"{np.percentile(off, 90):.2%}", f"{off.max():.2%}"))
    return Figure(
        f"scatter-{metric}",
        TITLES[metric],
        "",
        traces,
        {
            "xaxis": {"title": {"text": "recorded [ms]"}},
            "yaxis": {"title": {"text": "simulated [ms]"}},
            "hovermode": "closest",
        },
        ("error of single requests", "mean", "p90", "largest"),
        rows,
        height_px=320,
        is_wide=False,
    )


def over_time(run: EngineRun, predictions: Mapping[str, Predicted]) -> list[Figure]:
    """Running, waiting, and tokens in and out, once a second."""
    name, predicted = list(predictions.items())[-1]
    end_ns = int(max(run.last_token_ns.max(), predicted.last_token_ns.max()))
    seconds = np.arange(1, end_ns // NS_PER_S + 2)
    order = np.argsort(predicted.result.requests.column("id"))
    scheduled = predicted.result.requests.column("scheduled_ns")[order]
    simulated = {
        "running": inside(scheduled, predicted.last_token_ns, seconds),
        "waiting": inside(predicted.queued_ns, scheduled, seconds),
        "prompt_throughput": by_second(predicted.first_token_ns, run.prompt_tokens, len(seconds)),
        "gen_throughput": generated(predicted, len(seconds)),
    }
    titles = {
        "running": ("Running", "requests"),
        "waiting": ("Waiting", "requests"),
        "prompt_throughput": ("Prompt tokens, counted when their prompt is complete", "tokens/s"),
        "gen_throughput": ("Generated tokens", "tokens/s"),
    }
    figures = []
    for column, (title, unit) in titles.items():
        traces = [line(numbers(seconds), numbers(simulated[column]), f"simulated, {name}", COLOURS[1])]
        recorded = run.timeseries.get(column)
        if recorded is not None:
            t = numbers(run.timeseries["t"])
            traces.insert(0, line(t, numbers(recorded), "recorded", COLOURS[0]))
        means = [(str(trace["name"]), f"{np.mean(trace['y']):,.1f}", f"{np.max(trace['y']):,.1f}") for trace in traces]
        figures.append(
            Figure(
                f"time-{column}",
                title,
                "The recorder's clock starts with the engine's log, within a second of the first request.",
                traces,
                {"xaxis": {"title": {"text": "s"}}, "yaxis": {"title": {"text": unit}, "rangemode": "tozero"}},
                (f"[{unit}]", "mean", "largest"),
                means,
            )
        )
    return figures


def inside(begin_ns: Ints, end_ns: Ints, seconds: npt.NDArray[np.int64]) -> Ints:
    """How many intervals contain each full second."""
    at = seconds * NS_PER_S
    counts: Ints = np.searchsorted(np.sort(begin_ns), at, "right") - np.searchsorted(np.sort(end_ns), at, "right")
    return counts


def by_second(at_ns: Ints, amount: Ints, n_seconds: int) -> npt.NDArray[np.float64]:
    """Sums of amounts in each second."""
    sums = np.bincount(at_ns // NS_PER_S, weights=amount, minlength=n_seconds)[:n_seconds]
    return sums.astype(np.float64)


def generated(predicted: Predicted, n_seconds: int) -> npt.NDArray[np.float64]:
    """Tokens that came out in each second."""
    from sim.metrics.load import load

    tokens = load(predicted.result).output_tokens_in_second.astype(np.float64)
    return np.pad(tokens, (0, max(0, n_seconds - len(tokens))))[:n_seconds]

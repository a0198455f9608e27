"""The page of ``step=validate``: recorded and simulated laid over one another."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.comparison import Line, predicted_latencies, recorded_latencies
from calibration.engine_run import EngineRun
from calibration.prediction import Predicted
from sim.record import Ints
from sim.report.figure import Figure, line, numbers
from sim.report.html import Page, Section, Table, render
from sim.report.overlay import COLOURS, overlay
from sim.report.words import percent, signed
from sim.units import NS_PER_S

TITLES = {"ttft": "Time to first token", "tpot": "Time per output token", "e2el": "End-to-end latency"}


def validation_page(
    run: EngineRun, predictions: Mapping[str, Predicted], lines: Mapping[str, list[Line]], notes: list[str]
) -> str:
    """The page as HTML text. Predictions that are the same to the nanosecond are drawn once."""
    predictions = distinct(predictions)
    real = {metric: values for metric, values in recorded_latencies(run).items() if not np.isnan(values).all()}
    simulated = {name: predicted_latencies(run, predicted) for name, predicted in predictions.items()}
    distributions = [
        overlay(
            f"cdf-{metric}",
            TITLES[metric],
            {"recorded": real[metric], **{name: values[metric] for name, values in simulated.items()}},
            "As its client saw it, with the front end's time."
            if run.is_clients
            else "From the time the engine's loop took the request into its queue.",
        )
        for metric in real
    ]
    scatters = [scatter(metric, real[metric], {k: v[metric] for k, v in simulated.items()}) for metric in real]
    settings = run.settings
    page = Page(
        title=f"kvtwin: {run.path.name} predicted",
        heading=f"{settings.model}, vLLM {settings.vllm_version}: predicted",
        lead=f"{len(run)} recorded requests, simulated with a profile of the device's kernels.",
        verdict=[verdict(name, found) for name, found in lines.items()],
        mood="good" if all(one.is_met for found in lines.values() for one in found) else "fair",
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


def distinct(predictions: Mapping[str, Predicted]) -> dict[str, Predicted]:
    """Predictions by name, those that say the same under one name."""
    kept: dict[str, Predicted] = {}
    for name, one in predictions.items():
        for known, other in kept.items():
            if np.array_equal(one.first_token_ns, other.first_token_ns) and np.array_equal(
                one.last_token_ns, other.last_token_ns
            ):
                kept = {f"{known} = {name}" if key == known else key: value for key, value in kept.items()}
                break
        else:
            kept[name] = one
    return kept


def verdict(name: str, lines: list[Line]) -> str:
    """How far a prediction is off at most, in words."""
    means = [line for line in lines if not line.statistic.startswith("p")]
    percentiles = [line for line in lines if line.statistic.startswith("p")]
    parts = []
    for what, found in (("means", means), ("percentiles", percentiles)):
        if found:
            worst = max(found, key=lambda line: abs(line.error_frac))
            parts.append(
                f"{what} within {percent(abs(worst.error_frac))} ({worst.metric.upper()} {worst.statistic} "
                f"{signed(worst.error_frac)}, allowed {worst.tolerance_frac:.0%})"
            )
    return f"{name}: {', '.join(parts)}"


def errors(lines: Mapping[str, list[Line]]) -> Table:
    """Every statistic with the error of every prediction; as recorded once for predictions judged on the same."""
    headings, rows = [""], []
    shown = []
    for i, (name, found) in enumerate(lines.items()):
        earlier = list(lines.values())[i - 1] if i else []
        is_new = [line.real for line in found] != [line.real for line in earlier]
        headings += [*(["recorded" if not i else "recorded, rest"] if is_new else []), name, "error"]
        shown.append(is_new)
    for group in zip(*lines.values(), strict=True):
        cells = [f"{group[0].metric.upper()} {group[0].statistic} [{group[0].unit}]"]
        for one, is_new in zip(group, shown, strict=True):
            cells += [
                *([f"{one.real:,.1f}"] if is_new else []),
                f"{one.simulated:,.1f}",
                f"{signed(one.error_frac)}{'' if one.is_met else ' beyond'}",
            ]
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
    end_ns = int(max(run.last_token_ns.max(), *(one.last_token_ns.max() for one in predictions.values())))
    seconds = np.arange(1, end_ns // NS_PER_S + 2)
    courses = {name: course(run, predicted, seconds) for name, predicted in predictions.items()}
    titles = {
        "running": ("Running", "requests"),
        "waiting": ("Waiting", "requests"),
        "prompt_throughput": ("Prompt tokens, counted when their prompt is complete", "tokens/s"),
        "gen_throughput": ("Generated tokens", "tokens/s"),
    }
    figures = []
    for column, (title, unit) in titles.items():
        traces = [
            line(numbers(seconds), numbers(of[column]), name, COLOURS[i])
            for i, (name, of) in enumerate(courses.items(), 1)
        ]
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


def course(run: EngineRun, predicted: Predicted, seconds: npt.NDArray[np.int64]) -> dict[str, Any]:
    """A prediction's columns of the time series."""
    order = np.argsort(predicted.result.requests.column("id"))
    scheduled = predicted.result.requests.column("scheduled_ns")[order]
    return {
        "running": inside(scheduled, predicted.last_token_ns, seconds),
        "waiting": inside(predicted.queued_ns, scheduled, seconds),
        "prompt_throughput": by_second(predicted.first_token_ns, run.prompt_tokens, len(seconds)),
        "gen_throughput": generated(predicted, len(seconds)),
    }


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

    return load(predicted.result).output_tokens_in_second.first(n_seconds).astype(np.float64)

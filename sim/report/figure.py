"""A chart as the page needs it: what Plotly draws, words under it, and the same numbers as a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.report.words import NOTHING, percent

Json = dict[str, Any]
DIGITS = 5  # significant digits of plotted numbers: finer than any pixel
MAX_TABLE_ROWS = 24
LOG_ABOVE = 40.0  # ratio of the largest number to the usual ones beyond which an axis is logarithmic
LOG_LATENCY_ABOVE = 3.0  # the slowest over the fastest: with less a logarithmic axis has no round numbers to show
MAX_POINTS = 1_000  # of a distribution's curve


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart.

    Colours in ``traces`` and ``layout`` are names of the page's CSS variables (``--blue``), so that one chart serves
    light and dark pages.
    """

    id: str
    title: str
    caption: str
    traces: list[Json]
    layout: Json = field(default_factory=dict)
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    height_px: int = 280
    is_wide: bool = True


def numbers(values: npt.ArrayLike) -> list[float | None]:
    """Numbers for a chart: rounded, and None where there is none."""
    return [
        None if not np.isfinite(v) else float(f"{v:.{DIGITS}g}") for v in np.asarray(values, dtype=np.float64).tolist()
    ]


def line(x: list[float | None], y: list[float | None], name: str, colour: str, **more: Any) -> Json:
    """A line."""
    style = {"color": colour, "width": 2} | more.pop("line", {})
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": style, **more}


def band(
    x: list[float | None], low: list[float | None], high: list[float | None], name: str, colour: str
) -> list[Json]:
    """The area between two lines."""
    edge = {"width": 0, "color": colour}
    common = {"type": "scatter", "mode": "lines", "x": x, "line": edge, "hoverinfo": "skip", "legendgroup": name}
    return [
        {**common, "y": low, "showlegend": False},
        {**common, "y": high, "name": name, "fill": "tonexty", "fillcolor": colour},
    ]


def curve(values: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Points of a cumulative distribution: (values, fractions), at most `MAX_POINTS`; NaN are left out.

    Quantiles are evenly spaced in probability, and closer in the last percent, where the objectives bite.
    """
    known = np.asarray(values, dtype=np.float64)
    known = np.sort(known[~np.isnan(known)])
    if not len(known):
        return known, known
    q = np.concatenate([np.linspace(0, 0.99, MAX_POINTS // 2), np.linspace(0.99, 1, MAX_POINTS // 2)])
    index = np.unique(np.rint(q * (len(known) - 1)).astype(np.int64))
    return known[index], (index + 1) / len(known)


def coarse(values: npt.ArrayLike, join: Callable[[npt.NDArray[np.float64]], Any]) -> npt.NDArray[np.float64]:
    """Neighbouring bins of time joined, to no more than a table shows: shape (at most `MAX_TABLE_ROWS`,).

    Joined by what the quantity is: ``np.mean`` of an average, ``np.sum`` of a number of events, ``np.max`` of a peak.
    """
    known = np.asarray(values, dtype=np.float64)
    begins = np.unique(np.linspace(0, len(known), MAX_TABLE_ROWS, endpoint=False).astype(np.int64))
    return np.array([join(part) for part in np.split(known, begins[1:])])


def table_rows(
    x: Sequence[float | None], columns: Sequence[npt.NDArray[np.float64]], words: Callable[[float], str]
) -> list[tuple[str, ...]]:
    """A chart over time as a table: the middle of each row's time, and columns from `coarse`; a dash for NaN."""
    return [
        (f"{time:.4g}", *(NOTHING if np.isnan(value) else words(float(value)) for value in values))
        for time, *values in zip(coarse([np.nan if one is None else one for one in x], np.mean), *columns, strict=True)
    ]


def shares(parts: Sequence[tuple[str, float, str]]) -> tuple[list[Json], Json]:
    """One bar of a whole and its parts, each a name, a fraction and a colour: what is drawn, and its layout."""
    bar = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [""],
            "x": numbers([100 * share]),
            "name": f"{name}  {percent(share)}",
            "marker": {"color": colour, "line": {"width": 0}},
            "hovertemplate": f"{name}: %{{x:.1f}} %<extra></extra>",
        }
        for name, share, colour in parts
    ]
    layout: Json = {
        "barmode": "stack",
        "xaxis": {"range": [0, 100], "ticksuffix": " %"},
        "yaxis": {"showticklabels": False},
        "hovermode": "closest",
        "legend": {"traceorder": "normal"},
    }
    return bar, layout


def latency_axis(low_ms: float, high_ms: float) -> Json:
    """A logarithmic axis of latencies in ms, its marks in the unit that suits each.

    Examples
    --------
    >>> latency_axis(8.0, 30_000.0)["ticktext"]
    ['10 ms', '100 ms', '1 s', '10 s']
    """
    decades = np.arange(np.floor(np.log10(low_ms)), np.ceil(np.log10(high_ms)) + 1)
    steps = (1.0,) if np.log10(high_ms / low_ms) > 2 else (1.0, 2.0, 5.0)
    pad = 0.02 * np.log10(high_ms / low_ms)
    ends = [float(np.log10(low_ms)) - pad, float(np.log10(high_ms)) + pad]
    marks = [step * 10.0**decade for decade in decades.tolist() for step in steps]
    marks = [mark for mark in marks if ends[0] <= np.log10(mark) <= ends[1]]
    words = [f"{mark:g} ms" if mark < 999 else f"{mark / 1e3:g} s" for mark in marks]
    return {"type": "log", "range": numbers(ends), "tickvals": numbers(marks), "ticktext": words}


def time_layout(unit: str) -> Json:
    """The layout of a chart over time."""
    return {"xaxis": {"title": {"text": unit}, "rangemode": "tozero"}, "hovermode": "x unified"}


def time_axis(end_s: float) -> tuple[str, float]:
    """Unit for a time axis, and its length in seconds."""
    for unit, size_s in (("s", 1.0), ("min", 60.0)):
        if end_s < 240 * size_s:
            return unit, size_s
    return "h", 3_600.0

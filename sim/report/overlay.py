"""Distributions laid over one another: configurations compared, or a simulation beside what was measured."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sim.report.figure import LOG_ABOVE, LOG_LATENCY_ABOVE, Figure, Json, curve, latency_axis, line, numbers
from sim.report.words import rate

COLOURS = ("--blue", "--orange", "--green", "--purple", "--teal", "--red", "--grey", "--ink")
DASHES = ("solid", "dash", "dot")
QUANTILES = (50, 90, 95, 99)
ALIKE_FRAC = 2e-3  # curves that are nowhere farther apart lie upon one another


def overlay(
    key: str,
    title: str,
    samples: Mapping[str, npt.ArrayLike],
    caption: str = "",
    unit: str = "ms",
    is_wide: bool = False,
) -> Figure:
    """Cumulative distributions of several samples in one chart, with a table of their quantiles.

    Parameters
    ----------
    key : str
        Names the chart on its page.
    samples : mapping of name to values
        Each of any length, in ``unit``; NaN are left out, and samples without values too.

    Examples
    --------
    >>> overlay("ttft", "TTFT", {"measured": [10, 20, 40], "simulated": [11, 19, 41]}).rows[0][0]
    'measured'
    """
    curves = {name: curve(values) for name, values in samples.items()}
    curves = {name: points for name, points in curves.items() if len(points[0])}
    alike = _alike(curves)
    samples = {joined: samples[name] for name, joined in alike.items()}
    curves = {joined: curves[name] for name, joined in alike.items()}
    traces = []
    rows = []
    for i, (name, (x, y)) in enumerate(curves.items()):
        style = {"dash": DASHES[i // len(COLOURS) % len(DASHES)]}
        hover = f"%{{y:.1f}} % within %{{x:.4g}} {unit}"
        colour = COLOURS[i % len(COLOURS)]
        traces.append(line(numbers(x), numbers(100 * y), name, colour, line=style, hovertemplate=hover))
        known = np.asarray(samples[name], dtype=np.float64)
        known = known[~np.isnan(known)]
        rows.append((name, rate(float(known.mean())), *(rate(float(v)) for v in np.percentile(known, QUANTILES))))
    xaxis: Json = {"title": {"text": unit}, "rangemode": "tozero"}
    if curves:
        smallest = min(x[0] for x, _ in curves.values())
        median = min(float(np.interp(0.5, y, x)) for x, y in curves.values())
        largest = max(x[-1] for x, _ in curves.values())
        if smallest > 0 and unit == "ms" and largest > LOG_LATENCY_ABOVE * smallest:
            xaxis = latency_axis(smallest, largest)
        elif smallest > 0 and largest > LOG_ABOVE * median:
            xaxis = {"title": {"text": unit}, "type": "log"}
    return Figure(
        key,
        title,
        caption,
        traces,
        {"xaxis": xaxis, "yaxis": {"range": [0, 103], "ticksuffix": " %", "dtick": 25}, "hovermode": "closest"},
        (f"[{unit}]", "mean", *(f"p{q}" for q in QUANTILES)),
        rows,
        height_px=250 + 20 * len(traces) // (3 if is_wide else 1),
        is_wide=is_wide,
    )


def _alike(curves: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]) -> dict[str, str]:
    """Curves to draw, each with the names of all that lie upon it."""
    at = np.linspace(0.02, 0.98, 49)
    kept: dict[str, npt.NDArray[np.float64]] = {}
    joined: dict[str, str] = {}
    for name, (x, y) in curves.items():
        quantiles = np.interp(at, y, x)
        for other, known in kept.items():
            if np.allclose(quantiles, known, rtol=ALIKE_FRAC, atol=0.0):
                joined[other] += f" = {name}"
                break
        else:
            kept[name] = quantiles
            joined[name] = name
    return joined

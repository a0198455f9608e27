"""What the uncertainty of kernel times does to the metrics: a table and a page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.report.figure import Figure, numbers
from sim.report.files import replacing
from sim.report.html import Page, Section, render
from sim.report.words import count, percent

if TYPE_CHECKING:
    from rich.table import Table

SHARE = (5.0, 95.0)  # percentiles of the draws between which an interval lies
METRICS = {
    # key of the summary: what it is called, with its unit
    **{
        f"{key}_{metric}_ms": f"{metric.upper()} {said} [ms]"
        for metric in ("ttft", "tpot", "e2el")
        for key, said in (("mean", "mean"), ("median", "p50"), ("p99", "p99"))
    },
    "output_throughput": "output tokens [1/s]",
    "request_goodput": "requests within objectives [1/s]",
}
HEADINGS = ("metric", "best estimate", "in 9 of 10 draws", "±")


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric with the best estimates of kernel times, and where it lies in nine of ten draws."""

    key: str  # of `METRICS`
    best: float
    low: float
    high: float

    @property
    def half_frac(self) -> float:
        """Half of the interval's width, as a share of the best estimate."""
        return (self.high - self.low) / 2.0 / self.best if self.best else 0.0

    def cells(self) -> tuple[str, str, str, str]:
        """In words."""
        return (
            METRICS[self.key],
            f"{self.best:,.4g}",
            f"{self.low:,.4g} – {self.high:,.4g}",
            f"{100.0 * self.half_frac:.1f} %",
        )


def interval_table(found: Sequence[Interval], n_draws: int) -> "Table":
    """The intervals as a terminal shows them."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        *HEADINGS, title=f"{count(n_draws)} draws of what the profile's formulas are off", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for one in found:
        table.add_row(*(escape(cell) for cell in one.cells()))
    return table


def write_intervals(found: Sequence[Interval], name: str, n_draws: int, out: Path) -> None:
    """Write ``intervals.json`` and ``intervals.html`` into a folder, each whole or not at all."""
    content = {"n_draws": n_draws, "percentiles": SHARE, "intervals": [asdict(one) for one in found]}
    for file, text in (
        ("intervals.json", json.dumps(content, indent=1) + "\n"),
        ("intervals.html", interval_page(found, name, n_draws)),
    ):
        with replacing(out / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def in_words(found: Sequence[Interval]) -> str:
    """What is surest and what is least sure."""
    known = [one for one in found if one.best]
    if not known:
        return "Nothing was served: there is nothing to be sure of."
    surest, least = min(known, key=lambda one: one.half_frac), max(known, key=lambda one: one.half_frac)
    return (
        f"Kernel times that are off as measured move {METRICS[surest.key]} by ±{percent(surest.half_frac)} and "
        f"{METRICS[least.key]}, the least sure, by ±{percent(least.half_frac)}."
    )


def interval_page(found: Sequence[Interval], name: str, n_draws: int) -> str:
    """The intervals as one page."""
    upwards = [one for one in reversed(found) if one.best]
    figure = Figure(
        "intervals",
        "Where the metrics lie in nine of ten draws",
        "Against the simulation with the best estimates of all kernel times.",
        [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [0.0] * len(upwards),
                "y": [METRICS[one.key] for one in upwards],
                "name": "best estimate",
                "marker": {"color": "--blue", "size": 8},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "color": "--blue",
                    "array": numbers([100.0 * (one.high / one.best - 1.0) for one in upwards]),
                    "arrayminus": numbers([100.0 * (1.0 - one.low / one.best) for one in upwards]),
                },
                "hovertemplate": "%{y}<extra></extra>",
            }
        ],
        {
            "xaxis": {"ticksuffix": " %", "title": {"text": "off the best estimate"}},
            "yaxis": {"automargin": True},
            "hovermode": "closest",
        },
        HEADINGS,
        [one.cells() for one in found],
        height_px=110 + 26 * len(upwards),
    )
    return render(
        Page(
            title=f"kvtwin: how sure is {name}",
            heading=f"How sure: {name}",
            lead=f"The same traffic, served {count(n_draws)} times with kernel times off by draws of the profile's "
            "standard errors. What its measurements are off, and the host's time, is not in it.",
            verdict=[in_words(found)],
            sections=[Section("intervals", "Intervals", figures=[figure])],
        )
    )

"""An experiment's matrix: one number after the other, a variant of the first axis a row, of the others a column."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sim.report.cache_facts import over_classes
from sim.report.figure import Figure, Json, line
from sim.report.figure import numbers as drawn
from sim.report.files import replacing
from sim.report.html import Best, Page, Section, Table, Tile, render
from sim.report.overlay import COLOURS
from sim.report.points import read_points
from sim.report.words import NOTHING, TERMS, count, duration, percent, rate
from sim.units import GIB

if TYPE_CHECKING:
    from rich.console import RenderableType

Numbers = dict[str, Any]
MOST_TILES = 4
MOST_WARNINGS = 5
DECISIVE = 3  # metrics that are found in words, and shown on a terminal: the experiment's first
EFFICIENCY = (
    "Efficiency is the geometric mean of three shares: of the requests within their objectives, of the held KV slots "
    "in which a token lives, and of the most output tokens/s that any row has in the same column. 100 is all of each; "
    "who serves nobody, or holds nothing but empty slots, has 0."
)


class Metric(NamedTuple):
    """A number of a run: what it is called, where it is in a summary, how to write and to draw it."""

    heading: str
    of: Callable[[Numbers], float | None]
    words: Callable[[float | None], str]
    is_more_better: bool | None = None
    unit: str = ""  # of the axis, where the number times `scale` is drawn
    scale: float = 1.0
    note: str = ""


def _plain(value: float | None) -> str:
    return NOTHING if value is None else count(value)


def _gib(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}" if value >= 0.1 else f"{value:.3f}"


def _counts(numbers: Numbers) -> Mapping[str, float]:
    return over_classes(numbers["kvtwin"]["counts"])


def _held_gib(numbers: Numbers) -> float:
    return float(numbers["kvtwin"]["kv"]["held_bytes"]) / GIB


def _per_gib(numbers: Numbers) -> float | None:
    """Of the memory that a replica holds on average, so that of several the throughput is shared out."""
    held = _held_gib(numbers) * numbers["kvtwin"]["n_replicas"]
    return float(numbers["output_throughput"]) / held if held else None


def _avoided(numbers: Numbers) -> float | None:
    counts = _counts(numbers)
    if "resizes_if_growing" not in counts:
        return None
    return counts["resizes_if_growing"] - (counts["resizes"] - counts.get("resizes_ahead", 0))


def _efficiency(_: Numbers) -> float | None:
    return None  # hangs on the others of its column: see `efficiencies`


METRICS = {
    "goodput": Metric("goodput [req/s]", lambda n: n["request_goodput"], rate, True, "requests/s"),
    "attainment": Metric("within objectives", lambda n: n["kvtwin"]["slo_attainment_frac"], percent, True, "%", 100.0),
    "ttft_p50": Metric("TTFT p50", lambda n: n["median_ttft_ms"], duration, False, "ms"),
    "ttft_p99": Metric("TTFT p99", lambda n: n["p99_ttft_ms"], duration, False, "ms"),
    "tpot_p50": Metric("TPOT p50", lambda n: n["median_tpot_ms"], duration, False, "ms"),
    "tpot_p99": Metric("TPOT p99", lambda n: n["p99_tpot_ms"], duration, False, "ms"),
    "e2el_mean": Metric("E2EL mean", lambda n: n["mean_e2el_ms"], duration, False, "ms"),
    "throughput": Metric("output [tok/s]", lambda n: n["output_throughput"], rate, True, "tokens/s"),
    "per_device": Metric(
        "tok/s per accelerator", lambda n: n["kvtwin"]["total_token_throughput_per_device"], rate, True, "tokens/s"
    ),
    "per_gib": Metric("output tok/s per GiB of KV held", _per_gib, rate, True, "tokens/s per GiB"),
    "kv_held": Metric("KV held [GiB]", _held_gib, _gib, False, "GiB"),
    "kv_live": Metric("KV live [GiB]", lambda n: n["kvtwin"]["kv"]["live_bytes"] / GIB, _gib, None, "GiB"),
    "kv_peak": Metric("slots in use at most", lambda n: n["kvtwin"]["kv"]["peak_used_frac"], percent, None, "%", 100.0),
    "waste": Metric("held slots that are empty", lambda n: n["kvtwin"]["kv"]["waste_frac"], percent, False, "%", 100.0),
    "resizes": Metric("resizes", lambda n: _counts(n).get("resizes"), _plain, False),
    "avoided": Metric(
        "resizes avoided", _avoided, _plain, True, note="Against extents that grow only when they are full."
    ),
    "hit_rate": Metric("prefix hit rate", lambda n: n["kvtwin"]["prefix_hit_frac"], percent, True, "%", 100.0),
    "evicted": Metric("evicted blocks", lambda n: _counts(n).get("evicted_blocks"), _plain, False),
    "preemptions": Metric("preemptions", lambda n: n["kvtwin"]["preemptions"], _plain, False),
    "refused": Metric("refused", lambda n: n["failed"], _plain, False),
    "batch": Metric("mean batch", lambda n: n["kvtwin"]["mean_decode_seqs"], rate, None, "sequences"),
    "wait": Metric("mean wait in the queue", lambda n: n["kvtwin"]["mean_queue_ms"], duration, False, "ms"),
    "padding": Metric(
        "padding",
        lambda n: n["kvtwin"]["padding_tokens"] / max(1, n["kvtwin"]["padding_tokens"] + _useful(n)),
        percent,
        False,
        "%",
        100.0,
        "Share of the computed tokens that nobody asked for.",
    ),
    "attended": Metric("attended", lambda n: _counts(n).get("attended_frac", 1.0), percent, None, "%", 100.0),
    "efficiency": Metric("efficiency", _efficiency, rate, True, "of 100", note=EFFICIENCY),
}
"""By the name that ``grid.metrics`` gives."""


def _useful(numbers: Numbers) -> float:
    return float(numbers["kvtwin"]["prefill_tokens_computed"] + numbers["total_output_tokens"])


class Cell(NamedTuple):
    """A finished point: its variants by axis, and its folder."""

    variants: Mapping[str, str]
    folder: Path


class Matrix:
    """Numbers of all points, by metric, row and column."""

    def __init__(self, cells: Sequence[Cell], metrics: Sequence[str]) -> None:
        axes = list(dict.fromkeys(axis for cell in cells for axis in cell.variants))
        self.row_axis, self.column_axes = axes[0], axes[1:]
        self.rows = list(dict.fromkeys(cell.variants[self.row_axis] for cell in cells))
        self.columns = list(dict.fromkeys(self.place(cell)[1] for cell in cells))
        points = read_points([cell.folder for cell in cells])
        self.at = {self.place(cell): dict(point.numbers) for cell, point in zip(cells, points, strict=True)}
        values = {name: self._values(name) for name in metrics or METRICS}
        self.values = {name: found for name, found in values.items() if any(v is not None for v in found.values())}

    def place(self, cell: Cell) -> tuple[str, str]:
        """Row and column of a point."""
        return cell.variants[self.row_axis], ", ".join(cell.variants.get(axis, "") for axis in self.column_axes)

    def warnings(self) -> list[str]:
        """What readers must know of some points, by how many have it."""
        by_text: dict[str, list[str]] = {}
        for (row, column), numbers in self.at.items():
            for one in numbers["kvtwin"]["warnings"]:
                by_text.setdefault(one, []).append(f"{row} {column}".strip())
        ordered = sorted(by_text.items(), key=lambda item: -len(item[1]))
        told = [
            text if len(who) == len(self.at) else f"{text} ({', '.join(who[:3])}{_and_more(who)})"
            for text, who in ordered
        ]
        left = len(told) - MOST_WARNINGS
        return told[:MOST_WARNINGS] + ([f"{left} more warnings are in the points' summary.json."] if left > 0 else [])

    def _values(self, name: str) -> dict[tuple[str, str], float | None]:
        if name == "efficiency":
            return efficiencies(self.at)
        return {place: METRICS[name].of(numbers) for place, numbers in self.at.items()}

    def best(self, name: str, column: str) -> set[str]:
        """Rows that win a column, as far as one can read; none if all do, and never one that served nobody."""
        metric = METRICS[name]
        known = {
            row: value
            for row in self.rows
            if (value := self.values[name].get((row, column))) is not None and self.at[row, column]["completed"]
        }
        if metric.is_more_better is None or len({metric.words(value) for value in known.values()}) < 2:
            return set()
        won = metric.words((max if metric.is_more_better else min)(known.values()))
        return {row for row, value in known.items() if metric.words(value) == won}

    def cell(self, name: str, row: str, column: str) -> str:
        """A number in words."""
        return METRICS[name].words(self.values[name].get((row, column)))


def _and_more(who: Sequence[str]) -> str:
    return f" and {len(who) - 3} more" if len(who) > 3 else ""


def efficiencies(at: Mapping[tuple[str, str], Numbers]) -> dict[tuple[str, str], float | None]:
    """The efficiency of each point, 0 to 100; see `EFFICIENCY`. None without objectives."""
    fastest: dict[str, float] = {}
    for (_, column), numbers in at.items():
        fastest[column] = max(fastest.get(column, 0.0), float(numbers["output_throughput"]))
    found: dict[tuple[str, str], float | None] = {}
    for (row, column), numbers in at.items():
        within = numbers["kvtwin"]["slo_attainment_frac"]
        speed = float(numbers["output_throughput"]) / fastest[column] if fastest[column] else 0.0
        live = 1.0 - float(numbers["kvtwin"]["kv"]["waste_frac"])
        found[row, column] = None if within is None else 100.0 * float(prod((within, live, speed)) ** (1.0 / 3.0))
    return found


def write_matrix(cells: Sequence[Cell], title: str, metrics: Sequence[str], note: str, out: Path) -> "RenderableType":
    """Write ``matrix.html``, ``matrix.json`` and ``matrix.csv`` into a folder; the matrix for a terminal."""
    found = Matrix(cells, metrics)
    rows = [
        {
            **cell.variants,
            **{name: values.get(found.place(cell)) for name, values in found.values.items()},
        }
        for cell in cells
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    for file, content in (
        ("matrix.json", json.dumps({"title": title, "rows": rows}, indent=1, allow_nan=False) + "\n"),
        ("matrix.csv", text.getvalue()),
        ("matrix.html", matrix_page(found, title, note)),
    ):
        with replacing(out / file) as path:
            path.write_text(content, encoding="utf-8")
    return matrix_table(found, title)


def matrix_table(found: Matrix, title: str) -> "RenderableType":
    """As a terminal shows it: with one column all numbers; with several those that decide, the page has the others."""
    from rich.console import Group
    from rich.text import Text

    if len(found.columns) == 1:
        (column,) = found.columns
        tables = [
            _rich(title, found.row_axis, found.rows, [(METRICS[m].heading, m, column) for m in found.values], found)
        ]
    else:
        tables = [
            _rich(f"{title}: {METRICS[m].heading}", "", found.rows, [(one, m, one) for one in found.columns], found)
            for m in [*found.values][:DECISIVE]
        ]
    return Group(*tables, *(Text(one) for one in findings(found)))


def _rich(title: str, corner: str, across: Sequence[str], down: Sequence[tuple[str, str, str]], found: Matrix) -> Any:
    """A table with the matrix's rows beside one another, and below each a metric at a column."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left")
    table.add_column(Text(corner))
    for row in across:
        table.add_column(Text(row), justify="right")
    for heading, name, column in down:
        won, cells = found.best(name, column), {row: found.cell(name, row, column) for row in across}
        marked = (Text(f"* {c}", style="bold green") if row in won else Text(c) for row, c in cells.items())
        table.add_row(Text(heading), *marked)
    return table


def findings(found: Matrix) -> list[str]:
    """Who wins what, in words."""
    said = []
    for name in [*found.values][:DECISIVE]:
        won = [found.best(name, column) for column in found.columns]
        told = [one for one in won if one]
        if not told:
            continue
        wins = {row: sum(row in one for one in told) for row in found.rows}
        row = max(found.rows, key=lambda one: wins[one])
        better = "highest" if METRICS[name].is_more_better else "lowest"
        where = f" in {wins[row]} of {len(found.columns)} columns" if len(found.columns) > 1 else ""
        shared = [one for one in found.rows if wins[one] == wins[row]]
        said.append(f"{' and '.join(shared)}: {better} {METRICS[name].heading}{where}.")
    return said


def matrix_page(found: Matrix, title: str, note: str) -> str:
    """The matrix as one page: numbers first, then a chart for each."""
    tables, figures = [], []
    for name, values in found.values.items():
        metric = METRICS[name]
        if len(found.columns) > 1:
            tables.append(
                Table(
                    [
                        [
                            row,
                            *(
                                Best(found.cell(name, row, column))
                                if row in found.best(name, column)
                                else found.cell(name, row, column)
                                for column in found.columns
                            ),
                        ]
                        for row in found.rows
                    ],
                    [found.row_axis, *found.columns],
                    metric.heading,
                    "wide",
                )
            )
        if metric.unit or any(values.values()):
            figures.append(chart(found, name))
    if len(found.columns) == 1:
        (column,) = found.columns
        best = {name: found.best(name, column) for name in found.values}
        tables.append(
            Table(
                [
                    [
                        row,
                        *(
                            Best(found.cell(name, row, column)) if row in best[name] else found.cell(name, row, column)
                            for name in found.values
                        ),
                    ]
                    for row in found.rows
                ],
                [found.row_axis, *(METRICS[name].heading for name in found.values)],
                style="wide",
            )
        )
    tiles = [
        Tile(f"Best {METRICS[name].heading}", found.cell(name, row, column), more=f"{row} {column}".strip())
        for name in [*found.values][:MOST_TILES]
        for row, column in [_winner(found, name)]
    ]
    notes = " ".join(dict.fromkeys(METRICS[name].note for name in found.values if METRICS[name].note))
    return render(
        Page(
            title=f"kvtwin: {title}",
            heading=title,
            lead=note,
            verdict=findings(found),
            tiles=tiles,
            warnings=found.warnings(),
            sections=[
                Section("matrix", "In numbers", f"The best of each column in green and bold. {notes}", tables=tables),
                Section("charts", "Drawn", figures=figures),
                Section("words", "Words", "What the terms on this page mean.", tables=[Table(TERMS, style="facts")]),
            ],
        )
    )


def _winner(found: Matrix, name: str) -> tuple[str, str]:
    places = {place: value for place, value in found.values[name].items() if value is not None}
    pick = max if METRICS[name].is_more_better in (True, None) else min
    return pick(places, key=lambda place: places[place])


def as_number(words: str) -> float | None:
    """A variant's name where it is a number, with k for 1,024.

    Examples
    --------
    >>> as_number("16"), as_number("4k"), as_number("paged")
    (16.0, 4096.0, None)
    """
    text, factor = (words[:-1], 1024.0) if words[-1:] == "k" else (words, 1.0)
    try:
        return float(text) * factor
    except ValueError:
        return None


def chart(found: Matrix, name: str) -> Figure:
    """One number over the columns, a line or a set of bars a row; over the rows where there is one column."""
    metric = METRICS[name]
    along, across = (found.columns, found.rows) if len(found.columns) > 1 else (found.rows, found.columns)
    is_turned = len(found.columns) == 1
    places = [as_number(one) for one in along]
    is_number = len(along) > 2 and None not in places
    traces: list[Json] = []
    for i, one in enumerate(across):
        keys = [(place, one) if is_turned else (one, place) for place in along]
        raw = [found.values[name].get(key) for key in keys]
        y = drawn([np.nan if value is None else metric.scale * value for value in raw])
        colour = COLOURS[i % len(COLOURS)]
        label = one or metric.heading
        if is_number:
            traces.append(
                line(drawn([np.nan if x is None else x for x in places]), y, label, colour, mode="lines+markers")
            )
        else:
            traces.append({"type": "bar", "x": list(along), "y": y, "name": label, "marker": {"color": colour}})
    layout: Json = {"yaxis": {"title": {"text": metric.unit}, "rangemode": "tozero"}, "hovermode": "closest"}
    if is_number:
        axis = found.row_axis if is_turned else ", ".join(found.column_axes)
        known = [x for x in places if x is not None]
        is_log = min(known) > 0 and max(known) > 8 * min(known)
        layout["xaxis"] = {
            "title": {"text": axis},
            "tickvals": known,
            "ticktext": list(along),
            **({"type": "log"} if is_log else {}),
        }
    return Figure(name, metric.heading, metric.note if name != "efficiency" else "", traces, layout, height_px=340)

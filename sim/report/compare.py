"""Finished runs beside one another: what was found, one table, one page."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.report.compare_figures import curves, distributions, memory, memory_course, pareto, reuse
from sim.report.files import replacing
from sim.report.finding import findings, groups, listed, settings_of, title
from sim.report.html import Best, Page, Section, Table, Toned, render
from sim.report.points import Point, differences, labels, read_points, short
from sim.report.pools import hand_over_ms
from sim.report.replications import against_first
from sim.report.significance import Samples, difference, read_samples
from sim.report.tier_figures import found_below_frac
from sim.report.words import NOTHING, TERMS, count, duration, gibibytes, in_one_unit, is_wide_apart, percent, rate

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MAX_SIDE_BY_SIDE = 8
BETWEEN = 3  # characters between columns on a terminal
STRETCH_FRAC = 0.025
"""How exactly rates are known: the ends of the stretch that they are counted in, to one of 40 bins."""
HEAT = (1.1, 1.5, 3.0)  # times the best, from which on a cell is warmer
HEAT_FRAC = (0.02, 0.1, 0.3)  # of shares: how far from the best
PAIRS = (
    "Replication by replication, so that what chance did to both alike is not in the difference; with 95 % confidence. "
    "Shares differ by percentage points."
)
REUSE = "What is found need not be computed. What that is worth is time, so the two are shown together."


class Column(NamedTuple):
    """A number to compare: where it is in a summary, how to write it, and whether more is better."""

    heading: str
    of: Callable[[dict[str, Any]], float | None]
    words: Callable[[float | None], str]
    is_more_better: bool | None = None
    statistic: str = ""  # of `sim.report.significance`, where it is made of requests
    is_time: bool = False  # in ms; written in the unit that suits the column
    apart_frac: float = 0.0  # as close as this to the best is as good
    rank: int = 9  # how soon a narrow table goes without it: the lowest stay


def _count(value: float | None) -> str:
    return NOTHING if value is None else count(value)


def _seconds(value_ms: float | None) -> str:
    return rate(None if value_ms is None else value_ms / 1e3)


def _steady(key: str) -> Callable[[dict[str, Any]], float | None]:
    def of(numbers: dict[str, Any]) -> float | None:
        value: float | None = numbers["kvtwin"]["steady"][key]
        return value

    return of


COLUMNS = (
    Column("within objectives", lambda n: n["kvtwin"]["slo_attainment_frac"], percent, True, "within", rank=1),
    Column("goodput [req/s]", _steady("goodput_per_s"), rate, True, apart_frac=STRETCH_FRAC, rank=4),
    Column("served [req/s]", _steady("served_per_s"), rate, True, apart_frac=STRETCH_FRAC, rank=7),
    Column("TTFT p50", lambda n: n["median_ttft_ms"], rate, False, "ttft_p50", True, rank=2),
    Column("TTFT p99", lambda n: n["p99_ttft_ms"], rate, False, "ttft_p99", True, rank=3),
    Column("TPOT p50", lambda n: n["median_tpot_ms"], rate, False, "tpot_p50", True, rank=3),
    Column("TPOT p99", lambda n: n["p99_tpot_ms"], rate, False, "tpot_p99", True, rank=6),
    Column("output [tok/s]", _steady("output_tokens_per_s"), rate, True, apart_frac=STRETCH_FRAC, rank=7),
    Column(
        "tok/s per accelerator",
        lambda n: n["kvtwin"]["steady"]["total_tokens_per_s"] / max(1, n["kvtwin"]["n_devices"]),
        rate,
        True,
        apart_frac=STRETCH_FRAC,
        rank=5,
    ),
    Column("replicas, mean", lambda n: n["kvtwin"]["fleet"]["mean_replicas"], rate),
    Column("accelerator hours", lambda n: n["kvtwin"]["fleet"]["gpu_hours"], rate, False),
    Column("cost", lambda n: n["kvtwin"]["fleet"]["cost"], rate, False, rank=4),
    Column("KV held", lambda n: n["kvtwin"]["kv"]["held_bytes"], lambda v: gibibytes(v or 0.0), False, rank=5),
    Column("KV live", lambda n: n["kvtwin"]["kv"]["live_bytes"], lambda v: gibibytes(v or 0.0)),
    Column("waste", lambda n: n["kvtwin"]["kv"]["waste_frac"], percent, False, rank=6),
    Column("attended", lambda n: n["kvtwin"]["counts"].get("attended_frac"), percent),
    Column("bits per element", lambda n: n["kvtwin"]["counts"].get("bits_per_element"), rate),
    Column("resizes", lambda n: n["kvtwin"]["counts"].get("resizes") or None, _count),
    Column("hit rate", lambda n: n["kvtwin"]["prefix_hit_frac"], percent, True, "hits", rank=4),
    Column("found below the device", found_below_frac, percent),
    Column("hand-over, mean [ms]", hand_over_ms, rate, False),
    Column("preemptions", lambda n: n["kvtwin"]["preemptions"], lambda v: count(v or 0), False, rank=6),
    Column("came back by swap", lambda n: n["kvtwin"]["swaps"] or None, _count),
    Column("refused", lambda n: n["failed"], lambda v: count(v or 0), False, rank=6),
    Column(
        "overloaded",
        lambda n: float(n["kvtwin"]["steady"]["is_saturated"]),
        lambda v: "yes" if v else "no",
        False,
        rank=0,
    ),
)


def shown_columns(points: Sequence[Point]) -> list[Column]:
    """Those of `COLUMNS` that have a number at some point; times in one unit, where one suits the whole column."""
    shown = []
    for column in COLUMNS:
        values = [column.of(dict(point.numbers)) for point in points]
        if all(value is None for value in values):
            continue
        if column.is_time:
            unit, _ = in_one_unit(values)
            if is_wide_apart(values):
                column = column._replace(words=duration)
            else:
                column = column._replace(heading=f"{column.heading} [{unit}]", words=_seconds if unit == "s" else rate)
        shown.append(column)
    return shown


@dataclass(frozen=True, slots=True)
class Comparison:
    """Points, what tells them apart, and how sure their differences are."""

    points: Sequence[Point]
    names: Sequence[str]
    samples: Sequence[Samples | None]

    @property
    def keys(self) -> list[str]:
        """Settings that tell points apart, choices of a part before others."""
        found = dict.fromkeys(key for mine in differences(self.points) for key in mine)
        return sorted(found, key=lambda key: not key.endswith("._target_"))

    def headings(self) -> list[str]:
        """A column for each of them; for the point's name, where nothing tells them apart."""
        return [short(key) for key in self.keys] or ["run"]

    def heads(self) -> list[list[str]]:
        """The cells below."""
        keys = self.keys
        if not keys:
            return [[name] for name in self.names]
        return [settings_of(mine, keys) for mine in differences(self.points)]

    def tones(self, column: Column) -> list[str]:
        """Of each point: ``best``, ``same`` as the best as far as one can tell, or how far from it."""
        tones = [""] * len(self.points)
        if column.is_more_better is None:
            return tones
        for members in groups(self.points).values():
            values = {
                i: value
                for i in members
                if self.points[i].numbers["completed"]
                and (value := column.of(dict(self.points[i].numbers))) is not None
            }
            if len({column.words(value) for value in values.values()}) < 2:
                continue
            best = (max if column.is_more_better else min)(values, key=values.__getitem__)
            for i, value in values.items():
                if column.words(value) == column.words(values[best]):
                    tones[i] = "best"
                elif self._is_as_good(column, i, best, value, values[best]):
                    tones[i] = "same"
                else:
                    tones[i] = f"heat{_heat(column, value, values[best])}"
        return tones

    def _is_as_good(self, column: Column, one: int, best: int, value: float, at_best: float) -> bool:
        a, b = self.samples[one], self.samples[best]
        if column.statistic and a is not None and b is not None:
            found = difference(a, b, column.statistic)
            if found is not None:
                return found.low <= 0.0 <= found.high
        return abs(value - at_best) <= column.apart_frac * abs(at_best)

    def cells(self, columns: Sequence[Column]) -> list[list[str]]:
        """Of each column, of each point."""
        return [[column.words(column.of(dict(point.numbers))) for point in self.points] for column in columns]

    def varying(self) -> tuple[list[Column], list[str]]:
        """Columns that differ somewhere, and what is the same everywhere, in words."""
        columns = shown_columns(self.points)
        cells = self.cells(columns)
        same = [
            f"{column.heading} {mine[0]}" for column, mine in zip(columns, cells, strict=True) if len(set(mine)) == 1
        ]
        return [column for column, mine in zip(columns, cells, strict=True) if len(set(mine)) > 1], same


def _heat(column: Column, value: float, best: float) -> int:
    """How far from the best, 1 to 4."""
    if column.words is percent:
        return 1 + sum(abs(value - best) > step for step in HEAT_FRAC)
    high, low = max(value, best), min(value, best)
    return 1 + sum(high > step * low for step in HEAT)


def compared(points: Sequence[Point]) -> Comparison:
    """Points with their names and their requests."""
    return Comparison(points, labels(points), [read_samples(point.path) for point in points])


def compare(folders: str | os.PathLike[str] | Sequence[Path], out_dir: str | os.PathLike[str]) -> "RenderableType":
    """Compare finished runs: writes ``compare.html``, ``.json`` and ``.csv``, returns the table.

    Parameters
    ----------
    folders : path or sequence of path
        One folder, searched for run folders at any depth; or the run folders.
    out_dir : path
        Where to write.

    Raises
    ------
    ConfigError
        If the folder holds no finished run.
    """
    of = compared(read_points(folders))
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "label": name,
            "path": os.path.relpath(point.path, out),
            **mine,
            **{c.heading + " [ms]" * c.is_time: c.of(dict(point.numbers)) for c in COLUMNS},
        }
        for name, point, mine in zip(of.names, of.points, differences(of.points), strict=True)
    ]
    texts = {"json": json.dumps(rows, indent=2) + "\n", "csv": _csv(rows), "html": comparison_page(of)}
    for ending, text in texts.items():
        with replacing(out / f"compare.{ending}") as path:
            path.write_text(text, encoding="utf-8")
    return comparison_table(of)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """A row a point, a column for each setting that tells points apart and for each number."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    order = [key for key in keys if "." in key and "[" not in key]
    columns = ["label", "path", *order, *(key for key in keys if key not in ("label", "path", *order))]
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def compare_task(*, dir: str, out: Path, console: "Console") -> None:  # noqa: A002
    """``task=compare``: compare the finished runs under ``task.dir``, write the page into ``out``."""
    console.print(compare(dir, out))
    console.print(f"Page: {out / 'compare.html'}", soft_wrap=True)


def comparison_table(of: Comparison) -> "RenderableType":
    """The comparison for a rich console: what was found, and a table; the best of each number is green and starred.

    Points stand side by side where all fit, else one below the other, with as many of the numbers as there is room for.
    """
    return _OnConsole(of)


class _OnConsole:
    """A table as wide as the console."""

    def __init__(self, of: Comparison) -> None:
        self.of = of

    def __rich_console__(self, console: "Console", options: Any) -> Iterator["RenderableType"]:
        from rich.text import Text

        of = self.of
        yield Text(title(of.points), style="bold")
        yield from (Text(sentence) for sentence in findings(of.points, of.names, of.samples))
        columns, same = of.varying()
        words = of.cells(columns)
        cells = [
            [_marked(*one) for one in zip(mine, of.tones(c), strict=True)]
            for c, mine in zip(columns, words, strict=True)
        ]
        across = [[*column] for column in zip(*of.heads(), strict=True)]
        beside = max((len(c.heading) for c in columns), default=0) + sum(
            3 + max(len(word) for word in [*_lines(name), *(f"* {cell[i]}" for cell in words)])
            for i, name in enumerate(of.names)
        )
        left_out: list[str] = []
        if beside <= options.max_width:
            yield _side_by_side(of.names, columns, cells)
        else:
            room = options.max_width - sum(
                BETWEEN + max(map(len, [*(f"{part}_" for part in heading.split("_")), *cells_]))
                for heading, cells_ in zip(of.headings(), across, strict=True)
            )
            kept: set[int] = set()
            for i in sorted(range(len(columns)), key=lambda i: columns[i].rank):
                need = BETWEEN + max(
                    len(word) for word in [*columns[i].heading.split(" "), *(f"* {cell}" for cell in words[i])]
                )
                if need <= room:
                    kept.add(i)
                    room -= need
                else:
                    left_out.append(columns[i].heading)
            order = sorted(kept)
            yield _below(of.headings(), of.heads(), [columns[i] for i in order], [cells[i] for i in order])
        pairs = against_first([point.replications for point in of.points], of.names)
        if pairs is not None:
            yield _pairs(*pairs)
        if same:
            yield Text(f"The same for all: {', '.join(same)}.", style="dim")
        if left_out:
            yield Text(f"In compare.csv and on the page, too: {', '.join(left_out)}.", style="dim")


def _lines(name: str) -> list[str]:
    return name.replace(", ", "\n").split("\n")


def _marked(cell: str, tone: str) -> str:
    from rich.markup import escape

    cell = escape(cell)
    return f"[bold green]* {cell}[/]" if tone == "best" else f"[dim]{cell}[/]" if tone == "same" else cell


def _side_by_side(names: Sequence[str], columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> "RenderableType":
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(escape("\n".join(_lines(name))), justify="right")
    for column, mine in zip(columns, cells, strict=True):
        table.add_row(escape(column.heading), *mine)
    return table


def _below(
    headings: Sequence[str],
    heads: Sequence[Sequence[str]],
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
) -> "RenderableType":
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in headings:
        table.add_column(escape(heading.replace("_", "_\n")), no_wrap=True)
    for column in columns:
        table.add_column(escape(column.heading.replace(" ", "\n")), justify="right", no_wrap=True)
    for i, head in enumerate(heads):
        table.add_row(*map(escape, head), *(mine[i] for mine in cells))
    return table


def _pairs(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> "RenderableType":
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(escape(heading.replace(", ", "\n")), justify="right" if i else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def comparison_page(of: Comparison) -> str:
    """The comparison as a self-contained HTML page."""
    points, names = of.points, of.names
    columns, same = of.varying()
    words = of.cells(columns)
    toned = [
        [_toned(*one) for one in zip(mine, of.tones(column), strict=True)]
        for column, mine in zip(columns, words, strict=True)
    ]
    if len(points) <= MAX_SIDE_BY_SIDE:
        headings = ["", *names]
        rows: list[list[str]] = [[column.heading, *mine] for column, mine in zip(columns, toned, strict=True)]
    else:
        headings = [*of.headings(), *(column.heading for column in columns)]
        rows = [[*head, *(mine[i] for mine in toned)] for i, head in enumerate(of.heads())]
    table = Table(rows, headings, style="wide heat")
    lead = (
        "Green is the best of its number, among points with the same traffic; grey cannot be told from it; the warmer, "
        "the farther from it. Rates are those of the time that holds the work."
    )
    if same:
        lead += f" The same for all: {', '.join(same)}."
    swept, found_again, latencies = curves(points), reuse(points, names), distributions(points, names)
    pairs = against_first([point.replications for point in points], names)
    course = memory_course(points, names)
    said = findings(points, names, of.samples)
    sections = [
        Section("table", "All points", lead, tables=[table]),
        *([Section("pairs", "Differences", PAIRS, tables=[Table(pairs[1], pairs[0], style="wide")])] if pairs else []),
        *([Section("curves", "Over what was swept", CURVES, swept)] if swept else []),
        Section("speed", "Throughput against speed", "", [pareto(points, names)]),
        *([Section("latency", "Latency", "Every request of every run.", latencies)] if latencies else []),
        *([Section("reuse", "Reuse", REUSE, found_again)] if found_again else []),
        Section("memory", "Memory", "", [*memory(points, names), *course]),
        Section("words", "Words", "What the terms on this page mean.", tables=[Table(TERMS, style="facts")]),
    ]
    heading = title(points)
    over = any(point.numbers["kvtwin"]["steady"]["is_saturated"] for point in points)
    page = Page(
        title=f"kvtwin: {heading}",
        heading=heading,
        lead=f"{len(points)} runs: {listed(names)}. The same numbers are in compare.csv and compare.json.",
        verdict=said or ["Nothing to compare: fewer than two runs served anybody."],
        mood="fair" if over else "",
        sections=sections,
    )
    return render(page)


CURVES = "A line for each other choice. Where latency turns upward over the rate, capacity ends."


def _toned(cell: str, tone: str) -> str:
    return cell if not tone else Best(cell) if tone == "best" else Toned(cell, tone)

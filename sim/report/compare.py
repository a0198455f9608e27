"""Finished runs beside one another: one table and one page."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.report.compare_figures import distributions, memory, over_rate, pareto, reuse, speed
from sim.report.files import replacing
from sim.report.html import Best, Page, Section, Table, Tile, render
from sim.report.points import Point, labels, read_points
from sim.report.pools import hand_over_ms
from sim.report.replications import against_first
from sim.report.tier_figures import found_below_frac
from sim.report.words import NOTHING, TERMS, count, gibibytes, milliseconds, percent, rate

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


MAX_SIDE_BY_SIDE = 8
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
    only_if_it_varies: bool = False


def _count(value: float | None) -> str:
    return NOTHING if value is None else count(value)


COLUMNS = (
    Column("goodput [req/s]", lambda n: n["request_goodput"], rate, True),
    Column("within objectives", lambda n: n["kvtwin"]["slo_attainment_frac"], percent, True),
    Column("TTFT p50 [ms]", lambda n: n["median_ttft_ms"], milliseconds, False),
    Column("TTFT p99 [ms]", lambda n: n["p99_ttft_ms"], milliseconds, False),
    Column("TPOT p50 [ms]", lambda n: n["median_tpot_ms"], milliseconds, False),
    Column("TPOT p99 [ms]", lambda n: n["p99_tpot_ms"], milliseconds, False),
    Column("output [tok/s]", lambda n: n["output_throughput"], rate, True),
    Column("tok/s per accelerator", lambda n: n["kvtwin"]["total_token_throughput_per_device"], rate, True),
    Column("replicas, mean", lambda n: n["kvtwin"]["fleet"]["mean_replicas"], rate, None, True),
    Column("accelerator hours", lambda n: n["kvtwin"]["fleet"]["gpu_hours"], rate, False, True),
    Column("cost", lambda n: n["kvtwin"]["fleet"]["cost"], rate, False),
    Column("KV held", lambda n: n["kvtwin"]["kv"]["held_bytes"], lambda v: gibibytes(v or 0.0), False),
    Column("KV live", lambda n: n["kvtwin"]["kv"]["live_bytes"], lambda v: gibibytes(v or 0.0)),
    Column("waste", lambda n: n["kvtwin"]["kv"]["waste_frac"], percent, False),
    Column("attended", lambda n: n["kvtwin"]["counts"].get("attended_frac"), percent),
    Column("bits per element", lambda n: n["kvtwin"]["counts"].get("bits_per_element"), rate),
    Column("resizes", lambda n: n["kvtwin"]["counts"].get("resizes") or None, _count),
    Column("hit rate", lambda n: n["kvtwin"]["prefix_hit_frac"], percent, True),
    Column("found below the device", found_below_frac, percent),
    Column("hand-over, mean [ms]", hand_over_ms, milliseconds, False),
    Column("preemptions", lambda n: n["kvtwin"]["preemptions"], lambda v: count(v or 0), False),
    Column("came back by swap", lambda n: n["kvtwin"]["swaps"] or None, _count),
    Column("refused", lambda n: n["failed"], lambda v: count(v or 0), False),
)


def shown_columns(points: Sequence[Point]) -> list[Column]:
    """Those of `COLUMNS` that have a number at some point, and of some that tell little, those that have several."""
    values = {c: {c.of(dict(point.numbers)) for point in points} for c in COLUMNS}
    return [c for c, found in values.items() if found != {None} and (len(found) > 1 or not c.only_if_it_varies)]


def compare(folders: str | os.PathLike[str] | Sequence[Path], out_dir: str | os.PathLike[str]) -> "RenderableType":
    """Compare finished runs: writes ``compare.html`` and ``compare.json``, returns the table.

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
    points = read_points(folders)
    names = labels(points)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "label": name,
            "path": os.path.relpath(point.path, out),
            **{c.heading: c.of(dict(point.numbers)) for c in COLUMNS},
        }
        for name, point in zip(names, points, strict=True)
    ]
    with replacing(out / "compare.json") as path:
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    with replacing(out / "compare.html") as path:
        path.write_text(comparison_page(points), encoding="utf-8")
    return comparison_table(points)


def compare_task(*, dir: str, out: Path, console: "Console") -> None:  # noqa: A002
    """``task=compare``: compare the finished runs under ``task.dir``, write the page into ``out``."""
    console.print(compare(dir, out))
    console.print(f"Page: {out / 'compare.html'}", soft_wrap=True)


def best_rows(points: Sequence[Point], column: Column) -> set[int]:
    """Which points win a column, as far as one can read; none if all do, and never one that served nobody."""
    values = [column.of(dict(point.numbers)) if point.numbers["completed"] else None for point in points]
    known = [value for value in values if value is not None]
    if column.is_more_better is None or len({column.words(value) for value in known}) < 2:
        return set()
    best = column.words(max(known) if column.is_more_better else min(known))
    return {i for i, value in enumerate(values) if value is not None and column.words(value) == best}


def comparison_table(points: Sequence[Point]) -> "RenderableType":
    """The comparison for a rich console; the best of each metric is green and starred.

    Points stand side by side, as many as the console is wide; the others below.
    """
    return _SideBySide(points)


class _SideBySide:
    """Tables as wide as the console."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points

    def __rich_console__(self, console: "Console", options: Any) -> Iterator["RenderableType"]:
        from rich import box
        from rich.markup import escape
        from rich.table import Table as RichTable

        columns, names = shown_columns(self.points), labels(self.points)
        winners = [best_rows(self.points, column) for column in columns]
        room = options.max_width - max(len(column.heading) for column in columns)
        for cut in (", ", " "):  # names in as few lines as fit
            heads = [escape(name.replace(", ", "\n").replace(cut, "\n")) for name in names]
            widest = max(10, *(len(word) for head in heads for word in head.split("\n")))
            n_beside = max(1, room // (widest + 3))
            if n_beside >= len(names):
                break
        for start in range(0, len(names), n_beside):
            shown = range(start, min(start + n_beside, len(names)))
            table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column("")
            for i in shown:
                table.add_column(heads[i], justify="right")
            for column, won in zip(columns, winners, strict=True):
                cells = {i: column.words(column.of(dict(self.points[i].numbers))) for i in shown}
                table.add_row(escape(column.heading), *(_marked(cells[i], i in won) for i in shown))
            yield table
        found = against_first([point.replications for point in self.points], names)
        if found is not None:
            headings, rows = found
            table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
            for i, heading in enumerate(headings):
                table.add_column(escape(heading.replace(", ", "\n")), justify="right" if i else "left")
            for row in rows:
                table.add_row(*(escape(cell) for cell in row))
            yield table


def _marked(cell: str, is_best: bool) -> str:
    return f"[bold green]* {cell}[/]" if is_best else cell


def comparison_page(points: Sequence[Point]) -> str:
    """The comparison as a self-contained HTML page."""
    names, columns = labels(points), shown_columns(points)
    winners = [best_rows(points, column) for column in columns]
    rows = []
    for i, (name, point) in enumerate(zip(names, points, strict=True)):
        cells = [column.words(column.of(dict(point.numbers))) for column in columns]
        rows.append([name, *(Best(cell) if i in won else cell for cell, won in zip(cells, winners, strict=True))])
    headings = ["", *(column.heading for column in columns)]
    if len(points) <= MAX_SIDE_BY_SIDE:
        headings, *rows = (list(row) for row in zip(headings, *rows, strict=True))
    table = Table(rows, headings, style="wide")
    pairs = against_first([point.replications for point in points], names)
    rates, found_again, curves = over_rate(points), reuse(points, names), distributions(points, names)
    sections = [
        Section("table", "All points", "The best of each number in green and bold.", tables=[table]),
        *([Section("pairs", "Differences", PAIRS, tables=[Table(pairs[1], pairs[0], style="wide")])] if pairs else []),
        *(
            [Section("rate", "Against the offered rate", "Where latency turns upward, capacity ends.", rates)]
            if rates
            else []
        ),
        Section("speed", "Speed", "", [pareto(points, names), *speed(points, names)]),
        *([Section("reuse", "Reuse", REUSE, found_again)] if found_again else []),
        Section("memory", "Memory", "", memory(points, names)),
        *([Section("latency", "Latency", "Every request of every run.", curves)] if curves else []),
        Section("words", "Words", "What the terms on this page mean.", tables=[Table(TERMS, style="facts")]),
    ]
    page = Page(
        title=f"kvtwin: {len(points)} runs compared",
        heading=f"{len(points)} runs compared",
        lead=" · ".join(names[:6]) + (f" · and {len(names) - 6} more" if len(names) > 6 else ""),
        tiles=_winners(points, names),
        sections=sections,
    )
    return render(page)


def _winners(points: Sequence[Point], names: Sequence[str]) -> list[Tile]:
    """Who wins what matters most."""
    tiles = []
    for heading in ("goodput [req/s]", "TTFT p99 [ms]", "TPOT p50 [ms]", "output [tok/s]"):
        column = next(c for c in COLUMNS if c.heading == heading)
        won = sorted(best_rows(points, column))
        if won:
            title, _, unit = heading.partition(" [")
            value = column.words(column.of(dict(points[won[0]].numbers)))
            tiles.append(Tile(f"Best {title}", value, unit.rstrip("]"), _listed([names[i] for i in won])))
    return tiles


def _listed(names: Sequence[str], most: int = 3) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")

"""Where swapping preempted sequences beats computing them again: a map over the link's bandwidth and the context."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.report.figure import Figure, Json, line, numbers
from sim.report.files import replacing
from sim.report.html import Best, Page, Section, Table, render
from sim.report.overlay import COLOURS
from sim.report.words import count, duration, milliseconds, percent, rate, signed

if TYPE_CHECKING:
    from rich.console import RenderableType

FILE = "swap_or_recompute.json"
SIGNIFICANT = 2.0  # standard errors: closer than that is no difference
FULL_FRAC = 0.05  # a difference that is drawn in full colour
GB = 1e9
TABLE_TITLE = (
    "mean latency of preempted requests by swapping, against computing again [%]; equal at: GB/s for one transfer alone"
)
EXPECTED = (
    "Expected, after Kwon et al. (SOSP 2023, section 7.3): computing again wins where what is transferred is small, "
    "for every transfer has fixed costs and waits for the next iteration; swapping wins where it is large."
)


@dataclass(frozen=True, slots=True)
class Way:
    """What came out one way: all recomputed, all swapped, or chosen each time."""

    e2el_ms: float | None  # mean of those requests that were preempted in any of the three runs; None without any
    all_e2el_ms: float  # mean of all
    n_preemptions: int
    n_swapped: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """One point of the map: simulated three ways, and one transfer alone worked out."""

    name: str  # of model and hardware
    context_tokens: int
    bytes_per_s: float
    load_s: float  # one sequence's KV, with the link to itself, and its last tokens
    compute_s: float  # the same computed with the device to itself
    equal_bytes_per_s: float | None  # bandwidth at which the two are equal; None where loading always takes longer
    recompute: Way
    swap: Way
    auto: Way
    error_frac: float | None  # standard error of `change_frac`, over requests; None where it has none
    all_error_frac: float | None

    @property
    def winner(self) -> str | None:
        """Which way serves the preempted faster; None where the difference may be chance."""
        return winner(self.change_frac, self.error_frac)

    @property
    def change_frac(self) -> float | None:
        """Latency of the preempted when swapped, against computed again; None where nobody was preempted."""
        if self.swap.e2el_ms is None or not self.recompute.e2el_ms:
            return None
        return self.swap.e2el_ms / self.recompute.e2el_ms - 1.0

    @property
    def all_change_frac(self) -> float:
        """The same of all requests."""
        return self.swap.all_e2el_ms / self.recompute.all_e2el_ms - 1.0


def winner(change_frac: float | None, error_frac: float | None) -> str | None:
    """``swap``, ``recompute``, or None where the change in latency by swapping is within its errors.

    Examples
    --------
    >>> winner(-0.03, 0.01), winner(0.03, 0.01), winner(0.03, 0.02), winner(None, None)
    ('swap', 'recompute', None, None)
    """
    if change_frac is None or abs(change_frac) <= SIGNIFICANT * (error_frac or 0.0):
        return None
    return "swap" if change_frac < 0 else "recompute"


def write_crossing(crossing: Crossing, out: Path) -> None:
    """One point into its folder."""
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / FILE) as path:
        path.write_text(json.dumps(asdict(crossing), indent=1) + "\n", encoding="utf-8")


def read_crossings(folders: Sequence[Path]) -> list[Crossing]:
    """The points in these folders, by context and bandwidth."""
    found = []
    for folder in folders:
        facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
        facts |= {key: Way(**facts[key]) for key in ("recompute", "swap", "auto")}
        found.append(Crossing(**facts))
    return sorted(found, key=lambda point: (point.name, point.context_tokens, point.bytes_per_s))


def write_map(folders: Sequence[Path], out: Path) -> "RenderableType":
    """The map of the points in some folders: writes ``swap_or_recompute.html`` into ``out``, returns the table."""
    points = read_crossings(folders)
    with replacing(out / "swap_or_recompute.html") as path:
        path.write_text(map_page(points), encoding="utf-8")
    return map_table(points)


def in_a_line(point: Crossing) -> str:
    """One point for a terminal."""
    ways = ", ".join(f"{way} {milliseconds(getattr(point, way).e2el_ms)}" for way in ("recompute", "swap", "auto"))
    return (
        f"{count(point.context_tokens)} tokens, {point.bytes_per_s / GB:g} GB/s, latency of the preempted in ms: "
        f"{ways}; swapping {_with_error(point.change_frac, point.error_frac)}, for all requests "
        f"{_with_error(point.all_change_frac, point.all_error_frac)}"
    )


def map_table(points: Sequence[Crossing]) -> "RenderableType":
    """Change of the preempted requests' latency by swapping: a row per context, a column per bandwidth."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = []
    for name in dict.fromkeys(point.name for point in points):
        mine = [point for point in points if point.name == name]
        rates = sorted({point.bytes_per_s for point in mine})
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title=f"{name}: {TABLE_TITLE}")
        table.add_column("tokens \\ GB/s", justify="right")
        for bytes_per_s in rates:
            table.add_column(f"{bytes_per_s / GB:g}", justify="right")
        table.add_column("equal at", justify="right", style="dim")
        for context in sorted({point.context_tokens for point in mine}):
            row = {point.bytes_per_s: point for point in mine if point.context_tokens == context}
            cells = [_cell(row[at]) if at in row else "" for at in rates]
            table.add_row(f"{context:,}", *cells, _equal(next(iter(row.values()))))
        shown.append(table)
    return Group(*shown, *(Text(sentence) for sentence in outcome(points)))


def _cell(point: Crossing) -> str:
    change = point.change_frac
    if change is None:
        return "none"
    colour = {"swap": "green", "recompute": "yellow", None: "dim"}[point.winner]
    return f"[{colour}]{_signed(change).removesuffix(' %')}[/]"


def _equal(point: Crossing) -> str:
    return "never" if point.equal_bytes_per_s is None else rate(point.equal_bytes_per_s / GB)


def _signed(change: float | None) -> str:
    return "none preempted" if change is None else signed(change)


def _with_error(change: float | None, error: float | None) -> str:
    return _signed(change) + (f" ± {100 * error:.1f} %" if change is not None and error else "")


def outcome(points: Sequence[Crossing]) -> list[str]:
    """What came out, in sentences."""
    known = [point for point in points if point.change_frac is not None]
    if not known:
        return ["Nobody was preempted: the memory was large enough."]
    faster, slower = ([point for point in known if point.winner == way] for way in ("swap", "recompute"))
    of_all = [winner(point.all_change_frac, point.all_error_frac) for point in known]
    said = [
        f"Of {len(known)} points, swapping was faster for preempted requests at {len(faster)} and slower at "
        f"{len(slower)}; for the mean of all requests it was faster at {of_all.count('swap')} and slower at "
        f"{of_all.count('recompute')}. The others are closer than {SIGNIFICANT:g} standard errors."
    ]
    if faster:
        contexts = [point.context_tokens for point in known]
        said.append(
            " ".join(
                f"At {count(context)} tokens swapping won {_won_from(context, points, faster)}."
                for context in sorted({min(contexts), max(contexts)})
            )
        )
    if faster or slower:
        n_foretold = sum(p.load_s < p.compute_s for p in faster) + sum(p.load_s >= p.compute_s for p in slower)
        said.append(
            f"One transfer alone, worked out without competition, foretold {n_foretold} of the "
            f"{len(faster) + len(slower)} winners."
        )
    lost = [
        p.auto.e2el_ms / min(p.swap.e2el_ms, p.recompute.e2el_ms) - 1.0
        for p in points
        if p.auto.e2el_ms and p.swap.e2el_ms and p.recompute.e2el_ms
    ]
    lost_all = [p.auto.all_e2el_ms / min(p.swap.all_e2el_ms, p.recompute.all_e2el_ms) - 1.0 for p in points]
    said.append(
        f"preemption=auto was {_signed(sum(lost) / len(lost))} from the better of both for preempted requests, on "
        f"average, and {_signed(max(lost))} at worst; for all requests {_signed(sum(lost_all) / len(lost_all))} and "
        f"{_signed(max(lost_all))}."
    )
    return said


def _won_from(context: int, points: Sequence[Crossing], faster: Sequence[Crossing]) -> str:
    """From which bandwidth of the map on swapping won at a context."""
    mine = [point for point in points if point.context_tokens == context]
    lost = max((point.bytes_per_s for point in mine if point not in faster), default=0.0)
    won = [point.bytes_per_s for point in mine if point.bytes_per_s > lost]
    if not won:
        return "at no bandwidth of the map"
    return f"from {rate(min(won) / GB)} GB/s on" if lost else "at every bandwidth"


def map_page(points: Sequence[Crossing]) -> str:
    """The map as a self-contained HTML page."""
    names = list(dict.fromkeys(point.name for point in points))
    sections = []
    for i, name in enumerate(names):
        mine = [point for point in points if point.name == name]
        figures = [
            _map(
                f"preempted-{i}",
                "Requests that were preempted",
                mine,
                [point.change_frac for point in mine],
                [point.error_frac for point in mine],
            ),
            _map(
                f"all-{i}",
                "All requests",
                mine,
                [point.all_change_frac for point in mine],
                [point.all_error_frac for point in mine],
            ),
            _curves(f"curves-{i}", mine),
        ]
        words = (
            "Change of the mean latency (arrival to last token) by swapping, against computing again. Green: swapping "
            "is faster; orange: computing is; grey: closer than two standard errors. Right of the dotted line one "
            "transfer, alone on its link, takes less than computing on an idle device."
        )
        sections.append(Section(f"map-{i}", name, words, figures, [_table(mine)]))
    page = Page(
        title="kvtwin: swap or recompute",
        heading="Swap or recompute?",
        lead="A preempted sequence's KV can be copied to host memory and loaded again, or computed again. Every point "
        "was simulated both ways, with the same traffic, and with preemption=auto.",
        verdict=[EXPECTED, *outcome(points)],
        sections=sections,
    )
    return render(page)


def _map(
    key: str, title: str, points: Sequence[Crossing], changes: Sequence[float | None], errors: Sequence[float | None]
) -> Figure:
    """Squares over bandwidth and context, coloured by who wins and as strongly as it does."""
    of = {"swap": "--green", "recompute": "--orange", None: "--grey"}
    strength = [0.15 + 0.85 * min(1.0, abs(change or 0.0) / FULL_FRAC) for change in changes]
    colours = [of[winner(change, error)] for change, error in zip(changes, errors, strict=True)]
    squares: Json = {
        "type": "scatter",
        "mode": "markers+text",
        "x": numbers([point.bytes_per_s / GB for point in points]),
        "y": numbers([point.context_tokens for point in points]),
        "text": ["–" if change is None else signed(change).removesuffix(" %") for change in changes],
        "customdata": [_with_error(change, error) for change, error in zip(changes, errors, strict=True)],
        "marker": {
            "symbol": "square",
            "size": 34,
            "color": colours,
            "opacity": numbers(strength),
            "line": {"width": 0},
        },
        "textfont": {"color": "--ink", "size": 11},
        "hovertemplate": "%{y:,} tokens over %{x:g} GB/s<br>%{customdata}<extra></extra>",
        "name": "",
        "cliponaxis": False,
        "showlegend": False,
    }
    by_context = {point.context_tokens: point.equal_bytes_per_s for point in points if point.equal_bytes_per_s}
    edge = line(
        numbers([bytes_per_s / GB for bytes_per_s in by_context.values()]),
        numbers(list(by_context)),
        "equal for one transfer alone",
        "--ink",
        line={"width": 1.5, "dash": "dot"},
    )
    rates = sorted({point.bytes_per_s / GB for point in points})
    contexts = sorted({point.context_tokens for point in points})
    return Figure(
        key,
        title,
        "Change of the mean latency by swapping [%].",
        [squares, edge],
        {
            "xaxis": _log("link [GB/s], each direction", rates),
            "yaxis": _log("context [tokens]", contexts),
            "hovermode": "closest",
        },
        height_px=120 + 44 * max(4, len(contexts)),
        is_wide=len(rates) > 7,
    )


def _log(title: str, values: Sequence[float]) -> Json:
    """A logarithmic axis that shows just these values."""
    from math import log10

    low, high = log10(values[0]), log10(values[-1])
    step = (high - low) / max(1, len(values) - 1) or 0.3
    return {
        "title": {"text": title},
        "type": "log",
        "tickvals": numbers(values),
        "ticktext": [f"{value:,g}" for value in values],
        "range": numbers([low - 0.6 * step, high + 0.6 * step]),
        "showgrid": False,
    }


def _curves(key: str, points: Sequence[Crossing]) -> Figure:
    """Latency of preempted requests over the bandwidth, swapped and chosen each time, against computed again."""
    traces, rows = [], []
    for i, context in enumerate(sorted({point.context_tokens for point in points})):
        mine = [p for p in points if p.context_tokens == context and p.recompute.e2el_ms]
        x = numbers([point.bytes_per_s / GB for point in mine])
        for way, dash in (("swap", "solid"), ("auto", "dot")):
            y = [100 * (getattr(p, way).e2el_ms / p.recompute.e2el_ms - 1.0) for p in mine]
            traces.append(
                line(x, numbers(y), f"{context:,} {way}", COLOURS[i % len(COLOURS)], line={"dash": dash, "width": 1.5})
                | {"mode": "lines+markers", "hovertemplate": "%{x:g} GB/s: %{y:+.1f} %"}
            )
            rows.append((f"{context:,} tokens, {way}", *(signed(value / 100.0) for value in y)))
    rates = sorted({point.bytes_per_s / GB for point in points})
    return Figure(
        key,
        "preemption=swap and preemption=auto against preemption=recompute",
        "Mean latency of requests that were preempted; below zero is faster than computing again.",
        traces,
        {"xaxis": _log("link [GB/s], each direction", rates), "yaxis": {"ticksuffix": " %"}, "hovermode": "closest"},
        ("", *(f"{at:g} GB/s" for at in rates)),
        rows,
        height_px=380,
    )


def _table(points: Sequence[Crossing]) -> Table:
    """Every point in numbers."""
    rows: list[Sequence[str]] = []
    for point in points:
        ways = (point.recompute, point.swap, point.auto)
        best = min((way.e2el_ms for way in ways if way.e2el_ms), default=None)
        cells = [
            Best(milliseconds(w.e2el_ms)) if w.e2el_ms and w.e2el_ms == best else milliseconds(w.e2el_ms) for w in ways
        ]
        rows.append(
            (
                count(point.context_tokens),
                f"{point.bytes_per_s / GB:g}",
                duration(1e3 * point.load_s),
                duration(1e3 * point.compute_s),
                *cells,
                _with_error(point.change_frac, point.error_frac),
                _with_error(point.all_change_frac, point.all_error_frac),
                " / ".join(count(way.n_preemptions) for way in ways),
                percent(point.auto.n_swapped / point.auto.n_preemptions if point.auto.n_preemptions else None),
            )
        )
    headings = (
        "context [tokens]",
        "GB/s",
        "one load alone",
        "one computing alone",
        "recompute [ms]",
        "swap [ms]",
        "auto [ms]",
        "swap, preempted",
        "swap, all",
        "preemptions",
        "auto swapped",
    )
    return Table(
        rows, headings, "Mean latency of requests that were preempted in any of the three", "wide", is_folded=True
    )

"""Prefix hit rates by policy and capacity: a table for the terminal, and a page with their curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.kv.replay import Hits, Trace
from sim.report.figure import Figure, line, numbers
from sim.report.html import Best, Page, Section, Tile, render
from sim.report.html import Table as PageTable
from sim.report.overlay import COLOURS
from sim.report.words import count, percent

if TYPE_CHECKING:
    from rich.table import Table

ORDERS = {
    "tail_first": "last blocks freed first",
    "head_first": "block by block",
    "head_first_once": "block by block, all looked up first",
}
"""`sim.kv.replay.Touch` in words."""
COLUMNS = ("all blocks", "full blocks", "tokens", "missed [blocks]", "evicted [blocks]")
"""Shares hit, and counts."""


@dataclass(frozen=True, slots=True)
class Point:
    """One replay: a policy at a capacity."""

    policy: str
    capacity_blocks: int
    hits: Hits
    accesses_per_s: float  # block accesses per second of this machine's processor time

    def row(self) -> dict[str, str | int | float]:
        """What is written down; nothing of it depends on the machine."""
        return {
            "policy": self.policy,
            "capacity_blocks": self.capacity_blocks,
            "block_frac": self.hits.block_frac,
            "full_frac": self.hits.full_frac,
            "token_frac": self.hits.token_frac,
            "resident_frac": self.hits.resident_frac,
            "hit_blocks": self.hits.hit_blocks,
            "missed_blocks": self.hits.missed_blocks,
            "evicted_blocks": self.hits.evicted_blocks,
        }

    def wins(self, points: Sequence["Point"]) -> bool:
        """Whether nobody hits more tokens at this capacity."""
        return all(
            p.hits.hit_tokens <= self.hits.hit_tokens for p in points if p.capacity_blocks == self.capacity_blocks
        )


def table(points: Sequence[Point], trace: Trace, ceiling: Hits, touch: str) -> "Table":
    """The points as a terminal table, the best policy of each capacity marked."""
    from rich.table import Table

    shown = Table(
        title=f"{len(trace.blocks):,} prompts, {trace.n_references:,} blocks of {trace.block_tokens} tokens: share hit",
        caption=f"{_counted(trace)}; {touch}: {ORDERS[touch]}\n*: most tokens hit at this capacity",
    )
    shown.add_column("policy")
    for column in ("capacity [blocks]", *COLUMNS, "M accesses/s"):
        shown.add_column(column, justify="right")
    for point in _by_capacity(points):
        mark = "*" if point.wins(points) else ""
        shown.add_row(
            f"{point.policy}{mark}",
            count(point.capacity_blocks),
            *_counts(point.hits),
            f"{point.accesses_per_s / 1e6:.2f}",
        )
    shown.add_section()
    shown.add_row("unlimited", "", *_counts(ceiling), "")
    return shown


def page(points: Sequence[Point], trace: Trace, ceiling: Hits, touch: str) -> str:
    """The points as a self-contained HTML page."""
    rows = [
        (
            point.policy,
            count(point.capacity_blocks),
            *map(Best if point.wins(points) else str, _counts(point.hits)[:3]),
            *_counts(point.hits)[3:],
        )
        for point in _by_capacity(points)
    ]
    shown = Page(
        "Prefix hit rates",
        "Prefix hit rates",
        "What share of the prompts a prefix cache finds, by eviction policy and size, if nothing takes time.",
        [
            Section("curve", "By capacity", figures=[curve(points, ceiling, trace.block_tokens)]),
            Section(
                "numbers",
                "In numbers",
                "Blocks count as hit as long as all before them are; the others are missed. In green and "
                "bold: most tokens hit at a capacity.",
                tables=[
                    PageTable(
                        [*rows, ("unlimited", "", *_counts(ceiling))],
                        ("policy", "capacity [blocks]", *COLUMNS),
                        style="wide",
                    )
                ],
            ),
        ],
        verdict=[in_words(points, ceiling)],
        tiles=[
            Tile("Prompts", count(len(trace.blocks)), more=f"{count(sum(trace.prompt_tokens))} tokens"),
            Tile("Blocks asked for", count(trace.n_references), more=f"of {trace.block_tokens} tokens"),
            Tile("Found if nothing is evicted", percent(ceiling.token_frac), more="of prompt tokens"),
        ],
        footer=f"Made by kvtwin from the traffic alone; {_counted(trace)}. {touch}: {ORDERS[touch]}.",
    )
    return render(shown)


def in_words(points: Sequence[Point], ceiling: Hits) -> str:
    """Who finds most at the least and at the largest capacity, and what could be found at all."""
    sizes = sorted({point.capacity_blocks for point in points})
    said = []
    for size in dict.fromkeys((sizes[0], sizes[-1])):
        mine = [point for point in points if point.capacity_blocks == size]
        won = [point for point in mine if point.wins(points)]
        who = "all policies find" if len(won) == len(mine) > 1 else f"{' and '.join(p.policy for p in won)} found"
        who = who.replace("policies find", "policies found")
        said.append(f"with {count(size)} blocks {who} {percent(won[0].hits.token_frac)}")
    words = " and ".join(said)
    return f"Of the prompt tokens, {words}; if nothing were evicted {percent(ceiling.token_frac)} would be found."


def curve(points: Sequence[Point], ceiling: Hits, block_tokens: int) -> Figure:
    """Share of prompt tokens hit over capacity, one line per policy."""
    traces = []
    for i, policy in enumerate(dict.fromkeys(point.policy for point in points)):
        mine = _by_capacity([point for point in points if point.policy == policy])
        traces.append(
            line(
                numbers([point.capacity_blocks for point in mine]),
                numbers([100 * point.hits.token_frac for point in mine]),
                policy,
                COLOURS[i % len(COLOURS)],
                mode="lines+markers",
                hovertemplate="%{x:,} blocks: %{y:.2f} %",
            )
        )
    capacities = numbers(sorted({point.capacity_blocks for point in points}))
    most = numbers([100 * ceiling.token_frac] * len(capacities))
    traces.append(line(capacities, most, "unlimited", "--grey", line={"width": 1.5, "dash": "dot"}))
    return Figure(
        "hit-rate",
        "Prompt tokens found in the prefix cache",
        "One line per eviction policy; the dotted one is what is found if nothing is ever evicted.",
        traces,
        {
            "xaxis": {"title": {"text": f"capacity [blocks of {block_tokens} tokens]"}, "type": "log"},
            "yaxis": {"title": {"text": "prompt tokens [%]"}, "rangemode": "tozero"},
            "hovermode": "closest",
        },
        height_px=420,
    )


def _by_capacity(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.capacity_blocks)


def _counted(trace: Trace) -> str:
    """What is left out."""
    warmup = f", nor the first {trace.n_warmup:,} prompts" if trace.n_warmup else ""
    return f"answers do not count{warmup}"


def _counts(hits: Hits) -> tuple[str, ...]:
    """`COLUMNS` of a replay."""
    shares = (f"{hits.block_frac:.4f}", f"{hits.full_frac:.4f}", f"{hits.token_frac:.4f}")
    return (*shares, count(hits.missed_blocks), count(hits.evicted_blocks))

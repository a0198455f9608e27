"""A small run drawn for people who want to see it: the map of the memory over time, tables of blocks, what happened."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.kv.drawing import EMPTY, FREE, IDLE, SHARED
from sim.report.figure import Figure, Json, line, numbers
from sim.report.files import replacing
from sim.report.finding import number
from sim.report.html import Page, Section, Table, Tile, render
from sim.report.words import count, duration, percent, times
from sim.units import MS_PER_S

if TYPE_CHECKING:
    from rich.console import RenderableType

HUES = ("--blue", "--orange", "--green", "--purple", "--teal", "--red")
CODES = {FREE: 0, EMPTY: 1, IDLE: 2, SHARED: 3}
COLOURS = ("--grid", "--muted", "--grey", "--ink", *HUES)
MOST_COLUMNS, MOST_ROWS = 360, 256  # of the map: finer than a screen shows
MOST_EVENTS = 400
MOST_SHOWN = 40  # on a terminal
COUNTED = {
    "evicted_blocks": ("block evicted", "blocks evicted"),
    "evicted_sessions": ("conversation evicted", "conversations evicted"),
    "resizes": ("extent replaced by a longer one", "extents replaced by longer ones"),
    "compactions": ("compaction", "compactions"),
    "copied_blocks": ("block copied when first written to", "blocks copied when first written to"),
    "swapped_out": ("sequence swapped out", "sequences swapped out"),
    "prefetched_blocks": ("block fetched ahead", "blocks fetched ahead"),
}
IN_TIER = "kept_tokens_"
"""How counts of tokens that a memory below the device keeps begin."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What there is to see when an iteration has ended."""

    end_s: float
    n_decoding: int
    prompt_tokens: int  # computed in it
    n_waiting: int
    running: tuple[int, ...]
    owners: Sequence[int]  # of every unit of memory, by `sim.kv.drawing`
    tables: Mapping[int, Sequence[int]]  # units that each running request reads
    found: Mapping[int, int]  # prompt tokens that each found in the cache
    n_held: int  # units, as the cache counts them
    n_idle: int
    counts: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Explained:
    """A small run, iteration by iteration."""

    name: str
    cache: str
    unit_tokens: int
    n_units: int
    frames: Sequence[Frame]
    requests: Sequence[Sequence[int]]
    columns: Sequence[str]
    refusals: Mapping[int, str]

    @property
    def unit(self) -> str:
        """What a unit is called."""
        return "block" if self.unit_tokens > 1 else "slot"

    def events(self) -> list[tuple[int, str, str]]:
        """What changed: (iteration, kind, in words)."""
        found: list[tuple[int, str, str]] = []
        ended = {row[self.columns.index("id")]: row[self.columns.index("finish_ns")] / 1e9 for row in self.requests}
        before: Frame | None = None
        seen: set[int] = set()
        for i, frame in enumerate(self.frames):
            was = set(before.running) if before else set()
            for one in frame.running:
                if one not in was:
                    words = f"request {one} {'comes back' if one in seen else 'is admitted'}"
                    if frame.found.get(one) and one not in seen:
                        words += f" and finds {count(frame.found[one])} tokens"
                    found.append((i, "hit" if frame.found.get(one) and one not in seen else "admit", words))
                    seen.add(one)
            for one in sorted(was - set(frame.running)):
                is_over = ended.get(one, float("inf")) <= frame.end_s + 1e-9
                words = f"request {one} is complete" if is_over else f"request {one} is preempted"
                found.append((i, "end" if is_over else "preempt", words))
            for key, names in COUNTED.items():
                more = frame.counts.get(key, 0) - (before.counts.get(key, 0) if before else 0)
                if more > 0:
                    found.append((i, key, f"{count(more)} {names[more > 1]}"))
            before = frame
        return found

    def content(self) -> dict[str, Any]:
        """As written down."""
        return {
            "cache": self.cache,
            "unit_tokens": self.unit_tokens,
            "units": self.n_units,
            "iterations": [
                {
                    "end_s": frame.end_s,
                    "decoding": frame.n_decoding,
                    "prompt_tokens": frame.prompt_tokens,
                    "waiting": frame.n_waiting,
                    "running": list(frame.running),
                    "free": sum(owner == FREE for owner in frame.owners),
                    "kept_for_reuse": frame.n_idle,
                }
                for frame in self.frames
            ],
            "events": [{"iteration": i, "kind": kind, "words": words} for i, kind, words in self.events()],
        }

    def fullest(self) -> int:
        """The iteration after which most memory is held."""
        held = [sum(owner not in (FREE, IDLE) for owner in frame.owners) for frame in self.frames]
        return int(np.argmax(held)) if held else 0


def write_explained(found: Explained, out: Path) -> None:
    """Write ``explain.json`` and ``explain.html`` into a folder, each whole or not at all."""
    for file, text in (
        ("explain.json", json.dumps(found.content(), indent=1) + "\n"),
        ("explain.html", explain_page(found)),
    ):
        with replacing(out / file) as path:
            path.write_text(text, encoding="utf-8")


def explain_table(found: Explained) -> "RenderableType":
    """What happened, as a terminal shows it."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("iteration", "time", "running", "waiting", f"{found.unit}s held", "what happened"):
        table.add_column(heading, justify="left" if heading == "what happened" else "right")
    steps = list(_steps(found))
    for row in steps[:MOST_SHOWN]:
        table.add_row(*(Text(cell) for cell in row))
    more = [Text(f"and {len(steps) - MOST_SHOWN} more on the page")] if len(steps) > MOST_SHOWN else []
    return Group(Text(in_words(found)), table, *more)


def _steps(found: Explained) -> Iterator[tuple[str, ...]]:
    by_iteration: dict[int, list[str]] = {}
    for i, _, words in found.events():
        by_iteration.setdefault(i, []).append(words)
    for i, words_of in by_iteration.items():
        frame = found.frames[i]
        held = sum(owner not in (FREE, IDLE) for owner in frame.owners)
        yield (
            count(i + 1),
            duration(MS_PER_S * frame.end_s),
            count(len(frame.running)),
            count(frame.n_waiting),
            count(held),
            "; ".join(words_of),
        )


def in_words(found: Explained) -> str:
    """The run in a sentence or two."""
    if not found.frames:
        return "Nothing was served: " + (next(iter(found.refusals.values()), "there was no request") + ".")
    kinds = [kind for _, kind, _ in found.events()]
    at = found.fullest()
    held = sum(owner not in (FREE, IDLE) for owner in found.frames[at].owners)
    last = found.frames[-1].counts
    said = [
        f"{len(found.requests)} requests took {count(len(found.frames))} iterations. At the fullest, after iteration "
        f"{count(at + 1)}, {len(found.frames[at].running)} of them held {percent(held / found.n_units)} of the memory."
    ]
    happened = [f"{number(kinds.count('hit'))} found text in it"]
    if "preempt" in kinds:
        happened.append(f"running requests were preempted {times(kinds.count('preempt'))}")
    happened += [f"{count(last[key])} {names[last[key] > 1]}" for key, names in COUNTED.items() if last.get(key)]
    said.append(f"{', '.join(happened)}."[:1].upper() + f"{', '.join(happened)}."[1:])
    if found.refusals:
        said.append(f"{len(found.refusals)} were refused: {next(iter(found.refusals.values()))}.")
    return " ".join(said)


def explain_page(found: Explained) -> str:
    """The run as one page."""
    at = found.fullest()
    steps = list(_steps(found))
    sections = []
    if found.frames:
        sections = [
            Section("map", "The memory over time", MAP.format(unit=found.unit), [memory_map(found), *below(found)]),
            Section(
                "table",
                f"Who holds which {found.unit}s",
                f"At the fullest, after iteration {at + 1:,}.",
                tables=[Table(_tables(found, at), _headings(found), style="facts")],
            ),
            Section(
                "steps",
                "Step by step",
                "Iterations in which something came, went, was found or had to go.",
                tables=[
                    Table(
                        steps[:MOST_EVENTS],
                        ("iteration", "time", "running", "waiting", f"{found.unit}s held", "what happened"),
                        style="facts",
                    )
                ],
            ),
        ]
    return render(
        Page(
            title=f"kvtwin: {found.cache} explained",
            heading=f"What cache={found.cache} does",
            lead=f"{found.name}, on a memory of {count(found.n_units)} {found.unit}s"
            + (f" of {found.unit_tokens} tokens" if found.unit_tokens > 1 else "")
            + ", every iteration looked at.",
            verdict=[in_words(found)],
            tiles=[
                Tile("Iterations", count(len(found.frames))),
                Tile("Requests", count(len(found.requests)), more=f"{len(found.refusals)} refused"),
                Tile(
                    f"{found.unit}s".capitalize(),
                    count(found.n_units),
                    more=f"of {found.unit_tokens} tokens" if found.unit_tokens > 1 else "a token each",
                ),
            ],
            sections=sections,
            footer="Made by kvtwin. Blocks have no numbers in the simulator, for any free one is as good as any other: "
            "here the lowest free numbers are given. Extents lie where their allocator has put them.",
        )
    )


MAP = "A column for an iteration, a row for a {unit}. Each request has a colour, six of them in turn."


def memory_map(found: Explained) -> Figure:
    """Owners of the memory by iteration."""
    n = len(found.frames)
    at = np.unique(np.linspace(0, n - 1, min(n, MOST_COLUMNS)).astype(int))
    rows = np.unique(np.linspace(0, found.n_units - 1, min(found.n_units, MOST_ROWS)).astype(int))
    z = [[_code(found.frames[i].owners[row]) for i in at] for row in rows]
    words = [[_owner(found.frames[i].owners[row]) for i in at] for row in rows]
    last = len(COLOURS) - 1
    scale: list[list[float | str]] = []
    for i, colour in enumerate(COLOURS):
        scale += [[i / (last + 1), colour], [(i + 1) / (last + 1), colour]]
    chart: Json = {
        "type": "heatmap",
        "x": (at + 1).tolist(),
        "y": rows.tolist(),
        "z": z,
        "text": words,
        "zmin": -0.5,
        "zmax": last + 0.5,
        "colorscale": scale,
        "showscale": False,
        "hovertemplate": f"iteration %{{x}}, {found.unit} %{{y}}: %{{text}}<extra></extra>",
    }
    ids = sorted({one for frame in found.frames for one in frame.running})
    return Figure(
        "map",
        f"Every {found.unit} of the memory",
        f"{count(n)} iterations" + (f", {len(at)} of them drawn" if len(at) < n else "") + ".",
        [chart, *_legend()],
        {
            "xaxis": {"title": {"text": "iteration"}, "range": [0.5, n + 0.5]},
            "yaxis": {"title": {"text": found.unit}, "autorange": "reversed"},
            "hovermode": "closest",
        },
        ("request", "colour", f"{found.unit}s at most"),
        [
            (
                f"request {one}",
                HUES[one % len(HUES)].removeprefix("--"),
                count(max(len(frame.tables.get(one, ())) for frame in found.frames)),
            )
            for one in ids
        ],
        height_px=520,
    )


def _legend() -> list[Json]:
    """What the colours mean that are no request's."""
    named = (("free", FREE), ("kept for reuse", IDLE), ("held, but empty", EMPTY), ("read by several", SHARED))
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [None],
            "y": [None],
            "name": name,
            "marker": {
                "symbol": "square",
                "size": 11,
                "color": COLOURS[CODES[owner]],
                "line": {"width": 1, "color": "--muted"},
            },
        }
        for name, owner in named
    ]


def _code(owner: int) -> int:
    return CODES[owner] if owner in CODES else len(CODES) + owner % len(HUES)


def _owner(owner: int) -> str:
    named = {FREE: "free", EMPTY: "held, but empty", IDLE: "kept for reuse", SHARED: "read by several"}
    return named.get(owner, f"request {owner}")


def below(found: Explained) -> list[Figure]:
    """Iterations under the map: batch, prompt tokens, queue; what was found and given up so far."""
    x: list[float | None] = list(range(1, len(found.frames) + 1))
    layout: Json = {
        "xaxis": {"title": {"text": "iteration"}},
        "yaxis": {"rangemode": "tozero"},
        "hovermode": "x unified",
    }
    frames = found.frames
    step = max(1, len(frames) // 24)
    some = range(0, len(frames), step)
    in_blocks = "evicted_blocks" in frames[-1].counts
    evicted = [
        found.unit_tokens * frame.counts["evicted_blocks"] if in_blocks else frame.counts.get("evicted_sessions", 0)
        for frame in frames
    ]
    what = "tokens evicted" if in_blocks else "conversations evicted"
    hits = np.zeros(len(frames))
    for i, kind, words in found.events():
        if kind == "hit":
            hits[i:] += int(words.rsplit(" ", 2)[1].replace(",", ""))
    return [
        Figure(
            "batch",
            "Iterations",
            "Answers that get a token, and requests that wait.",
            [
                line(x, numbers([frame.n_decoding for frame in frames]), "decoding", "--green", line={"shape": "hv"}),
                line(x, numbers([frame.n_waiting for frame in frames]), "waiting", "--orange", line={"shape": "hv"}),
            ],
            layout,
            ("iteration", "decoding", "waiting", "prompt tokens"),
            [
                (count(i + 1), *map(count, (frames[i].n_decoding, frames[i].n_waiting, frames[i].prompt_tokens)))
                for i in some
            ],
            height_px=220,
            is_wide=False,
        ),
        Figure(
            "found",
            "Found and given up so far",
            "Prompt tokens found in the memory, and what was evicted of it.",
            [
                line(x, numbers(hits), "tokens found", "--teal", line={"shape": "hv"}),
                line(x, numbers(evicted), what, "--red", line={"shape": "hv"}),
            ],
            layout,
            ("iteration", "tokens found", what),
            [(count(i + 1), count(hits[i]), count(evicted[i])) for i in some],
            height_px=220,
            is_wide=False,
        ),
        *_tiers(found, x, layout, some),
    ]


def _tiers(found: Explained, x: list[float | None], layout: Json, some: range) -> list[Figure]:
    """What memory below the device keeps, where there is any."""
    tiers = [key for key in found.frames[-1].counts if key.startswith(IN_TIER)]
    if not tiers:
        return []
    names = [key.removeprefix(IN_TIER) for key in tiers]
    kept = [[float(frame.counts.get(key, 0)) for frame in found.frames] for key in tiers]
    return [
        Figure(
            "tiers",
            "Memory below the device",
            "Tokens whose keys and values each tier keeps.",
            [
                line(x, numbers(values), name, HUES[i % len(HUES)], line={"shape": "hv"})
                for i, (name, values) in enumerate(zip(names, kept, strict=True))
            ],
            layout,
            ("iteration", *names),
            [(count(i + 1), *(count(values[i]) for values in kept)) for i in some],
            height_px=220,
        )
    ]


def _headings(found: Explained) -> tuple[str, ...]:
    return ("request", f"{found.unit}s", "which", "shared with others")


def _tables(found: Explained, at: int) -> list[tuple[str, ...]]:
    """The block table, or the extent, of every running request."""
    frame = found.frames[at]
    rows: list[tuple[str, ...]] = []
    for one in sorted(frame.tables):
        units = sorted(frame.tables[one])
        n_shared = sum(frame.owners[unit] == SHARED for unit in units)
        rows.append((f"request {one}", count(len(units)), spans(units), count(n_shared)))
    return rows


def spans(units: Sequence[int]) -> str:
    """Numbers in a line, neighbours joined.

    Examples
    --------
    >>> spans([0, 1, 2, 5, 7, 8])
    '0–2, 5, 7–8'
    """
    joined: list[list[int]] = []
    for unit in units:
        if joined and joined[-1][1] == unit - 1:
            joined[-1][1] = unit
        else:
            joined.append([unit, unit])
    return ", ".join(f"{first}–{last}" if last > first else f"{first}" for first, last in joined)

"""What fits where: tables for the terminal, and a page with curves over length."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.kv.footprint import Footprint
from sim.kv.training import Training
from sim.report.figure import Figure, line, numbers
from sim.report.files import replacing
from sim.report.html import Page, Section, Tile, render
from sim.report.html import Table as PageTable
from sim.report.overlay import COLOURS, DASHES
from sim.report.words import count, duration, gibibytes, percent, rate
from sim.spec import HardwareSpec, ModelSpec
from sim.units import GIB, MS_PER_S

if TYPE_CHECKING:
    from rich.console import RenderableType

MANY = (1, 16, 256)  # sequences at once whose memory is drawn over their length


@dataclass(frozen=True, slots=True)
class Fit:
    """Sequences of one length on one kind of device, all bytes per accelerator."""

    name: str
    hardware: HardwareSpec
    terms: Mapping[str, float]  # of the subtraction that leaves room for KV
    length: int
    left_bytes: float  # for KV; below zero where not even the rest fits
    seq_bytes: float  # KV of one sequence, as its cache holds it

    @property
    def n_seqs(self) -> int:
        """How many fit at once, by memory alone: where extents lie in one piece, without holes between them."""
        return max(0, int(self.left_bytes // self.seq_bytes))

    @property
    def short_bytes(self) -> float:
        """What is missing for one [B]."""
        return max(0.0, self.seq_bytes - self.left_bytes)

    def words(self) -> str:
        """The same in a cell."""
        return count(self.n_seqs) if self.n_seqs else f"{gibibytes(self.short_bytes)} short"


@dataclass(frozen=True, slots=True)
class ByCache:
    """What a sequence of one length holds in one cache."""

    cache: str
    length: int
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Everything the task found. Bytes are per accelerator."""

    name: str
    model: ModelSpec
    tensor_parallel: int
    cache: str
    weights_bytes: float
    kv_bytes_per_token: float
    state_bytes_per_seq: float
    lengths: Sequence[int]
    matrix_bytes: Sequence[float]  # by length; empty where nobody asked
    fits: Sequence[Fit]
    by_cache: Sequence[ByCache]
    flops: Sequence[Mapping[str, float]]  # by length
    seconds: Sequence[Mapping[str, float]]  # by length, at least
    price_per_hour: float | None  # of one accelerator
    training: Mapping[str, Sequence[Training | None]]  # by precision, by length

    def content(self) -> dict[str, Any]:
        """As written down."""
        return {
            "model": self.model.name,
            "tensor_parallel": self.tensor_parallel,
            "cache": self.cache,
            "parameters": self.model.n_params,
            "active_parameters": self.model.n_active_params,
            "weights_bytes": self.weights_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes_per_token_and_layer": [
                {"layers": n, "attention": type(kind).__name__, "bytes": kind.kv_bytes_per_token(self.model.kv_bytes)}
                for n, kind in self.model.rank_attentions(self.tensor_parallel)
            ],
            "state_bytes_per_sequence": self.state_bytes_per_seq,
            "attention_matrix_bytes": dict(zip(map(str, self.lengths), self.matrix_bytes, strict=False)),
            "fits": [
                {
                    "hardware": fit.name,
                    "length": fit.length,
                    "sequences": fit.n_seqs,
                    "left_bytes": fit.left_bytes,
                    "sequence_bytes": fit.seq_bytes,
                    "short_bytes": fit.short_bytes,
                }
                for fit in self.fits
            ],
            "caches": [
                {
                    "cache": one.cache,
                    "length": one.length,
                    "waste_frac": one.footprint.waste_frac,
                    **asdict(one.footprint),
                }
                for one in self.by_cache
            ],
            "generation_seconds": [
                {"length": n, **seconds} for n, seconds in zip(self.lengths, self.seconds, strict=True)
            ],
            "price_per_hour": self.price_per_hour,
            "training_bytes": {
                precision: [{"length": n, **asdict(one)} for n, one in zip(self.lengths, of, strict=True) if one]
                for precision, of in self.training.items()
            },
            "generation_flops": [{"length": n, **flops} for n, flops in zip(self.lengths, self.flops, strict=True)],
        }

    def rows(self) -> list[tuple[str, str]]:
        """The model in words."""
        return [
            ("parameters", f"{self.model.n_params:,}; a token is multiplied with {self.model.n_active_params:,}"),
            ("weights", f"{gibibytes(self.weights_bytes)} in {self.model.weight_dtype}"),
            *(
                ("KV a token and layer", f"{kind.kv_bytes_per_token(self.model.kv_bytes):,.0f} B in {n} layers")
                for n, kind in self.model.rank_attentions(self.tensor_parallel)
            ),
            ("KV a token", f"{self.kv_bytes_per_token:,.0f} B"),
            *([("state a sequence", gibibytes(self.state_bytes_per_seq))] if self.state_bytes_per_seq else []),
            *(
                (f"KV a sequence of {count(length)}", gibibytes(length_bytes))
                for length, length_bytes in {fit.length: fit.seq_bytes for fit in self.fits}.items()
            ),
            *(
                (f"attention matrix of {count(length)}", gibibytes(n_bytes))
                for length, n_bytes in zip(self.lengths, self.matrix_bytes, strict=False)
            ),
        ]

    def grids(self) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
        """Title, headings, rows of what is laid out over length."""
        lengths = [count(length) for length in self.lengths]
        devices = dict.fromkeys(fit.name for fit in self.fits)
        caches = dict.fromkeys(one.cache for one in self.by_cache)
        return [
            (
                f"Sequences of which length fit, cache={self.cache}",
                ["device", "memory", "left for KV", *lengths],
                [
                    (
                        name,
                        gibibytes(mine[0].hardware.device.memory_bytes),
                        gibibytes(sum(mine[0].terms.values()))
                        if mine[0].hardware.kv_blocks is None
                        else gibibytes(mine[0].left_bytes + (self.matrix_bytes[0] if self.matrix_bytes else 0.0)),
                        *(fit.words() for fit in mine),
                    )
                    for name in devices
                    for mine in [[fit for fit in self.fits if fit.name == name]]
                ],
            ),
            (
                "Empty share of what a sequence holds",
                ["cache", *lengths],
                [
                    (name, *(percent(one.footprint.waste_frac) for one in self.by_cache if one.cache == name))
                    for name in caches
                ],
            ),
            (
                "KV slots a sequence holds [tokens]",
                ["cache", *lengths],
                [
                    (name, *(count(one.footprint.held_tokens) for one in self.by_cache if one.cache == name))
                    for name in caches
                ],
            ),
            (
                "What making the tokens one by one costs [TFLOP]",
                ["", *lengths],
                [
                    ("with a cache", *(f"{flops['cached'] / 1e12:,.0f}" for flops in self.flops)),
                    ("cache=none", *(f"{flops['recomputed'] / 1e12:,.0f}" for flops in self.flops)),
                    ("ratio", *(f"{flops['recomputed'] / flops['cached']:,.0f}" for flops in self.flops)),
                ],
            ),
            (
                "The least time it can take, for one sequence",
                ["", *lengths],
                [
                    (words, *(duration(MS_PER_S * seconds[key]) for seconds in self.seconds))
                    for key, words in (
                        ("cached", "one by one, cached"),
                        ("recomputed", "the same, cache=none"),
                        ("prompt", "as one prompt"),
                        ("eager", "… eager attention"),
                    )
                ],
            ),
            *self._prices(lengths),
            *self._training(lengths),
        ]

    def _prices(self, lengths: list[str]) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
        if self.price_per_hour is None:
            return []
        per_s = self.price_per_hour * self.tensor_parallel / 3_600.0
        rows = [
            (words, *(rate(1e6 * per_s * s[key] / n) for n, s in zip(self.lengths, self.seconds, strict=True)))
            for key, words in (("cached", "with a cache"), ("recomputed", "cache=none"), ("prompt", "as a prompt"))
        ]
        return [("What a million tokens cost at least, one sequence at a time", ["", *lengths], rows)]

    def _training(self, lengths: list[str]) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
        """What training takes of a batch of one sequence, row by row and in all."""
        mixed = [one for one in self.training["mixed"] if one is not None]
        single = [one for one in self.training["fp32"] if one is not None]
        if not mixed:
            return []
        rows: list[tuple[str, ...]] = [
            ("parameters (16 bit)", *(gibibytes(one.parameters) for one in mixed)),
            ("gradients", *(gibibytes(one.gradients) for one in mixed)),
            ("optimizer (Adam)", *(gibibytes(one.optimizer) for one in mixed)),
            ("activations", *(gibibytes(one.activations["none"]) for one in mixed)),
            ("… without scores", *(gibibytes(one.activations["scores"]) for one in mixed)),
            ("… checkpointed", *(gibibytes(one.activations["layers"]) for one in mixed)),
            ("in all, mixed precision", *(gibibytes(one.total()) for one in mixed)),
            ("… checkpointed", *(gibibytes(one.total("layers")) for one in mixed)),
            ("… and offloaded", *(gibibytes(one.total("layers", True)) for one in mixed)),
            ("in all, fp32", *(gibibytes(one.total()) for one in single)),
        ]
        return [("Training, a batch of one sequence", ["", *lengths], rows)]


def memory_tables(facts: MemoryFacts) -> "RenderableType":
    """The facts as a terminal shows them."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in facts.rows():
        grid.add_row(Text(name), Text(value))
    shown: list[RenderableType] = [grid]
    for title, headings, rows in facts.grids():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left")
        for i, heading in enumerate(headings):
            table.add_column(Text(heading), justify="right" if i else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        shown.append(table)
    return Group(*shown)


def write_memory(facts: MemoryFacts, out: Path) -> None:
    """Write ``memory.json`` and ``memory.html`` into a folder, each whole or not at all."""
    for file, text in (
        ("memory.json", json.dumps(facts.content(), indent=1) + "\n"),
        ("memory.html", memory_page(facts)),
    ):
        with replacing(out / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def memory_page(facts: MemoryFacts) -> str:
    """The facts as one page."""
    fit, waste, slots, work, *others = (
        PageTable(rows, headings, title=title, style="wide") for title, headings, rows in facts.grids()
    )
    times = [table for table in others if not table.title.startswith("Training")]
    trained = [table for table in others if table.title.startswith("Training")]
    own = [one for one in facts.fits if one.name == facts.fits[0].name]
    first, last = own[0], own[-1]
    ranks = f" All bytes are per accelerator, of {facts.tensor_parallel}." if facts.tensor_parallel > 1 else ""
    return render(
        Page(
            title=f"kvtwin: memory of {facts.name}",
            heading=f"Memory: {facts.name}",
            lead=f"From data sheets, without traffic.{ranks} How many sequences fit is said of memory alone.",
            verdict=[
                f"{first.name}: {_fits(first)}, {_fits(last)}.",
            ],
            mood="good" if last.n_seqs else "fair" if first.n_seqs else "poor",
            tiles=[
                Tile("Parameters", f"{facts.model.n_params / 1e9:,.2f}", "B"),
                Tile("Weights", f"{facts.weights_bytes / GIB:,.1f}", "GiB", facts.model.weight_dtype),
                Tile("KV a token", f"{facts.kv_bytes_per_token / 1024:,.1f}", "KiB", facts.model.kv_dtype),
            ],
            sections=[
                Section("fit", "What fits", figures=[length_curve(facts)], tables=[fit]),
                Section(
                    "waste",
                    "What is empty, by cache",
                    "Of a conversation that nothing is known of, when it has reached its length.",
                    figures=[waste_curve(facts)],
                    tables=[waste, slots],
                ),
                Section(
                    "work",
                    "What the cache saves",
                    f"Of one sequence: its arithmetic, and the least time that the data sheet of {first.name} allows; "
                    "kernels take longer. Eager attention writes each head's matrix to memory and reads it again.",
                    figures=[work_curve(facts)],
                    tables=[work, *times],
                ),
                *([Section("training", "Training it", TRAINING, tables=trained)] if trained else []),
                Section("model", "The model", tables=[PageTable(facts.rows(), style="facts")]),
            ],
            footer="Made by kvtwin from data sheets and the model's shape; nothing was simulated.",
        )
    )


def work_curve(facts: MemoryFacts) -> Figure:
    """The least time over length, a line for each way."""
    x = numbers(facts.lengths)
    ways = (
        ("cached", "token by token, with a cache", "--blue", "solid"),
        ("recomputed", "cache=none", "--red", "solid"),
        ("prompt", "as a prompt", "--green", "dot"),
        ("eager", "eager attention", "--orange", "dot"),
    )
    return Figure(
        "work",
        "The least time over length",
        "Of one sequence, both axes logarithmic.",
        [
            line(x, numbers([s[key] for s in facts.seconds]), name, colour, line={"dash": dash}, mode="lines+markers")
            for key, name, colour, dash in ways
        ],
        {
            "xaxis": {"title": {"text": "length [tokens]"}, "type": "log"},
            "yaxis": {"title": {"text": "s"}, "type": "log"},
            "hovermode": "closest",
        },
        ("", *map(count, facts.lengths)),
        [(name, *(duration(MS_PER_S * s[key]) for s in facts.seconds)) for key, name, *_ in ways],
        height_px=340,
    )


TRAINING = (
    "Per accelerator. Mixed precision with Adam takes 16 bytes a parameter (Rajbhandari et al., ZeRO, 2020). "
    "Activations are those of Korthikanti et al., 2023, dropout among them: all, without the attention's scores "
    "(computed again), or the inputs of layers alone (checkpointed; the layer that is being computed comes on top). "
    "Offloaded, gradients and optimizer lie in host memory (Ren et al., ZeRO-Offload, 2021)."
)


def _fits(fit: Fit) -> str:
    """One length in words."""
    if fit.n_seqs:
        return f"{count(fit.n_seqs)} sequence{'' if fit.n_seqs == 1 else 's'} of {count(fit.length)} tokens fit"
    return f"{gibibytes(fit.short_bytes)} are missing for one of {count(fit.length)} tokens"


def length_curve(facts: MemoryFacts) -> Figure:
    """Memory over length for some sequences at once; device memories are lines across."""
    own = [fit for fit in facts.fits if fit.name == facts.fits[0].name]
    x = numbers([fit.length for fit in own])
    matrices = facts.matrix_bytes or [0.0] * len(own)
    beside = -sum(term for name, term in own[0].terms.items() if name not in ("memory", "kept free"))
    traces = [
        line(
            x,
            numbers([(beside + m + n * fit.seq_bytes) / GIB for fit, m in zip(own, matrices, strict=True)]),
            f"{n} at once" if n > 1 else "one sequence",
            COLOURS[i],
            mode="lines+markers",
        )
        for i, n in enumerate(MANY)
    ]
    devices = {fit.name: fit for fit in facts.fits}
    for i, (name, fit) in enumerate(devices.items()):
        usable = fit.terms["memory"] + fit.terms["kept free"]
        style = {"width": 1, "dash": DASHES[1 + i % 2]}
        traces.append(line(x, numbers([usable / GIB] * len(x)), name, "--grey", line=style))
    return Figure(
        "length",
        "Memory over length",
        "Weights, activations and KV of sequences of one length; the lines across are what devices allow.",
        traces,
        {
            "xaxis": {"title": {"text": "length [tokens]"}, "type": "log"},
            "yaxis": {"title": {"text": "GiB per accelerator"}, "type": "log"},
            "hovermode": "closest",
        },
        height_px=460,
    )


def waste_curve(facts: MemoryFacts) -> Figure:
    """Empty share of what is held over length, a line for each cache."""
    traces = []
    for i, name in enumerate(dict.fromkeys(one.cache for one in facts.by_cache)):
        mine = [one for one in facts.by_cache if one.cache == name]
        traces.append(
            line(
                numbers([one.length for one in mine]),
                numbers([100.0 * one.footprint.waste_frac for one in mine]),
                name,
                COLOURS[i % len(COLOURS)],
                mode="lines+markers",
            )
        )
    return Figure(
        "waste",
        "Empty slots over length",
        "Caches that hold whole blocks, or just what stays, lie together at the bottom.",
        traces,
        {
            "xaxis": {"title": {"text": "length [tokens]"}, "type": "log"},
            "yaxis": {"title": {"text": "empty [%]"}, "rangemode": "tozero"},
            "hovermode": "closest",
        },
        height_px=380,
    )

"""What to deploy for a rate: the answer, what comes next, what the others lack, and the command that serves it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

from sim.report.files import replacing
from sim.report.html import Page, Section, Table, Tile, render
from sim.report.points import short
from sim.report.rates import Probe
from sim.report.words import NOTHING, count, duration, percent, rate

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADINGS = ("", "replicas", "accelerators", "cost per hour", "within", "TTFT p99", "TPOT p99", "to spare", "")
PER = 1e6
SECONDS, WATTS = 3_600.0, 1_000.0  # of an hour, of a kilowatt


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A combination with so many replicas, simulated."""

    replicas: int
    accelerators: int
    cost: float  # per hour, or accelerators
    spare_frac: float  # of the tightest objective
    bound_frac: float  # of the requests that the cost model allows at most
    probe: Probe


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A combination, and what became of it."""

    choices: Mapping[str, Any]
    why: str  # it is not the answer; empty where it holds the rate
    config: Mapping[str, Any] | None = None
    choice: Choice | None = None
    is_held: bool = False

    @property
    def cost(self) -> float | None:
        """Per hour, or accelerators."""
        return None if self.choice is None else self.choice.cost

    @property
    def attainment_frac(self) -> float | None:
        """Share of the requests within their objectives."""
        return None if self.choice is None else self.choice.probe.attainment_frac

    @property
    def name(self) -> str:
        """What was chosen."""
        shown = {key: value for key, value in self.choices.items() if key != "hardware.tensor_parallel"}
        words = [f"{value}" if "." not in key else f"{short(key)} {value}" for key, value in shown.items()]
        ranks = self.choices.get("hardware.tensor_parallel", 1)
        if ranks != 1:
            words.append(f"tensor parallel {ranks}")
        return ", ".join(words) or "as configured"

    def in_words(self) -> str:
        """With its replicas and what it lacks."""
        n = "" if self.choice is None else f"{count(self.choice.replicas)} × "
        return f"{n}{self.name}" + (f": {self.why}" if self.why else "")

    def cells(self, is_priced: bool) -> tuple[str, ...]:
        """`HEADINGS` in words."""
        if self.choice is None:
            return (self.name, *(NOTHING,) * 7, self.why)
        one, latency = self.choice, self.choice.probe.latency_ms
        return (
            self.name,
            count(one.replicas),
            count(one.accelerators),
            rate(one.cost) if is_priced else NOTHING,
            percent(one.probe.attainment_frac),
            duration(latency["ttft_p99_ms"]),
            duration(latency["tpot_p99_ms"]),
            percent(one.spare_frac) if self.is_held else NOTHING,
            self.why or "holds",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Recommendation:
    """The answer."""

    heading: str
    target_rate: float
    attainment_frac: float
    is_priced: bool
    best: Option
    runner_up: Option | None
    options: Sequence[Option]
    command: str | None
    n_simulated: int
    seed: int

    def in_words(self) -> list[str]:
        """What to take, why, what comes next, and what it costs."""
        one = _simulated(self.best)
        said = [
            f"Take {self.best.in_words()}: {count(one.accelerators)} accelerator{'s' if one.accelerators > 1 else ''}"
            + (f" at {rate(one.cost)} per hour" if self.is_priced else "")
            + f". {percent(one.probe.attainment_frac)} of the requests are within the objectives, and where "
            f"{percent(self.attainment_frac)} are the tightest objective has {percent(one.spare_frac)} to spare; "
            f"{percent(one.bound_frac)} of what the cost model allows is used."
        ]
        if self.runner_up is None:
            said.append("Nothing else that was tried holds the rate.")
        else:
            other = _simulated(self.runner_up)
            said.append(f"Next is {self.runner_up.in_words()}, {self._dearer(one, other)}.")
        near = [one for one in self.options if one.why and one.choice is not None]
        if near:
            said.append(f"Nearest of those that do not hold it: {near[0].in_words()}.")
        said += self._costs(one)
        if not self.is_priced:
            said.append(
                "Without a price of each accelerator (search.price_per_hour={h100: …}, hardware.price_per_hour=…) "
                "fewest accelerators win, whatever their kind."
            )
        said.append(
            f"Serve each replica with: {self.command}"
            if self.command
            else "No vLLM serves this: its cache or its batching is another's."
        )
        return said

    def _dearer(self, one: Choice, other: Choice) -> str:
        if other.cost == one.cost:
            return f"which costs the same and has {percent(max(0.0, other.spare_frac))} to spare"
        unit = "" if self.is_priced else " in accelerators"
        return f"{percent(other.cost / one.cost - 1.0)} dearer{unit}"

    def _costs(self, one: Choice) -> list[str]:
        """Per million output tokens: price, and energy at most."""
        per_hour = one.probe.output_tokens_per_s * SECONDS
        if not per_hour:
            return []
        said = []
        if self.is_priced:
            said.append(f"{rate(one.cost * PER / per_hour)} per million output tokens")
        power_w = self.power_w()
        if power_w:
            kwh = power_w / WATTS * PER / per_hour
            said.append(f"at most {rate(kwh)} kWh per million output tokens, by the data sheet's {rate(power_w)} W")
        return [f"It costs {' and '.join(said)}."] if said else []

    def power_w(self) -> float | None:
        """Of all accelerators, at most."""
        if self.best.config is None:
            return None
        power = self.best.config["hardware"]["device"].get("power_w")
        return None if power is None else float(power) * _simulated(self.best).accelerators


def _simulated(option: Option) -> Choice:
    if option.choice is None:
        raise ValueError(f"{option.name} was not simulated")
    return option.choice


def serve_command(config: Mapping[str, Any] | None) -> str | None:
    """``vllm serve`` with the flags of this configuration; None where no flags make vLLM do what it does.

    References
    ----------
    https://docs.vllm.ai/en/latest/configuration/engine_args.html
    """
    if config is None:
        return None
    cache, batching, hardware = config["cache"], config["batching"], config["hardware"]
    is_paged = str(cache["_target_"]).endswith(".PagedCache")
    if not is_paged or not str(batching["_target_"]).endswith(".Chunked"):
        return None
    model = config["model"]
    source = re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", str(model.get("source", "")))
    flags = ["vllm", "serve", source[1] if source else str(model["name"])]
    flags += ["--tensor-parallel-size", str(hardware["tensor_parallel"])]
    if hardware.get("pipeline_parallel", 1) > 1:
        flags += ["--pipeline-parallel-size", str(hardware["pipeline_parallel"])]
    flags += ["--gpu-memory-utilization", f"{hardware['memory_utilization_frac']:g}"]
    flags += ["--block-size", str(cache["block_tokens"])]
    flags += ["--max-num-seqs", str(batching["max_num_seqs"])]
    flags += ["--max-num-batched-tokens", str(batching["max_num_batched_tokens"])]
    if not cache.get("prefix_caching", True):
        flags.append("--no-enable-prefix-caching")
    if model.get("weight_dtype") == "fp8":
        flags += ["--quantization", "fp8"]
    if model.get("kv_dtype") == "fp8":
        flags += ["--kv-cache-dtype", "fp8"]
    if hardware.get("kv_blocks") is not None:
        flags += ["--num-gpu-blocks-override", str(hardware["kv_blocks"])]
    return join(flags)


def recommendation_table(found: Recommendation) -> "RenderableType":
    """All options that were simulated, as a terminal shows them."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(found.heading), title_justify="left")
    shown = (0, 1, 3, 4, 5, 6, 7) if found.is_priced else (0, 1, 2, 4, 5, 6, 7)
    for i in shown:
        table.add_column(HEADINGS[i], justify="right" if i else "left")
    for one in found.options:
        if one.choice is not None:
            cells = one.cells(found.is_priced)
            table.add_row(*(Text(cells[i]) for i in shown), style="bold green" if one is found.best else None)
    return table


def write_recommendation(found: Recommendation, out: Path) -> None:
    """Write ``recommend.json`` and ``recommend.html`` into a folder, each whole or not at all."""
    options = [
        {
            **dict(one.choices),
            "is_held": one.is_held,
            "why": one.why,
            **(
                {}
                if one.choice is None
                else {
                    "replicas": one.choice.replicas,
                    "accelerators": one.choice.accelerators,
                    "cost": one.choice.cost,
                    "spare_frac": one.choice.spare_frac,
                    "bound_frac": one.choice.bound_frac,
                    "probe": one.choice.probe.content(),
                }
            ),
        }
        for one in found.options
    ]
    content = {
        "target_rate": found.target_rate,
        "attainment_frac": found.attainment_frac,
        "seed": found.seed,
        "cost_is": "price per hour" if found.is_priced else "accelerators",
        "power_w": found.power_w(),
        "command": found.command,
        "simulated": found.n_simulated,
        "said": found.in_words(),
        "options": options,
    }
    for file, text in (
        ("recommend.json", json.dumps(content, indent=1, allow_nan=False) + "\n"),
        ("recommend.html", recommendation_page(found)),
    ):
        with replacing(out / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def recommendation_page(found: Recommendation) -> str:
    """The answer as one page."""
    one = _simulated(found.best)
    cost = (
        Tile("Cost", rate(one.cost), "per hour")
        if found.is_priced
        else Tile("Accelerators", count(one.accelerators), more="no prices given")
    )
    return render(
        Page(
            title=f"kvtwin: {found.heading}",
            heading=found.heading,
            lead="The cheapest of all combinations that holds the rate within the objectives. Cheaper ones were "
            f"simulated, or cannot by the cost model or the memory; {count(found.n_simulated)} simulations.",
            verdict=found.in_words(),
            mood="good",
            tiles=[
                Tile("Take", found.best.name, more=f"{count(one.replicas)} replicas"),
                cost,
                Tile("To spare", percent(one.spare_frac), more="of the tightest objective"),
                Tile("Within objectives", percent(one.probe.attainment_frac)),
            ],
            sections=[
                Section(
                    "options",
                    "All combinations",
                    "Each with as many replicas as were tried last.",
                    tables=[Table([option.cells(found.is_priced) for option in found.options], HEADINGS, style="wide")],
                )
            ],
        )
    )

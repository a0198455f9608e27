"""Curves over the offered rate: what was measured at each, a table, a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.metrics.steady import FEWEST_SATURATED, SATURATED_ABOVE
from sim.report.figure import Figure, line, numbers
from sim.report.files import replacing
from sim.report.html import Page, Section, Tile, render
from sim.report.html import Table as PageTable
from sim.report.words import SLO_NAMES, count, duration, percent, rate

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = (
    "rate",
    "arrive/s",
    "served/s",
    "output tokens/s",
    "TTFT p50",
    "TTFT p99",
    "TPOT p50",
    "TPOT p99",
    "hits",
    "goodput/s",
    "within",
    "",
)
NARROW = (0, 1, 2, 5, 7, 8, 10, 11)  # of those, what a terminal has room for


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """One objective of one class of requests, and the latencies that it is held against."""

    name: str  # of `sim.metrics.slo.LIMITS`
    slo_class: str
    most_ms: float
    values_ms: npt.NDArray[np.float64]  # sorted; NaN, last, where a request has no such latency and so meets it

    def kept_frac(self) -> float:
        """Share of the requests that keep it."""
        return 1.0 - float((self.values_ms > self.most_ms).sum()) / len(self.values_ms)

    def needed_ms(self, share: float) -> float:
        """The least limit that a share of the requests keeps [ms]."""
        known = self.values_ms[~np.isnan(self.values_ms)]
        n_broken = int((1.0 - share) * len(self.values_ms) + 1e-9)
        return float(known[max(0, len(known) - 1 - n_broken)])

    @property
    def key(self) -> str:
        """Where it is set."""
        return f"slo.classes.{self.slo_class}.{self.name}" if self.slo_class else f"slo.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What became of one offered rate."""

    rate: float  # as scenario.rate counts it [1/s]
    window_s: float
    n_requests: int  # judged
    n_refused: int
    n_good: int
    offered_per_s: float  # requests, later turns among them
    served_per_s: float
    output_tokens_per_s: float
    wait_growth: float  # of TTFT over the time of arrival [s/s]
    goodput_per_s: float | None
    prefix_hit_frac: float | None
    latency_ms: Mapping[str, float | None]  # ttft_p50_ms, ...
    computed_tokens: float  # of a mean request's prompt, not found in the cache
    output_tokens: float
    context_tokens: float  # halfway through the answer
    limits: Sequence[Limit]
    refusal: str  # why one was refused

    @property
    def attainment_frac(self) -> float:
        """Share of the judged requests within their objectives; a refused one is not."""
        return self.n_good / self.n_requests if self.n_requests else 1.0

    @property
    def is_saturated(self) -> bool:
        """Whether the queue grows, or the batch as long as it has places left, and would without end.

        Fewer requests end than arrive at first in any case; so that is asked only where half of them take less time
        than passes before the first is judged. The others show in the wait.
        """
        if self.n_requests < FEWEST_SATURATED:
            return False
        e2el_ms = self.latency_ms["e2el_p50_ms"]
        is_settled = e2el_ms is not None and e2el_ms < 500.0 * self.window_s
        surplus = 1.0 - self.served_per_s / self.offered_per_s
        return self.wait_growth > SATURATED_ABOVE or (is_settled and surplus > SATURATED_ABOVE + self.chance_frac)

    @property
    def chance_frac(self) -> float:
        """Two standard deviations of a Poisson count, as a share of it: what chance alone may add to the arrivals."""
        return 2.0 / float(np.sqrt(self.n_requests))

    def content(self) -> dict[str, Any]:
        """As written down."""
        return {
            "rate": self.rate,
            "window_s": self.window_s,
            "n_requests": self.n_requests,
            "n_refused": self.n_refused,
            "offered_per_s": self.offered_per_s,
            "served_per_s": self.served_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "goodput_per_s": self.goodput_per_s,
            "attainment_frac": None if self.goodput_per_s is None else self.attainment_frac,
            "prefix_hit_frac": self.prefix_hit_frac,
            "wait_growth": self.wait_growth,
            "is_saturated": self.is_saturated,
            **self.latency_ms,
        }

    def cells(self) -> tuple[str, ...]:
        """`HEADINGS` in words."""
        return (
            f"{self.rate:,.4g}",
            rate(self.offered_per_s),
            rate(self.served_per_s),
            rate(self.output_tokens_per_s),
            *(duration(self.latency_ms[key]) for key in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")),
            percent(self.prefix_hit_frac),
            rate(self.goodput_per_s),
            percent(None if self.goodput_per_s is None else self.attainment_frac),
            "overload" if self.is_saturated else "",
        )


def rate_table(probes: Sequence[Probe], title: str) -> "Table":
    """The probes as a terminal shows them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left")
    for i in NARROW:
        table.add_column(HEADINGS[i], justify="right", no_wrap=True)
    for probe in probes:
        cells = probe.cells()
        table.add_row(*(Text(cells[i]) for i in NARROW))
    return table


def in_words(probes: Sequence[Probe]) -> str:
    """Where the load becomes too much, if it does."""
    ordered = sorted(probes, key=lambda probe: probe.rate)
    over = next((probe for probe in ordered if probe.is_saturated), None)
    if over is None:
        return f"No rate up to {ordered[-1].rate:,.4g}/s overloads it."
    return (
        f"Overloaded from {over.rate:,.4g}/s on: {rate(over.offered_per_s)} requests/s arrive, "
        f"{rate(over.served_per_s)} are served, and each second the wait for a first token grows by "
        f"{duration(1_000.0 * over.wait_growth)}."
    )


def write_rates(
    probes: Sequence[Probe], name: str, heading: str, out: Path, found: Mapping[str, Any], verdict: Sequence[str]
) -> None:
    """Write ``NAME.json`` and ``NAME.html`` into a folder, each whole or not at all."""
    content = {**found, "probes": [probe.content() for probe in probes]}
    for file, text in (
        (f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n"),
        (f"{name}.html", rate_page(probes, heading, verdict)),
    ):
        with replacing(out / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def rate_page(probes: Sequence[Probe], heading: str, verdict: Sequence[str]) -> str:
    """The probes as one page."""
    ordered = sorted(probes, key=lambda probe: probe.rate)
    best = max(ordered, key=lambda probe: probe.served_per_s)
    return render(
        Page(
            title=f"kvtwin: {heading}",
            heading=heading,
            lead="The same requests in the same order, offered at several rates. Judged are those that arrive while "
            "the load lasts, after queues have had half of the time to build up.",
            verdict=list(verdict),
            mood="fair" if any(probe.is_saturated for probe in ordered) else "good",
            tiles=[
                Tile("Most served", rate(best.served_per_s), "requests/s", f"at {best.rate:,.4g}/s offered"),
                Tile("Rates", count(len(ordered)), more=f"{ordered[0].rate:,.4g} to {ordered[-1].rate:,.4g}/s"),
            ],
            sections=[
                Section("curves", "By rate", figures=curves(ordered)),
                Section(
                    "numbers",
                    "In numbers",
                    "Arrivals count later turns of conversations too.",
                    tables=[PageTable([probe.cells() for probe in ordered], HEADINGS, style="wide")],
                ),
            ],
        )
    )


def curves(probes: Sequence[Probe]) -> list[Figure]:
    """Latency, throughput, goodput and hit rate over the offered rate."""
    x = numbers([probe.rate for probe in probes])

    def drawn(of: str, name: str, colour: str, scale: float = 1.0, **more: Any) -> Any:
        values = [probe.latency_ms.get(of, None) if of in probe.latency_ms else getattr(probe, of) for probe in probes]
        y = numbers([np.nan if value is None else scale * value for value in values])
        return line(x, y, name, colour, mode="lines+markers", **more)

    def figure(key: str, title: str, caption: str, traces: list[Any], unit: str, **axis: Any) -> Figure:
        layout = {
            "xaxis": {"title": {"text": "offered rate [1/s]"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": unit}, **axis},
            "hovermode": "closest",
        }
        return Figure(key, title, caption, traces, layout, height_px=340)

    figures = [
        figure(
            name,
            f"{SLO_NAMES[f'{name}_ms']} over rate",
            "Half of the requests, and 99 of 100, are faster.",
            [drawn(f"{name}_p50_ms", "p50", "--blue"), drawn(f"{name}_p99_ms", "p99", "--orange")],
            "ms",
            type="log",
        )
        for name in ("ttft", "tpot")
    ]
    served = [
        drawn("offered_per_s", "arrive", "--grey", line={"dash": "dot"}),
        drawn("served_per_s", "served", "--blue"),
    ]
    if probes[0].goodput_per_s is not None:
        served.append(drawn("goodput_per_s", "within objectives", "--green"))
    figures.append(
        figure(
            "served",
            "Requests served over rate",
            "Where the lines part the queue grows, or answers come too late.",
            served,
            "requests/s",
            rangemode="tozero",
        )
    )
    figures.append(
        figure(
            "tokens",
            "Output tokens over rate",
            "Of the requests that end while the load lasts.",
            [drawn("output_tokens_per_s", "output tokens", "--blue")],
            "tokens/s",
            rangemode="tozero",
        )
    )
    figures.append(
        figure(
            "hits",
            "Prefix hits over rate",
            "Share of prompt tokens found in the cache.",
            [drawn("prefix_hit_frac", "prefix hits", "--purple", 100.0)],
            "%",
            rangemode="tozero",
        )
    )
    return figures

"""Several runs that differ in their random numbers alone: every number with its interval, differences in pairs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.metrics.replications import CONFIDENCE, Course, Estimate, doubts, estimate, paired, steady
from sim.report.figure import Figure
from sim.report.figure import numbers as drawn
from sim.report.files import replacing
from sim.report.html import Page, Section, Table, render
from sim.report.intervals import METRICS
from sim.report.words import NOTHING, count, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

FILE = "replications.json"
STEADY = "steady."
"""Before the keys of numbers of the requests after the warm-up."""
SHOWN = METRICS | {
    "kvtwin.slo_attainment_frac": "within objectives",
    "kvtwin.prefix_hit_frac": "prefix hit rate",
    "kvtwin.kv.held_frac": "KV slots held",
    "kvtwin.preemptions": "preemptions",
}
AFTER = {"slo_attainment_frac": "kvtwin.slo_attainment_frac", "prefix_hit_frac": "kvtwin.prefix_hit_frac"}
"""Numbers after the warm-up, and which of the whole run's they stand beside."""


@dataclass(frozen=True, slots=True)
class Replications:
    """Numbers of all replications of one configuration, by dotted key; those that one lacks are left out."""

    seeds: Sequence[int]
    values: Mapping[str, Sequence[float]]
    n_warm_up: int  # requests cut off each
    is_settled: bool
    warnings: Sequence[str]

    @classmethod
    def of(cls, seeds: Sequence[int], runs: Sequence[Mapping[str, float]], courses: Sequence[Course]) -> "Replications":
        """Of runs with these seeds.

        Parameters
        ----------
        runs : sequence of mapping
            From `sim.metrics.replications.numbers_in`.
        """
        after = steady(courses)
        said = doubts(runs, after.is_settled)
        all_runs = [
            {**run, **{f"{STEADY}{key}": value for key, value in late.items()}}
            for run, late in zip(runs, after.numbers, strict=True)
        ]
        keys = [key for key in all_runs[0] if all(key in run for run in all_runs)]
        values = {key: [run[key] for run in all_runs] for key in keys}
        return cls(list(seeds), values, after.n_cut, after.is_settled, said)

    def estimate(self, key: str) -> Estimate | None:
        """A number's mean and interval."""
        return estimate(self.values[key]) if key in self.values else None

    def mean(self, key: str) -> float | None:
        """A number's mean."""
        found = self.estimate(key)
        return None if found is None else found.mean

    def differences(self, other: "Replications") -> dict[str, Estimate]:
        """How far each number lies above another configuration's, replication by replication.

        Empty where the two have not seen the same random numbers.
        """
        if list(self.seeds) != list(other.seeds):
            return {}
        return {key: paired(self.values[key], other.values[key]) for key in self.values if key in other.values}


def write_replications(found: Replications, name: str, out: Path) -> None:
    """Write ``replications.json`` and ``replications.html`` into a folder, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    for file, text in ((FILE, to_json(found)), ("replications.html", replication_page(found, name))):
        with replacing(out / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def to_json(found: Replications) -> str:
    """All numbers with their intervals."""
    numbers = {}
    for key, values in sorted(found.values.items()):
        one = estimate(values)
        numbers[key] = {
            "mean": one.mean,
            "half_width": one.half_width,
            "low": one.low,
            "high": one.high,
            "values": values,
        }
    content = {
        "confidence": CONFIDENCE,
        "seeds": found.seeds,
        "warm_up_requests": found.n_warm_up,
        "is_settled": found.is_settled,
        "warnings": found.warnings,
        "numbers": numbers,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def read_replications(folder: Path) -> Replications | None:
    """Of a run's folder; None where it has none."""
    if not (folder / FILE).is_file():
        return None
    content: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Replications(
        content["seeds"],
        {key: one["values"] for key, one in content["numbers"].items()},
        content["warm_up_requests"],
        content["is_settled"],
        content["warnings"],
    )


def number(value: float, key: str) -> str:
    """A number of `SHOWN` in words."""
    return percent(value) if key.endswith("_frac") else f"{value:,.4g}"


def rows(found: Replications) -> list[tuple[str, ...]]:
    """What is compared: mean, interval, half its width, and the same after the warm-up."""
    table: list[tuple[str, ...]] = []
    for key, name in SHOWN.items():
        one = found.estimate(key)
        if one is None:
            continue
        late = found.estimate(STEADY + next((k for k, v in AFTER.items() if v == key), key))
        half = f"{100.0 * one.half_width / abs(one.mean):.1f} %" if one.mean else NOTHING
        after = NOTHING if late is None else f"{number(late.low, key)} – {number(late.high, key)}"
        table.append((name, number(one.mean, key), f"{number(one.low, key)} – {number(one.high, key)}", half, after))
    return table


def headings(found: Replications) -> tuple[str, ...]:
    """Of `rows`."""
    return ("metric", "mean", f"{100 * CONFIDENCE:.0f} % interval", "±", f"after {count(found.n_warm_up)} requests")


def replication_table(found: Replications) -> "RenderableType":
    """The intervals as a terminal shows them."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"{len(found.seeds)} replications", title_justify="left"
    )
    for i, heading in enumerate(headings(found)):
        table.add_column(Text(heading), justify="right" if i else "left")
    for row in rows(found):
        table.add_row(*(Text(cell) for cell in row))
    return Group(table, *(Text(f"! {one}", style="yellow") for one in found.warnings))


def replication_page(found: Replications, name: str) -> str:
    """The intervals as one page."""
    shown = [(key, words) for key, words in reversed(SHOWN.items()) if found.mean(key)]
    estimates = [found.estimate(key) for key, _ in shown]
    half = [100.0 * one.half_width / abs(one.mean) for one in estimates if one is not None]
    figure = Figure(
        "replications",
        "How far the mean may be off",
        "Half of each interval, as a share of the mean.",
        [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [0.0] * len(shown),
                "y": [words for _, words in shown],
                "name": "mean",
                "marker": {"color": "--blue", "size": 8},
                "error_x": {"type": "data", "color": "--blue", "array": drawn(half)},
                "hovertemplate": "%{y}<extra></extra>",
            }
        ],
        {
            "xaxis": {"ticksuffix": " %", "title": {"text": "off the mean"}},
            "yaxis": {"automargin": True},
            "hovermode": "closest",
        },
        height_px=110 + 26 * len(shown),
    )
    lead = (
        f"{count(len(found.seeds))} runs of one configuration with independent random numbers. Each interval holds the "
        f"mean of endless such runs with {100 * CONFIDENCE:.0f} % confidence (Student's t). The last column leaves out "
        f"the first {count(found.n_warm_up)} requests, which found an emptier system than later ones (MSER-5)."
    )
    return render(
        Page(
            title=f"kvtwin: {len(found.seeds)} replications of {name}",
            heading=f"{len(found.seeds)} replications: {name}",
            lead=lead,
            warnings=found.warnings,
            sections=[
                Section(
                    "intervals",
                    "Intervals",
                    figures=[figure],
                    tables=[Table(rows(found), headings(found), style="wide")],
                )
            ],
        )
    )


def against_first(
    runs: Sequence[Replications | None], names: Sequence[str]
) -> tuple[list[str], list[list[str]]] | None:
    """Each configuration's difference to the first, in pairs: headings, and a row a metric; None where there are none.

    Of a difference that may be chance it says so.
    """
    if len(runs) < 2 or runs[0] is None:
        return None
    found = [one.differences(runs[0]) for one in runs[1:] if one is not None]
    if len(found) != len(runs) - 1 or not all(found):
        return None
    table = []
    for key, words in SHOWN.items():
        base = runs[0].mean(key)
        if base is not None and all(key in one for one in found):
            table.append([words, number(base, key), *(difference(one[key], base, key) for one in found)])
    return [f"against {names[0]}", names[0], *names[1:]], table


def difference(one: Estimate, base: float, key: str) -> str:
    """A difference in words: as a share of what it is a difference to, with its interval.

    Examples
    --------
    >>> difference(Estimate(2.0, 0.5, 10), 10.0, "x"), difference(Estimate(0.2, 0.5, 10), 10.0, "x")
    ('+20.0 % ± 5.0', 'none found (± 5.0 %)')
    """
    scale, unit = (100.0, "points") if key.endswith("_frac") else (100.0 / abs(base) if base else 1.0, "%")
    if not base and unit == "%":
        unit = ""
    width = scale * one.half_width
    if not one.is_significant:
        return f"none found (± {width:.1f} {unit})".replace(" )", ")") if width else "the same"
    return f"{scale * one.mean:+.1f} {unit}".rstrip().replace("-", "−") + f" ± {width:.1f}"

"""``RESULTS.md``: what a run on a GPU found, written from whatever rows it left, there or later elsewhere."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kernels.rows import read_rows

CHECK_COLUMNS = ("kernel", "case", "error", "gate", "passed", "seconds", "remark")
SPEED_COLUMNS = (
    "kernel", "case", "time_us", "rate", "unit", "of_ceiling_frac", "must", "verdict", "flash_us", "cudnn_us",
    "convention", "remark",
)  # fmt: skip
REHEARSAL = "CPU rehearsal"


def write_results(folder: Path, *more: Path) -> Path | None:
    """Write ``RESULTS.md`` into a run's folder, and wherever else; None if it is of a rehearsal or has no rows."""
    facts: dict[str, str] = {}
    tables = []
    for name in ("correctness.csv", "speed.csv"):
        path = folder / name
        found, rows = read_rows(path) if path.is_file() else ({}, [])
        facts |= found
        tables.append(rows)
    if not any(tables) or facts.get("device") == REHEARSAL:
        return None
    text = report(facts, *tables)
    for path in (folder / "RESULTS.md", *more):
        path.write_text(text)
    return folder / "RESULTS.md"


def report(facts: dict[str, str], proven: list[dict[str, Any]], timed: list[dict[str, Any]]) -> str:
    """The text of RESULTS.md."""
    n_passed = sum(row["passed"] == "yes" for row in proven)
    return "\n".join(
        [
            "# What the kernels did on a GPU",
            "",
            "Written by `python -m kernels`; every number was measured in that one run. Times below 100 us come from a",
            "CUDA graph of 20 launches over different blocks, the cache flushed before each replay (`graph`), others",
            "from Triton's `do_bench`; medians. Bars are shares of the ceilings of the same run, the floor's is in us.",
            "Causal attention counts the visible pairs only; decode counts the keys and values read.",
            "",
            *(f"* {key}: {value}" for key, value in facts.items()),
            "",
            "## Speed",
            "",
            markdown(SPEED_COLUMNS, timed),
            "",
            f"## Correctness: {n_passed} of {len(proven)} passed",
            "",
            "Error: relative, Frobenius norm, against float64; 0 means bit for bit.",
            "",
            markdown(CHECK_COLUMNS, proven),
            "",
        ]
    )


def markdown(columns: Iterable[str], rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    names = list(columns)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")

"""Published tables beside ours, row by row: ``python -m tests.reproductions``. Fails if a row is out of tolerance."""

import sys
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.reproductions import (
    growth,
    mooncake,
    paged_attention,
    parallel_sampling,
    placement,
    recorded_run,
    streaming,
)
from tests.reproductions.row import Reproduction, Row, Skipped

MODULES: tuple[Callable[[], list[Reproduction]], ...] = (
    placement.reproductions,
    paged_attention.reproductions,
    parallel_sampling.reproductions,
    streaming.reproductions,
    growth.reproductions,
    mooncake.reproductions,
    recorded_run.reproductions,
)


def show(reproductions: Iterable[Reproduction], console: Console) -> list[Row]:
    """Print tables as they are made; returns the rows that are out of tolerance."""
    missed: list[Row] = []
    for reproduction in reproductions:
        if isinstance(reproduction.rows, Skipped):
            console.print(f"[bold yellow]SKIPPED[/] {reproduction.title}: {reproduction.rows.reason}\n")
            continue
        table = Table(title=reproduction.title, caption=reproduction.source, title_justify="left")
        table.add_column("")
        for column in ("published", "ours", "difference", "allowed"):
            table.add_column(column, justify="right")
        table.add_column("verdict")
        table.add_column("note")
        for row in reproduction.rows:
            verdict = "[green]met[/]" if row.is_met else "[bold red]MISSED[/]"
            difference = "" if row.difference is None else f"{row.difference:+.5f}"
            allowed = "" if row.difference is None else f"{row.tolerance:.5f}"
            table.add_row(
                escape(row.what), words(row.published), words(row.ours), difference, allowed, verdict, escape(row.note)
            )
            if not row.is_met:
                missed.append(row)
        console.print(table)
        console.print()
    return missed


def words(value: float | str) -> str:
    """A number with five decimals, a text as it is."""
    return value if isinstance(value, str) else f"{value:.5f}"


def main() -> int:
    """All tables; 1 if a row is missed."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    missed = show((reproduction for make in MODULES for reproduction in make()), console)
    if missed:
        console.print(f"[bold red]{len(missed)} rows out of tolerance[/]: {'; '.join(row.what for row in missed)}")
        return 1
    console.print("[green]All rows within tolerance.[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``step=list``: what profiles there are."""

import sys
from pathlib import Path
from typing import Any

from sim.profile import KernelProfile, part_path, read_profile, shipped_profiles


def list_profiles() -> None:
    """One line a shipped profile: name, device, source, operations and their held-out error."""
    from rich.console import Console
    from rich.table import Table

    table = Table("profile", "device", "source", "operation", "held-out rows", "MAPE", "p90", title="Kernel profiles")
    for name, path in shipped_profiles().items():
        profile = read_profile(path)
        head = [name, profile.device, profile.source]
        parts = [read_profile(part) for part in sorted(part_path(path, "any").parent.glob("*.json"))]
        for row in (row for one in (profile, *parts) for row in error_rows(one)):
            table.add_row(*head, *row)
            head = ["", "", ""]
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def error_rows(profile: KernelProfile) -> list[tuple[str, ...]]:
    """Operation, held-out rows, mean and 90th percentile of the error, as text."""
    rows: list[tuple[str, ...]] = []
    part = Path(profile.path).stem
    for operation, form in profile.operations.items():
        name = operation if not operation.startswith("latent") else f"{operation}{part.removeprefix('latent')}"
        held: dict[str, Any] = form["error"]["held_out"]
        if held["mape"] is None:
            rows.append((name, "0", "-", "-"))
        else:
            rows.append((name, str(held["n"]), f"{held['mape']:.1%}", f"{held['p90']:.1%}"))
    return rows

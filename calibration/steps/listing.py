"""``step=list``: what profiles there are."""

import sys
from typing import Any

from sim.profile import KernelProfile, read_profile, shipped_profiles


def list_profiles() -> None:
    """One line a shipped profile: name, device, source, operations and their held-out error."""
    from rich.console import Console
    from rich.table import Table

    table = Table("profile", "device", "source", "operation", "held-out rows", "MAPE", "p90", title="Kernel profiles")
    for name, path in shipped_profiles().items():
        profile = read_profile(path)
        head = [name, profile.device, profile.source]
        for row in error_rows(profile):
            table.add_row(*head, *row)
            head = ["", "", ""]
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def error_rows(profile: KernelProfile) -> list[tuple[str, ...]]:
    """Operation, held-out rows, mean and 90th percentile of the error, as text."""
    rows: list[tuple[str, ...]] = []
    for name, form in profile.operations.items():
        held: dict[str, Any] = form["error"]["held_out"]
        if held["mape"] is None:
            rows.append((name, "0", "-", "-"))
        else:
            rows.append((name, str(held["n"]), f"{held['mape']:.1%}", f"{held['p90']:.1%}"))
    return rows

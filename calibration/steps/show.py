"""``step=show``: one profile in full, but for its coefficients."""

import json
from pathlib import Path

from sim.profile import read_profile, shipped_profiles


def show(profile: str) -> None:
    """Print device, convention, provenance, and each operation's range and errors.

    Parameters
    ----------
    profile : str
        ``device/source`` of a shipped profile, or a path.

    Raises
    ------
    ProfileError
        If there is none, or it is altered.
    """
    from rich.console import Console

    found = read_profile(shipped_profiles().get(profile, Path(profile)))
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{found.device}[/bold], from {found.source}")
    console.print(f"convention: {found.convention}")
    console.print(f"of: {json.dumps(dict(found.subject)) if found.subject else 'any model'}")
    console.print(f"sha256: {found.sha256}")
    for key, value in found.provenance.items():
        console.print(f"{key}: {value if isinstance(value, str | int) else json.dumps(value)}")
    for name, form in found.operations.items():
        console.print(f"\n[bold]{name}[/bold]")
        for axis, (low, high) in form.get("range", {}).items():
            console.print(f"  {axis}: {low:g} to {high:g}")
        for kind, error in form["error"].items():
            console.print(f"  {kind}: {json.dumps(error)}")

"""A kernel profile: what calibration hands to the simulator, as a file.

A profile holds fitted formulas of kernel times on one device: coefficients with units, the range they were fitted in,
the error on data kept out of the fit, and where the measurements came from. Here it is read and checked; the formulas
are in `sim.cost.surface`, and `sim.cost.calibrated` makes the times of a model's iterations out of them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import ProfileError

SCHEMA = 1
MAX_BYTES = 200_000  # of a profile file: it is read at every start, and committed
_KEYS = ("schema", "device", "source", "convention", "units", "provenance", "subject", "operations", "sha256")


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """Fitted kernel times of one device, checked.

    ``subject`` says whose times they are: empty if the formulas hold for any model's shapes, else the model and the
    tensor-parallel degree that were measured. ``operations`` maps a name to its fitted form, as the file has it.
    """

    path: str
    device: str
    source: str
    convention: str
    provenance: Mapping[str, Any]
    subject: Mapping[str, Any]
    operations: Mapping[str, Mapping[str, Any]]
    sha256: str

    def operation(self, name: str) -> Mapping[str, Any]:
        """The fitted form of one operation.

        Raises
        ------
        ProfileError
            If the profile has none of that name.
        """
        if name not in self.operations:
            raise ProfileError(
                f"{self.path}: no operation {name!r}, it has {', '.join(sorted(self.operations))}; "
                f"measure it and run `python -m calibration step=fit`"
            )
        return self.operations[name]

    def describe(self) -> dict[str, Any]:
        """What a report says about the profile it stands on: device, source, convention, errors, hash."""
        errors = {name: dict(form["error"]) for name, form in self.operations.items() if "error" in form}
        return {
            "profile": self.path,
            "device": self.device,
            "source": self.source,
            "convention": self.convention,
            "sha256": self.sha256,
            "held_out_errors": errors,
        }


def content_sha256(content: Mapping[str, Any]) -> str:
    """Hash of a profile's content, its own ``sha256`` left out: of the JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_profile(path: Path | str, device: str | None = None) -> KernelProfile:
    """Read a profile file and check it.

    Parameters
    ----------
    path : Path or str
        A JSON file written by calibration.
    device : str, optional
        The device it must be of; None takes any.

    Raises
    ------
    ProfileError
        If the file is missing, too large, no JSON (cut off, say), of another schema, of another device, or if its
        content is not what its hash says.
    """
    path = Path(path)
    if not path.is_file():
        raise ProfileError(f"{path}: no such profile; `python -m calibration step=list` names those there are")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ProfileError(f"{path}: a profile has at most {MAX_BYTES} [B], this file has {size}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProfileError(f"{path}: not a complete JSON file ({error}); restore it or run step=fit again") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: a profile is a JSON object, got {type(content).__name__}")
    if content.get("schema") != SCHEMA:
        raise ProfileError(
            f"{path}: profile.schema must be {SCHEMA}, got {content.get('schema')!r}; run step=fit again"
        )
    if missing := [key for key in _KEYS if key not in content]:
        raise ProfileError(f"{path}: profile has no {', '.join(missing)}; run step=fit again")
    if content["sha256"] != (found := content_sha256(content)):
        raise ProfileError(
            f"{path}: altered after it was written: its sha256 says {content['sha256']!r}, its content gives {found}; "
            f"restore it or run step=fit again"
        )
    if device is not None and content["device"] != device:
        raise ProfileError(f"{path}: profile.device must be {device!r}, got {content['device']!r}")
    return KernelProfile(
        path=path.as_posix(),
        device=content["device"],
        source=content["source"],
        convention=content["convention"],
        provenance=content["provenance"],
        subject=content["subject"],
        operations=content["operations"],
        sha256=content["sha256"],
    )

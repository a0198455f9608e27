"""A kernel profile: what calibration hands to the simulator, as a file.

A profile holds fitted formulas of kernel times on one device: coefficients with units, the range they were fitted in,
the error on data kept out of the fit, and where the measurements came from. Here it is read and checked; the formulas
are in `sim.cost.surface`, and `sim.cost.calibrated` makes the times of a model's iterations out of them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sim.errors import ProfileError

SCHEMA = 1
MAX_BYTES = 400_000  # of a profile file: it is read at every start, and committed
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

    @property
    def name(self) -> str:
        """``device/source`` of a shipped profile, else the file it was read from."""
        path = Path(self.path)
        if path.is_relative_to(PROFILES):
            return path.relative_to(PROFILES).with_suffix("").as_posix()
        return self.path

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

    def with_part(self, name: str) -> "KernelProfile":
        """The profile with the operations of a part of it, a file of its own beside it; as it is, where it has none.

        Parts hold kernels that only some models have, and are read for these alone.

        Raises
        ------
        ProfileError
            If the file is damaged or of another device.
        """
        path = part_path(Path(self.path), name)
        if not path.is_file():
            return self
        part = read_profile(path, self.device)
        parts = {**self.provenance.get("parts", {}), name: part.sha256}
        return replace(
            self,
            operations={**self.operations, **part.operations},
            provenance={**self.provenance, "parts": parts},
        )

    def describe(self) -> dict[str, Any]:
        """What a report says about the profile it stands on: device, source, convention, errors, hash."""
        errors = {name: dict(form["error"]) for name, form in self.operations.items() if "error" in form}
        return {
            "profile": self.name,
            "device": self.device,
            "source": self.source,
            "vllm": str(self.provenance.get("vllm", "none")),
            "convention": self.convention,
            "sha256": self.sha256,
            "held_out_errors": errors,
            **{key: dict(self.provenance[key]) for key in ("parts",) if key in self.provenance},
        }


def part_path(path: Path, name: str) -> Path:
    """Where a part of the profile at ``path`` lies: ``published.json`` has ``published/experts_bf16.json``."""
    return path.with_suffix("") / f"{name}.json"


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


PROFILES = Path(__file__).resolve().parent.parent / "calibration" / "profiles"
OWN_SOURCE = "triton"  # of our own kernels: a device's default before what others published
_HEAD_BYTES = 1_000  # of a file that name its device: profiles are written that way


def shipped_profiles() -> dict[str, Path]:
    """Profiles that come with kvtwin: ``device/source`` -> file."""
    return {path.relative_to(PROFILES).with_suffix("").as_posix(): path for path in sorted(PROFILES.glob("*/*.json"))}


def device_profiles(device: str) -> list[KernelProfile]:
    """The shipped profiles of a device. Only theirs are read whole: others are told by the head of their file."""
    named = re.compile(r'"device": "([^"]*)"')
    fitting = []
    for path in shipped_profiles().values():
        with path.open(encoding="utf-8") as file:
            found = named.search(file.read(_HEAD_BYTES))
        if found is None or is_of(found[1], device):
            fitting.append(read_profile(path))
    return [profile for profile in fitting if is_of(profile.device, device)]


def version_of(words: str) -> tuple[int, ...]:
    """The numbers of a version; nothing of words that name none.

    Examples
    --------
    >>> version_of("v0.14.1.dev1"), version_of("unknown")
    ((0, 14, 1), ())
    """
    match = re.match(r"v?(\d+(?:\.\d+)*)", words)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def nearest_version(profiles: Sequence[KernelProfile], engine_version: str | None) -> KernelProfile:
    """Of a device's profiles the one of an engine's version, else of the newest before it, else of the next after it.

    Without a version the newest. Our own kernels go before what others published: an engine of ours runs them.
    """
    own = [profile for profile in profiles if Path(profile.path).stem == OWN_SOURCE]
    dated = sorted(own or profiles, key=lambda profile: version_of(str(profile.provenance.get("vllm", ""))))
    wanted = version_of(engine_version or "")
    if not wanted:
        return dated[-1]
    before = [p for p in dated if version_of(str(p.provenance.get("vllm", "")))[: len(wanted)] <= wanted]
    return before[-1] if before else dated[0]


def find_profile(name: str | None, device: str, engine_version: str | None = None) -> KernelProfile:
    """A profile by name or path, or the best of a device, checked against the device.

    Parameters
    ----------
    name : str or None
        ``device/source`` of a shipped profile, the path of a file, or None for the device's default.
    device : str
        As a data sheet names it: a profile is of this device if one of the two names begins with the other.
    engine_version : str, optional
        Of vLLM: of several published profiles that of this version is taken (`nearest_version`).

    Raises
    ------
    ProfileError
        If there is none, or it is of another device.
    """
    shipped = shipped_profiles()
    if name is not None:
        if name not in shipped and not name.endswith(".json"):
            near = get_close_matches(name, shipped, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ProfileError(f"cost.profile must be one of {', '.join(shipped)} or a .json file, got {name!r}{hint}")
        found = read_profile(shipped.get(name, Path(name)))
        if not is_of(found.device, device):
            raise ProfileError(f"{found.path}: measured on {found.device!r}, but hardware.device is {device!r}")
        return found
    if fitting := device_profiles(device):
        return nearest_version(fitting, engine_version)
    raise ProfileError(
        f"no profile of {device!r}: there are {', '.join(shipped) or 'none'}; take cost=roofline, or measure with "
        f"`python -m calibration step=measure`"
    )


def is_of(measured: str, device: str) -> bool:
    """Whether a profile's device and a data sheet's are the same: one name begins with the other's words."""
    a, b = measured.lower().split(), device.lower().split()
    n = min(len(a), len(b))
    return a[:n] == b[:n]

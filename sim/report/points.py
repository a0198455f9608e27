"""Finished runs read back from their folders, and what tells them apart."""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import ConfigError
from sim.report.files import SCHEMA_VERSION
from sim.report.replications import Replications, read_replications
from sim.report.words import class_words

Settings = dict[str, Any]
HASHED = re.compile("[0-9a-f]{16}")  # names of a sweep's folders
LONGEST = 24  # characters of a list that is written out in a label
IMPLIED = {
    "preemption._target_": ("cache.",),
    "batching.max_num_batched_tokens": ("hardware.", "engine."),
    "batching.max_num_seqs": ("hardware.", "engine."),
    "batching.plans_ahead": ("engine.",),
    "batching.long_prefill_token_threshold": ("engine.",),
    "batching.forks_samples": ("engine.",),
    "cache.reserves_prompt": ("engine.",),
    "eviction.blank_first": ("engine.",),
    "cost.pipeline.batch_tokens": ("batching.", "engine.", "hardware."),
    "cost.host.scheduling": ("engine.",),
    "cost.capture_sizes": ("engine.",),
    "hardware.counts_graphs": ("engine.",),
}
"""Settings that come with another part's choice, unless they are chosen too: told as if they were that part's own."""


@dataclass(frozen=True, slots=True)
class Point:
    """A finished run: where it lies, what was chosen (dotted keys), what came out."""

    path: Path
    settings: Settings
    numbers: Mapping[str, Any]  # of several replications their means
    replications: Replications | None = None


def read_points(folders: str | os.PathLike[str] | Sequence[Path]) -> list[Point]:
    """The finished runs in these folders, in their order, or all in one folder and below.

    Those are in order of their paths; a sweep's, whose names are hashes, in order of what differs.

    Raises
    ------
    ConfigError
        If there is none, or one is of another schema.
    """
    if isinstance(folders, str | os.PathLike):
        found = sorted(Path(folders).rglob("manifest.json"), key=_order)
    else:
        found = [folder / "manifest.json" for folder in folders]
    points = []
    for path in found:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise ConfigError(
                f"{path}: schema_version must be {SCHEMA_VERSION}, got {manifest.get('schema_version')!r}"
            )
        numbers = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
        repeated = read_replications(path.parent)
        if repeated is not None:
            numbers = _means(numbers, repeated)
        points.append(Point(path.parent, _settings(manifest["config"]), numbers, repeated))
    if not points:
        raise ConfigError(f"dir must hold finished runs (folders with a manifest.json), got {str(folders)!r}")
    is_searched = isinstance(folders, str | os.PathLike)  # else they are wanted in the order in which they are given
    if is_searched and all(HASHED.fullmatch(point.path.name) for point in points):  # whose order means nothing
        told = differences(points)
        keys = sorted({key for mine in told for key in mine}, key=lambda key: (not key.endswith("._target_"), key))
        order = sorted(range(len(points)), key=lambda i: [_by_size(told[i].get(key)) for key in keys])
        points = [points[i] for i in order]
    return points


def _by_size(value: Any) -> tuple[bool, float, Any]:
    """Numbers before words, by their size; words in the order of paths."""
    if isinstance(value, int | float):
        return False, float(value), ()
    return True, 0.0, _order(Path(str(value)))


def _settings(config: Mapping[str, Any]) -> Settings:
    """All settings by dotted key; a part's class under the name of the file that was chosen for it."""
    settings = dict(_flat({key: value for key, value in config.items() if key != "choices"}))
    named = {f"{group}._target_": name for group, name in config.get("choices", {}).items()}
    return {key: named.get(key, value) for key, value in settings.items()}


def _means(numbers: Mapping[str, Any], repeated: Replications, prefix: str = "") -> dict[str, Any]:
    """The numbers of the first replication, each replaced by the mean of all that have it."""
    found = {}
    for key, value in numbers.items():
        mean = repeated.mean(f"{prefix}{key}")
        found[key] = _means(value, repeated, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        if mean is not None:
            found[key] = mean
    return found


def differences(points: Sequence[Point]) -> list[Settings]:
    """Of each point, the settings that tell it from the others, by key.

    Where another class was chosen for a part, the class stands for the part's own settings, unless points of the same
    class differ in them.
    """
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    varying = [key for key in keys if len({repr(point.settings.get(key)) for point in points}) > 1]
    classes = [key for key in varying if key.endswith("._target_")]
    copies = _copies(points, varying) | _consequences(points, varying)
    told = []
    for point in points:
        mine = {}
        for key in varying:
            names = [key, *(f"{part}{key}" for part in IMPLIED.get(key, ()))]
            owners = [c for c in classes if key != c and any(one.startswith(c[: -len("_target_")]) for one in names)]
            peers = [p for p in points if all(p.settings.get(c) == point.settings.get(c) for c in owners)]
            differs = len({repr(p.settings.get(key)) for p in peers}) > 1
            if key in point.settings and (not owners or differs) and key not in copies:
                mine[key] = point.settings[key]
        told.append(mine)
    return told


def labels(points: Sequence[Point]) -> list[str]:
    """A short name for each point: what tells it from the others, and nothing else."""
    told = [
        dict(sorted(mine.items(), key=lambda item: not item[0].endswith("._target_"))) for mine in differences(points)
    ]
    names = [said(mine, telling(told)) for mine in told]
    return [
        name if name and names.count(name) == 1 else f"{name} {point.path.name}".strip()
        for name, point in zip(names, points, strict=True)
    ]


def telling(told: Sequence[Settings]) -> set[str]:
    """Keys whose values say by themselves what they are of: choices of a part, unless two parts have one of a name."""
    values: dict[str, set[str]] = {}
    for mine in told:
        for key, value in mine.items():
            if key.endswith(("._target_", ".name")):
                values.setdefault(key, set()).add(shown(key, value))
    return {key for key in values if not any(values[key] & others for k, others in values.items() if k != key)}


def said(settings: Settings, telling: Collection[str] = ()) -> str:
    """Settings in a line; of those that say by themselves what they are of, the value alone.

    Examples
    --------
    >>> said({"cache._target_": "sim.kv.paged.PagedCache", "scenario.rate": 8.0}, {"cache._target_"})
    'paged, rate 8'
    """
    return ", ".join(
        shown(key, value) if key in telling else f"{short(key)} {shown(key, value)}" for key, value in settings.items()
    )


def short(key: str) -> str:
    """The shortest telling part of a dotted key: its part's name for a class, else its last word.

    Examples
    --------
    >>> short("cache._target_"), short("scenario.rate"), short("hardware.device.name")
    ('cache', 'rate', 'device')
    """
    *owners, last = key.split(".")
    return owners[-1] if last in ("_target_", "name") and owners else last


def shown(key: str, value: Any) -> str:
    """A setting's value in a label; a class in words."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and len(str(value)) > LONGEST:
        return f"{len(value)} values"
    is_class = key.endswith("_target_") and str(value).rpartition(".")[2][:1].isupper()  # not a file's name
    return class_words(key.split(".")[0], str(value)) if is_class else str(value)


def _copies(points: Sequence[Point], varying: Sequence[str]) -> set[str]:
    """Settings that only repeat another's value at every point, as costs and tiers repeat the model's and the device's.

    Of several that are equal everywhere the cost's comes last, else the one nearest to the top is told.
    """
    by_values: dict[str, list[str]] = {}
    for key in varying:
        if key.count(".") > 1 or not key.endswith("._target_"):
            by_values.setdefault(repr([point.settings.get(key) for point in points]), []).append(key)
    ranked = (sorted(keys, key=lambda key: (key.startswith("cost."), key.count("."))) for keys in by_values.values())
    return {key for keys in ranked for key in keys[1:]}


def _consequences(points: Sequence[Point], varying: Sequence[str]) -> set[str]:
    """Lists that the other settings decide, as the sizes of captured graphs follow from the largest batch."""

    def is_list(key: str) -> bool:
        return any(isinstance(point.settings.get(key), list) for point in points)

    single = [key for key in varying if not is_list(key)]
    found = set()
    for key in filter(is_list, varying):
        of: dict[str, set[str]] = {}
        for point in points:
            given = repr([point.settings.get(one) for one in single])
            of.setdefault(given, set()).add(repr(point.settings.get(key)))
        if all(len(values) == 1 for values in of.values()):
            found.add(key)
    return found


def _order(path: Path) -> tuple[Any, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

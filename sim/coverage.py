"""The task ``coverage``: of which models on which devices times are measured, estimated, or nothing fits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.build import Builder
from sim.config import choices_of, conf_dir, make
from sim.errors import ConfigError
from sim.spec import DTYPE_BYTES, BatchLimit, HardwareSpec, ModelSpec

if TYPE_CHECKING:
    from rich.console import Console

DEGREES = (1, 2, 4, 8)  # accelerators of one node
N_GRAPHS = 51
WORDS = {
    "m": "measured",
    "p": "measured in part: experts told by other shapes, or an attention or experts by the data sheet",
    "e": "estimated from the data sheet",
    "-": "does not fit eight",
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Every model on the fewest accelerators of every device that hold it.

    Parameters
    ----------
    models, hardware : sequence of str or None
        Of ``conf/model`` and ``conf/hardware``; None takes all.
    weight_dtype : str or None
        Number format of the layers' matrices; None takes the one of each model's file.
    """

    models: Sequence[str] | None = None
    hardware: Sequence[str] | None = None
    weight_dtype: str | None = None

    def __post_init__(self) -> None:
        for group, names in (("model", self.models), ("hardware", self.hardware)):
            for name in names or ():
                if name not in choices_of(group):
                    raise ConfigError(f"{group}={name} is not a choice (there are {', '.join(choices_of(group))})")
        if self.weight_dtype is not None and self.weight_dtype not in DTYPE_BYTES:
            raise ConfigError(f"task.weight_dtype must be one of {', '.join(DTYPE_BYTES)}, got {self.weight_dtype!r}")

    def __call__(self, *, config: Mapping[str, Any], out: Path, console: "Console") -> None:
        """Print the table as Markdown, write ``coverage.json`` into ``out``."""
        rows = self.rows(config)
        devices = list(next(iter(rows.values()))["on"])
        lines = [f"| | format | {' | '.join(devices)} |", f"|---|---|{'---|' * len(devices)}"]
        lines += [f"| {name} | {row['format']} | {' | '.join(row['on'].values())} |" for name, row in rows.items()]
        console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
        console.print("\n" + "; ".join(f"{key} {words}" for key, words in WORDS.items()), soft_wrap=True)
        (out / "coverage.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    def rows(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """By model, its format and by device how its times are known, and of how many accelerators."""
        engine = Builder(config).engine
        devices = {name: _part("hardware", name) for name in self.hardware or choices_of("hardware")}
        found = {}
        for name in self.models or choices_of("model"):
            model = _part("model", name)
            if self.weight_dtype is not None:
                model = replace(model, weight_dtype=self.weight_dtype)
            on = {device: known(model, one, engine.batch_limits, engine.version) for device, one in devices.items()}
            found[name] = {"format": formats(model), "on": on}
        return found


def formats(model: ModelSpec) -> str:
    """Of the matrices, and of the experts where theirs is another."""
    dtypes = [model.weight_dtype]
    for layers in model.stack:
        dtypes += [gemm.dtype for gemm in layers.gemms(model.d_model) if gemm.n_matrices > 1 and gemm.dtype is not None]
    return ", experts ".join(dict.fromkeys(dtypes))


def known(model: ModelSpec, hardware: HardwareSpec, limits: Sequence[BatchLimit], version: str) -> str:
    """How the times of a model are known on the fewest accelerators that hold it: a key of `WORDS` and their number."""
    from sim.cost.auto import best_cost
    from sim.cost.host import HostCost
    from sim.cost.roofline import Efficiency
    from sim.kv.capacity import holds

    device = hardware.device
    limit = next(
        limit
        for limit in limits
        if device.memory_gib >= limit.from_gib and not any(word in device.name.lower() for word in limit.except_named)
    )
    largest = limit.max_num_batched_tokens, limit.max_num_seqs, N_GRAPHS
    for ranks in DEGREES:
        if holds(model, replace(hardware, tensor_parallel=ranks), 16, largest):
            cost = best_cost(model, device, HostCost(0.0, 0.0), Efficiency(), ranks, engine_version=version)
            told = cost.provenance or {}
            in_part = "attention" in told or not str(told.get("experts", "measured")).startswith("measured")
            return f"{'e' if 'why' in told else 'p' if in_part else 'm'} {ranks}"
    return "-"


def _part(group: str, name: str) -> Any:
    """A choice as its file has it."""
    import yaml  # type: ignore[import-untyped]

    return make(yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")), group)

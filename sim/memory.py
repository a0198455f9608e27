"""The task ``memory``: what a model takes on which device, by length and by cache, without traffic."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.build import Builder, contracts
from sim.config import choices_of, conf_dir, make
from sim.errors import ConfigError
from sim.kv.capacity import memory_terms, weights_bytes
from sim.kv.footprint import (
    Footprint,
    attention_matrix_bytes,
    generation_flops,
    generation_seconds,
    in_blocks,
    pruned,
    reserved,
)
from sim.kv.training import PARAMETER_BYTES, training
from sim.report.memory import ByCache, Fit, MemoryFacts, memory_tables, write_memory
from sim.report.page import name_of
from sim.spec import HardwareSpec

if TYPE_CHECKING:
    from rich.console import Console

NONE = "none"  # no cache: everything is computed again for each token
SHARES = (16, 8, 4, 2, 1)
"""Of the model's maximum: at these an extent of the maximum is 93.8, 87.5, 75, 50 and 0 % empty."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What fits where.

    Parameters
    ----------
    lengths : sequence of int or None
        Tokens of a sequence, prompt and answer [tokens].
    caches : sequence of str
        Of ``conf/cache/``, to compare what they hold; the run's own with its settings. Not ``by_class``, whose classes
        have a cache each. ``none`` is the baseline without any.
    hardware : sequence of str or None
        Of ``conf/hardware/``; the run's own is always among them.
    attention_matrix : bool
        Take the scores that eager attention holds off the room for KV.
    """

    caches: Sequence[str]
    lengths: Sequence[int] | None = None
    hardware: Sequence[str] | None = None
    attention_matrix: bool = False

    def __post_init__(self) -> None:
        _known("caches", self.caches, [NONE, *(name for name in choices_of("cache") if name != "by_class")])
        if self.hardware is not None:
            _known("hardware", self.hardware, choices_of("hardware"))
        if self.lengths is not None:
            if isinstance(self.lengths, str) or not self.lengths:
                raise ConfigError(f"task.lengths must be null or a list of at least one, got {self.lengths!r}")
            for length in self.lengths:
                if type(length) is not int or length < 1:
                    raise ConfigError(f"task.lengths must be whole numbers >= 1 [tokens], got {length!r}")

    def __call__(self, *, config: Mapping[str, Any], out: Path, console: "Console") -> None:
        """Print the tables, write ``memory.json`` and ``memory.html`` into ``out``."""
        facts = self.facts(config)
        write_memory(facts, out)
        console.print(memory_tables(facts))
        console.print(f"Page: {out / 'memory.html'}", soft_wrap=True)

    def facts(self, config: Mapping[str, Any]) -> MemoryFacts:
        """All numbers.

        Raises
        ------
        ConfigError
            If a length is beyond the model's maximum, or its heads cannot be shared among so many accelerators.
        """
        made = Builder(config)
        model, ranks = made.model, made.hardware.tensor_parallel
        lengths = sorted(set(self.lengths or (max(1, model.max_len // share) for share in SHARES)))
        if lengths[-1] > model.max_len:
            raise ConfigError(
                f"task.lengths must be <= {model.max_len} [tokens], the model's maximum, got {lengths[-1]}"
            )
        own = str(config.get("choices", {}).get("cache", "paged"))
        if own == "by_class":
            raise ConfigError("task=memory needs one cache, but cache=by_class gives each class of requests its own")
        held = {name: footprints(config, made, name, lengths) for name in dict.fromkeys((*self.caches, own))}
        matrices = [attention_matrix_bytes(model, length, ranks) * self.attention_matrix for length in lengths]
        n_graphs = len(config["cost"].get("capture_sizes") or ())  # the setting: building a cost reads a profile
        largest = made.scheduler.most_tokens, made.scheduler.most_seqs, n_graphs
        stage = model.stage(made.hardware.pipeline_parallel)
        per_token = stage.kv_bytes_per_token(ranks)
        fits = []
        for name, hardware in self.devices(config, made).items():
            terms = memory_terms(model, hardware, *largest)
            left = sum(terms.values())
            if hardware.kv_blocks is not None:
                left = hardware.kv_blocks * config["cache"].get("block_tokens", 16) * per_token
            fits += [
                Fit(name, hardware, terms, length, left - matrix, one.held_tokens * one.width_frac * per_token)
                for length, matrix, one in zip(lengths, matrices, held[own], strict=True)
            ]
        return MemoryFacts(
            name=name_of(config),
            model=model,
            tensor_parallel=ranks,
            cache=own,
            weights_bytes=weights_bytes(stage, ranks, made.hardware.expert_ranks),
            kv_bytes_per_token=per_token,
            state_bytes_per_seq=stage.state_bytes_per_seq(ranks),
            lengths=lengths,
            matrix_bytes=matrices if self.attention_matrix else [],
            fits=fits,
            by_cache=[
                ByCache(name, length, one) for name in held for length, one in zip(lengths, held[name], strict=True)
            ],
            flops=[generation_flops(model, length) for length in lengths],
            seconds=[generation_seconds(model, made.hardware, length) for length in lengths],
            price_per_hour=getattr(made.hardware, "price_per_hour", None),
            training={
                precision: [training(model, length, ranks, precision) for length in lengths]
                for precision in PARAMETER_BYTES
            },
        )

    def devices(self, config: Mapping[str, Any], made: Builder) -> dict[str, HardwareSpec]:
        """The run's hardware, then the others, each under the run's conditions."""
        own = config.get("choices", {}).get("hardware", made.hardware.device.name)
        found: dict[str, HardwareSpec] = {own: made.hardware}
        for name in choices_of("hardware") if self.hardware is None else self.hardware:
            if name not in found:
                node = _node("hardware", name, config)
                other = make(node, "hardware", made.trusted, contracts()["hardware"])
                found[name] = replace(made.hardware, device=other.device, kv_blocks=None)
        return found


def footprints(config: Mapping[str, Any], made: Builder, name: str, lengths: Sequence[int]) -> list[Footprint]:
    """What sequences of some lengths hold in a cache of ``conf/cache/``."""
    if name == NONE:
        return [Footprint(0, 0) for _ in lengths]
    is_chosen = config.get("choices", {}).get("cache") == name
    node = config["cache"] if is_chosen else _node("cache", name, config)
    cache = make(node, "cache", made.trusted, contracts()["cache"]).keywords
    model, block_tokens = made.model, cache.get("block_tokens", 16)
    if "reservation" in cache:
        reservation = cache["reservation"]() if callable(cache["reservation"]) else cache["reservation"]
        most = cache.get("max_len") or model.max_len
        if lengths[-1] > most:
            raise ConfigError(f"task.lengths must be <= {most} [tokens], cache.max_len of {name}, got {lengths[-1]}")
        return [reserved(length, reservation, cache["allocator"], most) for length in lengths]
    if "retention" in cache:
        return [pruned(length, block_tokens, cache["retention"], 8.0 * model.kv_bytes) for length in lengths]
    return [in_blocks(length, block_tokens, model.window) for length in lengths]


def _node(group: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A choice that is not the run's, from its file; what it refers to is the run's."""
    import yaml  # type: ignore[import-untyped]

    file = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    node: dict[str, Any] = _resolved({key: value for key, value in file.items() if key != "defaults"}, config)
    return node


def _resolved(node: Any, config: Mapping[str, Any]) -> Any:
    """References to settings replaced by what they name; OmegaConf would take a second for all these files."""
    if isinstance(node, dict):
        return {key: _resolved(value, config) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, config) for value in node]
    if isinstance(node, str) and (found := re.fullmatch(r"\$\{([\w.]+)\}", node)):
        value: Any = config
        for key in found[1].split("."):
            value = value[key]
        return value
    return node


def _known(key: str, names: Any, choices: list[str]) -> None:
    """A list of choices that exist, at least one."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ConfigError(f"task.{key} must be a list of at least one, got {names!r}")
    for name in names:
        if name not in choices:
            near = get_close_matches(str(name), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"task.{key}={name} is not a choice{hint} (there are {', '.join(choices)})")

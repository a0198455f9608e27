"""What the YAML files ask for as ``${name:...}``: values that hang on several choices at once."""

from collections.abc import Callable
from typing import Any

from sim.errors import ConfigError

MOST_CAPTURED = 512
"""Graphs are captured up to min(2 * max_num_seqs, 512, max_num_batched_tokens) tokens.
Source: vLLM, ``VllmConfig._set_cudagraph_sizes``."""


def register() -> None:
    """Make them known to OmegaConf."""
    from omegaconf import OmegaConf

    resolvers: dict[str, Callable[..., Any]] = {
        "if": lambda condition, yes, no: yes if condition else no,
        "engine_limit": engine_limit,
        "engine_graphs": engine_graphs,
        "engine_batch_tokens": engine_batch_tokens,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def engine_limit(name: str, _root_: Any) -> int:
    """What the engine takes for ``max_num_batched_tokens`` or ``max_num_seqs`` on the chosen device.

    Sequences are never more than the batch's tokens, as in vLLM's ``EngineArgs``.
    """
    limit = _device_limit(name, _root_)
    budget = _number(_root_, "batching.max_num_batched_tokens") if name == "max_num_seqs" else limit
    return int(min(limit, max(1, budget)))


def engine_graphs(_root_: Any) -> list[int]:
    """The engine's graph sizes that a batch as large as the scheduler's can have; all where it has no such limits."""
    from omegaconf import OmegaConf

    sizes = OmegaConf.select(_root_, "engine.cudagraph_capture_sizes") or []
    most_seqs = _number(_root_, "batching.max_num_seqs") or MOST_CAPTURED
    most_tokens = _number(_root_, "batching.max_num_batched_tokens") or MOST_CAPTURED
    return [size for size in sizes if size <= min(2 * most_seqs, MOST_CAPTURED, most_tokens)]


def engine_batch_tokens(_root_: Any) -> int:
    """Tokens of one batch of a scheduler that has several under way; 0 of one that has not."""
    is_several = _number(_root_, "batching.n_batches") > 0
    return int(_number(_root_, "batching.max_num_batched_tokens")) if is_several else 0


def _device_limit(name: str, root: Any) -> int:
    from omegaconf import OmegaConf

    memory_gib = _number(root, "hardware.device.memory_gib")
    device = str(OmegaConf.select(root, "hardware.device.name")).lower()
    for limit in OmegaConf.select(root, "engine.batch_limits") or []:
        if memory_gib >= limit.from_gib and not any(word in device for word in limit.except_named):
            return int(limit[name])
    raise ConfigError(f"engine.batch_limits must name a limit for every device, got none for {device}")


def _number(root: Any, key: str) -> float:
    """A number of the configuration; 0 for what is none, which is refused where it is used."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(root, key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0

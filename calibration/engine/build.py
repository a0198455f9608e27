"""An engine from the simulator's own configuration: the same choices build either."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from calibration.engine.decoder import Decoder
from calibration.engine.memory import Extents, Hierarchical, Memory, Paged, Pruned, Ring
from calibration.engine.serving import Engine, pool_of
from sim.config import make
from sim.errors import ConfigError
from sim.kv.retention import Window
from sim.units import GIB


def engine_of(config: Mapping[str, Any], decoder: Decoder) -> Engine:
    """The engine a composed configuration describes, of a decoder made before: its cache, and its limits.

    Raises
    ------
    ConfigError
        If it asks for what this engine does not do.
    """
    batching = config["batching"]
    if not batching["_target_"].endswith(".Chunked") or batching["plans_ahead"]:
        raise ConfigError("the engine serves batching=chunked with batching.plans_ahead=false")
    memory = memory_of(config, decoder)
    return Engine(decoder, memory, batching["max_num_batched_tokens"], batching["max_num_seqs"])


def memory_of(config: Mapping[str, Any], decoder: Decoder) -> Memory:
    """The cache, of as many slots as ``hardware.kv_blocks`` says.

    Raises
    ------
    ConfigError
        If the cache is none of those the engine has, or the number of blocks is not given.
    """
    cache, n_blocks = config["cache"], config["hardware"]["kv_blocks"]
    if n_blocks is None:
        raise ConfigError("hardware.kv_blocks must be given: the engine takes as much memory as it is told")
    block_tokens = cache.get("block_tokens", 16)
    name = cache["_target_"].rpartition(".")[2]
    if name not in SERVED:
        raise ConfigError(f"cache must be one the engine has ({', '.join(SERVED)}), got {name}")
    memory = SERVED[name](config, decoder, n_blocks * block_tokens, block_tokens)
    if memory.window is None:
        memory.window = decoder.model.window
    return memory


def _paged(config: Mapping[str, Any], decoder: Decoder, n_slots: int, block_tokens: int) -> Memory:
    pool = pool_of(decoder, n_slots, block_tokens)
    return Paged(pool, decoder.ops.kv_copy, config["cache"]["prefix_caching"])


def _hierarchical(config: Mapping[str, Any], decoder: Decoder, n_slots: int, block_tokens: int) -> Memory:
    pool = pool_of(decoder, n_slots, block_tokens)
    levels = config["tiers"]["levels"]
    if len(levels) != 1 or config["cache"]["write"] != "back" or config["cache"]["overlap"]:
        raise ConfigError("the engine serves cache.write=back, cache.overlap=false and one tier: tiers=dram")
    token_bytes = 2 * pool.rows.shape[0] * pool.rows[0, 0, 0].numel() * pool.rows.element_size()
    n_host_blocks = int(levels[0]["capacity_gib"] * GIB // (block_tokens * token_bytes))
    return Hierarchical(pool, decoder.ops.kv_copy, n_host_blocks)


def _contiguous(config: Mapping[str, Any], decoder: Decoder, n_slots: int, block_tokens: int) -> Memory:
    cache = config["cache"]
    if cache["session_caching"]:
        raise ConfigError("the engine keeps no conversation's extent: cache.session_caching=false")
    most = min(decoder.model.max_len, cache["max_len"] or decoder.model.max_len)
    pool = pool_of(decoder, n_slots, block_tokens, most)
    reservation = make(cache["reservation"], "cache.reservation")
    reservation = reservation() if callable(reservation) else reservation
    return Extents(pool, decoder.ops.kv_copy, make(cache["allocator"], "cache.allocator"), reservation)


def _pruned(config: Mapping[str, Any], decoder: Decoder, n_slots: int, block_tokens: int) -> Memory:
    cache = config["cache"]
    if cache["session_caching"]:
        raise ConfigError("the engine keeps no conversation's blocks: cache.session_caching=false")
    pool, retention = pool_of(decoder, n_slots, block_tokens), make(cache["retention"], "cache.retention")
    if isinstance(retention, Window):
        return Ring(pool, decoder.ops.kv_copy, retention, config["batching"]["max_num_batched_tokens"])
    return Pruned(pool, decoder.ops.kv_copy, retention, decoder.ops.key_norms)


SERVED: dict[str, Callable[[Mapping[str, Any], Decoder, int, int], Memory]] = {
    "PagedCache": _paged,
    "HierarchicalCache": _hierarchical,
    "ContiguousCache": _contiguous,
    "PrunedCache": _pruned,
}


def device_of(name: str) -> torch.device:
    """A device by name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in ("cuda", "cpu"):
        raise ConfigError(f"device must be cuda or cpu, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no GPU here; device=cpu serves on the CPU")
    if name == "cpu":
        torch.set_num_threads(1)  # small tensors: threads would only wait for one another
    return torch.device(name)

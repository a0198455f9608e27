"""Caches at sites made by hand: so many slots, a clock, and what else a test is about."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from sim.build import Builder
from sim.clock import Clock
from sim.kv.cache import KVCache
from sim.kv.capacity import KVCapacity
from sim.kv.eviction import Evictor, Lru
from sim.kv.preemption import Preemption, Swap
from sim.kv.site import Site
from sim.kv.tiers import Tier, Tiers
from sim.record import Recorder
from sim.spec import HardwareSpec, ModelSpec
from sim.step import CostModel
from tests.sim.kv.composed import configured

NO_LIMIT = 1 << 40  # [tokens]


@cache
def sheets(window_tokens: int | None, model_max_len: int, kv_dtype: str) -> tuple[ModelSpec, HardwareSpec]:
    """A model of that kind, and a device."""
    kind = {"model__stack__0__attention__window": window_tokens, "model__max_len": model_max_len}
    built = Builder(configured(**kind, model__kv_dtype=kv_dtype))
    return built.model, built.hardware


def site(
    capacity_tokens: int,
    eviction: Callable[[int], Evictor] = Lru,
    *,
    env: Clock | None = None,
    recorder: Recorder | None = None,
    cost: CostModel | None = None,
    window_tokens: int | None = None,
    model_max_len: int = NO_LIMIT,
    kv_dtype: str = "bf16",
    kv_bytes_per_token: float = 0.0,
    tiers: Tiers | None = None,
    preemption: Preemption | None = None,
    host_bytes_per_s: float | None = None,
    max_batched_tokens: int = 8192,
    prompt_chunk_tokens: int | None = None,
    tensor_parallel: int = 1,
    stores: dict[str, Tier] | None = None,
) -> Site:
    """So many slots, and of everything else what is asked for; the host link is as fast as the first tier takes."""
    model, hardware = sheets(window_tokens, model_max_len, kv_dtype)
    if host_bytes_per_s is None and tiers is not None:
        host_bytes_per_s = tiers.levels[0].write_bytes_per_s
    device = hardware.device
    if host_bytes_per_s is not None:
        device = replace(device, host_link_bytes_per_s=host_bytes_per_s)
    return Site(
        env or Clock(),
        cost,  # type: ignore[arg-type]  # where none is asked
        recorder or Recorder(),
        0,
        model,
        replace(hardware, device=device, tensor_parallel=tensor_parallel),
        KVCapacity(capacity_tokens, 1, kv_bytes_per_token, {}),
        eviction,
        tiers,
        preemption or Swap(),
        max_batched_tokens,
        prompt_chunk_tokens,
        stores={} if stores is None else stores,
    )


OF_SITES = set(site.__kwdefaults__)


def cache_on(
    kind: Callable[..., KVCache],
    capacity_tokens: int,
    eviction: Callable[[int], Evictor] = Lru,
    *given: Any,
    **settings: Any,
) -> KVCache:
    """A cache at such a site; what is none of the site's is the cache's setting."""
    of_site = {name: settings.pop(name) for name in OF_SITES & settings.keys()}
    return kind(site(capacity_tokens, eviction, **of_site), *given, **settings)

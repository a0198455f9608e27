"""Blocks in device memory, and behind links in host memory and on disk: evicted is not lost (`sim.kv.below`)."""

from collections.abc import Callable, Mapping
from typing import Any

from sim.errors import ConfigError
from sim.kv.below import Below
from sim.kv.cache import Parcel
from sim.kv.paged import PagedCache
from sim.kv.site import Site
from sim.kv.tiers import Tiers
from sim.sequence import Sequence


class HierarchicalCache(PagedCache):
    """A paged cache with tiers below it.

    Parameters
    ----------
    site, block_tokens, prefix_caching, watermark, reserves_prompt
        As of `PagedCache`; what is below the device, and what preempted sequences do about it, is the site's.
    overlap : bool
        Whether transfers run beside the computation; else what is loaded, and what is saved, delays the iteration.
    write : {"through", "back", "preempted"}
    load : {"always", "cheaper", "never"}
        What a request that was not preempted does about KV below: takes what it finds, what beats computing it, or
        nothing, as where the memory below is for the preempted alone.
    prefetch : int
        So many at the head of the queue have their blocks brought up to the first tier; none without ``overlap``.
    chunk_tokens : int
        KV that is copied in one piece; LMCache's is 256 [tokens].
    tiers : Tiers or None
        In place of the site's, fastest first.
    """

    def __init__(
        self,
        site: Site,
        block_tokens: int = 16,
        prefix_caching: bool = True,
        watermark: float = 0.0,
        reserves_prompt: bool = False,
        overlap: bool = True,
        write: str = "through",
        load: str = "always",
        prefetch: int = 4,
        chunk_tokens: int = 256,
        tiers: Tiers | None = None,
    ) -> None:
        super().__init__(site, block_tokens, prefix_caching, watermark, reserves_prompt)
        levels = tiers or site.below
        if levels is None:
            raise ConfigError("cache=hierarchical needs tiers: tiers=dram or tiers=dram_nvme, got none")
        if prefetch < 0:
            raise ConfigError(f"cache.prefetch must be >= 0 [requests], got {prefetch}")
        self.prefetch_requests = prefetch
        self.below = self.tiers = Below(site, levels, self.pool, overlap, write, load, chunk_tokens)

    @classmethod
    def swapping(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is."""
        return settings

    def load(self, sequence: Sequence, parcel: Parcel, lost: Callable[[int], None]) -> int:
        """Load blocks below into another cache, in which the sequence is admitted."""
        return self.tiers.fetch(sequence, parcel.copied_tokens // self.block_tokens, lost)

    def prefetch(self, sequence: Sequence) -> None:
        """Bring what a waiting sequence will load from lower tiers up to the first."""
        self.tiers.prefetch(sequence)

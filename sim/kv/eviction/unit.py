"""What an eviction policy orders."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Unit:
    """Cached KV: a block or a run of blocks when paged, a session's idle extent when contiguous.

    It is evictable while *parked*: nobody references it, its content waits to be asked for again. A divisible one
    stands for blocks of one history, the last of which goes first; any other is given up as a whole.
    """

    key: int | None  # its content; None: blank, worth nothing to anybody
    n_tokens: int  # KV entries it holds
    n_blocks: int = 1  # room it takes; a contiguous cache counts blocks of one token
    cost: float = 1.0  # to compute it, or each block if divisible, in any one measure
    n_hits: int = 0  # requests that found it, since it was made
    is_parked: bool = False
    is_divisible: bool = False  # its last blocks can be given up without the first
    n_stale: int = 0  # entries that `Lru` has of it besides the one that holds
    queued_blocks: int = 0  # room it took when a `Queue` last counted it: an extent may grow while it is referenced

    def last(self, n_blocks: int) -> "Unit":
        """Its last blocks as a unit of their own, to say what is given up."""
        return Unit(self.key, self.n_tokens // self.n_blocks * n_blocks, n_blocks)

    def cut(self, n_blocks: int) -> "Unit":
        """Keep its first blocks; the rest, of the same history, becomes a unit of its own and is returned."""
        rest = self.give_up(self.n_blocks - n_blocks)
        rest.n_hits, rest.is_parked, rest.is_divisible = self.n_hits, self.is_parked, True
        return rest

    def give_up(self, n_blocks: int) -> "Unit":
        """Lose its last blocks; they are returned as `last`."""
        lost = self.last(n_blocks)
        self.n_blocks -= n_blocks
        self.n_tokens -= lost.n_tokens
        return lost

    def block_keys(self) -> Sequence[int]:
        """Identities of what is given up one by one, the first to go first."""
        return () if self.key is None else (self.key,)

"""What an eviction policy orders."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Unit:
    """Cached KV that is given up as a whole: a block when paged, a session's idle extent when contiguous.

    It is evictable while *parked*: nobody references it, its content waits to be asked for again.
    """

    key: int | None  # its content; None: blank, worth nothing to anybody
    n_tokens: int  # KV entries it holds
    n_blocks: int = 1  # room it takes; a contiguous cache counts blocks of one token
    cost: float = 1.0  # of computing it again, in any one measure; only its ratio to n_blocks matters
    n_hits: int = 0  # requests that found it, since it was made
    n_refs: int = 0  # running sequences that use it now; the cache's own count
    is_parked: bool = False
    is_divisible: bool = False  # its last blocks can be given up without the first
    n_stale: int = 0  # entries that `Lru` has of it besides the one that holds

    def last(self, n_blocks: int) -> "Unit":
        """Its last blocks as a unit of their own, to say what is given up."""
        return Unit(self.key, self.n_tokens // self.n_blocks * n_blocks, n_blocks)

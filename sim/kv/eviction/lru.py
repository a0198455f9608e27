"""Least recently used: one queue, in which blank blocks wait their turn like the others."""

from collections import OrderedDict
from collections.abc import Iterable

from sim.errors import ConfigError, InvariantError
from sim.kv.eviction.unit import Unit


class Lru:
    """vLLM's free queue: freed blocks join at the tail, new blocks are taken from the head.

    Freeing a request's blocks last-first makes the queue give up leaves before their prefixes. Neighbouring blank
    blocks are one entry with a count, so traffic without shared content costs O(1) per request whatever its length.

    References
    ----------
    vLLM, "Automatic Prefix Caching" design document: free queue and eviction order.
    """

    def __init__(self, capacity_blocks: int) -> None:
        if capacity_blocks < 1:
            raise ConfigError(f"eviction.capacity_blocks must be >= 1 [blocks], got {capacity_blocks!r}")
        self.capacity_blocks = capacity_blocks
        self._queue: OrderedDict[Unit, None] = OrderedDict()  # C linked list: O(1) at both ends and in the middle
        self._n_blocks = 0
        self._blank_tail: Unit | None = None  # the last entry, if blank: it grows
        self.park_blank(capacity_blocks)

    def park(self, units: Iterable[Unit]) -> None:
        """Append units at the tail, in the order given."""
        queue = self._queue
        n_blocks = 0
        for unit in units:
            if unit.is_parked:
                raise InvariantError(f"unit {unit.key} parked twice")
            queue[unit] = None
            unit.is_parked = True
            n_blocks += unit.n_blocks
        if n_blocks:
            self._blank_tail = None
            self._grow(n_blocks)

    def park_blank(self, n_blocks: int) -> None:
        """Append blank blocks at the tail: O(1)."""
        if n_blocks < 1:
            return
        if self._blank_tail is None:
            self._blank_tail = Unit(None, 0, 0)
            self._queue[self._blank_tail] = None
        self._blank_tail.n_blocks += n_blocks
        self._grow(n_blocks)

    def claim(self, units: Iterable[Unit]) -> None:
        """Take units out of the middle of the queue."""
        queue = self._queue
        for unit in units:
            unit.n_hits += 1
            if unit.is_parked:
                del queue[unit]
                unit.is_parked = False
                self._n_blocks -= unit.n_blocks

    def victims(self, n_blocks: int) -> list[Unit]:
        """Take blocks from the head of the queue; of a blank entry only as many as are missing."""
        if n_blocks > self._n_blocks:
            raise InvariantError(f"{n_blocks} blocks asked of an evictor that has {self._n_blocks}")
        evicted: list[Unit] = []
        queue = self._queue
        missing = n_blocks
        while missing > 0:
            head = next(iter(queue))
            if head.key is None and head.n_blocks > missing:
                head.n_blocks -= missing
                self._n_blocks -= missing
                break
            del queue[head]
            missing -= head.n_blocks
            self._n_blocks -= head.n_blocks
            if head.key is not None:
                head.is_parked = False
                evicted.append(head)
            elif head is self._blank_tail:
                self._blank_tail = None
        return evicted

    def __len__(self) -> int:
        return self._n_blocks

    def _grow(self, n_blocks: int) -> None:
        self._n_blocks += n_blocks
        if self._n_blocks > self.capacity_blocks:
            raise InvariantError(f"{self._n_blocks} blocks parked in a cache of {self.capacity_blocks}: freed twice")

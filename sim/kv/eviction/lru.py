"""Least recently used: one queue, as vLLM's; where freed blocks without content join it is the version's."""

from collections import deque
from collections.abc import Iterable, Sequence

from sim.errors import ConfigError, InvariantError
from sim.kv.eviction.unit import Unit

_MIN_STALE = 1024  # below so many stale entries a queue is not worth tidying


class Lru:
    """vLLM's free queue: freed blocks join at the tail, new blocks are taken from the head.

    With ``blank_first`` those without a hash, which nobody can find, join at the head (vLLM pull request 42656); before
    that they pushed content out of the cache.

    Freeing a request's blocks last-first makes the queue give up leaves before their prefixes. Neighbouring blank
    blocks are one entry with a count, so traffic without shared content costs O(1) per request whatever its length.

    A claimed unit's entry stays behind, stale, until it reaches the head or half of the queue is stale: O(1) amortised,
    and half the time of an ordered dict, from whose middle it could be taken.

    References
    ----------
    vLLM, "Automatic Prefix Caching" design document: free queue and eviction order.
    """

    def __init__(self, capacity_blocks: int, blank_first: bool = False) -> None:
        if capacity_blocks < 1:
            raise ConfigError(f"eviction.capacity_blocks must be >= 1 [blocks], got {capacity_blocks!r}")
        self.capacity_blocks = capacity_blocks
        self.blank_first = blank_first
        self._queue: deque[Unit] = deque()
        self._n_stale = 0  # entries; each unit counts its own
        self._n_blocks = 0
        self.park_blank(capacity_blocks)

    def park(self, units: Iterable[Unit]) -> None:
        """Append units at the tail, in the order given."""
        append = self._queue.append
        n_blocks = self._n_blocks
        for unit in units:
            if unit.is_parked:
                raise InvariantError(f"unit {unit.key} parked twice")
            unit.is_parked = True
            n_blocks += unit.n_blocks
            append(unit)
        self._n_blocks = n_blocks
        if n_blocks > self.capacity_blocks:
            self._refuse()

    def park_blank(self, n_blocks: int, is_hashed: bool = False) -> None:
        """Append blank blocks at the tail, or at the head: O(1)."""
        if n_blocks < 1:
            return
        queue = self._queue
        place = 0 if self.blank_first and not is_hashed else -1
        if queue and queue[place].key is None:
            queue[place].n_blocks += n_blocks
        elif place:
            queue.append(Unit(None, 0, n_blocks))
        else:
            queue.appendleft(Unit(None, 0, n_blocks))
        self._n_blocks += n_blocks
        if self._n_blocks > self.capacity_blocks:
            self._refuse()

    def claim(self, units: Iterable[Unit]) -> None:
        """Take units out of the queue, wherever they stand."""
        for unit in units:
            unit.n_hits += 1
            if unit.is_parked:
                unit.is_parked = False
                unit.n_stale += 1
                self._n_stale += 1
                self._n_blocks -= unit.n_blocks
        if self._n_stale > _MIN_STALE and self._n_stale > len(self._queue) // 2:
            self._tidy()

    def forget(self, units: Iterable[Unit]) -> None:
        """As `claim`: no place is kept."""
        self.claim(units)

    def claim_part(self, unit: Unit, part: Unit) -> None:  # noqa: ARG002
        """A request found the first blocks of a parked unit; the others keep its place."""
        part.n_hits += 1
        self._n_blocks -= part.n_blocks

    def divide(self, unit: Unit, rest: Unit) -> None:
        """The last blocks of a unit become one that goes just before it; O(n) if it is parked."""
        if not unit.is_parked:
            return
        place = len(self._queue) - 1
        while self._queue[place] is not unit:  # from the tail: earlier entries of it may be stale
            place -= 1
        self._queue.insert(place, rest)

    def victims(self, n_blocks: int, wanted: Sequence[int] = ()) -> list[Unit]:  # noqa: ARG002
        """Take blocks from the head of the queue; of a blank or divisible entry only as many as are missing.

        Of a divisible unit the last blocks go first, and stand as a unit of their own in what is returned.
        """
        if n_blocks > self._n_blocks:
            raise InvariantError(f"{n_blocks} blocks asked of an evictor that has {self._n_blocks}")
        evicted: list[Unit] = []
        queue = self._queue
        missing = n_blocks
        while missing > 0:
            head = queue[0]
            if head.n_stale:
                queue.popleft()
                head.n_stale -= 1
                self._n_stale -= 1
                continue
            if head.n_blocks > missing and (head.key is None or head.is_divisible):
                if head.key is None:
                    head.n_blocks -= missing
                else:
                    evicted.append(head.give_up(missing))
                missing = 0
                break
            queue.popleft()
            missing -= head.n_blocks
            if head.key is not None:
                head.is_parked = False
                evicted.append(head)
        self._n_blocks -= n_blocks - missing
        return evicted

    def __len__(self) -> int:
        return self._n_blocks

    def _tidy(self) -> None:
        """Drop the stale entries: of each unit all but the last, and that too if it is claimed."""
        live = deque[Unit]()
        for unit in self._queue:
            if unit.n_stale:
                unit.n_stale -= 1
            else:
                live.append(unit)
        self._queue = live
        self._n_stale = 0

    def _refuse(self) -> None:
        raise InvariantError(f"{self._n_blocks} blocks parked in a cache of {self.capacity_blocks}: freed twice")

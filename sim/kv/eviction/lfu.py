"""Least frequently used: by the number of hits since a unit was made; the count is lost with the unit."""

from heapq import heappop, heappush

from sim.kv.eviction.queue import Queue
from sim.kv.eviction.unit import Unit


class Lfu:
    """One queue per number of hits; among equals the one parked first goes first.

    O(1) per access, but for a heap over the *distinct* numbers of hits, which are few.
    """

    def __init__(self, capacity_blocks: int) -> None:  # noqa: ARG002
        self._queues: dict[int, Queue] = {}
        self._counts: list[int] = []  # heap of the keys of _queues, each once

    def park(self, unit: Unit) -> None:
        """Join the queue of its number of hits."""
        queue = self._queues.get(unit.n_hits)
        if queue is None:
            queue = self._queues[unit.n_hits] = Queue()
            heappush(self._counts, unit.n_hits)
        queue.push(unit)

    def claim(self, unit: Unit) -> None:
        """Leave its queue; the hit is counted by the caller."""
        if unit.is_parked:
            self._queues[unit.n_hits].remove(unit)

    def forget(self, unit: Unit) -> None:
        """No place is kept."""

    def victim(self, wanted: int | None, n_blocks: int) -> tuple[Unit, int]:  # noqa: ARG002
        """The first of those with the fewest hits."""
        while not (queue := self._queues[self._counts[0]]).counts:
            del self._queues[heappop(self._counts)]
        return queue.pop_blocks(n_blocks)

    def divide(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """Both have had the same hits."""
        if unit.is_parked:
            self._queues[unit.n_hits].replace(unit, parts)

"""First in, first out: by the time a unit was first parked, whatever happened since."""

from sim.kv.eviction.queue import Queue
from sim.kv.eviction.unit import Unit


class Fifo:
    """A hit does not move a unit. One that is referenced when its turn comes goes first once it is let go."""

    def __init__(self, capacity_blocks: int) -> None:  # noqa: ARG002
        self._queue = Queue()  # by age; a referenced unit keeps its place
        self._passed: set[Unit] = set()  # referenced when their turn came
        self._late = Queue()  # of those, parked since: older than the whole queue

    def park(self, unit: Unit) -> None:
        """Join the queue the first time, and take up the old place afterwards."""
        if unit in self._passed:
            self._passed.remove(unit)
            self._late.push(unit)
        elif unit not in self._queue.counts:
            self._queue.push(unit)

    def claim(self, unit: Unit) -> None:
        """Keep the place."""
        if self._late.remove(unit):
            self._passed.add(unit)

    def forget(self, unit: Unit) -> None:
        """Give up the place."""
        self._queue.remove(unit)
        self._passed.discard(unit)

    def victim(self, wanted: int | None, n_blocks: int) -> tuple[Unit, int]:  # noqa: ARG002
        """The oldest parked unit. Each referenced one is passed over once, so a victim costs O(1) amortised."""
        if self._late.counts:
            return self._late.pop_blocks(n_blocks)
        while not self._queue.head().is_parked:
            self._passed.add(self._queue.pop()[0])
        return self._queue.pop_blocks(n_blocks)

    def divide(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """Both keep the place, or have been passed over."""
        if unit in self._passed:
            self._passed.update(parts)
        self._late.replace(unit, parts)
        self._queue.replace(unit, parts)

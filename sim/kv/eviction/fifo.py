"""First in, first out: by the time a unit was first parked, whatever happened since."""

from collections import OrderedDict

from sim.kv.eviction.unit import Unit


class Fifo:
    """A hit does not move a unit. One that is referenced when its turn comes goes first once it is let go."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self._queue: OrderedDict[Unit, None] = OrderedDict()  # by age; a referenced unit keeps its place
        self._passed: set[Unit] = set()  # referenced when their turn came
        self._late: OrderedDict[Unit, None] = OrderedDict()  # of those, parked since: older than the whole queue

    def park(self, unit: Unit) -> None:
        """Join the queue the first time, and take up the old place afterwards."""
        if unit in self._passed:
            self._passed.remove(unit)
            self._late[unit] = None
        else:
            self._queue.setdefault(unit)

    def claim(self, unit: Unit) -> None:
        """Keep the place."""
        if unit in self._late:
            del self._late[unit]
            self._passed.add(unit)

    def victim(self, wanted: int | None) -> Unit:  # noqa: ARG002
        """The oldest parked unit. Each referenced one is passed over once, so a victim costs O(1) amortised."""
        if self._late:
            return self._late.popitem(last=False)[0]
        while True:
            unit = self._queue.popitem(last=False)[0]
            if unit.is_parked:
                return unit
            self._passed.add(unit)

"""A queue of units that knows its size in blocks, and the memory of units that are gone."""

from collections import OrderedDict

from sim.kv.eviction.unit import Unit


class Queue:
    """Units in order, each with a count of the policy's; O(1) everywhere."""

    __slots__ = ("counts", "n_blocks")

    def __init__(self) -> None:
        self.counts: OrderedDict[Unit, int] = OrderedDict()
        self.n_blocks = 0

    def push(self, unit: Unit, count: int = 0) -> None:
        """Append a unit at the tail."""
        self.counts[unit] = count
        self.n_blocks += unit.n_blocks

    def pop(self) -> tuple[Unit, int]:
        """Take the head, with its count."""
        unit, count = self.counts.popitem(last=False)
        self.n_blocks -= unit.n_blocks
        return unit, count

    def remove(self, unit: Unit) -> bool:
        """Take a unit out, if it is in."""
        if self.counts.pop(unit, None) is None:
            return False
        self.n_blocks -= unit.n_blocks
        return True


class Ghosts:
    """Keys of evicted units, oldest first: the memory by which a policy knows that it erred."""

    __slots__ = ("n_blocks", "sizes")

    def __init__(self) -> None:
        self.sizes: OrderedDict[int, int] = OrderedDict()
        self.n_blocks = 0

    def remember(self, unit: Unit) -> None:
        """Note a unit that is given up."""
        if unit.key is not None and unit.key not in self.sizes:
            self.sizes[unit.key] = unit.n_blocks
            self.n_blocks += unit.n_blocks

    def recall(self, key: int) -> bool:
        """Whether a key is remembered; it is forgotten with the answer."""
        n_blocks = self.sizes.pop(key, 0)
        self.n_blocks -= n_blocks
        return n_blocks > 0

    def forget(self) -> None:
        """Drop the oldest."""
        self.n_blocks -= self.sizes.popitem(last=False)[1]

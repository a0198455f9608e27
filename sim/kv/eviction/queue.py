"""A queue of units that knows its size in blocks, and the memory of units that are gone."""

from collections import OrderedDict
from itertools import pairwise, takewhile

from sim.kv.eviction.unit import Unit


class Queue:
    """Units in order, each with a count of the policy's; O(1) but for `replace`."""

    __slots__ = ("counts", "n_blocks")

    def __init__(self) -> None:
        self.counts: OrderedDict[Unit, int] = OrderedDict()
        self.n_blocks = 0

    def push(self, unit: Unit, count: int = 0) -> None:
        """Append a unit at the tail."""
        self.counts[unit] = count
        self.n_blocks += unit.n_blocks
        unit.queued_blocks = unit.n_blocks

    def head(self) -> Unit:
        """The first."""
        return next(iter(self.counts))

    def pop(self) -> tuple[Unit, int]:
        """Take the head, with its count."""
        unit, count = self.counts.popitem(last=False)
        self.n_blocks -= unit.queued_blocks
        return unit, count

    def pop_blocks(self, n_blocks: int) -> tuple[Unit, int]:
        """Take the head; if it is divisible and longer, only so many of its blocks. Returns how many."""
        unit = self.head()
        if unit.n_blocks > n_blocks and unit.is_divisible:
            self.n_blocks -= n_blocks
            unit.queued_blocks -= n_blocks
            return unit, n_blocks
        self.pop()
        return unit, unit.n_blocks

    def remove(self, unit: Unit) -> bool:
        """Take a unit out, if it is in."""
        if self.counts.pop(unit, None) is None:
            return False
        self.n_blocks -= unit.queued_blocks
        return True

    def recount(self, unit: Unit) -> bool:
        """Count a unit, if it is in, by the room it takes now."""
        if unit not in self.counts:
            return False
        self.n_blocks += unit.n_blocks - unit.queued_blocks
        unit.queued_blocks = unit.n_blocks
        return True

    def replace(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """Two units take the place of one, if it is in, and its count; one of them may be itself. O(n)."""
        if unit not in self.counts:
            return
        behind = [*takewhile(lambda other: other is not unit, reversed(self.counts))]
        count = self.counts.pop(unit)
        for one in (*parts, *reversed(behind)):
            self.counts[one] = self.counts.pop(one, count)
        for part in parts:
            part.queued_blocks = part.n_blocks


def cut_where(unit: Unit, marks: list[bool]) -> list[tuple[Unit, bool]]:
    """A unit whose blocks, the first to go first, are marked so, as units of one mark each."""
    cut: list[tuple[Unit, bool]] = []
    n_same = 0
    for mark, following in pairwise(marks):
        n_same += 1
        if mark != following:
            cut.append((unit.cut(unit.n_blocks - n_same), mark))
            n_same = 0
    return [*cut, (unit, marks[-1])]


class Ghosts:
    """Keys of evicted units, oldest first: the memory by which a policy knows that it erred."""

    __slots__ = ("n_blocks", "sizes")

    def __init__(self) -> None:
        self.sizes: OrderedDict[int, int] = OrderedDict()
        self.n_blocks = 0

    def remember(self, unit: Unit) -> None:
        """Note what is given up first of a unit."""
        key = unit.block_keys()[0]
        if key not in self.sizes:
            n_blocks = self.sizes[key] = 1 if unit.is_divisible else unit.n_blocks
            self.n_blocks += n_blocks

    def recall(self, key: int) -> bool:
        """Whether a key is remembered; it is forgotten with the answer."""
        n_blocks = self.sizes.pop(key, 0)
        self.n_blocks -= n_blocks
        return n_blocks > 0

    def forget(self) -> None:
        """Drop the oldest."""
        self.n_blocks -= self.sizes.popitem(last=False)[1]

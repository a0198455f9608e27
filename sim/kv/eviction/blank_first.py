"""Blank blocks first, then units in the order of a policy: the other policies' way to be an `Evictor`."""

from collections.abc import Callable, Iterable, Sequence

from sim.errors import ConfigError, InvariantError
from sim.kv.eviction.contract import Order
from sim.kv.eviction.unit import Unit


class BlankFirst:
    """Takes free blocks without content while there are any, then asks a policy which content to give up.

    Parameters
    ----------
    capacity_blocks : int
        Size of the cache [blocks].
    order : callable
        Builds the policy, given ``capacity_blocks``.
    """

    def __init__(self, capacity_blocks: int, order: Callable[[int], Order]) -> None:
        if capacity_blocks < 1:
            raise ConfigError(f"eviction.capacity_blocks must be >= 1 [blocks], got {capacity_blocks!r}")
        self.capacity_blocks = capacity_blocks
        self.order = order(capacity_blocks)
        self._blank_blocks = capacity_blocks
        self._parked_blocks = 0

    def park(self, units: Iterable[Unit]) -> None:
        """Hand units to the policy, in the order given."""
        for unit in units:
            if unit.is_parked:
                raise InvariantError(f"unit {unit.key} parked twice")
            unit.is_parked = True
            self._parked_blocks += unit.n_blocks
            self.order.park(unit)  # which may cut it
        self._check()

    def park_blank(self, n_blocks: int, is_hashed: bool = False) -> None:  # noqa: ARG002
        """Count free blocks without content: O(1)."""
        self._blank_blocks += n_blocks
        self._check()

    def claim(self, units: Iterable[Unit]) -> None:
        """Tell the policy of every hit."""
        for unit in units:
            self.order.claim(unit)
            unit.n_hits += 1
            if unit.is_parked:
                unit.is_parked = False
                self._parked_blocks -= unit.n_blocks

    def forget(self, units: Iterable[Unit]) -> None:
        """Take units from the policy for good."""
        for unit in units:
            self.claim((unit,))
            self.order.forget(unit)

    def claim_part(self, unit: Unit, part: Unit) -> None:
        """The first blocks of a parked unit are hit, as a unit of their own."""
        part.is_parked = True
        self.order.divide(unit, (unit, part))
        self.claim((part,))

    def divide(self, unit: Unit, rest: Unit) -> None:
        """The last blocks of a unit become one that goes just before it."""
        self.order.divide(unit, (rest, unit))

    def victims(self, n_blocks: int, wanted: Sequence[int] = ()) -> list[Unit]:
        """Take blank blocks, first for what has no key, then units, divisible ones in part, until enough."""
        if n_blocks > len(self):
            raise InvariantError(f"{n_blocks} blocks asked of an evictor that has {len(self)}")
        n_blank = min(n_blocks, self._blank_blocks)
        self._blank_blocks -= n_blank
        missing = n_blocks - n_blank
        evicted: list[Unit] = []
        keys = iter(wanted[max(0, n_blank - (n_blocks - len(wanted))) :])
        unit: Unit | None = None
        n_given = 0
        while missing > 0:
            head, n_more = self.order.victim(next(keys, None), missing)
            if head is not unit:
                if unit is not None:
                    evicted.append(_given(unit, n_given))
                unit, n_given = head, 0
            head.n_blocks -= n_more
            n_given += n_more
            missing -= n_more
            self._parked_blocks -= n_more
        if unit is not None:
            evicted.append(_given(unit, n_given))
        return evicted

    def __len__(self) -> int:
        return self._blank_blocks + self._parked_blocks

    def _check(self) -> None:
        if len(self) > self.capacity_blocks:
            raise InvariantError(f"{len(self)} blocks parked in a cache of {self.capacity_blocks}: freed twice")


def _given(unit: Unit, n_blocks: int) -> Unit:
    """What has been given up of a unit, block by block: all, or its last blocks."""
    is_whole = not unit.n_blocks
    unit.n_blocks += n_blocks
    if not is_whole:
        return unit.give_up(n_blocks)
    unit.is_parked = False
    return unit

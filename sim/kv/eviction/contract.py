"""The two contracts of eviction: what a cache talks to, and what a new policy implements."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from sim.kv.eviction.unit import Unit


class Evictor(Protocol):
    """The free blocks of a cache in the order in which they are taken, those with content included.

    Built with ``capacity_blocks``, all of them free and blank. A block that a sequence holds is not in it.
    """

    def park(self, units: Iterable[Unit]) -> None:
        """Take in units that nobody references any more; what comes first is given up first, among equals."""
        ...

    def park_blank(self, n_blocks: int, is_hashed: bool = False) -> None:
        """Take in free blocks without content, or, ``is_hashed``, with such as an engine keeps and nobody asks for."""
        ...

    def claim(self, units: Iterable[Unit]) -> None:
        """Note that a request found these units. Parked ones leave; referenced ones only gain a hit."""
        ...

    def forget(self, units: Iterable[Unit]) -> None:
        """Note that the content of these units is lost, parked or referenced: they do not come back."""
        ...

    def victims(self, n_blocks: int, wanted: Sequence[int] = ()) -> list[Unit]:
        """Take out at least ``n_blocks`` blocks, and more only if the last unit is larger than what was missing.

        Parameters
        ----------
        n_blocks : int
            How many [blocks].
        wanted : sequence of int
            Keys of the content they are taken for, as far as it is known: some policies remember what they gave up.

        Returns
        -------
        list of Unit
            Those of them that had content, in order of eviction; the caller forgets their keys.

        Raises
        ------
        InvariantError
            If there are not that many: a cache asks ``len`` first.
        """
        ...

    def __len__(self) -> int:
        """Free blocks, blank and parked together."""
        ...


@runtime_checkable
class Divider(Evictor, Protocol):
    """An evictor that can part with some blocks of a unit, so that a run of blocks can be one unit.

    Whatever the runs, it gives up the very blocks that it would if each were a unit.
    """

    def claim_part(self, unit: Unit, part: Unit) -> None:
        """A request found the first blocks of a parked unit: already counted off it, they are a unit of their own."""
        ...

    def divide(self, unit: Unit, rest: Unit) -> None:
        """The last blocks of a unit, already counted off it, become a unit that goes just before it, parked or not."""
        ...


class Order(Protocol):
    """Which of the parked units goes first: all that a policy has to say. Built with ``capacity_blocks``."""

    def park(self, unit: Unit) -> None:
        """A unit becomes evictable, for the first time or again."""
        ...

    def claim(self, unit: Unit) -> None:
        """A request found the unit (``n_hits`` does not count it yet); if it ``is_parked`` it stops being evictable."""
        ...

    def forget(self, unit: Unit) -> None:
        """A claimed unit does not come back: give up what is kept of it, a place in a queue."""
        ...

    def victim(self, wanted: int | None, n_blocks: int) -> tuple[Unit, int]:
        """The unit to give up for the content ``wanted``, and how many of its blocks; called only while one is parked.

        All of them, then it is removed; or the last of a divisible unit, up to ``n_blocks`` if they would go in a row.
        The caller counts them off it.
        """
        ...

    def divide(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """A unit, parked or not, has become two, one of them itself, in the order in which they are given up."""
        ...

"""Belady's bound: gives up what is needed last, because it is told the future. No policy can hit more."""

from array import array
from collections.abc import Iterable
from heapq import heappop, heappush

from sim.errors import ConfigError, InvariantError
from sim.kv.eviction.unit import Unit

_NEVER = 1 << 62


class Belady:
    """The optimum for units of one size whose references all come from ``future``.

    Parameters
    ----------
    capacity_blocks : int
        Size of the cache [blocks].
    future : iterable of int
        Keys in the order in which they will be referenced, misses included; refused where there is none.

    References
    ----------
    Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966.
    """

    def __init__(self, capacity_blocks: int, future: Iterable[int] | None = None) -> None:  # noqa: ARG002
        if future is None:
            raise ConfigError(
                "eviction=belady must be told the future, which a run in time does not know before its end; "
                "a replay does: task=hit_rate 'policies=[belady,lru]'"
            )
        self._positions: dict[int | None, array[int]] = {}
        for position, key in enumerate(future):
            self._positions.setdefault(key, array("q")).append(position)
        self._n_seen: dict[int | None, int] = {}  # references so far, by key
        self._next: dict[Unit, int] = {}  # of resident units
        self._entries: list[tuple[int, int, Unit]] = []  # heap; entries that are not current are passed over
        self._n_parked = 0

    def park(self, unit: Unit) -> None:
        """Rank the unit by its next reference; making it was one."""
        if unit not in self._next:
            self._refer(unit)
        self._n_parked += 1
        heappush(self._entries, (-self._next[unit], self._n_parked, unit))

    def claim(self, unit: Unit) -> None:
        """One reference more has happened."""
        if unit not in self._next:
            self._refer(unit)
        self._refer(unit)

    def forget(self, unit: Unit) -> None:
        """Its next reference is to another unit."""
        self._next.pop(unit, None)

    def victim(self, wanted: int | None, n_blocks: int) -> tuple[Unit, int]:  # noqa: ARG002
        """The unit whose next reference is furthest away."""
        while True:
            next_reference, _, unit = heappop(self._entries)
            if unit.is_parked and self._next.get(unit) == -next_reference:
                del self._next[unit]
                return unit, unit.n_blocks

    def divide(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """Refused: a future is one of units."""
        raise InvariantError(f"unit {unit.key} divided in {len(parts)}: Belady's bound is of units of one size")

    def _refer(self, unit: Unit) -> None:
        n_seen = self._n_seen[unit.key] = self._n_seen.get(unit.key, 0) + 1
        positions = self._positions.get(unit.key, ())
        self._next[unit] = positions[n_seen] if n_seen < len(positions) else _NEVER

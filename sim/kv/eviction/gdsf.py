"""GDSF: what is dear to compute again, often asked for and small stays longest."""

from heapq import heapify, heappop, heappush

from sim.kv.eviction.unit import Unit

_MIN_STALE = 1024  # below so many passed-over entries a heap is not worth tidying

Value = tuple[float, int]
"""Worth of each block, and number of the first to go among all that were ever parked."""


class Gdsf:
    """Greedy dual size frequency: worth is (hits + 1) x cost / size, on top of the worth of the last victim.

    That addition ages the rest: what was worth much long ago goes before what is worth a little now. Blocks found by
    their content cost one each, a conversation's extent its tokens: the emptier an extent, the sooner it goes.

    References
    ----------
    Cherkasova, "Improving WWW proxies performance with greedy-dual-size-frequency caching policy", HP Labs technical
    report HPL-98-69R1, 1998.
    """

    def __init__(self, capacity_blocks: int) -> None:  # noqa: ARG002
        self._age = 0.0
        self._n_parked = 0
        self._values: list[Value] = []  # heap; those of claimed units are passed over
        self._units: dict[Value, Unit] = {}
        self._current: dict[Unit, Value] = {}

    def park(self, unit: Unit) -> None:
        """Value the unit as of now; among equals the one parked first goes first."""
        worth = self._age + (unit.n_hits + 1) * unit.cost / (1 if unit.is_divisible else unit.n_blocks)
        self._put(unit, (worth, self._n_parked))
        self._n_parked += unit.n_blocks

    def claim(self, unit: Unit) -> None:
        """Take back the valuation."""
        value = self._current.pop(unit, None)
        if value is not None:
            del self._units[value]

    def forget(self, unit: Unit) -> None:
        """No place is kept."""

    def victim(self, wanted: int | None, n_blocks: int) -> tuple[Unit, int]:  # noqa: ARG002
        """The unit worth least."""
        while (unit := self._units.get(self._values[0])) is None:
            heappop(self._values)
        self._age = self._values[0][0]
        if unit.n_blocks > n_blocks and unit.is_divisible:
            return unit, n_blocks
        self.claim(unit)
        return unit, unit.n_blocks

    def divide(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """Both are worth as much, block by block."""
        value = self._current.get(unit)
        if value is not None:
            worth, number = value
            self._units[value] = parts[0]
            self._current[parts[0]] = value
            self._put(parts[1], (worth, number + parts[0].n_blocks))

    def _put(self, unit: Unit, value: Value) -> None:
        self._current[unit] = value
        self._units[value] = unit
        heappush(self._values, value)
        if len(self._values) > 2 * len(self._units) + _MIN_STALE:
            self._values = list(self._units)
            heapify(self._values)

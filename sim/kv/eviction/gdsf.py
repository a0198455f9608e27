"""GDSF: what is dear to compute again, often asked for and small stays longest."""

from heapq import heappop, heappush

from sim.kv.eviction.unit import Unit


class Gdsf:
    """Greedy dual size frequency: worth is (hits + 1) x cost / size, on top of the worth of the last victim.

    That addition ages the rest: what was worth much long ago goes before what is worth a little now.

    References
    ----------
    Cherkasova, "Improving WWW proxies performance with greedy-dual-size-frequency caching policy", HP Labs technical
    report HPL-98-69R1, 1998.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self._age = 0.0
        self._n_parked = 0
        self._entries: list[tuple[float, int, Unit]] = []  # heap; entries of claimed units are passed over
        self._current: dict[Unit, int] = {}

    def park(self, unit: Unit) -> None:
        """Value the unit as of now; among equals the one parked first goes first."""
        worth = self._age + (unit.n_hits + 1) * unit.cost / unit.n_blocks
        self._n_parked += 1
        self._current[unit] = self._n_parked
        heappush(self._entries, (worth, self._n_parked, unit))

    def claim(self, unit: Unit) -> None:
        """Take back the valuation."""
        self._current.pop(unit, None)

    def victim(self, wanted: int | None) -> Unit:  # noqa: ARG002
        """The unit worth least."""
        while True:
            worth, number, unit = heappop(self._entries)
            if self._current.get(unit) == number:
                del self._current[unit]
                self._age = worth
                return unit

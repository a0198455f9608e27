"""S3-FIFO: a small queue that most units leave soon, a main queue for those that were asked for again."""

from sim.errors import ConfigError
from sim.kv.eviction.queue import Ghosts, Queue, cut_where
from sim.kv.eviction.unit import Unit
from sim.spec import as_given

_MAX_COUNT = 3  # two bits per unit (Yang et al. 2023, section 4.1)


class S3Fifo:
    """New units join the small queue, or the main one if they were given up lately.

    A unit at the head of the small queue moves to the main one if it was hit ``promote_at`` times, else it goes. In
    the main queue a hit earns another round. A referenced unit at either head leaves its queue; once parked again it
    joins the main one.

    Parameters
    ----------
    capacity_blocks : int
        Size of the cache [blocks].
    small_frac : float
        The small queue's share of it.
    ghost_frac : float
        How much of it is remembered after eviction.
    promote_at : int
        Hits that move a unit to the main queue.

    References
    ----------
    Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    """

    def __init__(
        self, capacity_blocks: int, small_frac: float = 0.1, ghost_frac: float = 0.9, promote_at: int = 2
    ) -> None:
        for name, frac in (("small_frac", small_frac), ("ghost_frac", ghost_frac)):
            if not 0.0 < frac < 1.0:
                raise ConfigError(f"eviction.order.{name} must be in (0, 1), got {as_given(frac)}")
        if promote_at < 1:
            raise ConfigError(f"eviction.order.promote_at must be >= 1 [hits], got {promote_at!r}")
        self._small_blocks = int(capacity_blocks * small_frac)
        self._main_blocks = capacity_blocks - self._small_blocks
        self._ghost_blocks = int(capacity_blocks * ghost_frac)
        self._promote_at = promote_at
        self._small, self._main, self._ghosts = Queue(), Queue(), Ghosts()
        self._returning: set[int] = set()  # remembered when room was made for them
        self._passed: set[Unit] = set()  # referenced when at a head
        self._has_evicted = False

    def park(self, unit: Unit) -> None:
        """Join a queue the first time; afterwards the place is kept."""
        if self._small.recount(unit) or self._main.recount(unit):
            return
        keys = unit.block_keys()
        returns = [key in self._returning or self._ghosts.recall(key) for key in keys]
        self._returning.difference_update(keys)
        if unit in self._passed:
            self._passed.remove(unit)
            self._main.push(unit)
            return
        if not self._has_evicted:
            room = self._small_blocks - self._small.n_blocks
            for i, is_returning in enumerate(returns):
                returns[i] = is_returning or room <= 0
                room -= not returns[i]
        for part, is_returning in cut_where(unit, returns):
            (self._main if is_returning else self._small).push(part)

    def claim(self, unit: Unit) -> None:
        """Count the hit where the unit stands."""
        for queue in (self._small, self._main):
            if unit in queue.counts:
                queue.counts[unit] += 1

    def forget(self, unit: Unit) -> None:
        """Give up the place."""
        self._small.remove(unit)
        self._main.remove(unit)
        self._passed.discard(unit)

    def victim(self, wanted: int | None, n_blocks: int) -> tuple[Unit, int]:  # noqa: ARG002
        """The first unit at a head that did not earn its stay."""
        self._has_evicted = True
        if wanted is not None and self._ghosts.recall(wanted):
            self._returning.add(wanted)
        while True:
            is_main = self._main.n_blocks > self._main_blocks or not self._small.counts
            victim = self._from_main() if is_main else self._from_small()
            if victim is not None:
                return victim

    def divide(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """Both keep the place and the count, or have passed a head."""
        if unit in self._passed:
            self._passed.update(parts)
        self._small.replace(unit, parts)
        self._main.replace(unit, parts)

    def _from_main(self) -> tuple[Unit, int] | None:
        """The first unit without hits to spend; None if all were referenced."""
        while self._main.counts:
            unit = self._main.head()
            count = self._main.counts[unit]
            if unit.is_parked and not count:
                return self._main.pop_blocks(1)
            self._main.pop()
            if unit.is_parked:
                self._main.push(unit, min(count, _MAX_COUNT) - 1)
            else:
                self._passed.add(unit)
        return None

    def _from_small(self) -> tuple[Unit, int] | None:
        """The first unit that did not earn promotion; None if all did or were referenced."""
        while self._small.counts:
            unit = self._small.head()
            count = self._small.counts[unit]
            if unit.is_parked and count < self._promote_at:
                self._remember(unit)
                return self._small.pop_blocks(1)
            self._small.pop()
            if unit.is_parked:
                self._main.push(unit)
            else:
                self._passed.add(unit)
        return None

    def _remember(self, unit: Unit) -> None:
        self._ghosts.remember(unit)
        while self._ghosts.n_blocks > self._ghost_blocks:
            self._ghosts.forget()

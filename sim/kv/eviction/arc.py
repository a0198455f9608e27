"""ARC: recency and frequency, each with a memory of what it gave up, and a boundary that learns from regret."""

from sim.kv.eviction.queue import Ghosts, Queue, cut_where
from sim.kv.eviction.unit import Unit


class Arc:
    """Units hit never (recent) and at least once (frequent) in two LRU queues.

    A request for what the recent queue gave up lately moves the boundary in its favour, and the other way round.

    References
    ----------
    Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, figure 4; T1, B1, T2 and B2
    there are recent, its ghosts, frequent, its ghosts, and p is ``_recent_target``.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._recent, self._frequent = Queue(), Queue()
        self._recent_ghosts, self._frequent_ghosts = Ghosts(), Ghosts()
        self._recent_target = 0.0  # [blocks]
        self._returning: set[int] = set()  # remembered when room was made for them

    def park(self, unit: Unit) -> None:
        """Join the frequent queue after a hit or on return, else the recent one."""
        keys = unit.block_keys()
        if unit.n_hits:
            self._frequent.push(unit)
        else:
            returns = [key in self._returning or self._regret(key) is not None for key in keys]
            for part, is_frequent in cut_where(unit, returns):
                (self._frequent if is_frequent else self._recent).push(part)
        if self._returning:
            self._returning.difference_update(keys)

    def claim(self, unit: Unit) -> None:
        """Leave the queue; the hit makes it a frequent one."""
        if unit.is_parked and not self._recent.remove(unit):
            self._frequent.remove(unit)

    def forget(self, unit: Unit) -> None:
        """No place is kept."""

    def victim(self, wanted: int | None, n_blocks: int) -> tuple[Unit, int]:  # noqa: ARG002
        """The least recent unit of the queue that exceeds its share."""
        regret = self._regret(wanted)
        if regret is not None:
            self._returning.add(wanted)  # type: ignore[arg-type]
        else:
            recent_blocks = self._recent.n_blocks + self._recent_ghosts.n_blocks
            all_blocks = recent_blocks + self._frequent.n_blocks + self._frequent_ghosts.n_blocks
            if recent_blocks >= self._capacity_blocks:
                if not self._recent_ghosts.sizes:
                    return self._recent.pop_blocks(1)
                self._recent_ghosts.forget()
            elif all_blocks >= 2 * self._capacity_blocks and self._frequent_ghosts.sizes:
                self._frequent_ghosts.forget()
        size, target = self._recent.n_blocks, self._recent_target
        exceeds = size > 0 and (size > target or (size == target and regret is self._frequent_ghosts))
        is_recent = exceeds or not self._frequent.counts
        queue = self._recent if is_recent else self._frequent
        (self._recent_ghosts if is_recent else self._frequent_ghosts).remember(queue.head())
        return queue.pop_blocks(1)

    def divide(self, unit: Unit, parts: tuple[Unit, Unit]) -> None:
        """Both are in the same queue, if in any."""
        self._recent.replace(unit, parts)
        self._frequent.replace(unit, parts)

    def _regret(self, key: int | None) -> Ghosts | None:
        """The ghosts that remember a key, after moving the boundary in their favour."""
        if key is None:
            return None
        if key in self._recent_ghosts.sizes:
            ghosts, others, sign = self._recent_ghosts, self._frequent_ghosts, 1
        elif key in self._frequent_ghosts.sizes:
            ghosts, others, sign = self._frequent_ghosts, self._recent_ghosts, -1
        else:
            return None
        step = sign * max(others.n_blocks / ghosts.n_blocks, 1.0) * ghosts.sizes[key]
        self._recent_target = min(max(self._recent_target + step, 0.0), self._capacity_blocks)
        ghosts.recall(key)
        return ghosts

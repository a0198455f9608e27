"""Replays of FIFO, LFU and Belady's bound by whole requests: plain numbers instead of units.

What `sim.kv.replay.replay` finds with the policies of `sim.kv.eviction`, tail first, at a tenth of the time: nothing is
in flight there, so a block is resident or not, and a request's blocks join and leave in one piece. The policies' own
classes serve caches that hold blocks meanwhile; the tests hold the two equal, count by count.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import cached_property
from heapq import heappop, heappush
from itertools import compress
from typing import Protocol

from sim.kv.replay import Hits, Trace


class Requests:
    """A trace, and what of it is worked out once for all replays."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.n_blank = trace.n_blank()

    @cached_property
    def references(self) -> list[int]:
        """`Trace.future`: a time is a place in it."""
        return self.trace.future()

    @cached_property
    def needed_next(self) -> list[list[int]]:
        """By request and block, minus the time when the block is needed next; 0 if never."""
        found: list[list[int]] = []
        time = len(self.references)
        seen = [0] * self.trace.n_distinct
        for blocks in reversed(self.trace.blocks):
            found.append([seen[block] for block in blocks])
            time -= len(blocks)
            for i, block in enumerate(blocks, time):
                seen[block] = -i
        found.reverse()
        return found

    @cached_property
    def needed_again(self) -> list[list[int]]:
        """The same without those that are never needed again."""
        return [[time for time in times if time] for times in self.needed_next]


class Blocks(Protocol):
    """Blocks in the order in which they are given up. Built with the requests, all blocks free."""

    def hold(self, found: Sequence[int]) -> None:
        """A request finds these and holds them while room is made."""
        ...

    def give_up(self, n_blocks: int) -> Sequence[int]:
        """So many that nobody holds are given up; those of them that anybody asks for again."""
        ...

    def keep(self, request: int, missing: Sequence[int], found: Sequence[int]) -> None:
        """A request frees what it took and what it found, last block first; of one too long, the end was not taken."""
        ...


class FifoBlocks:
    """The oldest first; who was held when its turn came goes first afterwards, as in `sim.kv.eviction.Fifo`."""

    def __init__(self, requests: Requests) -> None:  # noqa: ARG002
        self._queue: deque[int] = deque()
        self._held: frozenset[int] = frozenset()
        self._passed: set[int] = set()  # held when their turn came
        self._late: OrderedDict[int, None] = OrderedDict()  # of those, freed since

    def hold(self, found: Sequence[int]) -> None:
        """What is late is held again."""
        self._held = frozenset(found)
        if self._late:
            for block in found:
                if block in self._late:
                    del self._late[block]
                    self._passed.add(block)

    def give_up(self, n_blocks: int) -> Sequence[int]:
        """Those that are late, then the queue; who is held is passed over."""
        given = [self._late.popitem(last=False)[0] for _ in range(min(n_blocks, len(self._late)))]
        take = self._queue.popleft
        if not self._held:
            return given + [take() for _ in range(n_blocks - len(given))]
        while len(given) < n_blocks:
            block = take()
            if block in self._held:
                self._passed.add(block)
            else:
                given.append(block)
        return given

    def keep(self, request: int, missing: Sequence[int], found: Sequence[int]) -> None:  # noqa: ARG002
        """New ones join the queue; who was passed over is late."""
        self._queue.extend(reversed(missing))
        if self._passed:
            for block in reversed(found):
                if block in self._passed:
                    self._passed.remove(block)
                    self._late[block] = None


class LfuBlocks:
    """Fewest hits first, and among equals the one freed first, as in `sim.kv.eviction.Lfu`."""

    def __init__(self, requests: Requests) -> None:
        self._n_hits = [0] * requests.trace.n_distinct
        self._by_hits: list[OrderedDict[int, None]] = [OrderedDict()]
        self._least = 0  # no queue before this one has a block

    def hold(self, found: Sequence[int]) -> None:
        """One hit more for each."""
        for block in found:
            n_hits = self._n_hits[block]
            del self._by_hits[n_hits][block]
            self._n_hits[block] = n_hits + 1

    def give_up(self, n_blocks: int) -> Sequence[int]:
        """From the first queue that has any."""
        given: list[int] = []
        while len(given) < n_blocks:
            while not (queue := self._by_hits[self._least]):
                self._least += 1
            for _ in range(min(len(queue), n_blocks - len(given))):
                given.append(queue.popitem(last=False)[0])
        for block in given:
            self._n_hits[block] = 0
        return given

    def keep(self, request: int, missing: Sequence[int], found: Sequence[int]) -> None:  # noqa: ARG002
        """Each joins the queue of its hits."""
        if missing:
            self._least = 0
        new = self._by_hits[0]
        for block in reversed(found):
            n_hits = self._n_hits[block]
            while len(self._by_hits) <= n_hits:
                self._by_hits.append(OrderedDict())
            self._by_hits[n_hits][block] = None
            self._least = min(self._least, n_hits)
        for block in reversed(missing):
            new[block] = None


class BeladyBlocks:
    """What is needed last first, as in `sim.kv.eviction.Belady`; what is never needed again is only counted."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._needed: list[int] = []  # heap of times, negative: the furthest first; those of held blocks have passed
        self._n_done = 0  # blocks that are never needed again

    def hold(self, found: Sequence[int]) -> None:
        """The time it was needed has come: its entry stands behind all others."""

    def give_up(self, n_blocks: int) -> Sequence[int]:
        """Those that are never needed again, then the furthest."""
        n_done = min(n_blocks, self._n_done)
        self._n_done -= n_done
        needed, references = self._needed, self._requests.references
        return [references[-heappop(needed)] for _ in range(n_blocks - n_done)]

    def keep(self, request: int, missing: Sequence[int], found: Sequence[int]) -> None:
        """Each is ranked by when it is needed next."""
        n_kept, requests, needed = len(missing) + len(found), self._requests, self._needed
        if n_kept == len(requests.trace.blocks[request]):
            times = requests.needed_again[request]
        else:
            kept = {*missing, *found}
            of_blocks = zip(requests.needed_next[request], requests.trace.blocks[request], strict=True)
            times = [time for time, block in of_blocks if time and block in kept]
        self._n_done += n_kept - len(times)
        for time in times:
            heappush(needed, time)


def replay_requests(requests: Requests, capacity_blocks: int, order: Blocks) -> Hits:
    """Serve prompt after prompt as a paged cache does, as `replay` with ``tail_first``.

    Parameters
    ----------
    requests : Requests
    capacity_blocks : int
        Size of the cache [blocks].
    order : Blocks
        A new one.
    """
    trace = requests.trace
    resident = bytearray(trace.n_distinct)
    is_resident = resident.__getitem__
    blank_blocks = capacity_blocks
    all_hit: list[int] = []
    all_resident: list[int] = []
    n_evicted = 0
    for i, blocks in enumerate(trace.blocks):
        if i == trace.n_warmup:
            n_evicted = 0
        there = bytes(map(is_resident, blocks))
        n_found = there.count(1)
        n_hit = there.find(0) if n_found < len(blocks) else n_found
        all_hit.append(n_hit)
        all_resident.append(n_found)
        if n_found == n_hit:  # as nearly always
            found, missing = blocks[:n_hit], blocks[n_hit:]
        else:
            found = list(compress(blocks, there))
            missing = [block for block, is_there in zip(blocks, there, strict=True) if not is_there]
        room = capacity_blocks - n_found
        del missing[room:]
        order.hold(found)
        n_own = min(requests.n_blank[i], room - len(missing))
        n_wanted = len(missing) + n_own
        n_from_blank = min(n_wanted, blank_blocks)
        blank_blocks += n_own - n_from_blank
        if n_wanted > n_from_blank:
            n_evicted += n_wanted - n_from_blank
            for block in order.give_up(n_wanted - n_from_blank):
                resident[block] = 0
        for block in missing:
            resident[block] = 1
        order.keep(i, missing, found)
    return Hits.of(trace, all_hit, all_resident, n_evicted)

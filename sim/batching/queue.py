"""Order in which waiting sequences are admitted."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heappop, heappush, nsmallest
from itertools import chain, count, islice

from mypy_extensions import mypyc_attr

from sim.errors import ConfigError
from sim.kv.abilities import Prefetcher
from sim.sequence import Sequence


@mypyc_attr(allow_interpreted_subclasses=True)
class Queue(ABC):
    """Sequences that wait."""

    keeps_head: bool  # an arrival never comes before those that wait already

    @abstractmethod
    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        ...

    @abstractmethod
    def push_back(self, sequence: Sequence) -> None:
        """A running sequence was preempted and waits again."""
        ...

    @abstractmethod
    def head(self) -> Sequence:
        """The one to admit next."""
        ...

    @abstractmethod
    def take(self) -> Sequence:
        """Remove the head."""
        ...

    @abstractmethod
    def first(self, n: int, arriving: Iterable[Sequence] = ()) -> list[Sequence]:
        """Those to admit next, at most so many, in order, as if the arriving waited too."""
        ...

    @abstractmethod
    def victim(self, running: Iterator[Sequence]) -> Sequence:
        """Who of those that run, the one admitted last first, is preempted."""
        ...

    @abstractmethod
    def __len__(self) -> int: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Accounting(Queue):
    """A queue that takes note of what those that it let in have got."""

    @abstractmethod
    def ended(self, sequence: Sequence, n_tokens: int) -> None:
        """A sequence has its answer, of so many tokens."""
        ...


class Fcfs(Queue):
    """First come, first served; preempted sequences return to the front."""

    def __init__(self) -> None:
        self.keeps_head = True
        self._waiting: deque[Sequence] = deque()

    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        self._waiting.append(sequence)

    def push_back(self, sequence: Sequence) -> None:
        """A running sequence was preempted and waits again."""
        self._waiting.appendleft(sequence)

    def head(self) -> Sequence:
        """The one to admit next."""
        return self._waiting[0]

    def take(self) -> Sequence:
        """Remove the head."""
        return self._waiting.popleft()

    def first(self, n: int, arriving: Iterable[Sequence] = ()) -> list[Sequence]:
        """Those to admit next, at most so many, in order, as if the arriving waited too."""
        return list(islice(chain(self._waiting, arriving), n))

    def victim(self, running: Iterator[Sequence]) -> Sequence:
        """The one admitted last."""
        return next(running)

    def __len__(self) -> int:
        return len(self._waiting)


RANKS: dict[str, Callable[[Sequence], int]] = {
    "prompt": lambda sequence: sequence.target_tokens,  # shortest job first, as far as a policy can know it
    "priority": lambda sequence: sequence.request.priority,  # the client's, smallest first, as vLLM's
}


LAST = 1 << 62
"""A ticket after all that are drawn."""


class Ranked(Queue):
    """Lowest rank first, then the earlier arrival; a preempted sequence returns to where its rank puts it.

    By priority, who is last in this order is preempted, as in vLLM v1 (``Scheduler.schedule`` under
    ``SchedulingPolicy.PRIORITY``). By prompt, which vLLM knows nothing of, the sequence admitted last is.
    """

    def __init__(self, by: str) -> None:
        if by not in RANKS:
            raise ConfigError(f"queue.by must be one of {', '.join(RANKS)}, got {by!r}")
        self.by = by
        self.keeps_head = False
        self._heap: list[tuple[int, int, int, Sequence]] = []
        self._ticket = count()

    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        heappush(self._heap, self._place(sequence, next(self._ticket)))

    def push_back(self, sequence: Sequence) -> None:
        """A running sequence was preempted and waits again."""
        self.push(sequence)

    def head(self) -> Sequence:
        """The one to admit next."""
        return self._heap[0][3]

    def take(self) -> Sequence:
        """Remove the head."""
        return heappop(self._heap)[3]

    def first(self, n: int, arriving: Iterable[Sequence] = ()) -> list[Sequence]:
        """Those to admit next, at most so many, in order, as if the arriving waited too."""
        late = [self._place(sequence, LAST + number) for number, sequence in enumerate(arriving)]
        return [sequence for _, _, _, sequence in nsmallest(n, [*self._heap, *late])]

    def victim(self, running: Iterator[Sequence]) -> Sequence:
        """By priority the last in order, of equals the one admitted last."""
        if self.by == "priority":
            return max(running, key=lambda sequence: (sequence.request.priority, sequence.request.arrival_ns))
        return next(running)

    def __len__(self) -> int:
        return len(self._heap)

    def _place(self, sequence: Sequence, ticket: int) -> tuple[int, int, int, Sequence]:
        return RANKS[self.by](sequence), sequence.request.arrival_ns, ticket, sequence


class LookAhead(Queue):
    """A queue before a cache with memory below: whoever moves up among the first has its KV brought nearer.

    Arrivals are the replica's to announce, for they may come in the middle of an iteration and be unseen until the next
    plan but one.
    """

    def __init__(self, queue: Queue, cache: Prefetcher, unseen: Collection[Sequence]) -> None:
        self.queue = queue
        self.cache = cache
        self.unseen = unseen
        self.keeps_head = queue.keeps_head

    def announce(self, sequence: Sequence) -> None:
        """A request arrived, and is about to join the queue or the unseen."""
        n = self.cache.prefetch_requests
        is_first = len(self.queue) + len(self.unseen) < n
        if is_first or (not self.keeps_head and sequence in self.queue.first(n, (*self.unseen, sequence))):
            self.cache.prefetch(sequence)

    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        self.queue.push(sequence)

    def push_back(self, sequence: Sequence) -> None:
        """A running sequence was preempted and waits again."""
        self.queue.push_back(sequence)

    def head(self) -> Sequence:
        """The one to admit next."""
        return self.queue.head()

    def first(self, n: int, arriving: Iterable[Sequence] = ()) -> list[Sequence]:
        """Those to admit next, at most so many, in order, as if the arriving waited too."""
        return self.queue.first(n, arriving)

    def victim(self, running: Iterator[Sequence]) -> Sequence:
        """Who is preempted."""
        return self.queue.victim(running)

    def take(self) -> Sequence:
        """Remove the head; the others move up."""
        taken = self.queue.take()
        for sequence in self.queue.first(self.cache.prefetch_requests, self.unseen):
            self.cache.prefetch(sequence)
        return taken

    def __len__(self) -> int:
        return len(self.queue)

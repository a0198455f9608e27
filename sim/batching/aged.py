"""Priorities that grow with waiting, so that nobody waits for ever."""

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush, nsmallest
from itertools import count

from sim.batching.queue import LAST, Queue
from sim.errors import ConfigError
from sim.sequence import Sequence
from sim.spec import as_given
from sim.units import ns_from_s


class Aged(Queue):
    """The client's priority, smallest first, less one for every ``age_s`` of waiting: no request starves.

    Two that wait age alike, so who comes first never changes: the smaller ``priority * age_s + arrival``. Who is last
    in this order is preempted.

    Parameters
    ----------
    age_s : float
        Waiting that is worth one step of priority: who arrives so much later with a priority better by one comes at the
        same time [s].

    References
    ----------
    Silberschatz, Galvin and Gagne, "Operating System Concepts", on ageing.
    """

    def __init__(self, age_s: float = 10.0) -> None:
        if not 1e-9 <= age_s < float("inf"):
            raise ConfigError(f"queue.age_s must be > 0 and finite [s], got {as_given(age_s)}")
        self.keeps_head = False
        self._age_ns = ns_from_s(age_s)
        self._heap: list[tuple[int, int, Sequence]] = []
        self._ticket = count()

    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        heappush(self._heap, (self._due_ns(sequence), next(self._ticket), sequence))

    def push_back(self, sequence: Sequence) -> None:
        """A running sequence was preempted and waits again, as if it had never been taken."""
        self.push(sequence)

    def head(self) -> Sequence:
        """The one to admit next."""
        return self._heap[0][2]

    def take(self) -> Sequence:
        """Remove the head."""
        return heappop(self._heap)[2]

    def first(self, n: int, arriving: Iterable[Sequence] = ()) -> list[Sequence]:
        """Those to admit next, at most so many, in order, as if the arriving waited too."""
        late = [(self._due_ns(sequence), LAST + number, sequence) for number, sequence in enumerate(arriving)]
        return [sequence for _, _, sequence in nsmallest(n, [*self._heap, *late])]

    def victim(self, running: Iterator[Sequence]) -> Sequence:
        """The last in order, of equals the one admitted last."""
        return max(running, key=self._due_ns)

    def __len__(self) -> int:
        return len(self._heap)

    def _due_ns(self, sequence: Sequence) -> int:
        return sequence.request.priority * self._age_ns + sequence.request.arrival_ns

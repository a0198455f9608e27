"""Order in which waiting sequences are admitted."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from sim.errors import ConfigError
from sim.sequence import Sequence


class Queue(Protocol):
    """Sequences that wait. ``keeps_head``: an arrival never comes before those that wait already."""

    keeps_head: bool

    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        ...

    def push_back(self, sequence: Sequence) -> None:
        """A running sequence was preempted and waits again."""
        ...

    def head(self) -> Sequence:
        """The one to admit next."""
        ...

    def take(self) -> Sequence:
        """Remove the head."""
        ...

    def __len__(self) -> int: ...


class Fcfs(deque[Sequence]):
    """First come, first served; preempted sequences return to the front."""

    keeps_head = True

    def __init__(self) -> None:
        super().__init__()

    push = deque.append
    push_back = deque.appendleft
    take = deque.popleft

    def head(self) -> Sequence:
        """The one to admit next."""
        return self[0]


RANKS: dict[str, Callable[[Sequence], int]] = {
    "prompt": lambda sequence: sequence.target_tokens,  # shortest job first, as far as a policy can know it
    "priority": lambda sequence: sequence.request.priority,  # the client's, smallest first, as vLLM's
}


@dataclass(slots=True)
class Ranked:
    """Lowest rank first, then the earlier arrival; a preempted sequence returns to where its rank puts it."""

    by: str
    keeps_head: bool = field(default=False, init=False)
    _heap: list[tuple[int, int, int, Sequence]] = field(default_factory=list, init=False)
    _ticket: Iterator[int] = field(default_factory=count, init=False)

    def __post_init__(self) -> None:
        if self.by not in RANKS:
            raise ConfigError(f"queue.by must be one of {', '.join(RANKS)}, got {self.by!r}")

    def push(self, sequence: Sequence) -> None:
        """A request arrived."""
        rank = RANKS[self.by](sequence)
        heappush(self._heap, (rank, sequence.request.arrival_ns, next(self._ticket), sequence))

    push_back = push

    def head(self) -> Sequence:
        """The one to admit next."""
        return self._heap[0][3]

    def take(self) -> Sequence:
        """Remove the head."""
        return heappop(self._heap)[3]

    def __len__(self) -> int:
        return len(self._heap)

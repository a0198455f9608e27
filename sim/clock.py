"""Simulated time: SimPy's events, and beside them the turns of replicas.

All that touches SimPy's own queue is here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy

BEFORE_ALL = simpy.events.URGENT - 1


class Turning(ABC):
    """What the clock calls when its time has come: a replica, at the end of a run of iterations.

    ``due_ns`` may change at any time; whoever sets it tells the clock (`Clock.call`). A call at any other time is old,
    and is dropped.
    """

    due_ns: int | None = None
    index: int  # its turn among those that are due in the same nanosecond

    @abstractmethod
    def turn(self, now_ns: int) -> None:
        """It is due."""
        ...


class Calls:
    """The calls that a clock has been asked for, in order of time, then of index."""

    __slots__ = ("heap", "last_index", "last_ns")

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Turning]] = []
        self.last_ns = -1  # when a call was last made
        self.last_index = 0  # and the highest index of those made then

    def add(self, one: Turning, at_ns: int) -> None:
        """Call at that moment, if it is still due then."""
        heappush(self.heap, (at_ns, one.index, one))

    def next_ns(self) -> int | None:
        """The time of the next call that is due; old ones are dropped."""
        heap = self.heap
        while heap:
            at_ns, _, one = heap[0]
            if one.due_ns == at_ns:
                return at_ns
            heappop(heap)
        return None

    def make(self) -> None:
        """Make the next call."""
        at_ns, index, one = heappop(self.heap)
        if at_ns != self.last_ns or index > self.last_index:
            self.last_ns, self.last_index = at_ns, index
        one.turn(at_ns)


class Clock(simpy.Environment):
    """Simulated time, in whole nanoseconds.

    Turns come after all events of the same nanosecond, in the order of their replicas, however long ago each was asked
    for: so how runs of iterations are cut changes nothing. They do not pass through SimPy's queue, for no process waits
    for one, and one that is due no more need not come.

    What a turn brings about at once comes before the turns that are left of this nanosecond, and after those that have
    been. A replica in the middle of a run has none, and asks on which side of it the present is (`has_had`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls = Calls()

    @property
    def now_ns(self) -> int:
        """The present."""
        return self._now  # type: ignore[return-value]  # starts at 0 and every delay is a whole number

    def call(self, one: Turning, at_ns: int) -> None:
        """Let something have its turn at a moment at which it is due."""
        self._calls.add(one, at_ns)

    def step(self) -> None:
        """The next event or turn."""
        calls_ns = self._calls.next_ns()
        queue = self._queue
        if calls_ns is None or (queue and queue[0][0] <= calls_ns):
            event = queue[0][3] if queue else None
            if isinstance(event, Arrival):
                self._now = heappop(queue)[0]
                event.happen()
            else:
                super().step()
        else:
            self._now = calls_ns
            self._calls.make()

    def peek(self) -> float:
        """When the next event or turn comes [ns]."""
        calls_ns = self._calls.next_ns()
        return super().peek() if calls_ns is None else min(super().peek(), calls_ns)

    def move_on_to(self, at_ns: int, index: int) -> bool:
        """Let time pass up to a turn, if nothing comes before it."""
        queue = self._queue
        if queue and queue[0][0] <= at_ns:
            return False
        calls_ns = self._calls.next_ns()
        if calls_ns is not None and (calls_ns < at_ns or (calls_ns == at_ns and self._calls.heap[0][1] < index)):
            return False
        self._now = at_ns
        self._calls.last_ns, self._calls.last_index = at_ns, index
        return True

    def has_had(self, index: int) -> bool:
        """Whether a turn of this index would have been made by now, had there been one in this nanosecond."""
        return self._calls.last_ns == self._now and index <= self._calls.last_index

    def ring(self, event: simpy.Event, at_ns: int, priority: int, callback: Callable[[Any], None] | None) -> None:
        """Let an event that has happened, or never did, happen at a moment: events are made once and used again."""
        event.callbacks = [] if callback is None else [callback]
        heappush(self._queue, (at_ns, priority, next(self._eid), event))  # type: ignore[misc]

    def interrupt(self) -> None:
        """Let the next event be a KeyboardInterrupt."""
        self.ring(simpy.Event(self), self.now_ns, BEFORE_ALL, _interrupt)


class Arrival(simpy.Event):
    """A moment at which requests arrive; it comes before anything else of the same nanosecond.

    No process waits for one, and it cannot fail: the clock lets it happen itself, in half the time of SimPy's step.
    """

    def __init__(self, env: Clock, value: Any = None) -> None:
        self.env = env
        self._ok = True
        self._value = value

    def happen(self) -> None:
        """Call those who were to be called."""
        callbacks, self.callbacks = self.callbacks, None  # type: ignore[assignment]  # as SimPy does
        for callback in callbacks:
            callback(self)


def _interrupt(_: simpy.Event) -> None:
    raise KeyboardInterrupt

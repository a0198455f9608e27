"""Simulated time, and the events that replicas and traffic wait for: made once, set again and again.

All that touches SimPy's own queue is here.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy

from sim.units import LAST_NS

BEFORE_ALL = simpy.events.URGENT - 1


class Clock(simpy.Environment):
    """Simulated time, in whole nanoseconds."""

    arrival: simpy.Event | None = None  # of the next request of an open stream; it does nothing but fill queues
    emit: Callable[[], None]  # what it does

    @property
    def now_ns(self) -> int:
        """The present."""
        return self._now  # type: ignore[return-value]  # starts at 0 and every delay is a whole number

    def next_ns(self) -> int:
        """The next event, or `LAST_NS` if there is none."""
        return self._queue[0][0] if self._queue else LAST_NS  # type: ignore[return-value]

    def skip_to(self, at_ns: int) -> bool:
        """Move on to a moment if nothing but requests' arrivals is due until then.

        An event of that moment would be the next one anyway: this spares its way through the queue, and the caller's
        being put to sleep and woken.
        """
        queue = self._queue
        while queue and queue[0][0] <= at_ns:
            if queue[0][3] is not self.arrival:
                return False
            self._now = heappop(queue)[0]
            self.emit()
        self._now = at_ns
        return True

    def ring(self, event: simpy.Event, at_ns: int, priority: int, callback: Callable[[Any], None] | None) -> None:
        """Let an event that has happened, or never did, happen at a moment: events are made once and used again."""
        event.callbacks = [] if callback is None else [callback]
        heappush(self._queue, (at_ns, priority, next(self._eid), event))  # type: ignore[misc]

    def interrupt(self) -> None:
        """Let the next event be a KeyboardInterrupt."""
        self.ring(simpy.Event(self), self.now_ns, BEFORE_ALL, _interrupt)


class Turn(simpy.Event):
    """The end of a replica's iterations: one event, set again and again.

    Those that end in the same nanosecond do so in the order of their replicas, after the arrivals of that nanosecond,
    however long ago each was scheduled: so jumping over iterations changes nothing.
    """

    def __init__(self, env: Clock, index: int) -> None:
        self.env: Clock = env
        self.callbacks: Any = None
        self._ok = True
        self._value = None
        self._priority = simpy.events.NORMAL + 1 + index

    def at(self, end_ns: int) -> "Turn":
        """Set to that moment."""
        self.env.ring(self, end_ns, self._priority, None)
        return self


class Inbox:
    """Where requests reach a replica, and what an idle replica waits for."""

    __slots__ = ("_env", "_idle")

    def __init__(self, env: Clock) -> None:
        self._env = env
        self._idle: simpy.Event | None = None

    def arrival(self, ask_again_ns: int | None = None, loads: list[simpy.Event] | None = None) -> simpy.Event:
        """The event of the next arrival, of the clock's reaching ``ask_again_ns``, or of the first load to end."""
        self._idle = event = self._env.event()
        for load in loads or ():
            load.callbacks.append(lambda _: self.wake() if self._idle is event else None)
        if ask_again_ns is not None:
            timer = self._env.timeout(ask_again_ns - self._env.now_ns)
            if timer.callbacks is not None:  # None once it has fired
                timer.callbacks.append(lambda _: self.wake() if self._idle is event else None)
        return event

    def wake(self) -> None:
        """Something arrived: an idle replica looks again."""
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None


class Arrival(simpy.Event):
    """A moment at which requests arrive; it comes before anything else of the same nanosecond."""

    def __init__(self, env: Clock, value: Any = None) -> None:
        self.env = env
        self._ok = True
        self._value = value


def _interrupt(_: simpy.Event) -> None:
    raise KeyboardInterrupt

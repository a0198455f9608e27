"""Simulated time, and events that are made once and set again and again.

All that touches SimPy's own queue is here.
"""

from collections.abc import Callable
from heapq import heappush
from typing import Any

import simpy

BEFORE_ALL = simpy.events.URGENT - 1


class Clock(simpy.Environment):
    """Simulated time, in whole nanoseconds."""

    @property
    def now_ns(self) -> int:
        """The present."""
        return self._now  # type: ignore[return-value]  # starts at 0 and every delay is a whole number

    def move_on_to(self, at_ns: int) -> bool:
        """Let time pass up to a moment, if nothing is due until then.

        An event of that moment would be the next one anyway: this spares its way through the queue.
        """
        queue = self._queue
        if queue and queue[0][0] <= at_ns:
            return False
        self._now = at_ns
        return True

    def ring(self, event: simpy.Event, at_ns: int, priority: int, callback: Callable[[Any], None] | None) -> None:
        """Let an event that has happened, or never did, happen at a moment: events are made once and used again."""
        event.callbacks = [] if callback is None else [callback]
        heappush(self._queue, (at_ns, priority, next(self._eid), event))  # type: ignore[misc]

    def interrupt(self) -> None:
        """Let the next event be a KeyboardInterrupt."""
        self.ring(simpy.Event(self), self.now_ns, BEFORE_ALL, _interrupt)


class Alarm:
    """Calls a replica at the ends of its runs. One that has become superfluous comes all the same: it is not searched.

    Those of one nanosecond come in the order of their replicas, after the arrivals of that nanosecond, however long ago
    each was set: so how runs are cut changes nothing.
    """

    __slots__ = ("_callback", "_env", "_priority")

    def __init__(self, env: Clock, callback: Callable[[simpy.Event], None], index: int) -> None:
        self._env = env
        self._callback = callback
        self._priority = simpy.events.NORMAL + 1 + index

    def set(self, at_ns: int) -> None:
        """Come at that moment too."""
        self._env.ring(Arrival(self._env), at_ns, self._priority, self._callback)


class Arrival(simpy.Event):
    """A moment at which requests arrive; it comes before anything else of the same nanosecond."""

    def __init__(self, env: Clock, value: Any = None) -> None:
        self.env = env
        self._ok = True
        self._value = value


def _interrupt(_: simpy.Event) -> None:
    raise KeyboardInterrupt

"""What time is told by: the wall clock, or the processor's time of this thread, which no neighbour slows down."""

import time
from typing import Protocol

from sim.errors import ConfigError
from sim.units import NS_PER_S


class Clock(Protocol):
    """A clock, and how to wait by it."""

    name: str

    def now_ns(self) -> int:
        """Time since some beginning [ns]."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait so long by this clock."""
        ...


class Wall:
    """Real time: what a client sees."""

    name = "wall"

    def now_ns(self) -> int:
        """Of the system's monotonic clock [ns]."""
        return time.perf_counter_ns()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, seconds))


class Processor:
    """Processor time of this thread: on an idle machine what the wall clock says of an engine on one CPU thread.

    While nobody is served the thread works on nothing and its time would stand still: waiting moves it on at once. What
    it leaves out is waiting for the processor; what it does not leave out is caches and memory shared with neighbours.
    """

    name = "cpu"

    def __init__(self) -> None:
        self._skipped_ns = 0

    def now_ns(self) -> int:
        """Of the thread, and what has been waited [ns]."""
        return time.thread_time_ns() + self._skipped_ns

    def sleep(self, seconds: float) -> None:
        """Move on."""
        self._skipped_ns += max(0, round(seconds * NS_PER_S))


def clock_of(name: str, device: str) -> Clock:
    """A clock by name.

    Raises
    ------
    ConfigError
        If there is none of that name, or a GPU's work is to be told by the host's processor time.
    """
    if name not in ("wall", "cpu"):
        raise ConfigError(f"clock must be wall or cpu, got {name!r}")
    if name == "cpu" and device != "cpu":
        raise ConfigError(f"clock=cpu tells the processor's time: device must be cpu, got {device}")
    return Wall() if name == "wall" else Processor()

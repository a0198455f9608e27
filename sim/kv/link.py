"""A link between memories, shared fairly by the transfers on it."""

from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

import simpy

from sim.errors import ConfigError, InvariantError
from sim.record import Recorder
from sim.spec import as_given
from sim.units import NS_PER_S, ns_from_s

_TICKS_PER_NS = 720_720  # the least number that 1 to 16 divide: so many transfers share a nanosecond without a rest


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes under way."""

    done: simpy.Event
    start_ns: int
    n_bytes: int
    n_pieces: int


class Link:
    """One direction of a connection: k transfers at once get a k-th of it each (processor sharing).

    A transfer occupies the link for its bytes and for a fixed cost per piece (what starting one copy takes), and
    arrives a latency after it left. Time is kept in integer parts of a nanosecond: with an attained service that
    grows by 1/k a tick, a transfer leaves once that reaches its own demand, so an arrival or departure costs
    O(log transfers), however many share. It leaves at its exact time and is reported at the next whole nanosecond.

    Parameters
    ----------
    env : simpy.Environment
        Its clock counts whole nanoseconds.
    bytes_per_s : float
        Bandwidth of this direction [B/s].
    latency_s : float
        From the last byte's leaving to its arrival [s].
    piece_s : float
        Occupation by each piece, bytes apart [s].
    recorder : Recorder
        Where transfers are written down.
    name : str
        Of the link and direction, as the report shows it.
    replica : int
        Whose link it is.

    References
    ----------
    Kleinrock, *Queueing Systems*, volume 2, 1976, section 4.4: processor sharing.
    """

    def __init__(
        self,
        env: simpy.Environment,
        bytes_per_s: float,
        latency_s: float,
        piece_s: float,
        recorder: Recorder,
        name: str,
        replica: int = 0,
    ) -> None:
        if not 1.0 <= bytes_per_s < float("inf"):
            raise ConfigError(f"link {name}: bytes_per_s must be finite and >= 1 [B/s], got {as_given(bytes_per_s)}")
        for key, value in (("latency_s", latency_s), ("piece_s", piece_s)):
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"link {name}: {key} must be finite and >= 0 [s], got {as_given(value)}")
        self._env = env
        self._bytes_per_s = round(bytes_per_s)
        self._latency_ns = ns_from_s(latency_s)
        self._piece_ticks = round(piece_s * NS_PER_S * _TICKS_PER_NS)
        self._transfers = recorder.transfers
        self._index = recorder.links.setdefault(name, len(recorder.links))
        self._replica = replica
        self._active: list[tuple[int, int, Transfer]] = []  # heap: (service at which it leaves, number, transfer)
        self._numbers = count()
        self._since_ticks = 0  # the last arrival or departure
        self._service = 0  # what a transfer that was there all along had got of the link by then [ticks]
        self._wake_ns: int | None = None  # earliest time at which a wake-up is set

    def send(self, n_bytes: int, n_pieces: int = 1) -> simpy.Event:
        """Start a transfer; the event fires when its last byte has arrived."""
        demand = self._demand(n_bytes, n_pieces)
        self._let_go()
        now_ns = int(self._env.now)
        self._service = self._attained()
        self._since_ticks = now_ns * _TICKS_PER_NS
        transfer = Transfer(self._env.event(), now_ns, n_bytes, n_pieces)
        heappush(self._active, (self._service + demand, next(self._numbers), transfer))
        self._arm()
        return transfer.done

    def quote_ns(self, n_bytes: int, n_pieces: int = 1) -> int:
        """How long a transfer started now would take if no other followed [ns]. Changes nothing.

        Until it leaves, each of those under way gets as much of the link as it, or all that it still needs.
        """
        demand = self._demand(n_bytes, n_pieces)
        attained = self._attained()
        others = sum(min(max(leaves_at - attained, 0), demand) for leaves_at, _, _ in self._active)
        return -(-(demand + others) // _TICKS_PER_NS) + self._latency_ns

    def _demand(self, n_bytes: int, n_pieces: int) -> int:
        """Occupation of the link by a transfer that has it alone [ticks]."""
        if n_bytes < 1 or n_pieces < 1:
            raise InvariantError(f"a transfer of {n_bytes} bytes in {n_pieces} pieces")
        return -(-n_bytes * NS_PER_S * _TICKS_PER_NS // self._bytes_per_s) + n_pieces * self._piece_ticks

    def _attained(self) -> int:
        """What each active transfer has got of the link by now, a rest below one tick left out [ticks]."""
        if not self._active:
            return 0
        return self._service + (int(self._env.now) * _TICKS_PER_NS - self._since_ticks) // len(self._active)

    def _leaves_ticks(self) -> int:
        """When the next transfer leaves: exact, as it takes no division."""
        return self._since_ticks + (self._active[0][0] - self._service) * len(self._active)

    def _let_go(self) -> None:
        """Let those leave whose demand is met."""
        now_ticks = int(self._env.now) * _TICKS_PER_NS
        while self._active and (leaves_ticks := self._leaves_ticks()) <= now_ticks:
            self._since_ticks = leaves_ticks
            self._service, _, transfer = heappop(self._active)
            self._finish(transfer, -(-leaves_ticks // _TICKS_PER_NS) + self._latency_ns)

    def _finish(self, transfer: Transfer, end_ns: int) -> None:
        """Write the transfer down and let its event fire when the last byte has arrived."""
        if end_ns < self._env.now:
            raise InvariantError(f"a transfer that ended at {end_ns} ns was noticed at {self._env.now} ns")
        self._transfers.add(self._replica, self._index, transfer.start_ns, end_ns, transfer.n_bytes, transfer.n_pieces)
        transfer.done._ok = True
        transfer.done._value = None
        self._env.schedule(transfer.done, delay=end_ns - self._env.now)

    def _arm(self) -> None:
        """See to it that a wake-up comes no later than the next departure.

        One that comes too early, because others joined, sets the next. None outlasts the transfer it was set for, so
        that the clock stops with the last.
        """
        if not self._active:
            return
        leave_ns = -(-self._leaves_ticks() // _TICKS_PER_NS)
        if self._wake_ns is None or leave_ns < self._wake_ns:
            self._wake_ns = leave_ns
            timer = self._env.timeout(leave_ns - self._env.now)
            timer.callbacks.append(self._wake)

    def _wake(self, _: Any) -> None:
        if self._env.now == self._wake_ns:
            self._wake_ns = None
        self._let_go()
        self._arm()

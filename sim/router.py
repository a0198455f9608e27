"""Where a request is served, and how traffic gets there."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final, cast

import simpy
from mypy_extensions import mypyc_attr
from simpy.events import URGENT

from sim.clock import Arrival, Clock
from sim.engine import Replica
from sim.errors import ConfigError, InvariantError
from sim.fleet import Fleet
from sim.request import Finished, Request, Scenario, follow_up_of
from sim.samples import sampled
from sim.sequence import Sequence
from sim.units import LAST_NS

ARRIVAL: Final = "arrival"
"""The stage at which a request has nothing computed yet."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Router(ABC):
    """Chooses the replica that serves a request."""

    @abstractmethod
    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:
        """One of the fleet's open replicas, of which there is at least one.

        A router sees what a request asks for and its text, never how long the answer will be. ``n_outstanding`` of a
        replica is always true; who looks at its cache or ledger has it ``settle(now_ns)`` before.
        """
        ...


class RoundRobin(Router):
    """Each replica in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The next one."""
        self._turn = (self._turn + 1) % len(fleet.open)
        return fleet.open[self._turn]


class LeastLoaded(Router):
    """The replica with the fewest sequences waiting and running; the first among equals."""

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The least loaded one."""
        least = fleet.open[0]
        for replica in fleet.open:
            if replica.n_outstanding < least.n_outstanding:
                least = replica
        return least


class Traffic:
    """The scenario's requests, handed to the fleet at their time of arrival: in the engine's queue.

    ``frontend_ns`` passes between an answer's end there and the client's, and from the client to the queue.
    """

    def __init__(
        self, env: Clock, scenario: Scenario, seed: int, router: Router, fleet: Fleet, frontend_ns: int = 0
    ) -> None:
        self.env = env
        self.router = router
        self.fleet = fleet
        self.n_arrived = 0
        self._frontend_ns = frontend_ns
        self._stream: Iterator[Request] = scenario.requests(seed)
        self._follow_up = follow_up_of(scenario)
        self._next: Request | None = None
        self._arrival = Arrival(env)  # of the stream, one at a time

    def start(self) -> None:
        """Begin with the first request."""
        self._next = next(self._stream, None)
        self._schedule_next(self.env.now_ns)

    @property
    def is_closed_loop(self) -> bool:
        """Whether requests bring about others when they end."""
        return self._follow_up is not None

    def ended(self, finished: Finished) -> None:
        """A request ended; what it brings about arrives in its time."""
        request = None
        if self._follow_up is not None:
            seen_ns = finished.finish_ns + self._frontend_ns
            request = self._follow_up(Finished(finished.request, seen_ns, finished.is_refused))
        if request is not None:
            if request.arrival_ns < self.env.now_ns:
                raise InvariantError(f"request {request.id} would arrive before the one it follows has ended")
            self.env.ring(Arrival(self.env, request), request.arrival_ns, URGENT, self._follow)

    def place(self, sequence: Sequence) -> None:
        """Hand a sequence to the replica that is to serve it."""
        now_ns = self.env.now_ns
        self.router.place(sequence.request, ARRIVAL, self.fleet, now_ns).submit(sequence)

    def _schedule_next(self, now_ns: int) -> None:
        request = self._next
        if request is not None:
            arrival_ns = request.arrival_ns
            if arrival_ns < now_ns:
                raise InvariantError(f"request {request.id} arrives before the one ahead of it in the stream")
            if arrival_ns >= LAST_NS:
                raise ConfigError(f"request {request.id} would arrive after 146 years, where the clock ends")
            self.env.ring(self._arrival, arrival_ns, URGENT, self._emit)

    def _emit(self, _: simpy.Event) -> None:
        """Hand over the request whose time has come, and those of the same nanosecond."""
        now_ns = self.env.now_ns
        request = self._next
        while request is not None and request.arrival_ns == now_ns:
            self._arrive(request)
            self._next = request = next(self._stream, None)
        self._schedule_next(now_ns)

    def _follow(self, event: simpy.Event) -> None:
        """Hand over a request that another one's end brought about."""
        self._arrive(cast(Request, event.value))

    def _arrive(self, request: Request) -> None:
        self.n_arrived += 1
        self.place(Sequence(request) if request.n_samples == 1 else sampled(request))

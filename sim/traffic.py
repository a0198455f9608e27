"""How traffic gets to the replicas that serve it."""

from collections.abc import Iterator
from typing import cast

import simpy
from simpy.events import URGENT

from sim.clock import Arrival, Clock
from sim.errors import ConfigError, InvariantError
from sim.fleet import Fleet
from sim.request import Finished, Request, Scenario, follow_up_of
from sim.router import ARRIVAL, Router
from sim.samples import sampled
from sim.sequence import Sequence
from sim.units import LAST_NS


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
        self._n_to_follow = 0  # requests that others' ends have brought about and that have not arrived
        self._arrival = Arrival(env)  # of the stream, one at a time

    def start(self) -> None:
        """Begin with the first request."""
        self._next = next(self._stream, None)
        self._schedule_next(self.env.now_ns)

    @property
    def is_closed_loop(self) -> bool:
        """Whether requests bring about others when they end."""
        return self._follow_up is not None

    @property
    def next_ns(self) -> int | None:
        """When the stream's next request arrives; None: it has ended."""
        return None if self._next is None else self._next.arrival_ns

    def is_over(self) -> bool:
        """Whether everybody has come, and is served or refused."""
        if self._next is not None or self._n_to_follow:
            return False
        return not sum([replica.n_outstanding for replica in self.fleet.replicas])

    def ended(self, finished: Finished) -> None:
        """A request ended; what it brings about arrives in its time."""
        request = None
        if self._follow_up is not None:
            seen_ns = finished.finish_ns + self._frontend_ns
            request = self._follow_up(Finished(finished.request, seen_ns, finished.is_refused))
        if request is not None:
            if request.arrival_ns < self.env.now_ns:
                raise InvariantError(f"request {request.id} would arrive before the one it follows has ended")
            self._n_to_follow += 1
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
        self._n_to_follow -= 1
        self._arrive(cast(Request, event.value))

    def _arrive(self, request: Request) -> None:
        self.n_arrived += 1
        self.place(Sequence(request) if request.n_samples == 1 else sampled(request))

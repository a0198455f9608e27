"""Traffic enters the house: requests arrive, and each is handed to a replica."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

import simpy
from mypy_extensions import mypyc_attr
from simpy.events import URGENT

from sim.clock import Arrival, Clock
from sim.engine import Replica
from sim.errors import ConfigError, InvariantError
from sim.request import Finished, Request, Scenario
from sim.units import LAST_NS


@mypyc_attr(allow_interpreted_subclasses=True)
class Router(ABC):
    """Chooses the replica that serves a request."""

    @abstractmethod
    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """One of the replicas."""
        ...


class RoundRobin(Router):
    """Each replica in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:  # noqa: ARG002
        """The next one."""
        self._turn = (self._turn + 1) % len(replicas)
        return replicas[self._turn]


class LeastLoaded(Router):
    """The replica with the fewest requests waiting and running; the first among equals."""

    def choose(self, request: Request, replicas: Sequence[Replica]) -> Replica:  # noqa: ARG002
        """The least loaded one."""
        return min(replicas, key=lambda replica: replica.n_outstanding)


class Traffic:
    """The scenario's requests, handed to the replicas at their time of arrival."""

    def __init__(self, env: Clock, scenario: Scenario, seed: int, router: Router) -> None:
        self.env = env
        self.scenario = scenario
        self.router = router
        self.replicas: list[Replica] = []
        self.n_arrived = 0
        self._stream: Iterator[Request] = scenario.requests(seed)
        self._next: Request | None = None
        self._arrival = env.arrival = Arrival(env)  # of the stream, one at a time
        env.emit = self._emit

    def start(self, replicas: list[Replica]) -> None:
        """Begin with the first request."""
        self.replicas = replicas
        self._next = next(self._stream, None)
        self._schedule_next(self.env.now_ns)

    def next_arrival_ns(self) -> int:
        """When the next request of an open stream arrives, `LAST_NS` after the last one."""
        return LAST_NS if self._next is None else self._next.arrival_ns

    def ended(self, finished: Finished) -> None:
        """A request ended; what it brings about arrives in its time."""
        request = self.scenario.follow_up(finished)
        if request is not None:
            if request.arrival_ns < self.env.now_ns:
                raise InvariantError(f"request {request.id} would arrive before the one it follows has ended")
            self.env.ring(Arrival(self.env, request), request.arrival_ns, URGENT, self._follow)

    def _schedule_next(self, now_ns: int) -> None:
        request = self._next
        if request is not None:
            arrival_ns = request.arrival_ns
            if arrival_ns < now_ns:
                raise InvariantError(f"request {request.id} arrives before the one ahead of it in the stream")
            if arrival_ns >= LAST_NS:
                raise ConfigError(f"request {request.id} would arrive after 146 years, where the clock ends")
            self.env.ring(self._arrival, arrival_ns, URGENT, self._emit)

    def _emit(self, _: simpy.Event | None = None) -> None:
        """Hand over the request whose time has come, and those of the same nanosecond."""
        now = self.env.now_ns
        router, replicas = self.router, self.replicas
        request = self._next
        while request is not None and request.arrival_ns == now:
            self.n_arrived += 1
            router.choose(request, replicas).submit(request)
            self._next = request = next(self._stream, None)
        self._schedule_next(now)

    def _follow(self, event: simpy.Event) -> None:
        """Hand over a request that another one's end brought about."""
        request = cast(Request, event.value)
        self.n_arrived += 1
        self.router.choose(request, self.replicas).submit(request)

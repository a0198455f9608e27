"""Several kinds of traffic at one engine, each with its share of the arrivals and its class of objectives."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np

from scenarios.distributions import require, require_positive
from scenarios.sessions import Sessions
from scenarios.synthetic import Synthetic
from sim.request import Finished, Request, Segment, follow_up_of, stream


@dataclass(slots=True)
class Mixed:
    """A weighted blend.

    Parameters
    ----------
    rate : float
        Requests from outside per second, all parts together; the turns that follow in sessions come on top [1/s].
    parts : dict of str to scenario
        The kinds of traffic. A part's own ``rate`` is replaced by its share; its name is the class of its requests
        unless it names one.
    weights : dict of str to float
        Share of each part in the arrivals from outside; normalised.
    n_requests : int
        Requests from outside.
    classify : bool
        Tag requests with what their session looks like, as their ``kind``; their objectives stay those of their part.
    """

    rate: float
    parts: dict[str, Synthetic | Sessions]
    weights: dict[str, float]
    n_requests: int
    classify: bool = False
    _running: list[Synthetic | Sessions] = field(init=False, default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_positive("scenario", rate=self.rate, n_requests=self.n_requests)
        names = list(self.parts)
        require("scenario.weights", self.weights, set(self.weights) == set(names), f"one for each of {names}")
        for name, weight in self.weights.items():
            require_positive("scenario.weights", **{name: weight})
            part = self.parts[name]
            require(f"scenario.parts.{name}", part, isinstance(part, Synthetic | Sessions), "Synthetic or Sessions")

    def requests(self, seed: int) -> Iterator[Request]:
        """The parts' requests, merged by arrival; each part has random numbers of its own."""
        total = sum(self.weights.values())
        self._running = []
        streams = []
        for k, (name, part) in enumerate(self.parts.items()):
            rate = self.rate * self.weights[name] / total
            running = replace(part, rate=rate, slo_class=part.slo_class or name, classify=self.classify)
            self._running.append(running)
            own_seed = int(stream(seed, f"part {name}").integers(np.iinfo(np.int64).max))
            streams.append(self._renumbered(running.requests(own_seed), k))
        return islice(merge(*streams, key=attrgetter("arrival_ns")), self.n_requests)

    def follow_up(self, finished: Finished) -> Request | None:
        """What the part that sent the request makes of its end."""
        number = finished.request.id % len(self._running)
        answered = replace(finished, request=_map(finished.request, lambda i: i // len(self._running)))
        part = self._running[number]
        follow_up = follow_up_of(part)
        request = None if follow_up is None else follow_up(answered)
        return None if request is None else self._mine(request, number)

    def _renumbered(self, requests: Iterator[Request], number: int) -> Iterator[Request]:
        return (self._mine(request, number) for request in requests)

    def _mine(self, request: Request, number: int) -> Request:
        n_parts = len(self._running)
        return _map(request, lambda i: i * n_parts + number)


def _map(request: Request, of: Any) -> Request:
    """A request whose names (its id, session, texts) are mapped, so that those of different parts never collide."""
    content = request.content
    pieces: tuple[Segment, ...] | None = None
    if content is not None:
        pieces = tuple((of(identity), n_tokens) for identity, n_tokens in content)
    return request._replace(
        id=of(request.id),
        content=pieces,
        output_id=None if request.output_id is None else of(request.output_id),
        session_id=None if request.session_id is None else of(request.session_id),
    )

"""A fixed number of users, each with one request under way or in thought: load that slows down with the server."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from scenarios.arrivals import require_before_end, ticks_ns
from scenarios.classify import Classifier
from scenarios.dialogue import Dialogue, Plan, answer_at_ns
from scenarios.distributions import Constant, Distribution, is_number, require, require_room
from sim.request import Finished, Request, stream
from sim.units import ns_from_s


@dataclass(slots=True)
class ClosedLoop:
    """Users who hold session after session.

    With one-turn dialogues and no rest this is what a load generator with limited concurrency does.

    Parameters
    ----------
    users : int
        Requests under way at once, at most.
    sessions_per_user : int
        After so many a user goes home.
    dialogue : Dialogue
        How a session unfolds.
    rest : Distribution
        Between a user's sessions [s].
    ramp_s : float
        Users start evenly spread over this time [s].
    classify : bool
        Tag requests with what their session looks like, as their ``kind``.
    tenant : str
        Whose they all are.
    max_sessions : int
        More, all users together, are refused: all are planned before the first request.
    """

    users: int
    sessions_per_user: int
    dialogue: Dialogue
    rest: Distribution = field(default_factory=lambda: Constant(0.0))
    ramp_s: float = 0.0
    slo_class: str = ""
    priority: int = 0
    n_samples: int = 1
    classify: bool = False
    tenant: str = ""
    max_sessions: int = 1_000_000
    _classifier: Classifier | None = field(init=False, default=None, repr=False, compare=False)
    _plans: list[Plan] = field(init=False, default_factory=list, repr=False, compare=False)
    _rests_ns: list[int] = field(init=False, default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        for key in ("users", "sessions_per_user", "n_samples"):
            value = getattr(self, key)
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(f"scenario.{key}", value, is_whole, "a whole number >= 1")
        n_sessions = self.users * self.sessions_per_user
        require_room("scenario.users", n_sessions, self.max_sessions, "sessions", "scenario.max_sessions")
        require("scenario.ramp_s", self.ramp_s, is_number(self.ramp_s, 0.0), "a finite number >= 0 [s]")

    def requests(self, seed: int) -> Iterator[Request]:
        """Each user's first request."""
        self._classifier = Classifier() if self.classify else None
        n_sessions = self.users * self.sessions_per_user
        plans = self.dialogue.plans(seed)
        self._plans = [next(plans) for _ in range(n_sessions)]
        self._rests_ns = ticks_ns(self.rest.draw(stream(seed, "rest"), n_sessions)).tolist()
        require_before_end("scenario.rest", np.array(self._rests_ns))
        for user in range(self.users):
            yield self._request(user, 0, ns_from_s(self.ramp_s * user / self.users))

    def follow_up(self, finished: Finished) -> Request | None:
        """The next turn, or the user's next session; after a refusal the session is over."""
        session_id, turn = finished.request.session_id, finished.request.turn + 1
        if session_id is None:
            return None
        plan = self._plans[session_id]
        if turn < len(plan.prompts) and not finished.is_refused:
            return self._request(session_id, turn, answer_at_ns(finished, plan.gaps_ns[turn]))
        session_id += self.users
        if session_id >= len(self._plans):
            return None
        return self._request(session_id, 0, answer_at_ns(finished, self._rests_ns[session_id]))

    def _request(self, session_id: int, turn: int, arrival_ns: int) -> Request:
        plan = self._plans[session_id]
        request = self.dialogue.request(plan, turn, arrival_ns, self.slo_class, self.priority, self.n_samples)
        if self.tenant:
            request = request._replace(tenant=self.tenant)
        return request if self._classifier is None else self._classifier.tagged(request)

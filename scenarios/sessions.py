"""People who come, talk for a while and go: sessions arrive in an open stream, turns follow answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from scenarios.arrivals import Arrivals, stages_of_arrivals
from scenarios.classify import Classifier
from scenarios.dialogue import Dialogue, Plan, answer_at_ns
from scenarios.distributions import require_positive
from scenarios.synthetic import require_limits, require_samples
from sim.request import Finished, Request, Stage, stream


@dataclass(slots=True)
class Sessions:
    """Multi-turn traffic.

    Parameters
    ----------
    rate : float
        Mean sessions begun per second [1/s].
    arrivals : Arrivals
        How beginnings are spread around that mean.
    dialogue : Dialogue
        How a session unfolds.
    n_sessions, duration_s : int or None, float or None
        Sessions begin until whichever comes first; those begun go on to their end.
    classify : bool
        Tag requests with what their session looks like, as their ``kind``.
    tenant : str
        Whose they all are.
    """

    rate: float
    arrivals: Arrivals
    dialogue: Dialogue
    n_sessions: int | None = None
    duration_s: float | None = None
    slo_class: str = ""
    priority: int = 0
    n_samples: int = 1
    classify: bool = False
    tenant: str = ""
    _classifier: Classifier | None = field(init=False, default=None, repr=False, compare=False)
    _live: dict[int, Plan] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_positive("scenario", rate=self.rate)
        require_limits("n_sessions", self.n_sessions, self.duration_s)
        require_samples(self.n_samples)

    @property
    def stages(self) -> list[Stage]:
        """Times of one rate each, where arrivals come in such."""
        return stages_of_arrivals(self.arrivals, self.rate)

    def requests(self, seed: int) -> Iterator[Request]:
        """First turns in order of arrival; the same seed gives the same ones."""
        self._live = live = {}
        self._classifier = Classifier() if self.classify else None
        end_ns = require_limits("n_sessions", self.n_sessions, self.duration_s)
        plans = self.dialogue.plans(seed)
        number = 0
        for times in self.arrivals.times_ns(self.rate, stream(seed, "arrivals")):
            for arrival_ns in times.tolist():
                if number == self.n_sessions or (end_ns is not None and arrival_ns >= end_ns):
                    return
                plan = next(plans)
                if len(plan.prompts) > 1:
                    live[plan.session_id] = plan
                yield self._request(plan, 0, arrival_ns)
                number += 1

    def follow_up(self, finished: Finished) -> Request | None:
        """The session's next turn, after thinking; a refused client leaves."""
        session_id, turn = finished.request.session_id, finished.request.turn + 1
        plan = self._live.get(session_id) if session_id is not None else None
        if plan is None or session_id is None:
            return None
        if finished.is_refused:
            del self._live[session_id]
            return None
        if turn == len(plan.prompts) - 1:
            del self._live[session_id]
        return self._request(plan, turn, answer_at_ns(finished, plan.gaps_ns[turn]))

    def _request(self, plan: Plan, turn: int, arrival_ns: int) -> Request:
        request = self.dialogue.request(plan, turn, arrival_ns, self.slo_class, self.priority, self.n_samples)
        if self.tenant:
            request = request._replace(tenant=self.tenant)
        return request if self._classifier is None else self._classifier.tagged(request)

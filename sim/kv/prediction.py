"""Extents as long as history says a conversation will become.

Turn by turn a conversation grows. Its last ``history`` increments give a rate: steady ones are extrapolated, unsteady
ones with more caution; before it has a history of its own, that of all conversations serves.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, sqrt

from sim.errors import ConfigError
from sim.kv.reservation import grown_to
from sim.request import Request
from sim.sequence import Sequence

MOST_HISTORY = 1_000_000  # a rate is a mean over all of them, taken at every turn


@dataclass(slots=True, eq=False)
class History:
    """One conversation: how long it was after each turn."""

    increments: deque[int]
    n_tokens: int = 0  # after its last turn
    expected_tokens: float | None = None  # after the next one, as predicted
    growing_slots: int = 0  # the extent it would have if it only grew


@dataclass(slots=True, eq=False)
class Predicted:
    """Room for what a conversation will need, ``lookahead`` turns ahead; never less than growing would give.

    Growing is off the critical path where it can: an extent is replaced when fewer than ``ahead`` slots are left, while
    the sequence decodes on, and only if there is room beside it; else when it is full, as in `Growing`.

    Parameters
    ----------
    initial : int
        Of a conversation nothing is known about [tokens].
    history : int
        Increments that are remembered.
    lookahead : int
        Turns to make room for; 1 is the next.
    margin_frac : float
        Added to every prediction.
    unstable_factor : float
        Times the rate, where increments vary.
    unstable_cv : float
        Coefficient of variation from which they do.
    growth : float
        Of a full extent, at least.
    ahead : int
        Free slots at which an extent is replaced [tokens].
    most_sessions : int
        Conversations remembered; the oldest is forgotten.
    """

    initial: int = 512
    history: int = 10
    lookahead: int = 4
    margin_frac: float = 0.1
    unstable_factor: float = 1.2
    unstable_cv: float = 0.5
    growth: float = 1.5
    ahead: int = 16
    most_sessions: int = 100_000
    grows: bool = field(default=True, init=False)
    fixed_tokens: None = field(default=None, init=False)
    _sessions: dict[int, History] = field(default_factory=dict, init=False)
    _global: deque[int] = field(init=False)
    _n_predictions: int = field(default=0, init=False)
    _error_sum: float = field(default=0.0, init=False)
    _n_growing_resizes: int = field(default=0, init=False)  # what growing alone would have come to

    def __post_init__(self) -> None:
        for key, least in (("initial", 1), ("history", 2), ("lookahead", 1), ("ahead", 0), ("most_sessions", 1)):
            value = getattr(self, key)
            if value < least:
                raise ConfigError(f"cache.reservation.{key} must be >= {least}, got {value}")
        if self.history > MOST_HISTORY:
            raise ConfigError(f"cache.reservation.history must be <= {MOST_HISTORY} [turns], got {self.history}")
        for key, low in (("margin_frac", 0.0), ("unstable_factor", 1.0), ("unstable_cv", 0.0), ("growth", 1.0)):
            value = getattr(self, key)
            if not low <= value < float("inf"):
                raise ConfigError(f"cache.reservation.{key} must be >= {low:g} and finite, got {value}")
        self._global = deque(maxlen=self.history)

    def tokens(self, request: Request, target_tokens: int) -> int:
        """What is predicted, and at least what growing would start with."""
        return max(grown_to(self.initial, self.growth, target_tokens), self._predicted(request, target_tokens))

    def grown_tokens(self, sequence: Sequence, n_tokens: int, need_tokens: int) -> int:
        """What is predicted, and at least what growing would give."""
        predicted = self._predicted(sequence.request, sequence.target_tokens)
        return max(grown_to(n_tokens, self.growth, need_tokens), predicted)

    def ahead_tokens(self, n_tokens: int) -> int:
        """``ahead``, or an eighth of a short extent."""
        return min(self.ahead, n_tokens // 8)

    def ended(self, sequence: Sequence) -> None:
        """Learn from a turn that has its answer."""
        session_id = sequence.request.session_id
        n_tokens = sequence.computed_tokens
        if session_id is None:
            return
        known = self._sessions.get(session_id)
        if known is None:
            if len(self._sessions) >= self.most_sessions:
                del self._sessions[next(iter(self._sessions))]
            known = self._sessions[session_id] = History(deque(maxlen=self.history))
        if not sequence.cached_tokens:  # a new extent, for the first turn or because the last one's gave way
            known.growing_slots = grown_to(self.initial, self.growth, sequence.request.prompt_tokens)
        if known.expected_tokens is not None:
            self._n_predictions += 1
            self._error_sum += abs(known.expected_tokens - n_tokens) / n_tokens
        if known.growing_slots < sequence.request.prompt_tokens:  # one resize to a prompt, however long
            known.growing_slots = grown_to(known.growing_slots, self.growth, sequence.request.prompt_tokens)
            self._n_growing_resizes += 1
        while known.growing_slots < n_tokens:
            known.growing_slots = grown_to(known.growing_slots, self.growth, known.growing_slots + 1)
            self._n_growing_resizes += 1
        increment = max(0, n_tokens - known.n_tokens)
        known.increments.append(increment)
        self._global.append(increment)
        known.n_tokens = n_tokens
        known.expected_tokens = n_tokens + rate(known.increments)[0]

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        return {
            "predictions": self._n_predictions,
            "prediction_error_frac": self._error_sum / self._n_predictions if self._n_predictions else 0.0,
            "resizes_if_growing": self._n_growing_resizes,
        }

    def _predicted(self, request: Request, target_tokens: int) -> int:
        """Slots that a conversation will need after ``lookahead`` turns; 0 where nothing is known."""
        session_id = request.session_id
        known = self._sessions.get(session_id) if session_id is not None else None
        increments = known.increments if known is not None and len(known.increments) > 1 else self._global
        if session_id is None or len(increments) < 2:
            return 0
        mean, cv = rate(increments)
        if cv > self.unstable_cv:
            mean *= self.unstable_factor
        start = max(target_tokens, known.n_tokens if known is not None else 0)
        return ceil((start + self.lookahead * mean) * (1.0 + self.margin_frac))


def rate(increments: deque[int]) -> tuple[float, float]:
    """Mean and coefficient of variation.

    Examples
    --------
    >>> rate(deque([90, 110]))
    (100.0, 0.1)
    """
    mean = sum(increments) / len(increments)
    if not mean:
        return 0.0, 0.0
    return mean, sqrt(sum((x - mean) ** 2 for x in increments) / len(increments)) / mean

"""What stands between a client and the engine: HTTP, tokenising, the hand-over to the queue, and the way back."""

from dataclasses import dataclass
from math import isfinite

from sim.errors import ConfigError
from sim.spec.values import as_given
from sim.units import ns_from_s


@dataclass(frozen=True, slots=True)
class FrontendSpec:
    """A constant time before a request reaches the engine's queue, and one after each token.

    The simulated clock is the engine's: a request arrives when it reaches the queue. A client has sent it ``before_s``
    earlier and has its tokens ``after_s`` later, so its TTFT and E2EL are longer by both, and the next turn of a
    conversation comes later by both. Gaps between tokens are the same. That the times grow neither with the load nor
    with the prompt is an assumption.
    """

    before_s: float
    after_s: float

    def __post_init__(self) -> None:
        for key, value in (("before_s", self.before_s), ("after_s", self.after_s)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
                raise ConfigError(f"frontend.{key} must be a finite number >= 0 [s], got {as_given(value)}")

    @property
    def added_ns(self) -> int:
        """What a client's latencies have beyond the engine's [ns]."""
        return ns_from_s(self.before_s) + ns_from_s(self.after_s)

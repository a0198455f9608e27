"""How many slots a contiguous sequence gets when it is admitted, and when those are full.

`Maximum` and `Oracle` (exact, or rounded up to a power of two) reserve once; they are the baselines of the
PagedAttention paper. `Growing` starts small and grows; `sim.kv.prediction` grows ahead of need.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from sim.errors import ConfigError
from sim.request import Request
from sim.sequence import Sequence


class Reservation(Protocol):
    """The length of extents."""

    @property
    def grows(self) -> bool:
        """Whether full extents are replaced by longer ones."""
        ...

    @property
    def fixed_tokens(self) -> int | None:
        """What every sequence gets, whichever it is; None where that differs [tokens]."""
        ...

    def tokens(self, request: Request, target_tokens: int) -> int:
        """Slots to reserve for a request when it is admitted, at least the tokens to compute then [tokens]."""
        ...

    def grown_tokens(self, sequence: Sequence, n_tokens: int, need_tokens: int) -> int:
        """Slots of the extent that replaces a full one of ``n_tokens``, at least ``need_tokens`` [tokens]."""
        ...

    def ahead_tokens(self, n_tokens: int) -> int:
        """How long before an extent of ``n_tokens`` is full it is replaced: 0 when it is full [tokens]."""
        ...

    def ended(self, sequence: Sequence) -> None:
        """A sequence has its answer: what there is to learn from it."""
        ...

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        ...


class Once:
    """What is reserved at admission lasts to the end."""

    grows = False
    fixed_tokens: int | None = None

    def grown_tokens(self, sequence: Sequence, n_tokens: int, need_tokens: int) -> int:  # noqa: ARG002
        """As long as it is: nothing grows."""
        return n_tokens

    def ahead_tokens(self, n_tokens: int) -> int:  # noqa: ARG002
        """Never."""
        return 0

    def ended(self, sequence: Sequence) -> None:
        """Nothing to learn."""

    def counts(self) -> Mapping[str, int | float]:
        """None."""
        return {}


class Maximum(Once):
    """The longest a sequence may become (Orca's Max, and FasterTransformer): never grows, mostly empty.

    Parameters
    ----------
    max_len : int
        [tokens]
    """

    def __init__(self, max_len: int) -> None:
        if max_len < 1:
            raise ConfigError(f"cache.reservation.max_len must be >= 1 [tokens], got {max_len}")
        self.max_len = self.fixed_tokens = max_len

    def tokens(self, request: Request, target_tokens: int) -> int:  # noqa: ARG002
        """The maximum, whatever the request."""
        return self.max_len


@dataclass(frozen=True)
class Oracle(Once):
    """Prompt and answer exactly, as if the answer's length were known (Orca's Oracle): a bound, not a policy.

    ``rounding="power_of_two"`` rounds the answer up to the next power of two (Orca's Pow2): a guess that is at most
    twice too long. Nothing is reserved beyond the longest a sequence may become.

    Parameters
    ----------
    rounding : {"none", "power_of_two"}
    max_len : int or None
        [tokens]

    References
    ----------
    Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", SOSP 2023, section 6.1; their own
    baseline cuts at 2,048 tokens (``_compute_allocation_size``, vLLM's orca branch, cacheflow/master/block_manager.py).
    """

    rounding: str = "none"
    max_len: int | None = None

    def __post_init__(self) -> None:
        if self.rounding not in ("none", "power_of_two"):
            raise ConfigError(f"cache.reservation.rounding must be none or power_of_two, got {self.rounding!r}")
        if self.max_len is not None and self.max_len < 1:
            raise ConfigError(f"cache.reservation.max_len must be null or >= 1 [tokens], got {self.max_len}")

    def tokens(self, request: Request, target_tokens: int) -> int:  # noqa: ARG002
        """The whole sequence, seen in advance."""
        n_output = request.output_tokens
        if self.rounding == "power_of_two":
            n_output = 1 << (n_output - 1).bit_length()
        n_tokens = request.prompt_tokens + n_output
        return n_tokens if self.max_len is None or n_tokens <= self.max_len else self.max_len


@dataclass(frozen=True, slots=True)
class Growing:
    """Room for ``initial`` tokens, and ``growth`` times as much whenever it is full.

    A prompt that is longer starts with the length that growing would have reached. With ``growth`` 1 an extent grows
    by one token at a time, which copies everything at every step.

    Parameters
    ----------
    initial : int
        [tokens]
    growth : float
        Length of the next extent relative to the full one, at least 1.
    """

    initial: int = 512
    growth: float = 1.5
    grows = True
    fixed_tokens = None

    def __post_init__(self) -> None:
        if self.initial < 1:
            raise ConfigError(f"cache.reservation.initial must be >= 1 [tokens], got {self.initial}")
        if not 1.0 <= self.growth < float("inf"):
            raise ConfigError(f"cache.reservation.growth must be >= 1 and finite, got {self.growth}")

    def tokens(self, request: Request, target_tokens: int) -> int:  # noqa: ARG002
        """The initial length, grown until the target fits."""
        return grown_to(self.initial, self.growth, target_tokens)

    def grown_tokens(self, sequence: Sequence, n_tokens: int, need_tokens: int) -> int:  # noqa: ARG002
        """``growth`` times as long, or more if that does not suffice."""
        return grown_to(n_tokens, self.growth, need_tokens)

    def ahead_tokens(self, n_tokens: int) -> int:  # noqa: ARG002
        """When it is full."""
        return 0

    def ended(self, sequence: Sequence) -> None:
        """Nothing to learn."""

    def counts(self) -> Mapping[str, int | float]:
        """None."""
        return {}


def grown_to(n_tokens: int, growth: float, need_tokens: int) -> int:
    """Length after growing as often as a need demands.

    Examples
    --------
    >>> grown_to(512, 1.5, 1000), grown_to(512, 1.0, 513), grown_to(512, 1.5, 100)
    (1152, 513, 512)
    """
    if growth == 1.0:
        return max(n_tokens, need_tokens)
    while n_tokens < need_tokens:
        grown = ceil(n_tokens * growth)
        n_tokens = grown if grown > n_tokens else n_tokens + 1
    return n_tokens

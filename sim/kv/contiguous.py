"""One contiguous extent per sequence: serving before PagedAttention.

How long the extent is, is a `Reservation`'s business; where it lies, an allocator's. A finished conversation's extent
stays for its next turn as idle data, and is given up whole when room is short.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sim.errors import ConfigError
from sim.kv.eviction import Evictor, Unit
from sim.ledger import DecodeLedger
from sim.request import Request, Segment
from sim.sequence import Sequence


class Allocator(Protocol):
    """Places extents in a row of token slots."""

    def take(self, n_tokens: int) -> int | None:
        """Offset of a free extent of at least so many slots, or None."""
        ...

    def give(self, offset: int) -> None:
        """Free the extent at an offset."""
        ...

    def size_of(self, offset: int) -> int:
        """Slots of the extent at an offset, what rounding added included."""
        ...


class Reservation(Protocol):
    """How many slots a sequence gets when it is admitted."""

    def tokens(self, sequence: Sequence) -> int:
        """Slots to reserve, at least the sequence's target [tokens]."""
        ...


@dataclass(frozen=True, slots=True)
class Maximum:
    """The longest a sequence may become (Orca's Max, and FasterTransformer): never grows, mostly empty."""

    max_len: int

    def __post_init__(self) -> None:
        if self.max_len < 1:
            raise ConfigError(f"cache.max_len must be >= 1 [tokens], got {self.max_len}")

    def tokens(self, sequence: Sequence) -> int:  # noqa: ARG002
        """The maximum, whatever the request."""
        return self.max_len


@dataclass(slots=True, eq=False)
class Extent:
    """Slots that a sequence or an idle conversation holds, and the text in them."""

    offset: int
    n_tokens: int
    session_id: int | None
    text: tuple[Segment, ...] = ()
    unit: Unit | None = None  # while idle


class ContiguousCache:
    """Extents in one row of token slots.

    Parameters
    ----------
    capacity_tokens : int
        KV slots of the device [tokens].
    allocator : callable
        Makes the allocator of so many slots.
    reservation : Reservation
    eviction : callable
        Makes the evictor of idle conversations.
    session_caching : bool
        Whether a conversation's extent stays for its next turn.
    """

    def __init__(
        self,
        capacity_tokens: int,
        allocator: Callable[[int], Allocator],
        reservation: Reservation,
        eviction: Callable[[int], Evictor],
        session_caching: bool = True,
    ) -> None:
        if capacity_tokens < 1:
            raise ConfigError(f"KV capacity must hold one token, got {capacity_tokens} tokens")
        self.capacity_tokens = capacity_tokens
        self.block_tokens = 1
        self.window_tokens: int | None = None
        self.moved_bytes = 0.0
        self.host_bytes = 0.0
        self.held_tokens = 0
        self.idle_tokens = 0
        self._reservation = reservation
        self._allocator = allocator(capacity_tokens)
        self._session_caching = session_caching
        self._idle: dict[int, Extent] = {}  # by session
        self._order = eviction(capacity_tokens)
        self._order.victims(capacity_tokens)  # free slots are the allocator's; the evictor orders idle extents alone
        self._n_evicted = 0

    def match(self, sequence: Sequence) -> int:
        """Leading tokens of a waiting sequence that its conversation left behind, at most all but the last."""
        extent = self._idle.get(sequence.request.session_id) if sequence.request.session_id is not None else None
        if extent is None or extent.n_tokens < self._reservation.tokens(sequence):
            return 0
        return min(shared_tokens(extent.text, sequence.text()), sequence.target_tokens - 1)

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:  # noqa: ARG002
        """Reserve a sequence's extent when it is admitted; afterwards there is room or there is not.

        Idle conversations give way to an admission one by one; they are gone even if the room does not suffice.
        """
        extent = sequence.holding
        if extent is not None:
            return bool(sequence.computed_tokens + n_tokens <= extent.n_tokens)
        n_matched = self.match(sequence)
        if n_matched:
            extent = self._idle.pop(sequence.request.session_id)  # type: ignore[arg-type]
            self._order.claim([extent.unit])  # type: ignore[list-item]
            extent.unit = None
            self.idle_tokens -= self._allocator.size_of(extent.offset)
        else:
            n_slots = self._reservation.tokens(sequence)
            offset = self._place(n_slots)
            if offset is None:
                return False
            extent = Extent(offset, n_slots, sequence.request.session_id)
        self.held_tokens += self._allocator.size_of(extent.offset)
        sequence.holding = extent
        sequence.computed_tokens = n_matched
        return True

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:  # noqa: ARG002
        """All of them: what a sequence may need is reserved."""
        return n_steps

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        """Nothing to take: extents are held since admission."""

    def release(self, sequence: Sequence, now_ns: int) -> None:  # noqa: ARG002
        """Free the extent, or keep it idle for the conversation's next turn."""
        extent: Extent = sequence.holding
        sequence.holding = None
        size = self._allocator.size_of(extent.offset)
        self.held_tokens -= size
        text = sequence.text()
        if not self._session_caching or extent.session_id is None or not text:
            self._allocator.give(extent.offset)
            return
        self._drop(extent.session_id)
        extent.text = text
        extent.unit = Unit(extent.session_id, sequence.resident_tokens, n_blocks=size)
        self._idle[extent.session_id] = extent
        self.idle_tokens += size
        self._order.park([extent.unit])

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, or None."""
        n_slots = self._reservation.tokens(Sequence(request))
        n_tokens = request.prompt_tokens + request.output_tokens - 1  # the last token's KV is never needed
        if n_tokens > n_slots:
            return f"{n_tokens} KV slots needed, {n_slots} reserved"
        if n_slots > self.capacity_tokens:
            return f"{n_slots} KV slots to reserve, the device has {self.capacity_tokens}"
        return None

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        return {"evicted_sessions": self._n_evicted}

    def _place(self, n_slots: int) -> int | None:
        """Offset of a new extent, idle conversations evicted until there is one."""
        while True:
            offset = self._allocator.take(n_slots)
            if offset is not None or not len(self._order):
                return offset
            for unit in self._order.victims(1):
                self._n_evicted += 1
                self._discard(unit.key)  # type: ignore[arg-type]

    def _drop(self, session_id: int) -> None:
        """Forget what an earlier turn of a conversation left behind."""
        extent = self._idle.get(session_id)
        if extent is not None:
            self._order.claim([extent.unit])  # type: ignore[list-item]
            self._discard(session_id)

    def _discard(self, session_id: int) -> None:
        extent = self._idle.pop(session_id)
        self.idle_tokens -= self._allocator.size_of(extent.offset)
        self._allocator.give(extent.offset)


def shared_tokens(held: tuple[Segment, ...], asked: tuple[Segment, ...]) -> int:
    """Tokens that two texts share from their start.

    Examples
    --------
    >>> shared_tokens(((1, 512), (2, 40)), ((1, 512), (2, 30), (3, 9)))
    542
    """
    n_tokens = 0
    for (identity, length), (other, other_length) in zip(held, asked, strict=False):
        if identity != other:
            break
        n_tokens += min(length, other_length)
        if length != other_length:
            break
    return n_tokens

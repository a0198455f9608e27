"""Conversations between two turns: what the last one left in device memory for the next to go on from.

An extent, or blocks whose KV is no longer that of a whole text, are of use to their own conversation alone. So they are
kept, found and given up as a whole: unlike blocks with prefix reuse (`sim.kv.prefix`), which anybody may find.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from sim.kv.cache import Parcel
from sim.kv.eviction import Evictor, Unit
from sim.request import Request, Segment, text_of
from sim.sequence import Sequence

H = TypeVar("H")
"""What a cache's sequences hold: an extent, blocks."""


class IdleSession(Generic[H]):
    """What a conversation has left. No dataclass: mypyc makes none that is generic."""

    def __init__(self, sequence: Sequence, holding: H, unit: Unit) -> None:
        self.holding = holding
        self.unit = unit
        self.text = sequence.text()
        self.computed_tokens = sequence.computed_tokens  # of the text
        self.dropped_tokens = sequence.dropped_tokens  # of these

    def match(self, request: Request, generated_tokens: int | None) -> int:
        """Leading tokens of a request, and of its answer so far, that this stands for, at most all but the last.

        If part of the KV was dropped, what is left continues the whole text and no shorter one.
        """
        generated_tokens = generated_tokens or 0
        target_tokens = request.prompt_tokens + generated_tokens
        n_tokens = min(shared_tokens(self.text, text_of(request, generated_tokens)), self.computed_tokens)
        if self.dropped_tokens:
            return n_tokens if n_tokens == self.computed_tokens < target_tokens else 0
        return min(n_tokens, target_tokens - 1)


class IdleSessions(Generic[H]):
    """All that conversations have left in one cache, and in which order it is given up.

    Parameters
    ----------
    eviction : callable
        Makes the evictor of so many blocks.
    capacity_blocks : int
        Of the cache; where extents lie in a row of slots, each slot is a block [blocks].
    is_kept : bool
        Whether conversations leave anything at all.
    """

    def __init__(self, eviction: Callable[[int], Evictor], capacity_blocks: int, is_kept: bool) -> None:
        self.n_blocks = 0
        self.n_evicted = 0  # conversations
        self._is_kept = is_kept
        self._order = eviction(capacity_blocks)
        self._order.victims(capacity_blocks)  # free blocks are the cache's; the evictor orders what is idle alone
        self._left: dict[int, IdleSession[H]] = {}  # by session
        self._taken: dict[Sequence, Unit] = {}  # what running sequences go on from: a policy knows it when it is back

    def keeps(self, sequence: Sequence) -> bool:
        """Whether what a sequence holds is kept when it is released."""
        request = sequence.request
        return self._is_kept and request.session_id is not None and request.content is not None

    def keep(self, sequence: Sequence, holding: H, n_blocks: int) -> None:
        """A sequence that `keeps` is released; what another turn left must be gone.

        To compute it again costs as its tokens do: the growth of attention with the context is left out.
        """
        session_id: int = sequence.request.session_id  # type: ignore[assignment]
        unit = self._taken.pop(sequence, None) or Unit(session_id, 0)
        unit.n_tokens, unit.n_blocks, unit.cost = sequence.resident_tokens, n_blocks, float(sequence.computed_tokens)
        self._left[session_id] = IdleSession(sequence, holding, unit)
        self.n_blocks += n_blocks
        self._order.park([unit])

    def find(self, request: Request) -> IdleSession[H] | None:
        """What a request's conversation has left."""
        session_id = request.session_id
        return self._left.get(session_id) if session_id is not None else None

    def parcel(self, request: Request, generated_tokens: int | None, bytes_per_token: float) -> Parcel:
        """What a request's conversation has left, to go on elsewhere."""
        idle = self.find(request)
        n_tokens = 0 if idle is None else idle.match(request, generated_tokens)
        return Parcel(n_tokens, 0 if idle is None else idle.dropped_tokens, n_tokens, bytes_per_token)

    def take(self, sequence: Sequence) -> IdleSession[H] | None:
        """The same, for the sequence to go on from; it is idle no more."""
        idle = self._remove(sequence)
        if idle is not None:
            self._order.claim([idle.unit])
            self._taken[sequence] = idle.unit
        return idle

    def lose(self, sequence: Sequence) -> None:
        """What a sequence took is given up after all."""
        self._order.forget([self._taken.pop(sequence)])

    def drop(self, sequence: Sequence) -> IdleSession[H] | None:
        """What a sequence's conversation has left, given up."""
        idle = self._remove(sequence)
        if idle is not None:
            self._order.forget([idle.unit])
        return idle

    def _remove(self, sequence: Sequence) -> IdleSession[H] | None:
        idle = self.find(sequence.request)
        if idle is not None:
            del self._left[sequence.request.session_id]  # type: ignore[arg-type]
            self.n_blocks -= idle.unit.n_blocks
        return idle

    def evict(self, n_blocks: int, newcomer: Sequence | None = None) -> list[H]:
        """Give up what has at least so many blocks together.

        A newcomer's conversation, for whom it is, has left nothing here: some policies remember that it once had.
        """
        given_up: list[H] = []
        session_id = newcomer.request.session_id if newcomer is not None else None
        for unit in self._order.victims(n_blocks, () if session_id is None else (session_id,)):
            self.n_evicted += 1
            self.n_blocks -= unit.n_blocks
            given_up.append(self._left.pop(unit.key).holding)  # type: ignore[arg-type]
        return given_up


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

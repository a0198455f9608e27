"""Partition of a device's memory: a cache of its own, and those of the batch whom it serves."""

from abc import abstractmethod
from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

from mypy_extensions import mypyc_attr

from sim.kv.cache import KVCache, Parcel
from sim.ledger import DecodeLedger
from sim.request import Request
from sim.sequence import Sequence


class PartitionLedger(DecodeLedger):
    """The sequences of a batch that one of several caches serves.

    What a single sequence has, and who decodes beside it, the batch's ledger knows and is asked; how many of the part
    grow, and into how many blocks, is counted here, again O(1) per iteration. Sequences join and leave the batch's
    ledger first, and this one before the next iteration has run.

    Parameters
    ----------
    block_tokens, window_tokens
        As of `DecodeLedger`; block size of the cache that serves the part.
    """

    def __init__(self, block_tokens: int, window_tokens: int | None) -> None:
        super().__init__(block_tokens, window_tokens)
        self.batch: DecodeLedger = self
        self.offsets: dict[int, int] = {}  # of the part's sequences by order: resident tokens at step 0
        self.planned_tokens: dict[Sequence, int] = {}  # of admitted prompts: resident once their piece is computed
        self.joining: list[Sequence] = []  # prompts that are complete, and decode from the next iteration on
        self.leaving: dict[int, int] = {}  # resident tokens by order of who has ended and still holds its memory

    @property
    def live_tokens(self) -> int:
        """KV of the part, with what the next iteration adds to its prompts."""
        live = self.resident_tokens
        if self.joining:
            live += sum(sequence.resident_tokens for sequence in self.joining)
        if self.planned_tokens:
            live += sum(self.planned_tokens.values())
        if self.leaving:
            live += sum(self.leaving.values())
        return live

    def add_joined(self) -> None:
        """Take in who has joined the batch since."""
        still = []
        for sequence in self.joining:
            if sequence.order in self.members:
                self._add(sequence.order, self.batch.resident_of(sequence))
            else:
                still.append(sequence)
        self.joining = still

    def set_aside(self) -> None:
        """Strike those off who have left the batch without giving their memory back yet."""
        for order in [order for order in self.offsets if order not in self.members]:
            self.leaving[order] = self._remove(order)

    def remove(self, sequence: Sequence) -> None:
        """A sequence holds nothing any more."""
        if sequence.order in self.offsets:
            self._remove(sequence.order)
        elif sequence in self.joining:
            self.joining.remove(sequence)
        else:
            self.leaving.pop(sequence.order, None)
            self.planned_tokens.pop(sequence, None)

    def advance(self, n_steps: int) -> None:
        """All of the part decode ``n_steps`` tokens; called before the batch's ledger advances."""
        self.step += n_steps
        self.resident_tokens += n_steps * self.n_growing
        fulls, window = self._fulls, self.window_tokens
        while fulls and fulls[0][0] <= self.step:
            full_step, order = heappop(fulls)
            offset = self.offsets.get(order)
            if offset is not None and offset + full_step == window:  # else it has dropped some since
                self._count(offset, -1)

    def drop(self, sequence: Sequence, n_tokens: int) -> None:
        """One of the part whose KV grows gives up some of it."""
        self.batch.drop(sequence, n_tokens)
        offset = self.offsets[sequence.order]
        self.offsets[sequence.order] = offset - n_tokens
        self.resident_tokens -= n_tokens
        self._count(offset, -1)
        self._count(offset - n_tokens, 1)
        if self.window_tokens is not None:
            heappush(self._fulls, (self.window_tokens - offset + n_tokens, sequence.order))

    def resident_of(self, sequence: Sequence) -> int:
        """Resident tokens of one member now."""
        return self.batch.resident_of(sequence)

    def computed_of(self, sequence: Sequence) -> int:
        """Computed tokens of one member now, resident or not."""
        return self.batch.computed_of(sequence)

    def context_tokens(self) -> int:
        """KV entries that the batch's next iteration reads."""
        return self.batch.context_tokens()

    def max_context_tokens(self) -> int:
        """The most that one member of the batch reads in it."""
        return self.batch.max_context_tokens()

    def _add(self, order: int, resident_tokens: int) -> None:
        offset = resident_tokens - self.step
        self.offsets[order] = offset
        self.resident_tokens += resident_tokens
        if resident_tokens == self.window_tokens:
            return
        self._count(offset, 1)
        if self.window_tokens is not None:
            heappush(self._fulls, (self.window_tokens - offset, order))

    def _remove(self, order: int) -> int:
        """Take one out of the counts; returns its resident tokens."""
        offset = self.offsets.pop(order)
        resident = offset + self.step
        if self.window_tokens is not None and resident >= self.window_tokens:
            resident = self.window_tokens
        else:
            self._count(offset, -1)
        self.resident_tokens -= resident
        return resident

    def _count(self, offset: int, n: int) -> None:
        """So many more grow, or fewer."""
        self.n_growing += n
        self._phases[offset % self.block_tokens] += n


@mypyc_attr(allow_interpreted_subclasses=True)
class PartitionCache(KVCache):
    """A cache that can serve part of the traffic, beside others."""

    def _dropped(self, parcel: Parcel) -> int:
        """What of a parcel is not kept: what its source has dropped, and what is before the window."""
        window = self.window_tokens
        return parcel.dropped_tokens if window is None else max(parcel.dropped_tokens, parcel.n_tokens - window)

    @abstractmethod
    def left(self, request: Request, generated_tokens: int | None) -> Parcel:
        """What a request's conversation, or its text, left here, to go on in another cache."""
        ...

    def load(self, sequence: Sequence, parcel: Parcel, lost: Callable[[int], None]) -> int:  # noqa: ARG002
        """Send what of a parcel lies below to a sequence admitted elsewhere, which waits. Returns its tokens.

        Of tokens lost on the way ``lost`` is told.
        """
        return 0

    @abstractmethod
    def forget(self, sequence: Sequence) -> None:
        """Give up what a waiting sequence's conversation left here: it goes on in another cache."""
        ...


class Partition(NamedTuple):
    """A cache, and those of the batch whom it serves."""

    cache: PartitionCache
    ledger: PartitionLedger

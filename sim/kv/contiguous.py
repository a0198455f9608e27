"""One contiguous extent per sequence: serving before PagedAttention, and caches that grow by copying.

How long the extent is, is a `Reservation`'s business; where it lies, an allocator's. A full extent that may grow is
replaced by a longer one: its tokens are copied in the next iteration, and both are held until that has run. A finished
conversation's extent stays for its next turn as idle data, and is given up whole when room is short.

Extents cannot be shared: each of several answers to one prompt has its own, all of them reserved when the prompt is
admitted, and the prompt's KV is copied into each when it is computed. They are reserved together or not at all, so no
request ever holds some of its extents and waits for the others: two that did could wait for each other for ever.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sim.errors import ConfigError
from sim.kv.cache import Parcel
from sim.kv.partition import PartitionCache
from sim.kv.reservation import Reservation
from sim.kv.sessions import IdleSessions
from sim.kv.site import Site
from sim.ledger import DecodeLedger
from sim.request import Request
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

    @property
    def free_tokens(self) -> int:
        """Slots in no extent."""
        ...

    @property
    def largest_free_tokens(self) -> int:
        """The longest extent that could be taken now."""
        ...


@dataclass(slots=True, eq=False)
class Extent:
    """Slots that a sequence or an idle conversation holds."""

    offset: int
    n_tokens: int


class ContiguousCache(PartitionCache):
    """Extents in one row of token slots.

    Parameters
    ----------
    site : Site
        An extent is a ring of the model's attention window at most.
    allocator : callable
        Makes the allocator of so many slots.
    reservation : Reservation or callable
        How long extents are; a callable makes one for this cache, where it learns.
    session_caching : bool
        Whether a conversation's extent stays for its next turn.
    max_len : int or None
        The longest an extent may become, null as long as the model's sequences; who would outgrow it is refused
        [tokens].
    """

    held_tokens: int = 0
    idle_tokens: int = 0
    external_tokens: int = 0

    def __init__(
        self,
        site: Site,
        allocator: Callable[[int], Allocator],
        reservation: Reservation | Callable[[], Reservation],
        session_caching: bool = True,
        max_len: int | None = None,
    ) -> None:
        capacity_tokens, model_max_len = site.capacity_tokens, site.model.max_len
        if max_len is not None and max_len < 1:
            raise ConfigError(f"cache.max_len must be >= 1 [tokens], got {max_len}")
        if max_len is not None and max_len > model_max_len:
            raise ConfigError(f"cache.max_len must be <= {model_max_len} [tokens], the model's maximum, got {max_len}")
        if capacity_tokens < 1:
            raise ConfigError(f"KV capacity must hold one token, got {capacity_tokens} tokens")
        self.capacity_tokens = capacity_tokens
        self.block_tokens = 1
        self.window_tokens = site.model.window
        self.is_endless = False
        self.copies = site.copies
        self._rounding_tokens = 0
        self._reservation: Reservation = reservation() if callable(reservation) else reservation
        self._make_allocator = allocator
        self._allocator = allocator(capacity_tokens)
        self._largest = self._allocator.largest_free_tokens  # of an empty device
        self._max_len = model_max_len if max_len is None else max_len
        self._check_fixed(self._reservation.fixed_tokens, model_max_len)
        self.bytes_per_token = site.bytes_per_token
        self._idle: IdleSessions[Extent] = IdleSessions(site.eviction, capacity_tokens, session_caching)
        self._spare: dict[Sequence, list[Extent]] = {}  # of prompts with several answers, for all but the first
        self._largest_of: dict[int, int] = {}  # by number: the longest extents of which so many fit
        self._leaving: list[int] = []  # offsets whose content is being copied
        self._n_resizes = self._n_ahead = self._n_copied_tokens = 0

    @property
    def rounding_tokens(self) -> int:
        """Slots that the allocator added to extents."""
        return self._rounding_tokens

    def match(self, request: Request, generated_tokens: int | None = None) -> int:
        """Leading tokens of a request that its conversation left behind, at most all but the last."""
        idle = self._idle.find(request)
        if idle is None:
            return 0
        if not self._reservation.grows:
            target_tokens = request.prompt_tokens + (generated_tokens or 0)
            if idle.holding.n_tokens < self._wanted(request, target_tokens, 1):
                return 0
        return idle.match(request, generated_tokens)

    def admit(
        self,
        sequence: Sequence,
        n_tokens: int,  # noqa: ARG002
        ledger: DecodeLedger,  # noqa: ARG002
        parcel: Parcel | None = None,
    ) -> bool:
        """Reserve a sequence's extent, for all of its prompt.

        Idle conversations give way one by one; they are gone even if the room does not suffice. So may be the
        sequence's own, if it could not be replaced by a longer one: then `match` finds nothing any more.
        """
        if parcel is not None:
            self.forget(sequence)
        if not (self._admit(sequence) if sequence.n_samples == 1 else self._admit_several(sequence)):
            return False
        if parcel is not None:
            n_dropped = self._dropped(parcel)
            sequence.start_at(parcel.n_tokens, n_dropped, parcel.n_tokens - n_dropped)
        return True

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:  # noqa: ARG002
        """Its extent has room for the whole prompt."""
        return True

    def attend(self, sequence: Sequence, ledger: DecodeLedger) -> bool:
        """Replace an extent that is full, or soon will be, by a longer one."""
        extent: Extent = sequence.holding
        need = ledger.resident_of(sequence) + 1
        if self.window_tokens is not None:
            need = min(need, self.window_tokens)
        is_full = need > extent.n_tokens
        if not self._reservation.grows:  # it has its answer and pads its batch, past the end of its extent
            return not is_full
        longer = self._longer(sequence, extent.n_tokens, max(need, extent.n_tokens + 1))
        offset = self._place(longer)
        if offset is None:
            sequence.room_tokens = extent.n_tokens  # asked again when it is full
            return not is_full
        self._n_resizes += 1
        self._n_ahead += not is_full
        self._replace(sequence, extent, offset, longer, need - 1, is_full)
        return True

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:  # noqa: ARG002
        """All of them: a sequence whose extent is full is asked for one by one."""
        return n_steps

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:  # noqa: ARG002
        """The copies are made: free the extents they were made from."""
        while self._leaving:
            offset = self._leaving.pop()
            self.held_tokens -= self._allocator.size_of(offset)
            self._give(offset)

    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:  # noqa: ARG002
        """Forget what has left the window: its slots hold newer tokens."""
        if self.window_tokens is not None and sequence.resident_tokens > self.window_tokens:
            sequence.dropped_tokens = sequence.computed_tokens - self.window_tokens

    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:  # noqa: ARG002
        """Copy a prompt's KV into the extents that were reserved for it."""
        for other, extent in zip(others, self._spare.pop(sequence), strict=True):
            other.holding = extent
            self._set_room(other, extent)
        n_copied = len(others) * sequence.resident_tokens
        self._n_copied_tokens += n_copied
        self.copies.moved_bytes += n_copied * self.bytes_per_token
        return len(others)

    def release(self, sequence: Sequence, now_ns: int) -> None:  # noqa: ARG002
        """Free the extent, or keep it idle for the conversation's next turn."""
        extent: Extent = sequence.holding
        sequence.holding = sequence.room_tokens = None
        sequence.stop_loading()
        if sequence.is_finished:
            self._reservation.ended(sequence)
        if sequence.n_samples > 1:
            self._give_up(self._spare.pop(sequence))
        size = self._let_go(extent)
        if not self._idle.keeps(sequence):
            self._give(extent.offset)
            return
        self.forget(sequence)
        self._idle.keep(sequence, extent, size)
        self.idle_tokens += size

    def left(self, request: Request, generated_tokens: int | None) -> Parcel:
        """What a request's conversation has left."""
        return self._idle.parcel(request, generated_tokens, self.bytes_per_token)

    def forget(self, sequence: Sequence) -> None:
        """Give up what an earlier turn of a sequence's conversation left here."""
        idle = self._idle.drop(sequence)
        if idle is not None:
            self._give_idle(idle.holding)

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, all its samples at once, or None."""
        n_tokens = request.prompt_tokens + request.output_tokens - 1  # the last token's KV is never needed
        if self.window_tokens is not None:
            n_tokens = min(n_tokens, self.window_tokens)
        if n_tokens > self._max_len:
            return f"{n_tokens} KV slots needed, extents have {self._max_len} at most"
        n_slots = n_tokens if self._reservation.grows else self._wanted(request, request.prompt_tokens, 1)
        if n_tokens > n_slots:
            return f"{n_tokens} KV slots needed, {n_slots} reserved"
        if n_slots > self._largest:
            return f"{n_slots} KV slots to reserve, the device has {self._largest} in one piece"
        if request.n_samples > 1 and n_slots > self._largest_together(request.n_samples):
            most = self._largest_together(request.n_samples)
            return f"{request.n_samples} times {n_slots} KV slots to reserve, so many pieces can have {most} each"
        return None

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        return {
            "evicted_sessions": self._idle.n_evicted,
            "resizes": self._n_resizes,
            "resizes_ahead": self._n_ahead,
            "copied_tokens": self._n_copied_tokens,
            "copied_bytes": self._n_copied_tokens * self.bytes_per_token,
            **self._reservation.counts(),
        }

    def _check_fixed(self, n_tokens: int | None, model_max_len: int) -> None:
        """Refuse extents, all of one length, that are longer than the model's sequences, or of which none fits."""
        if n_tokens is None:
            return
        if n_tokens > model_max_len:
            raise ConfigError(
                f"cache.reservation.max_len must be <= {model_max_len} [tokens], the model's maximum, got {n_tokens}"
            )
        n_tokens = min(n_tokens, self._max_len, self.window_tokens or n_tokens)
        if n_tokens > self._largest:
            raise ConfigError(
                f"cache.max_len must be <= {self._largest} [tokens], the longest extent in "
                f"{self.capacity_tokens} KV slots (hardware.kv_blocks), got {n_tokens}"
            )

    def _found(self, sequence: Sequence) -> int:
        """What `match` finds of a waiting sequence [tokens]."""
        return self.match(sequence.request, sequence.generated_tokens)

    def _wanted(self, request: Request, target_tokens: int, n_samples: int) -> int:
        """Slots to reserve at admission: no more than allowed, than a ring of the window, than could ever be had."""
        n_slots = self._reservation.tokens(request, target_tokens)
        if n_slots > self._max_len:
            n_slots = self._max_len
        if self.window_tokens is not None:
            n_slots = min(n_slots, self.window_tokens)
        if self._reservation.grows:
            largest = self._largest if n_samples == 1 else self._largest_together(n_samples)
            n_slots = min(n_slots, max(largest, target_tokens))
        return n_slots

    def _largest_together(self, n_extents: int) -> int:
        """The longest extents of which so many fit on an empty device, 0 if there are none [tokens]."""
        if n_extents not in self._largest_of:
            fitting, beyond = 0, self.capacity_tokens // n_extents + 1
            while beyond - fitting > 1:
                n_slots = (fitting + beyond) // 2
                empty = self._make_allocator(self.capacity_tokens)
                if all(empty.take(n_slots) is not None for _ in range(n_extents)):
                    fitting = n_slots
                else:
                    beyond = n_slots
            self._largest_of[n_extents] = fitting
        return self._largest_of[n_extents]

    def _admit_several(self, sequence: Sequence) -> bool:
        """As `_admit`, and as many extents more as there are further answers; all or nothing.

        An extent may lie where an idle conversation gave way, and leave no room beside it for the next: then all are
        placed anew, as long as others have given way meanwhile.
        """
        n_matched = self._found(sequence)
        wanted = self._wanted(sequence.request, sequence.target_tokens, sequence.n_samples)
        n_evicted = None
        while n_evicted != self._idle.n_evicted and self._found(sequence) == n_matched:
            n_evicted = self._idle.n_evicted
            spare: list[Extent] = []
            while len(spare) < sequence.n_samples - 1 and (offset := self._place(wanted)) is not None:
                spare.append(Extent(offset, wanted))
                self._take_up(spare[-1])
            is_short = len(spare) < sequence.n_samples - 1 or self._found(sequence) < n_matched
            if not is_short and self._admit(sequence):
                self._spare[sequence] = spare
                return True
            self._give_up(spare)
        return False

    def _give_up(self, extents: list[Extent]) -> None:
        """Free extents that were reserved and never used."""
        for extent in extents:
            self._let_go(extent)
            self._give(extent.offset)

    def _longer(self, sequence: Sequence, n_tokens: int, need_tokens: int) -> int:
        """Slots of the extent that replaces one of ``n_tokens``: no more than `_wanted`."""
        n_slots = self._reservation.grown_tokens(sequence, n_tokens, need_tokens)
        if n_slots > self._max_len:
            n_slots = self._max_len
        if self.window_tokens is not None and n_slots > self.window_tokens:
            n_slots = self.window_tokens
        return min(n_slots, max(need_tokens, self._largest))

    def _admit(self, sequence: Sequence) -> bool:
        n_matched = self._found(sequence)
        idle = self._idle.take(sequence) if n_matched else None
        if idle is None:
            wanted = self._wanted(sequence.request, sequence.target_tokens, sequence.n_samples)
            offset = self._place(wanted, sequence)
            if offset is None:
                return False
            self._hold(sequence, Extent(offset, wanted))
            return True
        extent = idle.holding
        size = self._allocator.size_of(extent.offset)
        self.idle_tokens -= size
        need = sequence.target_tokens if self.window_tokens is None else min(sequence.target_tokens, self.window_tokens)
        if need > extent.n_tokens:
            longer = self._longer(sequence, extent.n_tokens, need)
            offset = self._place(longer)
            if offset is None:
                self._idle.lose(sequence)
                self._give(extent.offset)
                return False
            self._n_resizes += 1
            self.held_tokens += size
            self._rounding_tokens += size - extent.n_tokens
            self._replace(sequence, extent, offset, longer, n_matched - idle.dropped_tokens, is_critical=True)
        else:
            self._hold(sequence, extent)
        sequence.computed_tokens, sequence.dropped_tokens = n_matched, idle.dropped_tokens
        return True

    def _hold(self, sequence: Sequence, extent: Extent) -> None:
        """An extent is a sequence's from now on."""
        self._take_up(extent)
        sequence.holding = extent
        self._set_room(sequence, extent)

    def _take_up(self, extent: Extent) -> None:
        """An extent is held from now on."""
        size = self._allocator.size_of(extent.offset)
        self.held_tokens += size
        self._rounding_tokens += size - extent.n_tokens

    def _let_go(self, extent: Extent) -> int:
        """An extent is held no more. Returns its slots [tokens]."""
        size = self._allocator.size_of(extent.offset)
        self.held_tokens -= size
        self._rounding_tokens -= size - extent.n_tokens
        return size

    def _set_room(self, sequence: Sequence, extent: Extent) -> None:
        """When to ask for a longer extent."""
        is_ring = extent.n_tokens == self.window_tokens  # and grows no more
        ahead_tokens = self._reservation.ahead_tokens(extent.n_tokens)
        sequence.room_tokens = None if is_ring else max(1, extent.n_tokens - ahead_tokens)

    def _replace(
        self, sequence: Sequence, old: Extent, offset: int, n_slots: int, n_copied: int, is_critical: bool
    ) -> None:
        """Copy a sequence's KV into a longer extent; the old one is held until the next iteration has run."""
        self._leaving.append(old.offset)
        self._rounding_tokens -= self._allocator.size_of(old.offset) - old.n_tokens
        self._hold(sequence, Extent(offset, n_slots))
        self._n_copied_tokens += n_copied
        if is_critical:
            self.copies.moved_bytes += n_copied * self.bytes_per_token

    def _place(self, n_slots: int, newcomer: Sequence | None = None) -> int | None:
        """Offset of a new extent, idle conversations evicted until there is one."""
        while True:
            offset = self._allocator.take(n_slots)
            if offset is not None:
                self._note_holes()
                return offset
            if not self.idle_tokens:
                return None
            for extent in self._idle.evict(1, newcomer):
                self._give_idle(extent)

    def _give_idle(self, extent: Extent) -> None:
        self.idle_tokens -= self._allocator.size_of(extent.offset)
        self._give(extent.offset)

    def _give(self, offset: int) -> None:
        self._allocator.give(offset)
        self._note_holes()

    def _note_holes(self) -> None:
        self.external_tokens = self._allocator.free_tokens - self._allocator.largest_free_tokens

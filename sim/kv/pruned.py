"""Blocks of sequences that keep only part of their KV: sinks and a window, or the important share.

Blocks are a sequence's own, since what is in them is no longer the text from its start: they are shared with nobody,
and what a finished conversation has left is kept for its next turn, and evicted, as a whole.

Several answers to one prompt cannot share its blocks, for each will keep other tokens. While the prompt is computed
every block of it is taken once for each answer, all or none: its KV is copied into them when it is complete, and no
request ever holds room for some of its answers and waits for more, as two could that wait for each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sim.errors import ConfigError
from sim.kv.cache import Parcel
from sim.kv.partition import PartitionCache
from sim.kv.pool import BlockPool
from sim.kv.retention import Kept, Retention
from sim.kv.sessions import IdleSessions
from sim.kv.site import Site
from sim.ledger import DecodeLedger
from sim.request import Request
from sim.sequence import Sequence
from sim.units import FAR


@dataclass(slots=True, eq=False)
class Blocks:
    """What a sequence or an idle conversation holds."""

    n_blocks: int = 0
    n_copies: int = 1  # it holds so many times: of a prompt with several answers
    quantised_tokens: int = 0  # of its text, those that have been quantised


class PrunedCache(PartitionCache):
    """A pool of blocks, taken on demand, and a retention that gives some back.

    Prompt tokens are computed against what is resident, and attend to no more than a sequence may have (`Retention`).
    Of a piece longer than what is kept, only that is written.

    Parameters
    ----------
    site : Site
    retention : Retention
    block_tokens : int
        Block size, a power of two [tokens].
    session_caching : bool
        Whether what a conversation has left stays for its next turn.
    """

    def __init__(
        self,
        site: Site,
        retention: Retention,
        block_tokens: int = 16,
        session_caching: bool = True,
    ) -> None:
        element_bits, kv_bytes_per_token = site.element_bits, site.bytes_per_token
        self.bits_per_element = min(element_bits, getattr(retention, "bits_per_element", element_bits))
        self._is_narrow = self.bits_per_element < element_bits
        self.pool = BlockPool(int(site.capacity_tokens * element_bits / self.bits_per_element), block_tokens)
        windows = [window for window in (site.model.window, retention.window_tokens) if window is not None]
        self.block_tokens = block_tokens
        self.capacity_tokens = self.pool.n_blocks * block_tokens
        self.window_tokens = min(windows, default=None)
        bounds = [bound for bound in (site.model.window, retention.most_tokens) if bound is not None]
        self._most_tokens = min(bounds, default=None)  # resident tokens of a sequence
        if retention.window_tokens is not None and (self.window_tokens or 0) > self.capacity_tokens:
            raise ConfigError(
                f"cache.retention.window and sinks must together be <= {self.capacity_tokens} [tokens], all the KV "
                f"slots there are (hardware.kv_blocks), got {retention.window_tokens}"
            )
        self.is_endless = retention.most_tokens is not None
        self.copies = site.copies
        self._retention = retention
        self.bytes_per_token = kv_bytes_per_token * self.bits_per_element / element_bits
        self._moved_bytes_per_token = kv_bytes_per_token * (1.0 + self.bits_per_element / element_bits) / 2.0
        self._idle: IdleSessions[Blocks] = IdleSessions(site.eviction, self.pool.n_blocks, session_caching)
        self._n_moved_tokens = self._n_compactions = self._n_copied_tokens = 0
        self._n_attended = self._n_seen = 0  # resident and computed tokens of ended sequences

    @property
    def held_tokens(self) -> int:
        """Slots in blocks of admitted sequences."""
        return self.pool.held_tokens

    @property
    def idle_tokens(self) -> int:
        """Slots in blocks of idle conversations."""
        return self.pool.cached_tokens

    def match(self, request: Request, generated_tokens: int | None = None) -> int:
        """Leading tokens of a request that its conversation's KV stands for, at most all but the last."""
        idle = self._idle.find(request)
        return idle.match(request, generated_tokens) if idle is not None else 0

    def admit(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger, parcel: Parcel | None = None) -> bool:
        """Take up what its conversation left, or a parcel, and blocks for the next ``n_tokens``, for each answer."""
        if parcel is None:
            return self._admit(sequence, n_tokens, ledger)
        self.forget(sequence)
        n_dropped = self._dropped(parcel)
        n_coming = parcel.n_tokens - n_dropped
        if not self._admit(sequence, n_coming + n_tokens, ledger):
            return False
        sequence.start_at(parcel.n_tokens, n_dropped, n_coming)
        held: Blocks = sequence.holding
        held.quantised_tokens = parcel.copied_tokens  # on their way
        return True

    def _admit(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        n_spare = self.pool.n_spare(ledger)
        n_matched = self.match(sequence.request, sequence.generated_tokens)
        n_copies = sequence.n_samples
        idle = self._idle.find(sequence.request) if n_matched else None
        if idle is None:
            n_blocks = self._blocks_for(n_tokens)
            if n_blocks * n_copies > n_spare:
                return False
            held = Blocks(n_copies=n_copies)
        else:
            held = idle.holding
            resident = n_matched - idle.dropped_tokens
            n_blocks = max(held.n_blocks, self._blocks_for(resident + n_tokens))
            if n_blocks * n_copies > n_spare:
                return False
            self._idle.take(sequence)
            self.pool.n_free -= held.n_blocks
            self.pool.n_cached -= held.n_blocks
            sequence.dropped_tokens = idle.dropped_tokens
            held.quantised_tokens = min(held.quantised_tokens, n_matched)
            if n_copies > 1:
                self._take(held, (n_copies - 1) * held.n_blocks)
                held.n_blocks //= n_copies
                held.n_copies = n_copies
        sequence.computed_tokens = n_matched
        sequence.holding = held
        if self._retention.most_tokens is not None:
            sequence.reach_tokens = self._retention.most_tokens
        self._take(held, n_blocks - held.n_blocks, sequence if idle is None else None)
        return True

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """Take blocks for the next ``n_tokens`` of a prompt."""
        held: Blocks = sequence.holding
        n_new = self._blocks_for(sequence.resident_tokens + n_tokens) - held.n_blocks
        if n_new * held.n_copies > self.pool.n_spare(ledger):
            return False
        self._take(held, n_new)
        return True

    def attend(self, sequence: Sequence, ledger: DecodeLedger) -> bool:
        """Keep what the retention keeps: that never needs room."""
        held: Blocks = sequence.holding
        resident = ledger.resident_of(sequence)
        kept = self._kept(held, ledger.computed_of(sequence), resident, sequence.room_tokens)
        sequence.room_tokens = kept.room_tokens
        self.pool.n_free += self._blocks_for(resident) - self._blocks_for(kept.n_tokens)
        held.n_blocks = self._blocks_for(kept.n_tokens)
        if kept.n_tokens < resident:
            ledger.drop(sequence, resident - kept.n_tokens)
        return True

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        """How many of the next ``n_steps`` decode iterations the free and idle blocks suffice for."""
        return self.pool.steps_within(ledger, n_steps)

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        """Take the blocks that ``n_steps`` decode iterations fill, idle conversations giving way."""
        self._take_free(ledger.blocks_needed(n_steps))

    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:  # noqa: ARG002
        """Keep of a prompt what the retention keeps: what bounds it at any time, the rest when it is complete."""
        most = self._most_tokens
        if most is not None and sequence.resident_tokens > most:
            sequence.dropped_tokens = sequence.computed_tokens - most
        if sequence.prefill_left_tokens and not self._retention.cuts_pieces:
            return
        held: Blocks = sequence.holding
        kept = self._kept(held, sequence.computed_tokens, sequence.resident_tokens, None)
        sequence.dropped_tokens = sequence.computed_tokens - kept.n_tokens
        sequence.room_tokens = kept.room_tokens
        self._take(held, self._blocks_for(kept.n_tokens) - held.n_blocks)

    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:  # noqa: ARG002
        """Copy what is kept of a prompt into the blocks that were taken for it."""
        held: Blocks = sequence.holding
        held.n_copies = 1
        for other in others:
            other.holding = Blocks(held.n_blocks, quantised_tokens=held.quantised_tokens)
            other.room_tokens = sequence.room_tokens
        n_copied = len(others) * sequence.resident_tokens
        self._n_copied_tokens += n_copied
        self.copies.moved_bytes += n_copied * self.bytes_per_token
        return len(others)

    def release(self, sequence: Sequence, now_ns: int) -> None:  # noqa: ARG002
        """Free a sequence's blocks, or keep them idle for its conversation's next turn."""
        held: Blocks = sequence.holding
        sequence.holding = sequence.room_tokens = None
        sequence.reach_tokens = FAR
        sequence.stop_loading()
        n_blocks = max(held.n_blocks, self._blocks_for(sequence.resident_tokens))
        if sequence.is_finished:
            self._n_attended += sequence.resident_tokens
            self._n_seen += sequence.computed_tokens
        self.pool.n_free += n_blocks * held.n_copies
        held.n_copies = 1
        if self._idle.keeps(sequence):
            self.forget(sequence)
            held.n_blocks = n_blocks
            self.pool.n_cached += n_blocks
            self._idle.keep(sequence, held, n_blocks)

    def left(self, request: Request, generated_tokens: int | None) -> Parcel:
        """What a request's conversation has left."""
        return self._idle.parcel(request, generated_tokens, self.bytes_per_token)

    def forget(self, sequence: Sequence) -> None:
        """Give up what an earlier turn of a sequence's conversation left here."""
        idle = self._idle.drop(sequence)
        if idle is not None:
            self.pool.n_cached -= idle.holding.n_blocks

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, or None.

        Whoever is preempted just before its last token is computed anew as a whole.
        """
        n_tokens = request.prompt_tokens + request.output_tokens - 1  # the last token's KV is never needed
        n_blocks = request.n_samples * self._blocks_for(n_tokens)
        if n_blocks > self.pool.n_blocks:
            return f"{n_blocks} KV blocks needed, the device has {self.pool.n_blocks}"
        return None

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        return {
            "kv_blocks": self.pool.n_blocks,
            "evicted_sessions": self._idle.n_evicted,
            "compactions": self._n_compactions,
            "moved_tokens": self._n_moved_tokens,
            "copied_tokens": self._n_copied_tokens,
            "bits_per_element": self.bits_per_element,
            "attended_tokens": self._n_attended,
            "seen_tokens": self._n_seen,
            "attended_frac": self._n_attended / self._n_seen if self._n_seen else 1.0,
        }

    def _blocks_for(self, n_tokens: int) -> int:
        """Blocks of a sequence with so many tokens, beyond the window none."""
        if self._most_tokens is not None and n_tokens > self._most_tokens:
            n_tokens = self._most_tokens
        return -(-n_tokens // self.block_tokens)

    def _kept(self, held: Blocks, computed_tokens: int, resident_tokens: int, room_tokens: int | None) -> Kept:
        """Ask the retention; charge what it moves, and what is new and gets fewer bits."""
        held_frac = 1.0 - self.pool.n_free / self.pool.n_blocks
        kept = self._retention.kept(computed_tokens, resident_tokens, room_tokens, held_frac)
        n_moved = kept.n_moved_tokens
        if self._is_narrow:
            n_moved += min(resident_tokens, computed_tokens - held.quantised_tokens)
            held.quantised_tokens = computed_tokens
        if n_moved:
            self._n_compactions += 1
            self._n_moved_tokens += n_moved
            self.copies.moved_bytes += n_moved * self._moved_bytes_per_token
        if kept.room_tokens is not None and self.window_tokens is not None and kept.room_tokens >= self.window_tokens:
            return kept._replace(room_tokens=None)  # it slides before
        return kept

    def _take(self, held: Blocks, n_blocks: int, newcomer: Sequence | None = None) -> None:
        """Give a sequence so many blocks more, or fewer, for each answer."""
        self._take_free(n_blocks * held.n_copies, newcomer)
        held.n_blocks += n_blocks

    def _take_free(self, n_blocks: int, newcomer: Sequence | None = None) -> None:
        """Take blocks that the caller knows are free; where blank ones do not suffice, conversations are given up."""
        pool = self.pool
        pool.n_free -= n_blocks
        if pool.n_cached > pool.n_free:
            for held in self._idle.evict(pool.n_cached - pool.n_free, newcomer):
                pool.n_cached -= held.n_blocks

"""PagedAttention: KV in fixed-size blocks taken on demand, shared between equal prefixes.

The rules are vLLM v1's block pool (``v1/core/block_pool.py``, ``v1/core/kv_cache_manager.py``):

* only full blocks have an identity, that of all text up to their end; generated text counts too;
* a hit is the longest run of resident blocks from the start, at most all tokens but the last; of a model that attends
  to a window only the last of them need be resident, as many as the window takes;
* taking blocks either succeeds whole or changes nothing; hits leave the free queue, new blocks come off its head,
  and one that still had content loses it;
* freed blocks join the tail, a sequence's last block first;
* equal blocks computed at the same time are not merged.

Blocks of sequences that decode are a count until the sequence leaves: the ledger knows when each is taken.

Several answers to one prompt share all its blocks, the last, partly filled one until they write to it. Who writes while
others still read copies it first, so of n all but the last to write take a block and a copy (copy-on-write; Kwon et
al., "Efficient Memory Management for LLM Serving with PagedAttention", SOSP 2023, section 4.4):

    prompt of 2.5 blocks, 4 answers   [ A B C D ][ A B C D ][ A B C D ]      3 blocks held
    first decode iteration            [ A B C D ][ A B C D ][D ][A ][B ][C ] 6 blocks held, 3 copied
"""

from collections.abc import Mapping
from typing import Any

from sim.errors import ConfigError
from sim.kv.below import Below
from sim.kv.cache import Parcel
from sim.kv.partition import PartitionCache
from sim.kv.pool import Found, PrefixPool
from sim.kv.prefix import BlockTable, Listener
from sim.kv.site import Site
from sim.ledger import DecodeLedger
from sim.request import BlockRange, Request, block_ranges, whole_text
from sim.sequence import Sequence
from sim.spec import as_given


class PagedCache(PartitionCache):
    """Block tables over one pool of blocks, with prefix reuse.

    Parameters
    ----------
    site : Site
        The model's attention window among it: blocks that fall behind it are given back, and stay findable until they
        are taken. It counts as so many full blocks, where vLLM holds one more while it lies across them; and of blocks
        that decoding slides over, a run that was named together goes together, as its first token does.
    block_tokens : int
        Block size, a power of two. vLLM's default is 16 [tokens].
    prefix_caching : bool
        Whether content stays findable after its sequence ended.
    watermark : float
        Share of the blocks that admitting a sequence must leave free, unless nobody else holds any, as in
        `KVCacheManager.allocate_slots`; vLLM v1 keeps none, v0 kept 0.01.
    reserves_prompt : bool
        Whether a sequence is admitted only if its whole prompt has room, though it takes its first piece alone: vLLM's
        ``scheduler_reserve_full_isl``, so that fewer are preempted where prompts come in pieces.
    """

    def __init__(
        self,
        site: Site,
        block_tokens: int = 16,
        prefix_caching: bool = True,
        watermark: float = 0.0,
        reserves_prompt: bool = False,
    ) -> None:
        if not 0 <= watermark < 1:
            raise ConfigError(f"cache.watermark must be in [0, 1), got {as_given(watermark)}")
        self.pool = PrefixPool(site.capacity_tokens, block_tokens, site.eviction)
        self.block_tokens = block_tokens
        self.capacity_tokens = self.pool.n_blocks * block_tokens
        self.window_tokens = window_tokens = site.model.window
        self.is_endless = False
        self.copies = site.copies
        self._window_blocks = None if window_tokens is None else -(-window_tokens // block_tokens)
        self._chunk_blocks = None if site.chunk_tokens is None else -(-site.chunk_tokens // block_tokens)
        self._prefix_caching = prefix_caching
        self._watermark_blocks = int(watermark * self.pool.n_blocks)
        self._reserves_prompt = reserves_prompt
        self.bytes_per_token = site.bytes_per_token
        self._n_copied = 0
        self.below: Below | None = None  # told of what happens to the blocks

    @classmethod
    def swapping(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """A hierarchical one that saves only what is preempted, and lets iterations wait for the copies both ways.

        That is vLLM v0's swap space.
        """
        saving = {"write": "preempted", "load": "never", "overlap": False, "prefetch": 0}
        return {**settings, "_target_": "sim.kv.hierarchical.HierarchicalCache", **saving}

    @property
    def held_tokens(self) -> int:
        """Slots in blocks that sequences hold."""
        return self.pool.held_tokens

    @property
    def idle_tokens(self) -> int:
        """Slots in free blocks with content."""
        return self.pool.cached_tokens

    @property
    def shared_tokens(self) -> int:
        """Slots read by one more sequence than hold them."""
        return self.pool.shared_tokens

    def match(self, request: Request, generated_tokens: int | None = None) -> int:
        """Leading tokens of a request that are resident, at most all but the last."""
        if request.content is None and generated_tokens is None:
            return 0
        n_blocks = self.n_here(request, generated_tokens)
        if self.below is not None:
            n_blocks += sum(self.below.found(request, generated_tokens, n_blocks))
        return n_blocks * self.block_tokens

    def n_here(self, request: Request, generated_tokens: int | None) -> int:
        """Leading blocks of a request that are in device memory."""
        if not self._prefix_caching or (request.content is None and generated_tokens is None):
            return 0
        return self.pool.look_up(request, generated_tokens, self._window_blocks).n_blocks

    def accepts(self, request: Request, parcel: Parcel) -> bool:  # noqa: ARG002
        """Whole texts, or all of them that the model's window still sees."""
        if self.window_tokens is None or parcel.n_tokens <= self.window_tokens:
            return not parcel.dropped_tokens
        return parcel.n_tokens - parcel.dropped_tokens == self.window_tokens

    def admit(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger, parcel: Parcel | None = None) -> bool:
        """Hold the blocks that `match` finds, and take others for the next ``n_tokens``, all or none.

        Who finds blocks below, or brings a parcel, takes room for that too. What comes over a link can be found by
        others once it has come.
        """
        pool, below, size, request = self.pool, self.below, self.block_tokens, sequence.request
        found: Found | None = None
        found_below: list[int] | None = None
        n_found = n_unparked = n_coming = 0
        is_known = request.content is not None or sequence.n_preemptions > 0
        if is_known and self._prefix_caching:
            found = pool.look_up(request, sequence.preempted_at_tokens, self._window_blocks)
            n_found = found.n_blocks
            if parcel is not None and n_found < parcel.n_tokens // size and parcel.dropped_tokens:
                found, n_found = found.but(parcel.dropped_tokens // size), parcel.dropped_tokens // size
            for run, _, n_blocks in found.matched:
                if run.is_parked:
                    n_unparked += n_blocks
        elif parcel is not None:
            n_found = parcel.dropped_tokens // size
        if below is not None:
            below.ledger = ledger
            if is_known and parcel is None:
                found_below = below.found(request, sequence.preempted_at_tokens, n_found)
                n_coming = sum(found_below) * size
        start = n_found * size
        n_dropped = n_found if found is None else found.n_dropped
        dropped_tokens = n_dropped * size
        if parcel is not None:
            n_coming = parcel.n_tokens - start
            if start <= parcel.dropped_tokens:
                dropped_tokens = parcel.dropped_tokens
        n_tokens += n_coming
        is_late = n_coming > 0 and (parcel is None or parcel.copied_tokens < parcel.n_tokens)
        n_new = -(-(start + n_tokens) // size) - n_found
        n_asked = n_new
        if self._reserves_prompt:
            n_left = -(-sequence.target_tokens // size) - n_found
            n_asked = max(n_new, min(n_left, self._most_blocks(sequence.target_tokens) - (n_found - n_dropped)))
        n_kept = self._watermark_blocks if pool.held_tokens else 0
        if n_asked + n_unparked + n_kept > pool.n_spare(ledger):
            return False
        text = None if found is None else found.text
        sequence.holding = table = BlockTable(n_found - n_dropped, n_found - n_dropped, n_dropped, text)
        if found is not None and found.matched:
            pool.hold(table, found.matched)
        sequence.start_at(start + n_coming, dropped_tokens, start + n_coming - max(start, dropped_tokens))
        self._take(sequence, n_new)
        if table.text is not None and not is_late:
            self._name(table, table.text, start + n_tokens)
        if below is not None:
            below.admitted(sequence, n_found, found_below)
        return True

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """Take blocks for the next ``n_tokens`` of a prompt, all or none."""
        table: BlockTable = sequence.holding
        n_new = -(-(sequence.computed_tokens + n_tokens) // self.block_tokens) - table.n_dropped - table.n_blocks
        if n_new > self.pool.n_spare(ledger):
            return False
        self._fill(sequence, n_new, n_tokens)
        return True

    def attend(self, sequence: Sequence, ledger: DecodeLedger) -> bool:
        """A decoding sequence is about to write to a block that others may read: it gets one of its own."""
        n_spare = self.pool.n_spare(ledger)
        room: int = sequence.room_tokens  # type: ignore[assignment]
        if self.window_tokens is not None and room >= self.window_tokens:
            return self._slide(sequence, room, n_spare)
        return self._copy_on_write(sequence, n_spare)

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        """How many of the next ``n_steps`` decode iterations the free blocks suffice for."""
        return self.pool.steps_within(ledger, n_steps)

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        """Take the blocks that ``n_steps`` decode iterations fill."""
        if n_steps and (n_blocks := ledger.blocks_needed(n_steps)):
            self.pool.grow(n_blocks)

    def take_ahead(self, ledger: DecodeLedger) -> None:
        """Pop the blocks that the next decode iteration fills: vLLM takes them before it looks at who waits."""
        pool = self.pool
        if pool.n_cached:
            pool.reserve(min(pool.n_free, ledger.blocks_needed(1)))

    def take_token(self, sequence: Sequence, ledger: DecodeLedger) -> None:
        """What it takes is popped already. vLLM names a block when its last token has room: it will be found."""
        table, resident = sequence.holding, ledger.resident_of(sequence)
        if resident == self.window_tokens:
            return
        sequence.unnamed_tokens = -1
        if not resident % self.block_tokens:
            self.pool.grow(1)
            table.n_blocks = max(table.n_blocks, resident // self.block_tokens) + 1

    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:  # noqa: ARG002
        """Free the blocks that a prompt has left behind the model's window; what they hold stays findable."""
        window = self.window_tokens
        if window is not None:
            table: BlockTable = sequence.holding
            if sequence.resident_tokens > window:
                sequence.dropped_tokens = sequence.computed_tokens - window
                self.pool.drop(table, table.n_blocks - -(-window // self.block_tokens), self._prefix_caching)
            if not sequence.prefill_left_tokens:
                sequence.room_tokens = self._room(table)
        if self.below is not None:
            self.below.computed(sequence)

    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        """Share a prompt's blocks; where a window will be written over, copy them as far as there is room."""
        request = sequence.request
        longest = request.prompt_tokens + request.max_output_tokens - 1
        if self.window_tokens is not None and longest > self.window_tokens:
            n_held = self._copy_all(sequence, others, ledger)
        else:
            n_held = self._share_all(sequence, others)
        if self.below is not None:
            self.below.forked(sequence, others[:n_held])
        return n_held

    def _share_all(self, sequence: Sequence, others: list[Sequence]) -> int:
        """Let others hold all blocks of a sequence too. Returns how many do."""
        table: BlockTable = sequence.holding
        if table.text is not None:
            self._name(table, table.text, sequence.computed_tokens)
        size, n_last = self.block_tokens, sequence.resident_tokens % self.block_tokens
        n_full = table.n_blocks - table.n_named - (n_last > 0)
        for n_tokens, n_blocks in ((n_full * size, n_full), (n_last, n_last > 0)):
            if n_tokens:
                self.pool.index.hold_unnamed(table, n_tokens, n_blocks)
        for other in others:
            other.holding = self.pool.index.shared(table)
        self.pool.shared_tokens += len(others) * sequence.resident_tokens
        for one in (sequence, *others):  # ask before the first of them writes
            one.room_tokens = sequence.resident_tokens if n_last else self._room(table)
        return len(others)

    def release(self, sequence: Sequence, now_ns: int) -> None:  # noqa: ARG002
        """Free a sequence's blocks, the last first; full ones stay findable until their block is taken."""
        sequence.stop_loading()
        table: BlockTable = sequence.holding
        sequence.holding = sequence.room_tokens = None
        n_blocks = max(table.n_blocks, -(-sequence.resident_tokens // self.block_tokens))
        n_hashed = 0
        # Whoever is preempted comes back: what has not been taken meanwhile is a hit, text of its own too.
        if table.text is not None or (self._prefix_caching and not sequence.is_finished):
            n_tokens = sequence.computed_tokens - sequence.unnamed_tokens
            if sequence.dropped_tokens:  # the window has slid on over blocks of its own
                table.n_dropped = max(table.n_dropped, n_tokens // self.block_tokens - n_blocks)
            text = whole_text(sequence.request, sequence.generated_tokens)
            self._name(table, block_ranges(text, n_tokens, self.block_tokens), n_tokens)
        elif self._prefix_caching:  # a text that nobody shares: an engine does not know that
            n_hashed = min(n_blocks, (sequence.computed_tokens - sequence.unnamed_tokens) // self.block_tokens)
        self.pool.release(table, n_blocks, n_hashed)
        if self.below is not None:
            self.below.released(sequence)

    def left(self, request: Request, generated_tokens: int | None) -> Parcel:
        """The blocks of a request's text that are here, and below."""
        n_copied = self.n_here(request, generated_tokens) * self.block_tokens
        return Parcel(self.match(request, generated_tokens), 0, n_copied, self.bytes_per_token)

    def forget(self, sequence: Sequence) -> None:
        """A waiting sequence goes on in another cache; blocks it found stay for others until they are taken."""

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, or None.

        Whoever is preempted just before its last token is computed anew up to there.
        """
        n_tokens = request.prompt_tokens + request.output_tokens - 1  # the last token's KV is never needed
        n_blocks = self._most_blocks(n_tokens)
        if request.n_samples > 1:
            n_blocks = max(n_blocks, self._blocks_together(request, n_tokens))
        if n_blocks > self.pool.n_blocks:
            return f"{n_blocks} KV blocks needed, the device has {self.pool.n_blocks}"
        return None

    def publish(self, listener: Listener) -> None:
        """Tell somebody from now on which blocks can be found and which no more."""
        self.pool.index.listener = listener

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        pool = self.pool
        counts = {"evicted_blocks": pool.n_evicted, "kv_blocks": pool.n_blocks, "copied_blocks": self._n_copied}
        return counts if self.below is None else {**counts, **self.below.counts()}

    def _most_blocks(self, n_tokens: int) -> int:
        """Blocks that a sequence holds at most while so many tokens are computed.

        Where a window slides over prompts in pieces, those of the window and of one piece, and one that both lie
        across: ``SlidingWindowSpec.max_memory_usage_bytes`` (vLLM, v1/kv_cache_interface.py). What is loaded from below
        comes as a whole.
        """
        n_blocks = -(-n_tokens // self.block_tokens)
        if self._window_blocks is None or self._chunk_blocks is None or self.below is not None:
            return n_blocks
        return min(n_blocks, self._window_blocks + self._chunk_blocks + 1)

    def _blocks_together(self, request: Request, n_tokens: int) -> int:
        """Blocks of all answers to a prompt just before the last token of each."""
        size, window = self.block_tokens, self.window_tokens
        if window is not None and request.prompt_tokens + request.max_output_tokens - 1 > window:
            return request.n_samples * -(-min(n_tokens, window) // size)
        n_shared = request.prompt_tokens // size
        return n_shared + request.n_samples * (-(-n_tokens // size) - n_shared)

    def _copy_on_write(self, sequence: Sequence, n_spare: int) -> bool:
        """A sequence writes to a block that it may share with others: unless it is the last, it needs a copy."""
        table: BlockTable = sequence.holding
        if len(table.runs[-1].tables) > 1:
            if n_spare < 1:
                return False
            self.pool.take(1)
            self._n_copied += 1
            self.copies.moved_bytes += self.block_tokens * self.bytes_per_token
        self.pool.stop_sharing(table)
        sequence.room_tokens = self._room(table)
        return True

    def _room(self, table: BlockTable) -> int | None:
        """When a sequence that decodes slides over blocks that it must not write to, if ever."""
        return self.window_tokens if table.runs else None

    def _slide(self, sequence: Sequence, room_tokens: int, n_spare: int) -> bool:
        """A window begins to slide over blocks that others hold or may find: as many of its own take their place."""
        table: BlockTable = sequence.holding
        run = table.runs[0]
        n_blocks = run.n_blocks
        if len(run.tables) > 1 and n_blocks > n_spare:
            return False
        self.pool.drop(table, n_blocks, self._prefix_caching)
        self.pool.take(n_blocks)
        table.n_blocks += n_blocks
        sequence.room_tokens = room_tokens + n_blocks * self.block_tokens if table.runs else None
        return True

    def _copy_all(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        """Give as many as there is room for all blocks of a sequence anew. Returns how many."""
        table: BlockTable = sequence.holding
        n_blocks = table.n_blocks
        n_held = min(len(others), self.pool.n_spare(ledger) // n_blocks)
        for other in others[:n_held]:
            self.pool.take(n_blocks)
            other.holding = BlockTable(n_blocks, 0, table.n_dropped)
        self._n_copied += n_held * n_blocks
        self.copies.moved_bytes += n_held * n_blocks * self.block_tokens * self.bytes_per_token
        return n_held

    def _fill(self, sequence: Sequence, n_new: int, n_tokens: int) -> None:
        """A sequence gets new blocks for its next ``n_tokens``; what will be in them can be found at once."""
        self._take(sequence, n_new)
        table: BlockTable = sequence.holding
        if table.text is not None:
            self._name(table, table.text, sequence.computed_tokens + n_tokens)

    def _take(self, sequence: Sequence, n_new: int) -> None:
        """A sequence gets new blocks."""
        if n_new > 0:
            table: BlockTable = sequence.holding
            self.pool.take(n_new, table)
            table.n_blocks += n_new

    def _name(self, table: BlockTable, text: list[BlockRange], n_tokens: int) -> None:
        """Make the full blocks among a sequence's first tokens findable."""
        self.pool.name(table, text, n_tokens)

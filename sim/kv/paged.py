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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sim.errors import ConfigError
from sim.kv.cache import Copies
from sim.kv.eviction import Evictor, Unit
from sim.kv.part import PartCache
from sim.kv.prefix import BlockTable, Match, PrefixIndex, Run
from sim.ledger import DecodeLedger
from sim.request import BlockRange, Request, block_ranges, whole_text
from sim.sequence import Sequence
from sim.spec import as_given


@dataclass(frozen=True, slots=True)
class Found:
    """What the index said about a request's text."""

    request: Request
    generated_tokens: int | None
    text: list[BlockRange]
    n_dropped: int  # blocks before those found that a window need not have
    runs: list[Match]  # that a sequence can go on from


class PagedCache(PartCache):
    """Block tables over one pool of blocks, with prefix reuse.

    Parameters
    ----------
    capacity_tokens : int
        KV slots of the device; a last incomplete block is not used [tokens].
    block_tokens : int
        Block size, a power of two. vLLM's default is 16 [tokens].
    eviction : callable
        Makes the evictor of so many blocks, all free.
    prefix_caching : bool
        Whether content stays findable after its sequence ended.
    watermark : float
        Share of the blocks that admitting a sequence must leave free; vLLM v1 keeps none, v0 kept 0.01.
    window_tokens : int or None
        The model's attention window. Blocks that fall behind it are given back, and stay findable until they are
        taken. It counts as so many full blocks, where vLLM holds one more while it lies across them; and of blocks that
        decoding slides over, a run that was named together goes together, as its first token does [tokens].
    kv_bytes_per_token : float
        What copying a token moves [B].
    reserves_prompt : bool
        Whether a sequence is admitted only if its whole prompt has room, though it takes its first piece alone: vLLM's
        ``scheduler_reserve_full_isl``, so that fewer are preempted where prompts come in pieces.
    """

    held_tokens: int = 0
    idle_tokens: int = 0
    shared_tokens: int = 0

    def __init__(
        self,
        capacity_tokens: int,
        eviction: Callable[[int], Evictor],
        block_tokens: int = 16,
        prefix_caching: bool = True,
        watermark: float = 0.0,
        window_tokens: int | None = None,
        kv_bytes_per_token: float = 0.0,
        reserves_prompt: bool = False,
    ) -> None:
        if block_tokens < 1 or block_tokens & (block_tokens - 1):
            raise ConfigError(f"cache.block_tokens must be a power of two >= 1 [tokens], got {block_tokens}")
        if not 0 <= watermark < 1:
            raise ConfigError(f"cache.watermark must be in [0, 1), got {as_given(watermark)}")
        if capacity_tokens < block_tokens:
            raise ConfigError(f"KV capacity must hold one block of {block_tokens} tokens, got {capacity_tokens} tokens")
        self.block_tokens = block_tokens
        self.n_blocks = capacity_tokens // block_tokens
        self.capacity_tokens = self.n_blocks * block_tokens
        self.window_tokens = window_tokens
        self.is_endless = False
        self.copies = Copies()
        self._prefix_caching = prefix_caching
        self._watermark_blocks = int(watermark * self.n_blocks)
        self._reserves_prompt = reserves_prompt
        self._free = eviction(self.n_blocks)
        self._index = PrefixIndex(block_tokens, self._free)
        self._n_free = self.n_blocks
        self._n_owed = 0  # taken, but not yet popped off the free queue: of blank blocks it matters not which
        self._n_ahead = 0  # popped for the next iteration to take
        self._found: Found | None = None  # the last look-up, while it stands
        self._n_parked = 0
        self._n_evicted = 0
        self._bytes_per_token = kv_bytes_per_token
        self._n_copied = 0
        self._texts: dict[Sequence, list[BlockRange]] = {}  # of sequences that hold something

    def match(self, request: Request, generated_tokens: int | None = None) -> int:
        """Leading tokens of a request that are resident, at most all but the last."""
        if not self._prefix_caching or (request.content is None and generated_tokens is None):
            return 0
        found = self._looked_up(request, generated_tokens)
        return (found.n_dropped + sum(n_blocks for _, _, n_blocks in found.runs)) * self.block_tokens

    def admit(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """Hold the blocks that `match` finds, and take others for the next ``n_tokens``, all or none."""
        size = self.block_tokens
        request = sequence.request
        text: list[BlockRange] | None = None
        matched: list[Match] = []
        n_dropped = n_matched = n_unparked = 0
        if self._prefix_caching and (request.content is not None or sequence.n_preemptions):
            found = self._looked_up(request, sequence.preempted_at_tokens)
            text, n_dropped, matched = found.text, found.n_dropped, found.runs
        for run, _, n_blocks in matched:
            n_matched += n_blocks
            if run.is_parked:
                n_unparked += n_blocks
        n_found = n_dropped + n_matched
        start = n_found * size
        n_new = -(-(start + n_tokens) // size) - n_found
        n_asked = n_new if not self._reserves_prompt else -(-sequence.target_tokens // size) - n_found
        if n_asked + n_unparked + self._watermark_blocks > self._n_spare(ledger):
            return False
        table = sequence.holding = BlockTable(n_matched, n_matched, n_dropped)
        sequence.computed_tokens, sequence.dropped_tokens = start, n_dropped * size
        if text is not None:
            self._texts[sequence] = text
        if matched:
            self._n_free -= n_unparked
            self._n_parked -= n_unparked
            self.held_tokens += n_unparked * size
            self.idle_tokens -= n_unparked * size
            self.shared_tokens += (n_matched - n_unparked) * size
            for run, offset, n_blocks in reversed(matched):  # a cut leaves what is left of it as it was
                self._index.claim(table, run, offset, n_blocks)
            table.runs.reverse()
        self._fill(sequence, n_new, n_tokens)
        return True

    def extend(self, sequence: Sequence, n_tokens: int, ledger: DecodeLedger) -> bool:
        """Take blocks for the next ``n_tokens`` of a prompt, all or none."""
        table: BlockTable = sequence.holding
        n_new = -(-(sequence.computed_tokens + n_tokens) // self.block_tokens) - table.n_dropped - table.n_blocks
        if n_new > self._n_spare(ledger):
            return False
        self._fill(sequence, n_new, n_tokens)
        return True

    def attend(self, sequence: Sequence, ledger: DecodeLedger) -> bool:
        """A decoding sequence is about to write to a block that others may read: it gets one of its own."""
        free = self._n_spare(ledger)
        room: int = sequence.room_tokens  # type: ignore[assignment]
        if self.window_tokens is not None and room >= self.window_tokens:
            return self._slide(sequence, room, free)
        return self._copy_on_write(sequence, free)

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        """How many of the next ``n_steps`` decode iterations the free blocks suffice for."""
        free = self._n_free
        if free >= (n_steps // self.block_tokens + 1) * ledger.n_growing:
            return n_steps
        return min(n_steps, ledger.steps_for_blocks(free))

    def advance(self, ledger: DecodeLedger, n_steps: int) -> None:
        """Take the blocks that ``n_steps`` decode iterations fill."""
        if n_steps and (n_blocks := ledger.blocks_needed(n_steps)):
            self._n_free -= n_blocks  # `_take`
            self.held_tokens += n_blocks * self.block_tokens
            self._n_owed += n_blocks - self._n_ahead
            self._n_ahead = 0
            if self._n_parked:
                self._settle()

    def take_ahead(self, ledger: DecodeLedger) -> None:
        """Pop the blocks that the next decode iteration fills: vLLM takes them before it looks at who waits."""
        if self._n_parked and (n_blocks := ledger.blocks_needed(1) - self._n_ahead) > 0:
            self._n_ahead += n_blocks
            self._n_owed += n_blocks
            self._settle()

    def trim(self, sequence: Sequence, ledger: DecodeLedger) -> None:  # noqa: ARG002
        """Free the blocks that a prompt has left behind the model's window; what they hold stays findable."""
        window = self.window_tokens
        if window is None:
            return
        table: BlockTable = sequence.holding
        if sequence.resident_tokens > window:
            sequence.dropped_tokens = sequence.computed_tokens - window
            self._drop(table, table.n_blocks - -(-window // self.block_tokens))
        if not sequence.prefill_left_tokens:
            sequence.room_tokens = self._room(table)

    def fork(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        """Share a prompt's blocks; where a window will be written over, copy them as far as there is room."""
        request = sequence.request
        longest = request.prompt_tokens + request.max_output_tokens - 1
        if self.window_tokens is not None and longest > self.window_tokens:
            return self._copy_all(sequence, others, ledger)
        table: BlockTable = sequence.holding
        text = self._texts.get(sequence)
        if text is not None:
            self._name(table, text, sequence.computed_tokens)
        size, n_last = self.block_tokens, sequence.resident_tokens % self.block_tokens
        n_full = table.n_blocks - table.n_named - (n_last > 0)
        for n_tokens, n_blocks in ((n_full * size, n_full), (n_last, n_last > 0)):
            if n_tokens:
                self._index.hold_unnamed(table, n_tokens, n_blocks)
        for other in others:
            other.holding = self._index.shared(table)
            if text is not None:
                self._texts[other] = text
        self.shared_tokens += len(others) * sequence.resident_tokens
        for one in (sequence, *others):  # ask before the first of them writes
            one.room_tokens = sequence.resident_tokens if n_last else self._room(table)
        return len(others)

    def release(self, sequence: Sequence, now_ns: int) -> None:  # noqa: ARG002
        """Free a sequence's blocks, the last first; full ones stay findable until their block is taken."""
        table: BlockTable = sequence.holding
        sequence.holding = None
        n_blocks = max(table.n_blocks, -(-sequence.resident_tokens // self.block_tokens))
        is_named = self._texts.pop(sequence, None) is not None if self._texts else False
        if not sequence.is_finished and self._prefix_caching:
            is_named = True  # preempted: when it comes back, what has not been taken meanwhile is a hit
        if is_named:
            n_tokens = sequence.computed_tokens
            if sequence.dropped_tokens:  # the window has slid on over blocks of its own
                table.n_dropped = max(table.n_dropped, n_tokens // self.block_tokens - n_blocks)
            text = whole_text(sequence.request, sequence.generated_tokens)
            self._name(table, block_ranges(text, n_tokens, self.block_tokens), n_tokens)
        n_blank = n_blocks - table.n_named
        self._n_free += n_blank
        self.held_tokens -= n_blank * self.block_tokens
        if not table.runs and n_blank <= self._n_owed:
            self._n_owed -= n_blank
            return
        if self._n_owed:
            self._settle()
        self._free.park_blank(n_blank)
        if sequence.room_tokens is not None:
            sequence.room_tokens = None
        self._let_go(table, table.runs[::-1])

    def forget(self, sequence: Sequence) -> None:
        """A waiting sequence goes on in another cache; blocks it found stay for others until they are taken."""

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served even alone, or None.

        Whoever is preempted just before its last token is computed anew as a whole, window or not.
        """
        n_tokens = request.prompt_tokens + request.output_tokens - 1  # the last token's KV is never needed
        n_blocks = -(-n_tokens // self.block_tokens) + self._watermark_blocks
        if request.n_samples > 1:
            n_blocks = max(n_blocks, self._blocks_together(request, n_tokens))
        if n_blocks > self.n_blocks:
            return f"{n_blocks} KV blocks needed, the device has {self.n_blocks}"
        return None

    def counts(self) -> Mapping[str, int | float]:
        """Facts of the run."""
        return {"evicted_blocks": self._n_evicted, "kv_blocks": self.n_blocks, "copied_blocks": self._n_copied}

    def _blocks_together(self, request: Request, n_tokens: int) -> int:
        """Blocks of all answers to a prompt just before the last token of each."""
        size, window = self.block_tokens, self.window_tokens
        if window is not None and request.prompt_tokens + request.max_output_tokens - 1 > window:
            return request.n_samples * -(-min(n_tokens, window) // size)
        n_shared = request.prompt_tokens // size
        return n_shared + request.n_samples * (-(-n_tokens // size) - n_shared) + self._watermark_blocks

    def _copy_on_write(self, sequence: Sequence, free: int) -> bool:
        """A sequence writes to a block that it may share with others: unless it is the last, it needs a copy."""
        table: BlockTable = sequence.holding
        run = table.runs[-1]
        if len(run.tables) > 1:
            if free < 1:
                return False
            self._take(1)
            self._n_copied += 1
            self.copies.moved_bytes += self.block_tokens * self._bytes_per_token
            self.shared_tokens -= run.n_tokens
        del run.tables[table]
        table.runs.pop()
        table.n_named -= 1
        sequence.room_tokens = self._room(table)
        return True

    def _room(self, table: BlockTable) -> int | None:
        """When a sequence that decodes slides over blocks that it must not write to, if ever."""
        return self.window_tokens if table.runs else None

    def _slide(self, sequence: Sequence, room_tokens: int, free: int) -> bool:
        """A window begins to slide over blocks that others hold or may find: as many of its own take their place."""
        table: BlockTable = sequence.holding
        run = table.runs[0]
        n_blocks = run.n_blocks
        if len(run.tables) > 1 and n_blocks > free:
            return False
        self._drop(table, n_blocks)
        self._take(n_blocks)
        table.n_blocks += n_blocks
        sequence.room_tokens = room_tokens + n_blocks * self.block_tokens if table.runs else None
        return True

    def _drop(self, table: BlockTable, n_blocks: int) -> None:
        """Free the first blocks of a sequence."""
        if n_blocks <= 0:
            return
        if self._n_owed:
            self._settle()
        self._found = None
        left = self._index.take_front(table, n_blocks)
        n_blank = n_blocks - sum(run.n_blocks for run in left)
        self._let_go(table, left[::-1])
        self._n_free += n_blank
        self.held_tokens -= n_blank * self.block_tokens
        self._free.park_blank(n_blank)
        table.n_blocks -= n_blocks
        table.n_dropped += n_blocks

    def _copy_all(self, sequence: Sequence, others: list[Sequence], ledger: DecodeLedger) -> int:
        """Give as many as there is room for all blocks of a sequence anew. Returns how many."""
        table: BlockTable = sequence.holding
        n_blocks = table.n_blocks
        free = self._n_free - (ledger.blocks_needed(1) if ledger.members else 0)
        n_held = min(len(others), free // n_blocks)
        for other in others[:n_held]:
            self._take(n_blocks)
            other.holding = BlockTable(n_blocks, 0, table.n_dropped)
        self._n_copied += n_held * n_blocks
        self.copies.moved_bytes += n_held * n_blocks * self.block_tokens * self._bytes_per_token
        return n_held

    def _n_spare(self, ledger: DecodeLedger) -> int:
        """Free blocks, beyond what the next token of every decoding sequence takes."""
        return self._n_free - (ledger.blocks_needed(1) if ledger.members else 0)

    def _fill(self, sequence: Sequence, n_new: int, n_tokens: int) -> None:
        """A sequence gets new blocks for its next ``n_tokens``; what will be in them can be found at once."""
        table: BlockTable = sequence.holding
        if n_new > 0:
            self._take(n_new, sequence)
            table.n_blocks += n_new
        text = self._texts.get(sequence) if self._texts else None
        if text is not None:
            self._name(table, text, sequence.computed_tokens + n_tokens)

    def _looked_up(self, request: Request, generated_tokens: int | None) -> Found:
        """Full blocks of a request's text; those that it can go on from, and how many come before them.

        Who is looked up is admitted next, or looked up again: the last answer is kept while it stands.
        """
        found = self._found
        if found is None or found.request is not request or found.generated_tokens != generated_tokens:
            n_generated = generated_tokens or 0
            n_tokens = request.prompt_tokens + n_generated
            text = block_ranges(whole_text(request, n_generated), n_tokens, self.block_tokens)
            most_blocks = (n_tokens - 1) // self.block_tokens
            if self.window_tokens is None:
                n_dropped, matched = 0, self._index.match(text, most_blocks)
            else:
                n_needed = -(-self.window_tokens // self.block_tokens)
                n_dropped, matched = self._index.match_last(text, most_blocks, n_needed)
            found = self._found = Found(request, generated_tokens, text, n_dropped, matched)
        return found

    def _let_go(self, table: BlockTable, runs: list[Run]) -> None:
        """A sequence holds these no more; those that nobody does can be taken, in this order."""
        freed = []
        for run in runs:
            del run.tables[table]
            if run.tables:
                self.shared_tokens -= run.n_tokens
                continue
            self._n_free += run.n_blocks
            self.held_tokens -= run.n_blocks * self.block_tokens
            if run.key is None:
                self._free.park_blank(run.n_blocks)
                continue
            freed.append(run)
            self._n_parked += run.n_blocks
            self.idle_tokens += run.n_blocks * self.block_tokens
        if freed:
            self._free.park(freed)

    def _take(self, n_blocks: int, sequence: Sequence | None = None) -> None:
        """Take blocks that the caller knows are free, for the next part of a sequence's text if it is named."""
        self._n_free -= n_blocks
        self.held_tokens += n_blocks * self.block_tokens
        self._n_owed += n_blocks
        if self._n_parked:
            self._settle(sequence)

    def _settle(self, sequence: Sequence | None = None) -> None:
        """Pop what has been taken off the free queue; its content is forgotten.

        Policies that remember what they gave up are told for which blocks of a sequence's text they give up now.
        """
        n_blocks, self._n_owed = self._n_owed, 0
        self._found = None
        wanted = () if sequence is None else self._wanted(sequence, n_blocks)
        for unit in self._free.victims(n_blocks, wanted):
            self._n_parked -= unit.n_blocks
            self.idle_tokens -= unit.n_blocks * self.block_tokens
            self._n_evicted += unit.n_blocks
            self._forget(unit)

    def _wanted(self, sequence: Sequence, n_blocks: int) -> list[int]:
        """Keys of the blocks that continue a sequence's text after those that it holds."""
        size = self.block_tokens
        table: BlockTable = sequence.holding
        skip = table.n_dropped + table.n_blocks
        keys: list[int] = []
        for piece, first_end, n in self._texts.get(sequence, ()):
            if skip >= n:
                skip -= n
                continue
            first_key = piece + first_end
            keys += range(first_key + skip * size, first_key + n * size, size)
            skip = 0
            if len(keys) >= n_blocks:
                break
        return keys[:n_blocks]

    def _forget(self, unit: Unit) -> None:
        """What a block held has been evicted."""
        self._index.forget(unit)

    def _name(self, table: BlockTable, text: list[BlockRange], n_tokens: int) -> None:
        """Make the full blocks among a sequence's first tokens findable."""
        self._found = None
        self._index.name(table, text, n_tokens // self.block_tokens)

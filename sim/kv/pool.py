"""The blocks of a device's memory: how many are free, what free ones still hold, and who takes which.

    n_blocks  [ held by sequences ][ free: with content that can be found | blank ]
                                   '---- n_free ------------------------------- '
                                     '---- n_cached -------------------'

A block is free as soon as no sequence holds it. What is in it can be found until it is taken, and the evictor says in
which order that happens. Blank blocks are a count: it matters not which of them is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.kv.eviction import Evictor, Unit
from sim.kv.prefix import BlockTable, Match, PrefixIndex, Run
from sim.ledger import DecodeLedger
from sim.request import BlockRange, Request, block_ranges, whole_text


class BlockPool:
    """Blocks that sequences take and give back.

    Parameters
    ----------
    capacity_tokens : int
        Slots there are; a last incomplete block is not used [tokens].
    block_tokens : int
        A power of two [tokens].
    """

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        if block_tokens < 1 or block_tokens & (block_tokens - 1):
            raise ConfigError(f"cache.block_tokens must be a power of two >= 1 [tokens], got {block_tokens}")
        if capacity_tokens < block_tokens:
            raise ConfigError(f"KV capacity must hold one block of {block_tokens} tokens, got {capacity_tokens} tokens")
        self.block_tokens = block_tokens
        self.n_blocks = capacity_tokens // block_tokens
        self.n_free = self.n_blocks
        self.n_cached = 0

    @property
    def held_tokens(self) -> int:
        """Slots in blocks that sequences hold."""
        return (self.n_blocks - self.n_free) * self.block_tokens

    @property
    def cached_tokens(self) -> int:
        """Slots in free blocks with content."""
        return self.n_cached * self.block_tokens

    def n_spare(self, ledger: DecodeLedger) -> int:
        """Free blocks beyond those that the next token of every decoding sequence takes."""
        return self.n_free - (ledger.blocks_needed(1) if ledger.members else 0)

    def steps_within(self, ledger: DecodeLedger, n_steps: int) -> int:
        """How many of the next ``n_steps`` decode iterations the free blocks suffice for."""
        if self.n_free >= (n_steps // self.block_tokens + 1) * ledger.n_growing:
            return n_steps
        return min(n_steps, ledger.steps_for_blocks(self.n_free))


@dataclass(frozen=True, slots=True)
class Found:
    """What is resident of a request's text."""

    request: Request
    generated_tokens: int | None
    text: list[BlockRange]  # its full blocks
    n_dropped: int  # of these, before those found: a window does not need them
    matched: list[Match]
    n_blocks: int  # that it can go on from, dropped ones included

    def but(self, n_dropped: int) -> "Found":
        """Nothing of it: its window is brought from elsewhere."""
        return replace(self, n_dropped=n_dropped, matched=[], n_blocks=n_dropped)


class PrefixPool(BlockPool):
    """Blocks whose content is found by the text that they continue: vLLM's block pool.

    The evictor is the free queue, blank blocks included. While no free block has content, blocks are taken and given
    back without it, and only counted: it matters not which. The count is popped when one has.

    Parameters
    ----------
    eviction : callable
        Makes the evictor of so many blocks, all free.
    """

    def __init__(self, capacity_tokens: int, block_tokens: int, eviction: Callable[[int], Evictor]) -> None:
        super().__init__(capacity_tokens, block_tokens)
        self.free_queue = eviction(self.n_blocks)
        self.index = PrefixIndex(block_tokens, self.free_queue)
        self.shared_tokens = 0  # slots read by one more sequence than hold them
        self.n_evicted = 0
        self._found: Found | None = None  # the last look-up, while it stands
        self.on_evict: Callable[[Unit], None] | None = None  # told before what a block holds is forgotten
        self.n_unpopped = 0  # taken, and still in the free queue; below 0: popped, and not taken
        self.n_reserved = 0  # popped for the next decode iteration, and not taken yet

    def look_up(self, request: Request, generated_tokens: int | None, window_blocks: int | None) -> Found:
        """Blocks that a request can go on from; with a window of so many it needs only the last of them.

        Who is looked up is admitted next, or looked up again: the last answer is kept while it stands.
        """
        found = self._found
        if found is None or found.request is not request or found.generated_tokens != generated_tokens:
            n_generated = generated_tokens or 0
            n_tokens = request.prompt_tokens + n_generated
            text = block_ranges(whole_text(request, n_generated), n_tokens, self.block_tokens)
            most_blocks = (n_tokens - 1) // self.block_tokens
            if window_blocks is None:
                n_dropped, matched = 0, self.index.match(text, most_blocks)
            else:
                n_dropped, matched = self.index.match_last(text, most_blocks, window_blocks)
            n_blocks = n_dropped
            for _, _, n_matched in matched:
                n_blocks += n_matched
            found = self._found = Found(request, generated_tokens, text, n_dropped, matched, n_blocks)
        return found

    def hold(self, table: BlockTable, matched: list[Match]) -> None:
        """A sequence that holds nothing yet holds blocks that were found."""
        for run, _, n_blocks in matched:
            if run.is_parked:
                self.n_free -= n_blocks
                self.n_cached -= n_blocks
            else:
                self.shared_tokens += n_blocks * self.block_tokens
        for run, offset, n_blocks in reversed(matched):  # a cut leaves what is left of it as it was
            self.index.claim(table, run, offset, n_blocks)
        table.runs.reverse()

    def take(self, n_blocks: int, table: BlockTable | None = None) -> None:
        """Take blocks that the caller knows are free; for the text that continues a table's, where that is known."""
        self.n_free -= n_blocks
        self.n_unpopped += n_blocks
        if self.n_cached:
            self._pop(table)

    def grow(self, n_blocks: int) -> None:
        """Take the blocks that decode iterations have filled."""
        self.n_free -= n_blocks
        self.n_unpopped += n_blocks - self.n_reserved
        self.n_reserved = 0
        if self.n_cached:
            self._pop(None)

    def reserve(self, n_blocks: int) -> None:
        """Pop the blocks that the next decode iteration is to fill, so that what they hold is found no more."""
        if self.n_cached and n_blocks > self.n_reserved:
            self.n_unpopped += n_blocks - self.n_reserved
            self.n_reserved = n_blocks
            self._pop(None)

    def name(self, table: BlockTable, text: list[BlockRange], n_tokens: int) -> None:
        """Make the full blocks among a sequence's first tokens findable."""
        self._found = None
        self.index.name(table, text, n_tokens // self.block_tokens)

    def drop(self, table: BlockTable, n_blocks: int, is_hashed: bool = False) -> None:
        """A sequence gives back its first blocks and goes on; an engine has a hash for those of a text of its own."""
        if n_blocks <= 0:
            return
        if self.n_unpopped:
            self._pop(None)
        self._found = None
        left = self.index.take_front(table, n_blocks)
        n_blank = n_blocks - sum(run.n_blocks for run in left)
        self._let_go(table, left[::-1])
        self.n_free += n_blank
        self.free_queue.park_blank(n_blank, is_hashed)
        table.n_blocks -= n_blocks
        table.n_dropped += n_blocks

    def release(self, table: BlockTable, n_blocks: int, n_hashed: int = 0) -> None:
        """A sequence gives back all of its blocks, so many, the last first.

        Of those that nobody can ask for, an engine has a hash for so many.
        """
        n_blank = n_blocks - table.n_named
        self.n_free += n_blank
        if not table.runs and n_blank <= self.n_unpopped:
            self.n_unpopped -= n_blank
            return
        if self.n_unpopped:
            self._pop(None)
        n_hashed = min(n_hashed, n_blank)
        self.free_queue.park_blank(n_blank - n_hashed)
        self.free_queue.park_blank(n_hashed, is_hashed=True)
        self._let_go(table, table.runs[::-1])

    def stop_sharing(self, table: BlockTable) -> bool:
        """A sequence gives up its last block, which others may hold. Returns whether others do."""
        run = table.runs.pop()
        del run.tables[table]
        table.n_named -= 1
        if run.tables:
            self.shared_tokens -= run.n_tokens
        return len(run.tables) > 0

    def _let_go(self, table: BlockTable, runs: list[Run]) -> None:
        """A sequence holds these no more; those that nobody does can be taken, in this order."""
        freed = []
        for run in runs:
            del run.tables[table]
            if run.tables:
                self.shared_tokens -= run.n_tokens
                continue
            self.n_free += run.n_blocks
            if run.key is None:
                self.free_queue.park_blank(run.n_blocks)
                continue
            freed.append(run)
            self.n_cached += run.n_blocks
        if freed:
            self.free_queue.park(freed)

    def _pop(self, table: BlockTable | None) -> None:
        """Pop what has been taken off the free queue; its content is forgotten.

        Policies that remember what they gave up are told for which blocks of a text they give up now.
        """
        n_blocks = self.n_unpopped
        if n_blocks <= 0:  # the iteration that blocks were reserved for has failed: they serve those who take some now
            return
        self.n_unpopped = 0
        self._found = None
        wanted = () if table is None else table.continues_with(n_blocks, self.block_tokens)
        for unit in self.free_queue.victims(n_blocks, wanted):
            self.n_cached -= unit.n_blocks
            self.n_evicted += unit.n_blocks
            if self.on_evict is not None:
                self.on_evict(unit)
            self.index.forget(unit)

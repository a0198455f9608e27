"""Which text is resident, in runs of blocks: the index behind prefix reuse.

    text     | system prompt     | turn 1   | answer | turn 2      |          pieces with an identity
    blocks   |.....|.....|.....|.....|.....|.....|.....|.....|.....|         each named by the piece it ends in
    runs     [ held by 40         ][ held by this conversation ....]         blocks that are held and freed together

Blocks that one sequence computed in a row, and that the same sequences hold, are one `Run`. A run is cut where a
request shares only part of it. So a request costs as many steps as its text has pieces, not blocks; what can be found
and in which order it is given up is the same, block for block.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from mypy_extensions import mypyc_attr

from sim.kv.eviction import Divider, Evictor, Unit
from sim.request import BlockRange

Match = tuple["Run", int, int]
"""Blocks found in a run: (run, how many of its blocks come before, how many are meant)."""


class BlockTable:
    """Blocks of one sequence: those with an identity or with other holders first, in order, the rest as a count."""

    __slots__ = ("n_blocks", "n_dropped", "n_named", "runs", "text")

    def __init__(
        self, n_blocks: int = 0, n_named: int = 0, n_dropped: int = 0, text: list[BlockRange] | None = None
    ) -> None:
        self.n_blocks = n_blocks
        self.n_named = n_named  # of these, in `runs`
        self.n_dropped = n_dropped  # of its text, before these
        self.text = text  # full blocks of its prompt, where they are to be found
        self.runs: list[Run] = []

    def continues_with(self, n_blocks: int, block_tokens: int) -> list[int]:
        """Keys of the next blocks of its text, as far as they are known."""
        skip = self.n_dropped + self.n_blocks
        keys: list[int] = []
        for piece, first_end, n in self.text or ():
            if skip >= n:
                skip -= n
                continue
            first_key = piece + first_end
            keys += range(first_key + skip * block_tokens, first_key + n * block_tokens, block_tokens)
            skip = 0
            if len(keys) >= n_blocks:
                break
        return keys[:n_blocks]


@dataclass(slots=True, eq=False)
class Run(Unit):
    """Consecutive full blocks of one piece of text; without a key, blocks that are not to be found but are shared."""

    index: "PrefixIndex | None" = None  # where it can be found
    first_end: int = 0  # tokens of the text up to the end of its first block
    born: int = 0  # when it was made, counted; its cuttings are as old
    tables: dict[BlockTable, None] = field(default_factory=dict)  # who holds it

    def last(self, n_blocks: int) -> "Run":
        """Its last blocks as a run of their own, to say what is given up."""
        size = self.n_tokens // self.n_blocks
        first_end = self.first_end + (self.n_blocks - n_blocks) * size
        return Run(
            self.key,
            size * n_blocks,
            n_blocks,
            is_divisible=self.is_divisible,
            index=self.index,
            first_end=first_end,
            born=self.born,
        )

    def cut(self, n_blocks: int) -> "Run":
        """Keep its first blocks; whoever holds it holds the rest too, which is found like it."""
        rest = self.last(self.n_blocks - n_blocks)
        rest.n_hits, rest.is_parked = self.n_hits, self.is_parked
        self.n_blocks = n_blocks
        self.n_tokens -= rest.n_tokens
        rest.tables = dict(self.tables)
        for table in rest.tables:
            table.runs.insert(table.runs.index(self) + 1, rest)
        if self.index is not None:
            self.index.add(rest)
            if self.index.divider is not None:
                self.index.divider.divide(self, rest)
        return rest

    def block_keys(self) -> Sequence[int]:
        """Identities of its blocks, the last first."""
        if self.key is None:
            return ()
        if self.index is None or not self.is_divisible:
            return (self.key,)
        size = self.index.block_tokens
        first_key = self.key + self.first_end
        return range(first_key + (self.n_blocks - 1) * size, first_key - 1, -size)


@mypyc_attr(allow_interpreted_subclasses=True)
class Listener(ABC):
    """Who is told what can be found: vLLM's KV cache events ``BlockStored`` and ``BlockRemoved``, a row at a time."""

    @abstractmethod
    def stored(self, blocks: BlockRange) -> None:
        """Blocks of a text can be found."""
        ...

    @abstractmethod
    def removed(self, blocks: BlockRange) -> None:
        """A copy of some blocks has been evicted; there may be others."""
        ...


class PrefixIndex:
    """Runs by the text they hold.

    Parameters
    ----------
    block_tokens : int
    evictor : Evictor
        Orders what nobody holds. Runs are longer than a block if it can give up part of one.
    """

    def __init__(self, block_tokens: int, evictor: Evictor) -> None:
        self.block_tokens = block_tokens
        self.divider = evictor if isinstance(evictor, Divider) else None
        self._evictor = evictor
        self._runs: dict[int, list[Run]] = {}  # by piece, or by block where runs are not divisible; the oldest first
        self._n_born = 0
        self.listener: Listener | None = None

    def match(self, text: list[BlockRange], most_blocks: int) -> list[Match]:
        """The longest resident part of a text from its start, of at most so many blocks."""
        size = self.block_tokens
        matched: list[Match] = []
        left = most_blocks
        for piece, end, n_blocks in text:
            n_blocks = min(n_blocks, left)
            left -= n_blocks
            while n_blocks:
                run, n_found = self._find(piece, end, n_blocks)
                if run is None:
                    return matched
                offset = (end - run.first_end) // size
                matched.append((run, offset, n_found))
                n_blocks -= n_found
                end += n_found * size
            if not left:
                break
        return matched

    def match_last(self, text: list[BlockRange], most_blocks: int, n_needed: int) -> tuple[int, list[Match]]:
        """The furthest blocks of a text that are resident in a row: ``n_needed``, or fewer from its start.

        Returns how many blocks come before them, and them.
        """
        size = self.block_tokens
        found: tuple[int, list[Match]] = (0, [])
        row: list[Match] = []
        start = stop = 0  # of the row
        left = most_blocks
        for piece, end, n_blocks in text:
            n_blocks = min(n_blocks, left)
            left -= n_blocks
            while n_blocks:
                run, n_found = self._find(piece, end, n_blocks)
                stop += n_found
                if run is None:
                    row, start = [], stop
                else:
                    row.append((run, (end - run.first_end) // size, n_found))
                    if not start or stop - start >= n_needed:
                        found = (start, row)
                n_blocks -= n_found
                end += n_found * size
            if not left:
                break
        n_before, row = found
        n_more = sum(n_found for _, _, n_found in row) - n_needed
        while n_more > 0:
            run, offset, n_found = row.pop(0)
            n_skipped = min(n_found, n_more)
            if n_skipped < n_found:
                row.insert(0, (run, offset + n_skipped, n_found - n_skipped))
            n_before += n_skipped
            n_more -= n_skipped
        return n_before, row

    def _find(self, piece: int, end: int, most_blocks: int) -> tuple[Run | None, int]:
        """The oldest run that holds the block of a piece that ends there, or None, and for how many blocks it is."""
        size = self.block_tokens
        key, n_found = (piece, most_blocks) if self.divider is not None else (piece + end, 1)
        for run in self._runs.get(key, ()):
            if end < run.first_end:
                n_found = min(n_found, (run.first_end - end) // size)
            elif end < run.first_end + run.n_blocks * size:
                return run, min(n_found, run.n_blocks - (end - run.first_end) // size)
        return None, n_found

    def name(self, table: BlockTable, text: list[BlockRange], most_blocks: int) -> None:
        """Make a sequence's full blocks findable, the first ``most_blocks`` of its text that are not yet."""
        size = self.block_tokens
        skip, left = table.n_dropped + table.n_named, most_blocks
        for piece, end, n_blocks in text:
            n_blocks = min(n_blocks, left)
            left -= n_blocks
            if skip >= n_blocks:
                skip -= n_blocks
            else:
                end += skip * size
                n_blocks -= skip
                skip = 0
                table.n_named += n_blocks
                if self.listener is not None:
                    self.listener.stored((piece, end, n_blocks))
                last = table.runs[-1] if table.runs else None
                if self.divider is None:
                    for block_end in range(end, end + n_blocks * size, size):
                        self._make(table, piece + block_end, block_end, 1)
                elif (
                    last is not None
                    and last.key == piece
                    and last.first_end + last.n_blocks * size == end
                    and len(last.tables) == 1
                    and not last.n_hits  # what is new has had none
                    and len(self._runs[piece]) == 1  # an older or younger twin keeps its age apart
                ):
                    last.n_blocks += n_blocks
                    last.n_tokens += n_blocks * size
                else:
                    self._make(table, piece, end, n_blocks)
            if not left:
                break

    def claim(self, table: BlockTable, run: Run, offset: int, n_blocks: int) -> None:
        """A sequence holds blocks that were found; their run is cut so that they are one of their own."""
        if offset:
            run = run.cut(offset)
        if n_blocks < run.n_blocks:
            if run.is_parked and self.divider is not None:
                self._claim_first(table, run, n_blocks, self.divider)
                return
            run.cut(n_blocks)
        self._evictor.claim((run,))
        self._hold(table, run)

    def _claim_first(self, table: BlockTable, run: Run, n_blocks: int, divider: Divider) -> None:
        """A sequence holds the first blocks of a parked run; the rest keeps its place in the order of eviction."""
        size = self.block_tokens
        first = Run(
            run.key,
            n_blocks * size,
            n_blocks,
            n_hits=run.n_hits,
            is_divisible=True,
            index=self,
            first_end=run.first_end,
            born=run.born,
        )
        run.first_end += n_blocks * size
        run.n_tokens -= n_blocks * size
        run.n_blocks -= n_blocks
        self.add(first)
        divider.claim_part(run, first)
        self._hold(table, first)

    def hold_unnamed(self, table: BlockTable, n_tokens: int, n_blocks: int) -> None:
        """Blocks of a sequence that have no identity become a run, so that others can hold them too."""
        table.n_named += n_blocks
        self._hold(table, Run(None, n_tokens, n_blocks))

    def shared(self, table: BlockTable) -> BlockTable:
        """A table of a further sequence that holds all that one holds; its blocks are all in runs."""
        other = BlockTable(table.n_blocks, table.n_named, text=table.text)
        for run in table.runs:
            self._hold(other, run)
        return other

    def take_front(self, table: BlockTable, n_blocks: int) -> list[Run]:
        """Take the first blocks of a sequence out of its table, as far as they are named; it still holds the runs."""
        left: list[Run] = []
        while table.runs and n_blocks:
            run = table.runs[0]
            if run.n_blocks > n_blocks:
                run.cut(n_blocks)
            left.append(table.runs.pop(0))
            table.n_named -= run.n_blocks
            n_blocks -= run.n_blocks
        return left

    def ranges(self, run: Unit) -> list[BlockRange]:
        """The text of a run."""
        if run.key is None or not isinstance(run, Run):
            return []
        return [(run.key if self.divider is not None else run.key - run.first_end, run.first_end, run.n_blocks)]

    def forget(self, run: Unit) -> None:
        """What a run held has been evicted."""
        if run.key is not None and isinstance(run, Run):
            if self.listener is not None:
                for blocks in self.ranges(run):
                    self.listener.removed(blocks)
            twins = self._runs[run.key]
            place = bisect_left(twins, _age(run), key=_age)
            if place < len(twins) and twins[place] is run:  # what is part of a run is not listed
                del twins[place]
            if not twins:
                del self._runs[run.key]

    def add(self, run: Run) -> None:
        """A run can be found."""
        if run.key is None:
            return
        twins = self._runs.setdefault(run.key, [])
        if not twins or twins[-1].born < run.born:
            twins.append(run)
        else:
            twins.insert(bisect_left(twins, _age(run), key=_age), run)

    def _make(self, table: BlockTable, key: int, first_end: int, n_blocks: int) -> None:
        self._n_born += 1
        run = Run(
            key,
            n_blocks * self.block_tokens,
            n_blocks,
            is_divisible=self.divider is not None,
            index=self,
            first_end=first_end,
            born=self._n_born,
        )
        self.add(run)
        self._hold(table, run)

    @staticmethod
    def _hold(table: BlockTable, run: Run) -> None:
        run.tables[table] = None
        table.runs.append(run)


def _age(run: Run) -> tuple[int, int]:
    """What twins are in order of: when they were made, and of the cuttings of one where they begin."""
    return run.born, run.first_end

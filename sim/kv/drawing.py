"""Who holds which part of a cache's memory, to draw it: looks, and changes nothing.

Extents lie where their allocator has put them. Blocks have no numbers in the simulator, for any free one is as good as
any other: here the lowest free numbers are given, and a sequence keeps its numbers as long as it holds the blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sim.errors import ConfigError
from sim.kv.contiguous import ContiguousCache
from sim.kv.paged import PagedCache
from sim.kv.pruned import PrunedCache
from sim.ledger import DecodeLedger
from sim.sequence import Sequence

FREE, SHARED, IDLE, EMPTY = -1, -2, -3, -4
"""Owners that are no request: nobody; several; what is kept for reuse; held, but no token is in it yet."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Units of memory that belong together."""

    key: Any
    owner: int  # a request's id, or one of the above
    n_units: int
    first: int | None = None  # where it lies, where that is known
    readers: tuple[int, ...] = ()  # ids of the requests that read it


def unit_tokens(cache: Any) -> int:
    """Tokens of a unit: a block, or a slot of an extent."""
    return int(cache.block_tokens)


def holdings(cache: Any, sequences: list[Sequence], ledger: DecodeLedger) -> list[Holding]:
    """What is held, and what is kept for reuse.

    Raises
    ------
    ConfigError
        Of a cache that is made of several.
    """
    if isinstance(cache, ContiguousCache):
        return list(_extents(cache, sequences, ledger))
    if isinstance(cache, PrunedCache):
        return list(_pruned(cache, sequences, ledger))
    if isinstance(cache, PagedCache):
        return list(_paged(cache, sequences, ledger))
    raise ConfigError("task=explain draws one cache, and not cache=by_class or one of your own")


def _resident(sequence: Sequence, ledger: DecodeLedger) -> int:
    """Tokens in the cache, of a decoding sequence by the ledger."""
    if ledger.members.get(sequence.order) is sequence:
        return ledger.resident_of(sequence)
    return sequence.resident_tokens


def _extents(cache: ContiguousCache, sequences: list[Sequence], ledger: DecodeLedger) -> Iterator[Holding]:
    taken = set()
    for sequence in sequences:
        extent = sequence.holding
        size = cache._allocator.size_of(extent.offset)
        live = min(_resident(sequence, ledger), size)
        taken.add(extent.offset)
        yield Holding(("live", extent.offset), sequence.request.id, live, extent.offset, (sequence.request.id,))
        if size > live:
            yield Holding(("empty", extent.offset), EMPTY, size - live, extent.offset + live)
    for idle in cache._idle._left.values():
        offset = idle.holding.offset
        taken.add(offset)
        yield Holding(("idle", offset), IDLE, cache._allocator.size_of(offset), offset)
    for offset in cache._leaving:
        if offset not in taken:
            yield Holding(("leaving", offset), EMPTY, cache._allocator.size_of(offset), offset)


def _pruned(cache: PrunedCache, sequences: list[Sequence], ledger: DecodeLedger) -> Iterator[Holding]:
    for sequence in sequences:
        n_blocks = max(sequence.holding.n_blocks, -(-_resident(sequence, ledger) // cache.block_tokens))
        yield Holding(("own", sequence.order), sequence.request.id, n_blocks, None, (sequence.request.id,))
    for session, idle in cache._idle._left.items():
        yield Holding(("idle", session), IDLE, idle.holding.n_blocks)


def _paged(cache: PagedCache, sequences: list[Sequence], ledger: DecodeLedger) -> Iterator[Holding]:
    owner_of = {id(sequence.holding): sequence.request.id for sequence in sequences}
    seen = set()
    for sequence in sequences:
        table = sequence.holding
        n_held = max(table.n_blocks, -(-_resident(sequence, ledger) // cache.block_tokens))
        for run in table.runs:
            n_held -= run.n_blocks
            if id(run) not in seen:
                seen.add(id(run))
                readers = tuple(owner_of[id(one)] for one in run.tables if id(one) in owner_of)
                owner = SHARED if len(readers) > 1 else sequence.request.id
                yield Holding(("run", id(run)), owner, run.n_blocks, None, readers)
        if n_held > 0:
            yield Holding(("own", sequence.order), sequence.request.id, n_held, None, (sequence.request.id,))
    for runs in cache.pool.index._runs.values():
        for run in runs:
            if id(run) not in seen and run.is_parked:
                yield Holding(("run", id(run)), IDLE, run.n_blocks)


@dataclass(slots=True)
class Map:
    """Numbers for units that have none: the lowest that are free, kept as long as they are held."""

    n_units: int
    _places: dict[Any, list[int]] = field(default_factory=dict)

    def place(self, held: list[Holding]) -> list[int]:
        """The owner of every unit."""
        owners = [FREE] * self.n_units
        wanted = {one.key: one for one in held}
        self._places = {key: of[: wanted[key].n_units] for key, of in self._places.items() if key in wanted}
        for one in held:
            if one.first is not None:
                self._places[one.key] = list(range(one.first, min(one.first + one.n_units, self.n_units)))
        taken = {unit for of in self._places.values() for unit in of}
        free = iter([unit for unit in range(self.n_units) if unit not in taken])
        for one in held:
            mine = self._places.setdefault(one.key, [])
            while len(mine) < one.n_units:
                unit = next(free, None)
                if unit is None:
                    break
                mine.append(unit)
            for unit in mine:
                owners[unit] = one.owner
        return owners

    def table_of(self, held: list[Holding], request_id: int) -> list[int]:
        """Units that a request reads, as they were placed last."""
        return [unit for one in held if request_id in one.readers for unit in self._places.get(one.key, ())]

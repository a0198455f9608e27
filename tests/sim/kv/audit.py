"""Bookkeeping of a cache, checked from inside: every slot has one owner, or several who share it, or is free."""

from collections.abc import Iterable

from sim.engine import Replica
from sim.kv.contiguous import ContiguousCache
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.paged import PagedCache
from sim.kv.prefix import Run
from sim.kv.pruned import PrunedCache
from sim.ledger import DecodeLedger
from sim.sequence import Sequence


def audit(replica: Replica) -> None:
    """Blocks, slots and tokens are conserved now, between two iterations."""
    kv, ledger = replica.kv, replica.ledger
    admitted = [
        *dict.fromkeys((*ledger, *replica.batch.partial, *replica.batch.leaving, *replica.handed_over))
    ]  # some leave while they decode
    resident = {one: resident_now(one, ledger) for one in admitted}
    assert kv.held_tokens >= 0
    assert kv.idle_tokens >= 0
    assert kv.held_tokens + kv.idle_tokens <= kv.capacity_tokens
    assert kv.external_tokens >= 0
    assert sum(resident.values()) - kv.shared_tokens <= kv.held_tokens, "every resident token has a slot"
    assert kv.rounding_tokens is None or 0 <= kv.rounding_tokens <= kv.held_tokens
    if len(replica.batch.waiting):
        assert replica.batch.waiting.head().holding is None, "who waits holds nothing"
    if isinstance(kv, ContiguousCache):
        audit_extents(kv, admitted)
    elif isinstance(kv, PrunedCache):
        audit_own_blocks(kv, resident)
    elif isinstance(kv, PagedCache):
        audit_blocks(kv, resident)
    if isinstance(kv, HierarchicalCache):
        audit_tiers(kv)


def resident_now(sequence: Sequence, ledger: DecodeLedger) -> int:
    """Resident tokens of an admitted sequence, decoding or not."""
    return ledger.resident_of(sequence) if sequence.order in ledger.members else sequence.resident_tokens


def audit_extents(kv: ContiguousCache, admitted: Iterable[Sequence]) -> None:
    """Extents lie apart, and together with the holes they are the row."""
    allocator = kv._allocator
    own = [one.holding for one in admitted] + [extent for spare in kv._spare.values() for extent in spare]
    held = [extent.offset for extent in own] + kv._leaving
    idle = [left.holding.offset for left in kv._idle._left.values()]
    stop = 0
    for offset in sorted(held + idle):
        assert offset >= stop, "two owners of a slot"
        stop = offset + allocator.size_of(offset)
    assert kv.held_tokens == sum(allocator.size_of(offset) for offset in held)
    assert kv.idle_tokens == sum(allocator.size_of(offset) for offset in idle)
    assert kv.held_tokens + kv.idle_tokens + allocator.free_tokens == allocator.capacity_tokens
    assert kv.rounding_tokens == sum(allocator.size_of(extent.offset) - extent.n_tokens for extent in own)
    assert len(kv._idle._order) == kv._idle.n_blocks == kv.idle_tokens
    assert all(session_id == left.unit.key for session_id, left in kv._idle._left.items())


def audit_own_blocks(kv: PrunedCache, resident: dict[Sequence, int]) -> None:
    """Blocks of sequences, of idle conversations and free ones are all there are."""
    n_held = sum(
        one.holding.n_copies * max(one.holding.n_blocks, kv._blocks_for(n_tokens)) for one, n_tokens in resident.items()
    )
    n_idle = sum(left.holding.n_blocks for left in kv._idle._left.values())
    assert kv.pool.n_cached == n_idle
    assert n_held + kv.pool.n_free == kv.pool.n_blocks
    assert kv.held_tokens == n_held * kv.block_tokens
    assert kv.idle_tokens == n_idle * kv.block_tokens
    assert len(kv._idle._order) == kv._idle.n_blocks == n_idle
    most = kv._most_tokens
    assert most is None or all(n_tokens <= most for n_tokens in resident.values())


def audit_blocks(kv: PagedCache, resident: dict[Sequence, int]) -> None:
    """A run of blocks is held by the tables that list it, once each; what nobody holds is parked, or blank."""
    size = kv.block_tokens
    tables = {one.holding for one in resident}
    runs: dict[Run, int] = {}  # held ones, and by how many tables
    for table in tables:
        assert len(set(table.runs)) == len(table.runs), "a table lists a block twice"
        assert table.n_named == sum(run.n_blocks for run in table.runs)
        for run in table.runs:
            assert table in run.tables
            runs[run] = runs.get(run, 0) + 1
    for run, n_tables in runs.items():
        assert set(run.tables) <= tables, "a block is held by somebody who is gone"
        assert len(run.tables) == n_tables
        assert not run.is_parked, "a held block could be evicted"
    listed = [run for twins in kv.pool.index._runs.values() for run in twins]
    assert len(set(listed)) == len(listed)
    parked = [run for run in listed if not run.tables]
    assert all(run.is_parked for run in parked)
    assert kv.idle_tokens == sum(run.n_blocks for run in parked) * size
    n_blank = sum(max(one.holding.n_blocks, -(-n // size)) - one.holding.n_named for one, n in resident.items())
    n_held = sum(run.n_blocks for run in runs) + n_blank
    assert kv.held_tokens == n_held * size
    pool = kv.pool
    assert n_held + pool.n_free == pool.n_blocks
    assert len(pool.free_queue) == pool.n_free + pool.n_unpopped - pool.n_reserved, "the free queue holds what is free"
    assert kv.shared_tokens == sum((n_tables - 1) * run.n_tokens for run, n_tables in runs.items())


def audit_tiers(kv: HierarchicalCache) -> None:
    """No tier keeps more than it has room for, and nobody holds what is there."""
    for tier in kv.tiers.tiers:
        runs = [run for twins in tier._index._runs.values() for run in twins]
        assert sum(run.n_blocks for run in runs) <= tier.n_blocks
        assert all(run.is_parked and not run.tables for run in runs)
        assert tier.n_held == sum(run.n_blocks for run in runs)

"""Blocks that are taken, reserved and given back: the free queue holds what is free."""

from sim.kv.eviction import Lru
from sim.kv.pool import PrefixPool
from sim.kv.prefix import BlockTable

TEXT = [(7, 4, 6)]  # six full blocks of one piece


def pool_with_content() -> PrefixPool:
    """Ten blocks of 4 tokens, six of which hold a text that nobody reads now."""
    pool = PrefixPool(40, 4, Lru)
    table = BlockTable(6, text=TEXT)
    pool.take(6)
    pool.name(table, TEXT, 24)
    pool.release(table, 6)
    assert (pool.n_free, pool.n_cached) == (10, 6)
    return pool


def is_balanced(pool: PrefixPool) -> bool:
    return len(pool.free_queue) == pool.n_free + pool.n_unpopped - pool.n_reserved


def test_reserved_blocks_are_those_that_the_next_iteration_takes():
    pool = pool_with_content()
    pool.reserve(5)
    assert (pool.n_free, pool.n_cached, pool.n_evicted) == (10, 5, 1), "four blank ones, and the text's last"
    pool.grow(5)
    assert (pool.n_free, pool.n_cached, pool.n_evicted) == (5, 5, 1)
    assert is_balanced(pool)


def test_blocks_reserved_for_an_iteration_that_failed_are_taken_before_others():
    pool = pool_with_content()
    pool.reserve(5)
    pool.grow(2)  # another iteration than the one that they were reserved for
    assert is_balanced(pool)
    pool.take(3)
    assert (pool.n_free, pool.n_cached, pool.n_evicted) == (5, 5, 1), "the five that were popped"
    pool.take(5)
    assert (pool.n_free, pool.n_cached, len(pool.free_queue)) == (0, 0, 0)
    pool.release(BlockTable(10), 10)
    assert is_balanced(pool)

import pytest

from sim.errors import InvariantError
from sim.kv.eviction import Lru, Unit


def units(*keys: int) -> list[Unit]:
    return [Unit(key, 4) for key in keys]


def keys(evicted: list[Unit]) -> list[int | None]:
    return [unit.key for unit in evicted]


def test_the_queue_of_vllms_worked_example():
    """Ten blocks of four tokens; the free queue ends 7-8-9-4-3-2-6-5-1-0, where 4 and 6 are not full."""
    evictor = Lru(10)
    evictor.victims(5)  # request 0: blocks 0 to 4
    evictor.victims(2)  # request 1: shares 0 and 1, takes 5 and 6
    b0, b1, b2, b3, b5 = units(0, 1, 2, 3, 5)
    evictor.park_blank(1)  # request 0 ends: 4, then 3 and 2; request 1 still holds 0 and 1
    evictor.park([b3, b2])
    evictor.park_blank(1)  # request 1 ends: 6, then 5, 1 and 0
    evictor.park([b5, b1, b0])
    evictor.claim([b0, b1, b2])  # 29 tokens of which 12 are cached: five more blocks, 7, 8, 9, 4 and 3
    assert keys(evictor.victims(5)) == [3]
    assert keys(evictor.victims(2)) == [5]  # 6 and 5
    assert len(evictor) == 0


def test_blank_blocks_wait_their_turn_between_units():
    evictor = Lru(6)
    evictor.victims(6)
    a, b = units(1, 2)
    evictor.park([a])
    evictor.park_blank(3)
    evictor.park([b])
    evictor.park_blank(1)
    assert [keys(evictor.victims(2)), keys(evictor.victims(2)), keys(evictor.victims(2))] == [[1], [], [2]]


def test_a_claimed_unit_returns_to_the_tail():
    evictor = Lru(3)
    evictor.victims(3)
    a, b, c = units(1, 2, 3)
    evictor.park([a, b, c])
    evictor.claim([a])
    assert len(evictor) == 2
    evictor.park([a])
    assert keys(evictor.victims(3)) == [2, 3, 1]


def test_a_block_freed_twice_is_refused():
    evictor = Lru(2)
    (a,) = units(1)
    evictor.victims(2)
    evictor.park([a])
    with pytest.raises(InvariantError, match="parked twice"):
        evictor.park([a])
    with pytest.raises(InvariantError, match="freed twice"):
        evictor.park_blank(2)


def test_more_blocks_than_are_free_are_refused():
    with pytest.raises(InvariantError, match="4 blocks asked"):
        Lru(3).victims(4)

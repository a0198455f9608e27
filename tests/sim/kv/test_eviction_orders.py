"""Flat streams of references against libCacheSim, which is exact: every hit and every miss, reference by reference."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sim.errors import ConfigError, InvariantError
from sim.kv.eviction import Arc, Belady, BlankFirst, Evictor, Fifo, Gdsf, Lfu, Lru, S3Fifo, Unit

EXACT = {
    "LRU": Lru,
    "FIFO": partial(BlankFirst, order=Fifo),
    "LFU": partial(BlankFirst, order=Lfu),
    "S3FIFO": partial(BlankFirst, order=S3Fifo),
    "ARC": partial(BlankFirst, order=Arc),
}
ONLINE = EXACT | {"GDSF": partial(BlankFirst, order=Gdsf)}


def skewed(seed: int, n_keys: int) -> list[int]:
    """400 references, popular keys often, the popular ones changing halfway."""
    rng = np.random.default_rng(seed)
    ranks = np.floor(n_keys * rng.random(400) ** 3).astype(int)
    ranks[200:] = (ranks[200:] + n_keys // 4) % n_keys
    return [int(rank) for rank in ranks]


skewed_streams = st.builds(skewed, st.integers(0, 10**6), st.integers(30, 120))


def hits(evictor: Evictor, stream: list[int]) -> list[bool]:
    """Whether each reference finds its unit, in a cache that makes room before it takes in what is missing."""
    resident: dict[int, Unit] = {}
    found = []
    for key in stream:
        unit = resident.get(key)
        found.append(unit is not None)
        if unit is None:
            for evicted in evictor.victims(1, (key,)):
                del resident[evicted.key]
            unit = resident[key] = Unit(key, 16, cost=1e6)
        else:
            evictor.claim([unit])
        evictor.park([unit])
    return found


def oracle_hits(name: str, capacity: int, stream: list[int]) -> list[bool]:
    libcachesim = pytest.importorskip("libcachesim", reason="the oracle is not installed")
    cache = getattr(libcachesim, name)(cache_size=capacity, hashpower=10)
    request = libcachesim.Request()
    request.obj_size = 1
    found = []
    for time, key in enumerate(stream):
        request.obj_id, request.clock_time = key, time
        found.append(cache.get(request))
    return found


@pytest.mark.parametrize("name", EXACT)
@given(stream=skewed_streams, capacity=st.integers(20, 40))
@settings(max_examples=60, deadline=None)
def test_a_policy_agrees_with_libcachesim_on_every_reference(name, stream, capacity):
    assert hits(EXACT[name](capacity), stream) == oracle_hits(name, capacity, stream)


@given(stream=skewed_streams, capacity=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_gdsf_agrees_with_libcachesim_that_takes_in_before_it_gives_up(stream, capacity):
    evictor = BlankFirst(capacity + 1, Gdsf)
    evictor.victims(capacity + 1)
    resident: dict[int, Unit] = {}
    found = []
    for key in stream:
        unit = resident.get(key)
        found.append(unit is not None)
        if unit is None:
            unit = resident[key] = Unit(key, 16, cost=1e6)
        else:
            evictor.claim([unit])
        evictor.park([unit])
        if len(evictor) > capacity:
            for evicted in evictor.victims(1):
                del resident[evicted.key]
    assert found == oracle_hits("GDSF", capacity, stream)


@pytest.mark.parametrize("name", ONLINE)
@given(stream=skewed_streams, capacity=st.integers(20, 30))
@settings(max_examples=30, deadline=None)
def test_no_policy_hits_more_than_belady(name, stream, capacity):
    bound = BlankFirst(capacity, partial(Belady, future=stream))
    assert sum(hits(bound, stream)) >= sum(hits(ONLINE[name](capacity), stream))


@given(stream=st.lists(st.integers(0, 5), min_size=1, max_size=12), capacity=st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_belady_is_the_optimum_of_all_choices(stream, capacity):
    reachable: dict[frozenset[int], int] = {frozenset(): 0}  # contents -> most hits so far
    for key in stream:
        following: dict[frozenset[int], int] = {}
        for contents, n_hits in reachable.items():
            if key in contents:
                choices = [contents]
            elif len(contents) < capacity:
                choices = [contents | {key}]
            else:
                choices = [contents - {out} | {key} for out in contents]
            for choice in choices:
                following[choice] = max(following.get(choice, 0), n_hits + (key in contents))
        reachable = following
    assert sum(hits(BlankFirst(capacity, partial(Belady, future=stream)), stream)) == max(reachable.values())


def test_gdsf_keeps_what_is_dear_for_its_size():
    evictor = BlankFirst(8, Gdsf)
    evictor.victims(8)
    evictor.park([Unit(1, 64, n_blocks=4, cost=4.0), Unit(2, 16, cost=3.0), Unit(3, 16, cost=2.0)])
    assert [unit.key for unit in evictor.victims(6)] == [1, 3, 2]


def test_fifo_gives_up_first_what_was_referenced_when_its_turn_came():
    evictor = BlankFirst(3, Fifo)
    evictor.victims(3)
    a, b, c = Unit(1, 16), Unit(2, 16), Unit(3, 16)
    evictor.park([a, b, c])
    evictor.claim([a])
    assert evictor.victims(1) == [b]
    evictor.park([a])
    assert evictor.victims(2) == [a, c]


def test_lfu_counts_hits_on_units_in_use():
    evictor = BlankFirst(3, Lfu)
    evictor.victims(3)
    a, b, c = Unit(1, 16), Unit(2, 16), Unit(3, 16)
    evictor.park([a])
    evictor.claim([a])
    evictor.claim([a])  # a second request shares it
    evictor.park([a, b])
    evictor.claim([b])
    evictor.park([b, c])
    assert evictor.victims(3) == [c, b, a]


def test_a_queue_stays_short_however_often_a_prefix_is_shared():
    evictor = Lru(10)
    evictor.victims(2)
    a, b = Unit(1, 16), Unit(2, 16)
    evictor.park([b, a])
    for _ in range(20_000):
        evictor.claim([a])
        evictor.park([a])
    assert len(evictor._queue) < 5_000
    evictor.victims(8)
    assert evictor.victims(2) == [b, a]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Lru(0), r"eviction.capacity_blocks must be >= 1 \[blocks\], got 0"),
        (lambda: BlankFirst(0, Lfu), r"eviction.capacity_blocks must be >= 1 \[blocks\], got 0"),
        (lambda: S3Fifo(10, small_frac=1.0), r"eviction.order.small_frac must be in \(0, 1\), got 1"),
        (lambda: S3Fifo(10, ghost_frac=0.0), r"eviction.order.ghost_frac must be in \(0, 1\), got 0"),
        (lambda: S3Fifo(10, promote_at=0), r"eviction.order.promote_at must be >= 1 \[hits\], got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


class EvictorLaws(RuleBasedStateMachine):
    """Blocks are conserved, nothing referenced is given up, nothing is given up twice, nothing is lost."""

    capacity = 12

    def __init__(self):
        super().__init__()
        self.evictor = self.make(self.capacity)
        self.n_held_blank = 0
        self.held: list[Unit] = []
        self.parked: list[Unit] = []
        self.n_made = 0

    @rule(n_blocks=st.integers(1, 5), n_keyed=st.integers(0, 5))
    def take(self, n_blocks, n_keyed):
        n_blocks = min(n_blocks, len(self.evictor))
        evicted = self.evictor.victims(n_blocks, range(self.n_made, self.n_made + n_keyed))
        for unit in evicted:
            self.parked.remove(unit)
        for _ in range(min(n_keyed, n_blocks)):
            self.held.append(Unit(self.n_made % 20, 16))
            self.n_made += 1
        self.n_held_blank += n_blocks - min(n_keyed, n_blocks)

    @rule(n_units=st.integers(1, 4), last=st.booleans())
    def park(self, n_units, last):
        units = self.held[-n_units:] if last else self.held[:n_units]
        for unit in units:
            self.held.remove(unit)
        self.parked += units
        self.evictor.park(units)

    @rule(n_blocks=st.integers(1, 4))
    def park_blank(self, n_blocks):
        n_blocks = min(n_blocks, self.n_held_blank)
        self.n_held_blank -= n_blocks
        self.evictor.park_blank(n_blocks)

    @rule(which=st.integers(0, 11))
    def claim(self, which):
        units = self.parked[which : which + 2] + self.held[which : which + 1]
        self.parked = [unit for unit in self.parked if unit not in units]
        self.held += [unit for unit in units if unit not in self.held]
        self.evictor.claim(units)

    @invariant()
    def blocks_are_conserved(self):
        assert len(self.evictor) + len(self.held) + self.n_held_blank == self.capacity
        assert all(unit.is_parked for unit in self.parked)
        assert not any(unit.is_parked for unit in self.held)

    def teardown(self):
        evicted = self.evictor.victims(len(self.evictor))
        assert len(evicted) == len(self.parked)
        assert set(evicted) == set(self.parked)


def laws(name: str, make) -> type:
    machine = type(f"{name}Laws", (EvictorLaws,), {"make": staticmethod(make)})
    machine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
    return machine.TestCase


TestLruLaws = laws("Lru", Lru)
TestFifoLaws = laws("Fifo", ONLINE["FIFO"])
TestLfuLaws = laws("Lfu", ONLINE["LFU"])
TestS3FifoLaws = laws("S3Fifo", ONLINE["S3FIFO"])
TestArcLaws = laws("Arc", ONLINE["ARC"])
TestGdsfLaws = laws("Gdsf", ONLINE["GDSF"])
TestBeladyLaws = laws("Belady", partial(BlankFirst, order=partial(Belady, future=[*range(20)] * 5)))


@pytest.mark.parametrize("name", ONLINE)
def test_blocks_freed_twice_and_blocks_that_are_not_free_are_refused(name):
    evictor = ONLINE[name](30)
    evictor.victims(30)
    unit = Unit(1, 16)
    evictor.park([unit])
    with pytest.raises(InvariantError, match="parked twice"):
        evictor.park([unit])
    with pytest.raises(InvariantError, match="2 blocks asked of an evictor that has 1"):
        evictor.victims(2)
    with pytest.raises(InvariantError, match="freed twice"):
        evictor.park_blank(30)


def test_gdsf_keeps_no_valuation_of_units_that_come_and_go():
    evictor, unit = BlankFirst(10, Gdsf), Unit(1, 16)
    evictor.victims(10)
    for _ in range(10_000):
        evictor.park([unit])
        evictor.claim([unit])
    assert len(evictor.order._values) < 2_000

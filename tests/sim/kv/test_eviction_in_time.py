"""Eviction in a run of the engine is the eviction that oracles and replays without time know."""

from functools import partial

import numpy as np
import pytest

from sim.errors import ConfigError
from sim.kv.allocator import FirstFit
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import Arc, Belady, BlankFirst, Fifo, Lfu, Lru, S3Fifo
from sim.kv.paged import PagedCache
from sim.kv.pruned import PrunedCache
from sim.kv.replay import read, replay
from sim.kv.reservation import Maximum
from sim.kv.retention import Window
from tests.sim.kv.policies import EVICTORS
from tests.sim.kv.sites import cache_on
from tests.sim.kv.test_eviction_orders import oracle_hits, skewed
from tests.sim.serving import Listed, asked, serve

APART_NS = 10_000_000  # each request has ended when the next comes
ORDERS = {"FIFO": Fifo, "LFU": Lfu, "S3FIFO": S3Fifo, "ARC": Arc}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_hits_what_libcachesim_hits_reference_by_reference(name, seed):
    """Prompts are one block that others may ask for, and a token in a block of its own that is free again after it."""
    stream, capacity = skewed(seed, 90), 30
    listed = [asked(i, i * APART_NS, 17, 1, content=((key, 16), (10_000 + i, 1))) for i, key in enumerate(stream)]
    eviction = partial(BlankFirst, order=lambda n_blocks: ORDERS[name](n_blocks - 1))  # that block is not its business
    run = serve(Listed(listed), kv=partial(cache_on, PagedCache, (capacity + 1) * 16, eviction, 16))
    assert [row["cached_tokens"] > 0 for row in run.requests()] == oracle_hits(name, capacity, stream)


OF_CONVERSATIONS = {  # caches in which every conversation leaves twelve tokens
    "contiguous": lambda n, order: cache_on(ContiguousCache, n * 12, order, FirstFit, Maximum(12)),
    "pruned": lambda n, order: cache_on(PrunedCache, n * 12, order, Window(window=64, sinks=0), 4),
}


@pytest.mark.parametrize("cache", OF_CONVERSATIONS)
@pytest.mark.parametrize("name", ["LRU", *ORDERS])
@pytest.mark.parametrize("seed", range(3))
def test_conversations_are_given_up_as_libcachesim_gives_up_objects(cache, name, seed):
    """Every turn asks the same again, alone on the device: a hit if its conversation is still there."""
    stream, capacity = skewed(seed, 90), 30
    listed = [asked(i, i * APART_NS, 12, 1, content=((key, 12),), session_id=key) for i, key in enumerate(stream)]
    order = Lru if name == "LRU" else partial(BlankFirst, order=ORDERS[name])
    run = serve(Listed(listed), kv=lambda: OF_CONVERSATIONS[cache](capacity, order))
    assert [row["cached_tokens"] > 0 for row in run.requests()] == oracle_hits(name, capacity, stream)


def conversations(seed, n_requests=300):
    """Prompts of a common beginning, one of 20 topics and one of 30 questions, each cut off somewhere."""
    rng = np.random.default_rng(seed)
    listed = []
    for i in range(n_requests):
        topic, question = int(20 * rng.random() ** 2), int(30 * rng.random() ** 2)
        content = ((1, 8), (100 + topic, 12), (1_000 + 50 * topic + question, 8))[: int(rng.integers(1, 4))]
        n_tokens = sum(length for _, length in content) + 1
        listed.append(asked(i, i * APART_NS, n_tokens, 1, content=(*content, (10_000 + i, 1))))
    return listed


@pytest.mark.parametrize("name", sorted(EVICTORS.keys() - {"fifo"}))  # which gives a place to the block of the answer
@pytest.mark.parametrize("capacity_blocks", [24, 50])
def test_a_run_of_one_request_at_a_time_hits_what_a_replay_without_time_hits(name, capacity_blocks):
    listed = conversations(seed=1)
    trace = read([request._replace(content=request.content[:-1]) for request in listed], 4)
    run = serve(Listed(listed), kv=partial(cache_on, PagedCache, capacity_blocks * 4, EVICTORS[name], 4))
    replayed = replay(trace, EVICTORS[name](capacity_blocks))
    assert sum(row["cached_tokens"] for row in run.requests()) == replayed.hit_tokens > 0


def test_a_run_in_time_cannot_be_told_its_future():
    with pytest.raises(ConfigError, match=r"eviction=belady .* task=hit_rate 'policies=\[belady"):
        BlankFirst(20, Belady)

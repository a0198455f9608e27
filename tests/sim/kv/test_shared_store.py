"""Memory below that all replicas share: what one has computed, others load, over one link."""

from dataclasses import replace
from functools import partial

import pytest

from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.tiers import Tiers, TierSpec
from sim.router import LeastLoaded
from sim.run import simulate
from sim.spec import LinkSpec
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, Split, asked, serve

DRAM = TierSpec("dram", 4e3 / (1 << 30), 1e12, 1e12, 0.0, 0.0, Lru)
STORE = TierSpec("store", 4e3 / (1 << 30), 1e9, 1e9, 7e-9, 0.0, Lru, is_shared=True, writes_through=True)
TEN_NS = partial(LinearCost, 10_000)
TIERED = partial(cache_on, HierarchicalCache, 64, Lru, 4, kv_bytes_per_token=10.0, cost=LinearCost(), prefetch=0)


def said(number: int, at_ns: int, begin: int = 1, output: int = 2):
    """A prompt of 20 tokens that begins as others do, and one of its own."""
    return asked(number, at_ns, 21, output, content=((begin, 20), (100 + number, 1)))


def two_replicas(listed, *levels, **how) -> House:
    kv = partial(TIERED, tiers=Tiers(levels or (DRAM, STORE)))
    return serve(Listed(listed), **({"cost": TEN_NS, "kv": kv, "replicas": 2} | how))


def loads(house: House, name: str) -> list[int]:
    names = list(house.recorder.links)
    return [end - start for _, link, start, end, *_ in house.recorder.transfers.rows().tolist() if names[link] == name]


def test_what_one_replica_has_computed_another_loads():
    """5 blocks of 4 tokens of 10 B: 200 ns at 1 B/ns and 7 of latency from the store, and 1 from host memory."""
    house = two_replicas([said(0, 0), said(1, 5_000)])
    first, second = house.requests()
    assert (first["replica"], second["replica"]) == (0, 1)
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 20)
    assert loads(house, "from store") == [207]
    assert second["first_token_ns"] - second["scheduled_ns"] == 207 + 1 + 10
    assert house.replicas[1].kv.counts()["hit_tokens_store"] == 20


def test_where_it_is_not_shared_another_replica_finds_nothing():
    house = two_replicas([said(0, 0), said(1, 5_000)], DRAM, replace(STORE, is_shared=False))
    assert [row["cached_tokens"] for row in house.requests()] == [0, 0]


def test_replicas_that_load_at_once_share_the_link():
    """The second and the third ask at the same time: 400 ns and the latency for either."""
    house = two_replicas([said(0, 0), said(1, 5_000), said(2, 5_000)], replicas=3)
    assert loads(house, "from store") == [407, 407]


def test_there_is_one_capacity_and_what_does_not_fit_gives_way():
    """10 blocks in all, 5 of each text. The third text takes the place of the first, whoever sent either."""
    store = replace(STORE, capacity_gib=400 / (1 << 30))
    listed = [said(i, 1_000 * i, begin=i) for i in range(3)] + [said(3, 5_000, 1), said(4, 6_000, 0)]
    house = two_replicas(listed, store, replicas=5)
    assert [row["cached_tokens"] for row in house.requests()] == [0, 0, 0, 20, 0]
    counts = [replica.kv.counts() for replica in house.replicas]
    assert sum(one["room_tokens_store"] for one in counts) == 40, "once, not for each replica"
    assert sum(one["evicted_blocks_store"] for one in counts) == counts[0]["evicted_blocks_store"] > 0


def test_it_gets_all_at_once_or_only_what_is_given_up_above():
    through = two_replicas([said(0, 0)])
    back = two_replicas([said(0, 0)], DRAM, replace(STORE, writes_through=False))
    assert (len(loads(through, "to store")), len(loads(back, "to store"))) == (1, 0)
    small = replace(DRAM, capacity_gib=200 / (1 << 30))
    given_up = two_replicas([said(0, 0, 1), said(1, 2_000, 2)], small, replace(STORE, writes_through=False), replicas=1)
    assert len(loads(given_up, "to store")) == 1


def test_a_store_that_is_lost_costs_computing_and_nothing_else():
    """Another asks as it fails, in the midst of 207 ns."""
    house = two_replicas([said(0, 0), said(1, 5_000)], DRAM, replace(STORE, fails_at_s=5.1e-6))
    assert [row["cached_tokens"] for row in house.requests()] == [0, 0]
    assert sum(row["prefill_tokens"] for row in house.iterations()) == 42


def test_both_pools_of_a_split_fleet_share_it():
    """The prompt's KV goes down from the prefill pool; the other prefill replica finds it there."""
    split = Split(replicas=2, link=LinkSpec(1e9))
    house = two_replicas([said(0, 0), said(1, 5_000)], split=split, router=LeastLoaded)
    assert len({id(replica.kv.tiers.tiers[1]) for replica in house.replicas}) == 1


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((STORE, replace(DRAM, name="disk", read_bytes_per_s=1e8)), "store is shared, disk below it is not"),
        (
            (replace(STORE, is_per_accelerator=True),),
            "is_per_accelerator must be false where is_shared is true, got true",
        ),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_range(levels, message):
    with pytest.raises(ConfigError, match=message):
        Tiers(levels)


def test_blocks_of_one_size_alone_are_shared():
    stores = {}
    levels = Tiers((STORE,))
    partial(TIERED, tiers=levels, stores=stores)()
    with pytest.raises(ConfigError, match="is shared, so that all its blocks must be alike: of 4 tokens in 40 bytes"):
        cache_on(HierarchicalCache, 64, Lru, 8, tiers=levels, stores=stores, kv_bytes_per_token=10.0)


def test_replicas_of_a_chatbot_find_more_with_a_store_below_them():
    how = ("scenario=chatbot", "scenario.n_sessions=60", "cost=roofline", "replicas=4", "cache=hierarchical")
    shared = simulate(*how, "tiers=remote")
    alone = simulate(*how, "tiers=remote", "tiers.levels.1.is_shared=false")
    hits = [int(result.requests.column("cached_tokens").sum()) for result in (alone, shared)]
    assert hits[1] > 1.1 * hits[0]
    assert sum(counts["hit_tokens_store"] for counts in shared.counts) > 0 == alone.counts[0]["hit_tokens_store"]

"""Routers that look at load."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import pytest

from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.router import ARRIVAL, KVUsage, LeastLoaded, PowerOfTwo
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, asked, serve


@dataclass
class Slots:
    held_tokens: int
    capacity_tokens: int = 100


@dataclass
class Loaded:
    """All that these routers look at in a replica."""

    n_outstanding: int
    outstanding_tokens: int = 0
    kv: Slots = field(default_factory=lambda: Slots(0))

    is_settled: bool = False

    def settle(self, now_ns: int) -> None:
        self.is_settled = True


def fleet_of(*replicas: Loaded) -> Fleet:
    fleet = Fleet(replicas.__getitem__)
    for _ in replicas:
        fleet.add()
    return fleet


def served_by(house: House) -> dict[int, int]:
    return {row["id"]: row["replica"] for row in house.requests()}


@pytest.mark.parametrize(("by", "chosen"), [("requests", 1), ("tokens", 3)])
def test_least_loaded_takes_the_one_with_least_and_the_first_among_equals(by, chosen):
    fleet = fleet_of(Loaded(2, 70), Loaded(1, 70), Loaded(1, 90), Loaded(3, 60), Loaded(3, 60))
    assert LeastLoaded(by).place(asked(0, 0, 4, 1), ARRIVAL, fleet, 0) is fleet.open[chosen]


def test_least_loaded_sees_what_waits_and_what_runs_and_forgets_what_ended():
    """Two replicas, 1 ns an iteration. 0 goes to A until 30, 1 to B until 3, so 2 and 3 find B empty."""
    listed = [asked(0, 0, 4, 30), asked(1, 0, 4, 3), asked(2, 5, 4, 3), asked(3, 10, 4, 3)]
    assert served_by(serve(Listed(listed), replicas=2, router=LeastLoaded)) == {0: 0, 1: 1, 2: 1, 3: 1}


def test_by_tokens_one_long_prompt_weighs_more_than_two_short_ones():
    """0 brings 90 tokens to A; 1 and 2 bring 20 each to B, and 3 too: 60 are less than 90. Then A is lighter."""
    listed = [asked(0, 0, 90, 30), *(asked(i, 0, 20, 30) for i in (1, 2, 3)), asked(4, 0, 40, 1), asked(5, 0, 4, 1)]
    house = serve(Listed(listed), replicas=2, router=partial(LeastLoaded, "tokens"))
    assert served_by(house) == {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 0}


def test_outstanding_tokens_are_those_of_the_prompts_of_all_answers_until_each_ends():
    seen = []
    listed = [asked(0, 0, 5, 8), asked(1, 3, 7, 4, n_samples=3)]
    look = dict.fromkeys((2, 5, 30), lambda house: seen.append(house.replicas[0].outstanding_tokens))
    serve(Listed(listed), meanwhile=look)
    assert seen == [5, 5 + 3 * 7, 0]


def test_a_lost_replica_has_nothing_outstanding():
    lost = []

    def lose(house: House) -> None:
        lost.extend(house.fleet.fail(0, house.env.now_ns))
        lost.append(house.replicas[0].outstanding_tokens)

    house = serve(Listed([asked(0, 0, 5, 50), asked(1, 1, 4, 50)]), replicas=2, meanwhile={10: lose})
    assert [lost[0].request.id, lost[1]] == [0, 0]
    assert served_by(house) == {1: 1}


def test_two_choices_are_two_different_replicas_and_the_less_loaded_is_taken():
    """Of the most loaded two of four, one is never taken, and the other only against it: a sixth of all draws."""
    fleet = fleet_of(Loaded(0), Loaded(1), Loaded(2), Loaded(3))
    router = PowerOfTwo(seed=3)
    n = 12_000
    taken = Counter(router.place(asked(0, 0, 4, 1), ARRIVAL, fleet, 0).n_outstanding for _ in range(n))
    expected = {0: 3 / 6, 1: 2 / 6, 2: 1 / 6}
    assert set(taken) == set(expected)
    for load, share in expected.items():
        assert abs(taken[load] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_kv_usage_is_a_share_of_each_replicas_own_capacity():
    """50 of 1,000 slots are emptier than 10 of 100; of equals the one with fewer sequences is taken, then the first."""
    fleet = fleet_of(
        Loaded(1, kv=Slots(10)), Loaded(9, kv=Slots(50, 1000)), Loaded(7, kv=Slots(5)), Loaded(7, kv=Slots(5))
    )
    assert KVUsage().place(asked(0, 0, 4, 1), ARRIVAL, fleet, 0) is fleet.open[2]


def test_kv_usage_sees_the_present():
    """Both decode since 0, at 1 ns a token and one slot each: at 40 A has 8 + 40 slots, B 40 + 40; then C holds 60."""
    listed = [asked(0, 0, 8, 99), asked(1, 0, 40, 99), asked(2, 40, 60, 99), asked(3, 60, 2, 1)]
    kv = partial(cache_on, PagedCache, 1024, Lru, 1)
    house = serve(Listed(listed), replicas=2, router=KVUsage, kv=kv, cost=partial(LinearCost, 1_000))
    assert served_by(house) == {0: 0, 1: 1, 2: 0, 3: 1}


@pytest.mark.parametrize("router", [LeastLoaded, PowerOfTwo])
def test_load_is_counted_in_requests_or_tokens(router):
    with pytest.raises(ConfigError, match=r"router\.by must be requests or tokens, got 'blocks'"):
        router("blocks")

"""Runs that are cut and settled: who comes, who looks in, and who is lost."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.batching import Chunked
from sim.kv.allocator import FirstFit
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.kv.reservation import Growing
from sim.router import LeastLoaded
from tests.laws.houses import NS_PS, computes_what_it_does_not_find, houses, run, slow_and_thorough
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, asked, serve

TEN_NS = partial(LinearCost, 10 * NS_PS)


def rows(house: House) -> list[tuple[int, int]]:
    return [(row["start_ns"], row["n_steps"]) for row in house.iterations()]


def test_an_arrival_cuts_the_run_to_the_iteration_under_way():
    """10 ns an iteration. A's prompt until 10, then it decodes; B comes at 35, in the iteration from 30 to 40."""
    house = serve(Listed([asked(0, 0, 4, 20), asked(1, 35, 4, 2)]), cost=TEN_NS)
    assert rows(house)[:4] == [(0, 1), (10, 3), (40, 1), (50, 1)]


def test_what_comes_at_an_iterations_very_end_is_in_the_next_plan():
    house = serve(Listed([asked(0, 0, 4, 20), asked(1, 40, 4, 2)]), cost=TEN_NS)
    assert rows(house)[:3] == [(0, 1), (10, 3), (40, 1)]


def test_who_arrives_behind_others_that_wait_cuts_nothing():
    """One place in the batch: B waits for it, and C behind B."""
    listed = [asked(0, 0, 4, 20), asked(1, 35, 4, 2), asked(2, 75, 4, 2)]
    house = serve(Listed(listed), cost=TEN_NS, scheduler=partial(Chunked, 64, 1))
    assert rows(house)[:3] == [(0, 1), (10, 3), (40, 16)]


def test_settling_commits_what_has_ended_and_leaves_the_rest_as_it_was():
    """At 55 of A's 19 iterations of decoding from 10 on, 4 have ended; the fifth ends at 60 all the same."""
    seen = []

    def look(house: House) -> None:
        (replica,) = house.replicas
        replica.settle(house.env.now_ns)
        seen.append((house.env.now_ns, replica.ledger.resident_tokens, replica.kv.held_tokens))

    listed = [asked(0, 0, 4, 20)]
    how = {"cost": TEN_NS, "kv": partial(cache_on, PagedCache, 1024, Lru, 1)}
    house = serve(Listed(listed), **how, meanwhile=dict.fromkeys((5, 55, 60, 61, 300), look))
    assert seen == [(5, 0, 4), (55, 8, 8), (60, 8, 8), (61, 9, 9), (300, 0, 0)]
    assert rows(house) == [(0, 1), (10, 4), (50, 1), (60, 14)]
    assert house.facts() == serve(Listed(listed), **how).facts()


def test_a_replica_that_nobody_disturbs_takes_no_note_of_the_others_arrivals():
    """Of two replicas the second gets 50 requests while the first decodes one long answer, in one run."""
    listed = [asked(0, 0, 4, 500), *(asked(i, 30 * i, 4, 2) for i in range(1, 51))]
    house = serve(Listed(listed), replicas=2, router=LeastLoaded, cost=TEN_NS)
    assert sum(row["replica"] == 0 for row in house.iterations()) == 2


@slow_and_thorough
@given(houses, st.lists(st.integers(0, 2_000), max_size=6))
def test_settling_at_any_time_changes_no_fact(house, at_ns):
    def look(house: House) -> None:
        for replica in house.replicas:
            replica.settle(house.env.now_ns)

    alone = run(house)
    end_ns = max([row["finish_ns"] for row in alone.requests()], default=0)  # a later look is the clock's last moment
    looks = dict.fromkeys([one_ns for one_ns in at_ns if one_ns <= end_ns], look)
    assert run(house, meanwhile=looks).facts() == alone.facts()


def crash(index: int, house: House) -> None:
    """A replica is lost and another takes its place; what it had is served by the others."""
    lost = house.fleet.fail(index, house.env.now_ns)
    house.fleet.add()
    for sequence in lost:
        house.traffic.place(sequence)


def keeps_the_ledger(house: House, n_requests: int) -> None:
    """Whatever has arrived is served once or refused, and nobody holds anything."""
    served = [row["id"] for row in house.requests()]
    refused = house.recorder.refused.column("id").tolist()
    assert len(served) == len(set(served))
    assert not set(served) & set(refused)
    assert len(served) + len(refused) == house.traffic.n_arrived >= n_requests
    for replica in house.replicas:
        assert (replica.kv.held_tokens, replica.n_outstanding, len(replica.batch.waiting)) == (0, 0, 0)
    for row in house.requests():
        assert row["arrival_ns"] <= row["scheduled_ns"] <= row["first_token_ns"] <= row["finish_ns"]
    computes_what_it_does_not_find(house.recorder)


@pytest.mark.parametrize("plans_ahead", [False, True])
def test_a_crash_at_every_instant_of_a_small_run_loses_nobody(plans_ahead):
    listed = [asked(i, 13 * i, 6, 9, content=((1, 4), (i, 2)), output_id=-i, n_samples=1 + i % 2) for i in range(6)]
    how = {
        "cost": TEN_NS,
        "kv": partial(cache_on, PagedCache, 40, Lru, 2),
        "scheduler": partial(Chunked, 16, 4, plans_ahead),
        "replicas": 2,
    }
    end_ns = max(row["finish_ns"] for row in serve(Listed(listed), **how).requests())
    n_lost = 0
    for at_ns in range(end_ns + 2):
        house = serve(Listed(listed), **how, meanwhile={at_ns: partial(crash, 0)})
        keeps_the_ledger(house, len(listed))
        n_lost += house.requests() != serve(Listed(listed), **how).requests()
    assert n_lost > end_ns // 2, "most crashes are noticed"


@slow_and_thorough
@given(houses, st.integers(0, 600))
def test_a_crash_in_any_house_loses_nobody(house, at_ns):
    crashed = run(house, meanwhile={at_ns: partial(crash, 0)})
    keeps_the_ledger(crashed, len(house["scenario"].listed))
    assert crashed.facts() == run(house, meanwhile={at_ns: partial(crash, 0)}, max_steps=1).facts()


def test_an_extent_that_was_being_copied_when_its_replica_failed_is_free():
    """8 slots are full when the prompt is computed; from 10 to 20 they are copied, and the replica fails at 15."""
    kv = partial(cache_on, ContiguousCache, 64, Lru, FirstFit, Growing(8))
    house = serve(Listed([asked(0, 0, 8, 5)]), cost=TEN_NS, kv=kv, meanwhile={15: partial(crash, 0)})
    assert house.replicas[0].kv.counts()["resizes"] == 1
    keeps_the_ledger(house, 1)


def test_what_was_generated_before_a_crash_is_not_generated_again():
    """A's third token at 30; lost at 35, and computed anew as a prompt of 7 from then on: 40 ns for four iterations."""
    house = serve(Listed([asked(0, 0, 4, 7)]), cost=TEN_NS, meanwhile={35: partial(crash, 0)})
    assert [(row["first_token_ns"], row["finish_ns"], row["n_preemptions"]) for row in house.requests()] == [
        (10, 75, 1)
    ]
    assert house.recorder.preemptions.rows().tolist() == [[0, 1, 35, 30, 45, 0, 6, 1, 0]]

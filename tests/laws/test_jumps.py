"""The fast engine against the slow one: jumps against one timeout per iteration, the ledger against a loop."""

from functools import partial

import pytest
from hypothesis import given, settings

from sim.batching import Chunked
from sim.engine import Replica
from sim.fleet import Fleet
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.request import Request
from sim.router import Router
from tests.laws.houses import NS_PS, ROUTERS, fitting, houses, run, slow_and_thorough
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, serve


@slow_and_thorough
@given(houses)
def test_jumping_equals_one_timeout_per_iteration_to_the_nanosecond(house):
    assert run(house).facts() == run(house, max_steps=1).facts()


@slow_and_thorough
@given(houses)
def test_the_engine_on_the_ledger_equals_the_engine_on_the_naive_one(house):
    assert run(house).facts() == run(house, is_naive=True).facts()


def test_equality_is_asked_of_runs_that_preempt_and_jump():
    """The traffic of the tests above is of the kind that matters: else they would prove little."""
    listed = [Request(i, 10 * i, 12, 30, 30) for i in range(8)]
    house = {
        "scenario": Listed(listed),
        "kv": partial(cache_on, PagedCache, 96, Lru, 4),
        "cost": lambda: LinearCost(10 * NS_PS),
    }
    fast, slow = serve(**house), serve(**house, max_steps=1)
    assert fast.facts() == slow.facts()
    assert len(fast.recorder.preemptions) >= 3
    assert len(fast.recorder.iterations) < len(slow.recorder.iterations) / 2
    slower = serve(**(house | {"cost": lambda: LinearCost(10 * NS_PS, per_seq_ps=9)}))
    assert fast.facts() != slower.facts(), "9 ps per sequence add up to a tick"


def test_what_arrives_as_an_iteration_starts_is_in_the_plan_after_it():
    """10 ns an iteration, planned ahead. A ends at 10 and is followed at once, while B decodes: in at 20, not at 30."""
    listed = [
        Request(0, 0, 1, 1, 1, ((1, 1),), -1, session_id=0),
        Request(1, 0, 1, 9, 9, ((2, 1),), -2, session_id=1),
    ]
    house = {
        "scenario": Listed(listed, {0: [(0, 1, 1)]}),
        "scheduler": partial(Chunked, 40, 4, True),
        "cost": lambda: LinearCost(10 * NS_PS),
    }
    fast, slow = serve(**house), serve(**house, max_steps=1)
    assert fast.facts() == slow.facts()
    assert [row["scheduled_ns"] for row in fast.requests() if row["id"] == 1000] == [20]


def test_who_arrives_during_a_prompt_waits_for_one_iteration_of_decoding_and_no_more():
    """10 ns an iteration, planned ahead. B arrives at 5, in A's prompt: A decodes from 10 to 20, B is in at 20."""
    listed = [Request(0, 0, 1, 20, 20), Request(1, 5, 1, 2, 2)]
    house = {
        "scenario": Listed(listed),
        "scheduler": partial(Chunked, 40, 4, True),
        "cost": lambda: LinearCost(10 * NS_PS),
    }
    fast, slow = serve(**house), serve(**house, max_steps=1)
    assert fast.facts() == slow.facts()
    assert [row["scheduled_ns"] for row in fast.requests() if row["id"] == 1] == [20]


@pytest.mark.parametrize("plans_ahead", [False, True])
@pytest.mark.parametrize(("long_on", "scheduled_ns"), [(0, 30), (2, 20)])
def test_what_an_end_brings_about_at_once_comes_between_the_turns_of_its_nanosecond(plans_ahead, long_on, scheduled_ns):
    """10 ns an iteration on three replicas. B ends at 20 on replica 1, and its follow-up goes to where A decodes.

    There an iteration ends in the same nanosecond. Replica 0 has had its turn then and has begun the next iteration,
    replica 2 has not.
    """

    class ToA(Router):
        def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:
            replica = fleet.open[1 if request.id == 1 else long_on]
            replica.settle(now_ns)
            seen.append((request.id, replica.ledger.resident_tokens))
            return replica

    listed = [
        Request(0, 0, 1, 20, 20, ((1, 1),), -1, session_id=0),
        Request(1, 0, 1, 2, 2, ((2, 1),), -2, session_id=1),
    ]
    house = {
        "scenario": Listed(listed, {1: [(0, 1, 1)]}),
        "scheduler": partial(Chunked, 40, 4, plans_ahead),
        "cost": lambda: LinearCost(10 * NS_PS),
        "router": ToA,
        "replicas": 3,
    }
    seen: list[tuple[int, int]] = []
    fast, seen_by_fast = serve(**house), seen
    seen = []
    assert fast.facts() == serve(**house, max_steps=1).facts()
    assert seen_by_fast == seen == [(0, 0), (1, 0), (1001, 1 if long_on == 2 else 2)]
    scheduled_ns += 10 * (plans_ahead and long_on == 2)  # planned when the one before it began
    assert [row["scheduled_ns"] for row in fast.requests() if row["id"] == 1001] == [scheduled_ns]


@pytest.mark.parametrize("router", ROUTERS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(houses)
def test_every_router_chooses_the_same_however_far_the_replicas_jump(router, house):
    house = fitting(house | {"router": ROUTERS[router], "replicas": 3})
    fast = run(house)
    assert fast.facts() == run(house, max_steps=1).facts()
    assert len(fast.requests()) + len(fast.recorder.refused) == fast.traffic.n_arrived

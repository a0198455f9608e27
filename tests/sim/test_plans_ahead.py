"""Async scheduling: an iteration is planned when the one before it starts. By hand, steps of 10 ns."""

from functools import partial

from sim.batching import Chunked
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve

STEP = {"cost": lambda: LinearCost(10_000)}


def ahead(*requests, max_num_seqs=4, **house):
    scheduler = partial(Chunked, 64, max_num_seqs, True)
    rows = serve(Listed(requests), scheduler=scheduler, **STEP, **house).requests()
    return {row["id"]: row for row in rows}


def test_who_arrives_during_an_iteration_waits_for_the_next_one_too():
    rows = ahead(asked(0, 0, 4, 20), asked(1, 13, 4, 2))
    # iterations end at 10, 20, 30, ...: 1 arrives in the second, the third is planned already, the fourth has it
    assert rows[1]["scheduled_ns"] == 30
    assert rows[1]["first_token_ns"] == 40


def test_who_arrives_while_nothing_runs_is_served_at_once():
    rows = ahead(asked(0, 0, 4, 2), asked(1, 105, 4, 2))
    assert rows[1]["scheduled_ns"] == 105
    assert rows[1]["first_token_ns"] == 115


def test_who_arrives_in_the_last_iteration_is_served_right_after_it():
    rows = ahead(asked(0, 0, 4, 2), asked(1, 13, 4, 1))
    assert rows[0]["finish_ns"] == 20
    assert rows[1]["first_token_ns"] == 30


def test_a_freed_place_is_taken_one_iteration_later():
    rows = ahead(asked(0, 0, 4, 3), asked(1, 0, 4, 9), asked(2, 1, 4, 2), max_num_seqs=2)
    assert rows[0]["finish_ns"] == 30
    assert rows[2]["scheduled_ns"] == 40


def test_freed_memory_is_taken_one_iteration_later():
    kv = partial(cache_on, PagedCache, 32, Lru, 4)
    rows = ahead(asked(0, 0, 12, 3), asked(1, 0, 4, 9), asked(2, 1, 16, 2), kv=kv)
    assert rows[0]["finish_ns"] == 30
    assert rows[2]["scheduled_ns"] == 40


def test_without_planning_ahead_both_happen_one_iteration_earlier():
    requests = (asked(0, 0, 4, 3), asked(1, 0, 4, 9), asked(2, 1, 4, 2))
    rows = {r["id"]: r for r in serve(Listed(requests), scheduler=partial(Chunked, 64, 2), **STEP).requests()}
    assert rows[2]["scheduled_ns"] == 30

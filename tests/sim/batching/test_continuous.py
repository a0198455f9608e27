"""Iteration-level batching with whole prompts, by hand."""

from functools import partial

import pytest

from sim.batching import Continuous
from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from tests.sim.batching.test_chunked import COST, small, times
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve


def test_prompts_come_first_and_decoding_waits_for_them():
    """1000 ns, 10 ns per decoding sequence, 1 ns per KV entry read, 2 ns per prompt token.

    0     A's prompt of 10: 1000 + 20                                     = 1020
    1020  B's prompt of 10 while A is held back                           = 1020
    2040  both decode, reading 11 each: 1000 + 2 * 10 + 22                = 1042, B's second and last token
    3082  A decodes, reading 12: 1000 + 10 + 12                           = 1022
    """
    house = serve(Listed([asked(0, 0, 10, 3), asked(1, 500, 10, 2)]), scheduler=Continuous, cost=lambda: COST)
    assert house.ends_ns() == [1020, 2040, 3082, 4104]
    assert times(house) == {0: (0, 1020, 4104), 1: (1020, 2040, 3082)}


def test_prompts_share_an_iteration_up_to_the_budget():
    listed = [asked(i, 0, 6, 1) for i in range(3)]
    house = serve(Listed(listed), scheduler=partial(Continuous, 12), cost=lambda: LinearCost())
    assert [row["prefill_tokens"] for row in house.iterations()] == [12, 6]


def test_a_prompt_beyond_the_budget_is_an_iteration_of_its_own():
    listed = [asked(0, 0, 30, 1), asked(1, 0, 4, 1)]
    house = serve(Listed(listed), scheduler=partial(Continuous, 12), cost=lambda: LinearCost())
    assert [row["prefill_tokens"] for row in house.iterations()] == [30, 4]


def test_a_preempted_sequence_is_computed_anew_before_decoding_goes_on():
    """6 blocks of 4, every iteration 1 ns; B is preempted at 5 as under `Chunked`, and comes back at 9, when A ends."""
    house = serve(
        Listed([asked(0, 0, 8, 9), asked(1, 0, 8, 9)]), scheduler=Continuous, kv=small(6), cost=lambda: LinearCost()
    )
    assert times(house) == {0: (0, 1, 9), 1: (0, 1, 13)}
    assert house.recorder.preemptions.rows()[:, :6].tolist() == [[1, 0, 5, 5, 10, 0]]


def test_a_watermark_keeps_an_admission_from_taking_the_last_blocks():
    """10 blocks of 4, one of ten kept: A and B take 9; C's block would be the tenth, so it waits until 3."""
    listed = [asked(0, 0, 18, 3), asked(1, 0, 13, 3), asked(2, 0, 4, 1)]
    kept = serve(
        Listed(listed),
        scheduler=Continuous,
        kv=partial(cache_on, PagedCache, 40, Lru, 4, True, 0.1),
        cost=lambda: LinearCost(),
    )
    free = serve(
        Listed(listed), scheduler=Continuous, kv=partial(cache_on, PagedCache, 40, Lru, 4), cost=lambda: LinearCost()
    )
    assert times(kept)[2] == (3, 4, 4)
    assert times(free)[2] == (0, 1, 1)


@pytest.mark.parametrize("key", ["max_num_seqs", "max_num_batched_tokens"])
def test_counts_below_one_are_refused(key):
    with pytest.raises(ConfigError, match=rf"batching.{key} must be >= 1, got 0"):
        Continuous(**{key: 0})

"""vLLM v1's scheduling rules on timelines that can be added up by hand."""

from functools import partial

import pytest

from sim.batching import Chunked, Fcfs, Ranked
from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, asked, serve

COST = LinearCost(1_000_000, per_seq_ps=10_000, per_context_ps=1_000, per_prompt_ps=2_000)
"""1000 ns, and 10 ns per decoding sequence, 1 ns per KV entry read, 2 ns per prompt token."""


def times(house: House) -> dict[int, tuple[int, int, int]]:
    return {row["id"]: (row["scheduled_ns"], row["first_token_ns"], row["finish_ns"]) for row in house.requests()}


def small(n_blocks: int) -> partial[PagedCache]:
    return partial(cache_on, PagedCache, n_blocks * 4, Lru, 4)


def test_prompts_fill_what_decodes_leave_of_the_budget():
    """Budget 12.

    0     A's 10 prompt tokens and 2 of B's: 1000 + 12 * 2                     = 1024
    1024  A decodes, reading 11; B's other 8: 1000 + 10 + 11 + 8 * 2           = 1037
    2061  both decode, reading 12 and 11: 1000 + 2 * 10 + 23                   = 1043, A's third and B's second token
    """
    house = serve(
        Listed([asked(0, 0, 10, 3), asked(1, 0, 10, 2)]), scheduler=partial(Chunked, 12, 4), cost=lambda: COST
    )
    assert house.ends_ns() == [1024, 2061, 3104]
    assert times(house) == {0: (0, 1024, 3104), 1: (0, 2061, 3104)}
    assert [row["prefill_tokens"] for row in house.iterations()] == [12, 8, 0]
    assert [row["joined_seqs"] for row in house.iterations()] == [1, 1, 0]


def test_no_more_than_max_num_seqs_run():
    house = serve(
        Listed([asked(i, 0, 4, 3) for i in range(3)]), scheduler=partial(Chunked, 100, 2), cost=lambda: LinearCost()
    )
    assert times(house) == {0: (0, 1, 3), 1: (0, 1, 3), 2: (3, 4, 6)}


def test_a_head_that_does_not_fit_blocks_those_behind_it():
    """6 blocks of 4. A holds 3 (9 tokens) until 3; B wants 4 and waits; C wants 1, would fit, and waits behind B."""
    house = serve(
        Listed([asked(0, 0, 9, 3), asked(1, 0, 16, 1), asked(2, 0, 4, 1)]), kv=small(6), cost=lambda: LinearCost()
    )
    assert times(house) == {0: (0, 1, 3), 1: (3, 4, 4), 2: (3, 4, 4)}


def test_the_last_is_preempted_and_finds_what_was_not_taken_and_those_behind_it_wait():
    """6 blocks of 4, every iteration 1 ns.

    0   A and B, 8 prompt tokens each: 2 blocks each
    1   first tokens; the KV of each takes a third block: all 6 are taken
    5   both hold 12 tokens and have 5: two more blocks are needed. B, the last, gives back its 3; A takes one.
        C, waiting since 4, would fit into the other 2, but B is before it and needs 4 for its 8 + 5 tokens
    9   A has its 9 tokens. B and C are admitted; B finds 2 of its blocks and computes 5 of its 13 tokens
    10  B has its 6th token, C its only one
    13  B has its 9th
    """
    listed = [asked(0, 0, 8, 9), asked(1, 0, 8, 9), asked(2, 4, 4, 1)]
    house = serve(Listed(listed), kv=small(6), cost=lambda: LinearCost())
    assert times(house) == {0: (0, 1, 9), 1: (0, 1, 13), 2: (9, 10, 10)}
    assert house.recorder.preemptions.rows().tolist() == [[1, 0, 5, 5, 10, 0, 12, 1, 8]]
    assert [row["n_preemptions"] for row in sorted(house.requests(), key=lambda row: row["id"])] == [0, 1, 0]
    assert [row["prefill_tokens"] for row in house.iterations() if row["prefill_tokens"]] == [16, 5 + 4]


def test_an_iteration_that_preempted_admits_nobody():
    """As above, but C goes first by priority: the iteration from 5 to 6 preempted B, so C starts at 6."""
    listed = [asked(0, 0, 8, 9, priority=1), asked(1, 0, 8, 9, priority=1), asked(2, 4, 4, 1, priority=0)]
    house = serve(Listed(listed), kv=small(6), cost=lambda: LinearCost(), queue=partial(Ranked, "priority"))
    assert times(house)[2] == (6, 7, 7)
    assert [(row["start_ns"], row["preempted_seqs"]) for row in house.iterations() if row["preempted_seqs"]] == [(5, 1)]


def test_a_prompt_longer_than_the_budget_is_computed_in_pieces():
    house = serve(Listed([asked(0, 0, 25, 1)]), scheduler=partial(Chunked, 10, 1), cost=lambda: LinearCost())
    assert [row["prefill_tokens"] for row in house.iterations()] == [10, 10, 5]
    assert times(house) == {0: (0, 3, 3)}


def test_a_shared_prefix_is_not_computed_again():
    """B's first two blocks of 4 are A's; of its 9 tokens one is left to compute."""
    listed = [asked(0, 0, 8, 1, content=((7, 8),)), asked(1, 5, 9, 1, content=((7, 8), (8, 1)))]
    house = serve(Listed(listed), kv=small(6), cost=lambda: LinearCost())
    assert [row["prefill_tokens"] for row in house.iterations()] == [8, 1]
    assert [row["cached_tokens"] for row in house.requests()] == [0, 8]


def test_what_decodes_take_is_gone_before_who_waits_looks_for_it():
    """8 blocks of 4, 1 ns an iteration. A leaves a block with content and B two; C, from 10 on, takes the other five.

    In the iteration that starts at 27 it takes a sixth, A's. D begins like A: it finds that block at 26, not at 27.
    """
    text = ((7, 5),)
    listed = [
        asked(0, 0, 5, 1, content=text),
        asked(1, 2, 8, 1, content=((8, 8),)),
        asked(2, 10, 4, 26),
        asked(3, 27, 5, 1, content=text),
    ]
    for at_ns, found in ((26, 4), (27, 0)):
        listed[3] = listed[3]._replace(arrival_ns=at_ns)
        for max_steps in (None, 1):
            house = serve(Listed(listed), kv=small(8), max_steps=max_steps)
            assert [row["cached_tokens"] for row in house.requests() if row["id"] == 3] == [found]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 0}, r"batching.max_num_seqs must be >= 1 \[sequences\], got 0"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 7}, r"max_num_batched_tokens must be >= .*\(8\).* got 7"),
    ],
)
def test_a_budget_that_cannot_hold_the_running_sequences_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Chunked(**settings)


def preempted(house: House) -> list[int]:
    return [row[0] for row in house.recorder.preemptions.rows().tolist()]


@pytest.mark.parametrize(("queue", "gave_way"), [(Fcfs, [1]), (partial(Ranked, "priority"), [0])])
def test_by_priority_the_least_urgent_gives_way_though_it_came_first(queue, gave_way):
    """7 blocks of 4. Both come to need four: request 0 has priority 9, request 1 comes later with priority 0."""
    listed = [asked(0, 0, 8, 18, priority=9), asked(1, 1, 8, 18, priority=0)]
    house = serve(Listed(listed), kv=small(7), queue=queue)
    assert preempted(house) == gave_way


@pytest.mark.parametrize(("queue", "gave_way"), [(Fcfs, [1]), (partial(Ranked, "priority"), [0])])
def test_by_priority_an_urgent_prompt_takes_the_room_of_who_decodes(queue, gave_way):
    """8 blocks of 4, budget 8. Request 1 has computed two pieces of its 24 tokens when request 0 has a third block."""
    listed = [asked(0, 0, 8, 20, priority=9), asked(1, 1, 24, 2, priority=0)]
    house = serve(Listed(listed), kv=small(8), queue=queue, scheduler=partial(Chunked, 8, 4))
    assert preempted(house)[:1] == gave_way
    assert sum(row["prefill_tokens"] for row in house.iterations()) >= 32
    assert all(row["prefill_tokens"] + row["decode_seqs"] <= 8 for row in house.iterations())

"""Batches of whole requests, by hand."""

from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from sim.batching import Chunked, Continuous, Ranked, RequestLevel
from sim.errors import ConfigError
from sim.metrics.load import load
from tests.sim.batching.test_chunked import COST, small, times
from tests.sim.serving import LinearCost, Listed, asked, serve
from tests.sim.tiny_run import tiny_run

WAIT_2_US = partial(RequestLevel, max_batch_size=2, max_wait_time_ms=0.002)


def test_a_batch_is_padded_and_returns_when_its_longest_has_ended():
    """1000 ns, 10 ns per decoding sequence, 1 ns per KV entry read, 2 ns per prompt token.

    0     A's prompt of 10 and B's of 4, padded to 10: 1000 + 2 * 20      = 1040
    1040  both decode, reading 11 each: 1000 + 20 + 22                    = 1042, B's second and last token
    2082  A decodes and B pads: 1000 + 20 + 24                            = 1044, A's third; both return
    3126  C, which came at 10: 1000 + 8                                   = 1008
    """
    listed = [asked(0, 0, 10, 3), asked(1, 0, 4, 2), asked(2, 10, 4, 1)]
    house = serve(Listed(listed), scheduler=partial(RequestLevel, 2), cost=lambda: COST)
    assert house.ends_ns() == [1040, 2082, 3126, 4134]
    assert times(house) == {0: (0, 1040, 3126), 1: (0, 1040, 3126), 2: (3126, 4134, 4134)}
    assert [row["padding_seqs"] for row in house.iterations()] == [0, 0, 1, 0]
    assert [row["decode_seqs"] for row in house.iterations()] == [0, 2, 1, 0]


@dataclass(frozen=True)
class Counting(LinearCost):
    """What it was asked the time of: tokens computed in each iteration that computes prompts."""

    asked: list[int] = field(default_factory=list)

    def pace(self, shape):
        if shape[0]:
            self.asked.append(sum(new for new, *_ in shape[0]) + shape[1])
        return super().pace(shape)


def document(number, at_ns, prompt, output):
    """A request whose prompt begins like every other's."""
    return asked(number, at_ns, prompt, output, content=((7, 24), (100 + number, prompt - 24)))


@pytest.mark.parametrize("prompts", [(128, 256, 256, 512), (64, 64, 64, 64), (40,), (512, 30, 25, 31, 100, 26, 400)])
@pytest.mark.parametrize(
    "scheduler",
    [partial(RequestLevel, 4), WAIT_2_US, partial(Chunked, 96, 8), Continuous],
    ids=["4", "2", "chunks", "first"],
)
@pytest.mark.parametrize("memory", [{}, {"kv": small(160)}], ids=["ample", "short"])
def test_what_is_computed_is_prompts_and_decodes_and_padding_and_all_of_it_is_counted(prompts, scheduler, memory):
    """Prefixes that are found cached and members that come back from a preemption are padded by less."""
    cost = Counting()
    listed = [document(i, 0, n_tokens, 40 + i) for i, n_tokens in enumerate(prompts)]
    rows = serve(Listed(listed), scheduler=scheduler, cost=lambda: cost, **memory).iterations()
    decoding = [row["decode_seqs"] + row["padding_seqs"] for row in rows]
    computed = [row["prefill_tokens"] + row["padding_tokens"] + n for row, n in zip(rows, decoding, strict=True)]
    assert [n for row, n in zip(rows, computed, strict=True) if row["prefill_tokens"]] == cost.asked
    assert all(row["prefill_tokens"] or not row["padding_tokens"] for row in rows)


@pytest.mark.parametrize(("scheduler", "n_padding"), [(partial(RequestLevel, 4), 896), (WAIT_2_US, 128 + 256)])
def test_prompts_are_padded_to_the_longest_of_their_own_batch(scheduler, n_padding):
    listed = [asked(i, 0, n_tokens, 8) for i, n_tokens in enumerate((128, 256, 256, 512))]
    house = serve(Listed(listed), scheduler=scheduler, cost=lambda: COST)
    assert sum(row["prefill_tokens"] for row in house.iterations()) == 1152
    assert sum(row["padding_tokens"] for row in house.iterations()) == n_padding


def test_the_summary_counts_padded_prompts_beside_rows_that_pad():
    """Prompts of 10 and 4 are padded to 10, and B's row pads one iteration, as by hand above."""
    listed = [asked(0, 0, 10, 3), asked(1, 0, 4, 2), asked(2, 10, 4, 1)]
    house = serve(Listed(listed), scheduler=partial(RequestLevel, 2), cost=lambda: COST)
    assert [row["padding_tokens"] for row in house.iterations()] == [6, 0, 0, 0]
    found = replace(tiny_run().result, requests=house.recorder.requests, iterations=house.recorder.iterations)
    assert load(found).padding_tokens == 6 + 1


def test_a_batch_that_is_not_full_starts_when_its_first_has_waited_long_enough():
    """A waits alone from 100 to 2100. B comes at 5000, and C fills the batch at 5500."""
    listed = [asked(0, 100, 4, 1), asked(1, 5000, 4, 1), asked(2, 5500, 4, 1)]
    house = serve(Listed(listed), scheduler=WAIT_2_US, cost=lambda: LinearCost())
    assert times(house) == {0: (2100, 2101, 2101), 1: (5500, 5501, 5501), 2: (5500, 5501, 5501)}


def test_shorter_prompts_that_keep_coming_do_not_make_a_batch_wait_longer():
    """The first came at 0 and may wait until 2000; each later one is shorter and goes before it."""
    listed = [asked(i, 900 * i, 20 - i, 1) for i in range(3)]
    scheduler = partial(RequestLevel, max_batch_size=9, max_wait_time_ms=0.002)
    house = serve(Listed(listed), scheduler=scheduler, queue=partial(Ranked, "prompt"), cost=lambda: LinearCost())
    assert [row["scheduled_ns"] for row in house.requests()] == [2000, 2000, 2000]


def test_the_first_waits_no_longer_because_a_shorter_one_came_while_a_batch_ran():
    """Four fill a batch until 700; meanwhile one comes at 10, and at 690 one that goes before it."""
    listed = [*(asked(i, 0, 4, 700) for i in range(4)), asked(4, 10, 50, 4), asked(5, 690, 8, 4)]
    scheduler = partial(RequestLevel, max_batch_size=4, max_wait_time_ms=0.001)
    house = serve(Listed(listed), scheduler=scheduler, queue=partial(Ranked, "prompt"), cost=lambda: LinearCost())
    assert [times(house)[i][0] for i in (4, 5)] == [1010, 1010]


def test_all_answers_of_a_request_count_towards_a_full_batch():
    listed = [asked(0, 0, 8, 4, n_samples=4), asked(1, 100, 8, 4, n_samples=4)]
    house = serve(Listed(listed), scheduler=partial(RequestLevel, 8, 1.0), cost=lambda: LinearCost())
    assert [row["scheduled_ns"] for row in house.requests()] == [100, 100]


def test_a_member_that_only_pads_returns_its_answer_when_its_memory_is_needed():
    """6 blocks of 4, every iteration 1 ns. B has its 2 tokens at 2 and pads; at 5 both need a fourth block."""
    listed = [asked(0, 0, 8, 9), asked(1, 0, 8, 2)]
    house = serve(Listed(listed), scheduler=partial(RequestLevel, 2), kv=small(6), cost=lambda: LinearCost())
    assert times(house) == {0: (0, 1, 9), 1: (0, 1, 5)}
    assert not len(house.recorder.preemptions)


def test_a_member_that_still_generates_is_preempted_into_a_later_batch():
    listed = [asked(0, 0, 8, 9), asked(1, 0, 8, 9)]
    house = serve(Listed(listed), scheduler=partial(RequestLevel, 2), kv=small(6), cost=lambda: LinearCost())
    assert times(house) == {0: (0, 1, 9), 1: (0, 1, 13)}
    assert house.recorder.preemptions.rows()[:, :6].tolist() == [[1, 0, 5, 5, 10, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 0}, r"batching.max_batch_size must be >= 1 \[requests\], got 0"),
        ({"max_wait_time_ms": -1.0}, r"batching.max_wait_time_ms must be >= 0 and finite \[ms\], got -1"),
        ({"max_wait_time_ms": float("nan")}, "got nan"),
        ({"max_wait_time_ms": float("inf")}, "got inf"),
    ],
)
def test_impossible_batches_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        RequestLevel(**settings)

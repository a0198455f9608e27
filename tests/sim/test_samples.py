"""Several answers to one prompt: what is shared, what is copied and when, and what a client sees.

Iterations take 1 ns. Prompts of 10 tokens in blocks of 4 are two and a half blocks.
"""

from functools import partial

import numpy as np
import pytest

from sim import simulate
from sim.batching import Chunked, Continuous, RequestLevel
from sim.kv.allocator import Buddy, FirstFit
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.kv.pruned import PrunedCache
from sim.kv.reservation import Growing, Maximum
from sim.kv.retention import Share, Window
from sim.ledger import DecodeLedger
from sim.metrics import Slo, summary
from sim.metrics.gaps import token_gaps
from sim.metrics.load import load
from sim.samples import sampled
from sim.sequence import Sequence
from sim.step import Pace, Shape
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve

SIZE = 4  # tokens in a block


def paged(n_blocks=100, **fields):
    return partial(cache_on, PagedCache, n_blocks * SIZE, Lru, SIZE, kv_bytes_per_token=10.0, **fields)


def extents(reservation, capacity, allocator=FirstFit):
    return partial(cache_on, ContiguousCache, capacity, Lru, allocator, reservation, kv_bytes_per_token=10.0)


def in_blocks(house, column="held_tokens"):
    return [row[column] / SIZE for row in house.iterations()]


def counts(house):
    return house.replicas[0].kv.counts()


class Watched(LinearCost):
    """Notes how many bytes are copied in which iteration."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "moved_bytes", [])

    def pace(self, shape: Shape) -> Pace:
        _chunks, _batch, _context, _longest, _growing, moved_bytes, *_ = shape
        self.moved_bytes.append(moved_bytes)
        return super().pace(shape)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_four_answers_share_two_and_a_half_blocks_until_three_of_them_copy_the_half(prefix_caching):
    """Tokens 11 and 12 go into the half block, of which three copy theirs; for the 13th each begins another."""
    cost = Watched()
    kv = paged(prefix_caching=prefix_caching)
    house = serve(Listed([asked(0, 0, 10, 5, n_samples=4)]), kv=kv, cost=lambda: cost, max_steps=1)
    assert in_blocks(house) == [3, 6, 6, 6, 10], "at the begin of each iteration"
    assert in_blocks(house, "shared_tokens") == [0, 6, 6, 6, 6], "three further readers of two blocks"
    assert cost.moved_bytes == [0, 3 * SIZE * 10.0, 0, 0, 0], "in the iteration that first writes"
    assert counts(house)["copied_blocks"] == 3


def test_all_blocks_are_returned_and_those_with_an_identity_stay_findable():
    """Of each answer 4 tokens were computed: token 14 of its text is its last with KV, so it filled one block."""
    kept, blank = (
        serve(Listed([asked(0, 0, 10, 5, n_samples=4)]), kv=paged(10, prefix_caching=named)).replicas[0].kv
        for named in (True, False)
    )
    assert (kept.held_tokens, kept.idle_tokens, kept.shared_tokens) == (0, (2 + 4) * SIZE, 0)
    assert (blank.held_tokens, blank.idle_tokens, blank.shared_tokens) == (0, 0, 0)
    after = serve(Listed([asked(0, 0, 10, 5, n_samples=4), asked(1, 100, 40, 1)]), kv=paged(10))
    assert len(after.requests()) == 2, "the next takes all ten"


def test_a_prompt_of_whole_blocks_is_shared_to_the_end_and_nothing_is_copied():
    cost = Watched()
    house = serve(Listed([asked(0, 0, 8, 6, n_samples=4)]), kv=paged(), cost=lambda: cost, max_steps=1)
    assert in_blocks(house) == [2, 2, 6, 6, 6, 6]
    assert in_blocks(house, "shared_tokens") == [0, 6, 6, 6, 6, 6]
    assert not any(cost.moved_bytes)
    assert counts(house)["copied_blocks"] == 0


def test_answers_of_one_token_are_sampled_with_the_prompt_and_copy_nothing():
    house = serve(Listed([asked(0, 0, 10, 1, n_samples=4)]), kv=paged())
    (row,) = house.requests()
    assert (row["output_tokens"], row["first_token_ns"], row["finish_ns"]) == (4, 1, 1)
    assert counts(house)["copied_blocks"] == 0


def test_what_another_request_finds_of_a_prompt_is_shared_with_all_its_answers():
    text = ((7, 8), (8, 2))
    listed = [asked(0, 0, 10, 9, content=text, n_samples=2), asked(1, 3, 9, 2, content=((7, 8), (9, 1)))]
    house = serve(Listed(listed), kv=paged(), max_steps=1)
    assert [row["cached_tokens"] for row in house.requests() if row["id"] == 1] == [8]
    assert max(in_blocks(house, "shared_tokens")) == 4, "the two blocks have three readers"


def crowded(**house):
    """Ten blocks: 4 and 3 are held when both prompts are computed; one of the 3 left is the other request's next.

    So two blocks are left for copies: the first answer and the second copy, the third has no room and is preempted,
    the fourth is then alone with the half block and keeps it.
    """
    listed = [asked(0, 0, 10, 5, n_samples=4), asked(1, 0, 16, 3)]
    return serve(Listed(listed), kv=paged(10), max_steps=1, **house)


def test_an_answer_without_room_for_its_copy_is_preempted_alone():
    house = crowded()
    assert counts(house)["copied_blocks"] == 2
    assert [row["n_preemptions"] for row in house.requests() if row["id"] == 0] == [1]
    assert [row["decode_seqs"] for row in house.iterations()][:2] == [0, 4], "three answers and the other request"


def test_a_preempted_answer_is_recomputed_alone_from_what_the_others_still_hold():
    house = crowded()
    computed = [row["prefill_tokens"] for row in house.iterations() if row["prefill_tokens"]]
    assert computed == [26, 3], "11 tokens of its text less the two blocks of the prompt"
    absent = house.recorder.preemptions.rows().tolist()
    ((request_id, _, preempted_ns, last_ns, next_ns, *lost),) = absent
    assert (request_id, preempted_ns, last_ns) == (0, 1, 1)
    assert lost == [0, 10, 1, 8]
    assert [row["output_tokens"] for row in house.requests() if row["id"] == 0] == [20]
    assert max(row["finish_ns"] for row in house.requests()) == next_ns + 3, "its second token, and three more"


def test_a_window_that_will_be_written_over_is_copied_whole():
    """10 + 8 tokens in a window of 12: what decoding overwrites cannot be shared, 3 blocks each."""
    cost = Watched()
    kv = paged(12, window_tokens=12)
    house = serve(Listed([asked(0, 0, 10, 8, n_samples=4)]), kv=kv, cost=lambda: cost, max_steps=1)
    assert in_blocks(house)[:2] == [3, 12]
    assert cost.moved_bytes[:2] == [0, 9 * SIZE * 10.0]
    within = serve(Listed([asked(0, 0, 10, 3, n_samples=4)]), kv=kv, max_steps=1)
    assert in_blocks(within) == [3, 6, 6], "what stays within the window is shared"


def test_a_copy_of_a_window_without_room_is_preempted_as_it_is_born():
    """Twelve blocks: the other request holds 3, so of three copies of 3 blocks two have room."""
    listed = [asked(0, 0, 10, 8, n_samples=4), asked(1, 0, 10, 3)]
    house = serve(Listed(listed), kv=paged(12, window_tokens=12), max_steps=1)
    assert in_blocks(house)[1] == 12
    assert {row["id"]: row["n_preemptions"] for row in house.requests()} == {0: 1, 1: 0}
    assert {row["id"]: row["output_tokens"] for row in house.requests()} == {0: 32, 1: 3}


def test_extents_cannot_be_shared_so_each_answer_has_its_own_from_admission_on():
    cost = Watched()
    kv = extents(Maximum(32), 160)
    house = serve(Listed([asked(0, 0, 10, 5, n_samples=4)]), kv=kv, cost=lambda: cost, max_steps=1)
    assert [row["held_tokens"] for row in house.iterations()] == [128] * 5
    assert cost.moved_bytes == [0, 3 * 10 * 10.0, 0, 0, 0], "the prompt, into three of them"
    assert counts(house)["copied_tokens"] == 30


def test_extents_of_a_prompt_are_taken_all_or_none():
    """Room for four: while another request holds one, four are not to be had, and none is held meanwhile."""
    listed = [asked(1, 0, 4, 6), asked(0, 1, 10, 5, n_samples=4)]
    house = serve(Listed(listed), kv=extents(Maximum(32), 159), max_steps=1)
    assert {row["held_tokens"] for row in house.iterations()} == {32, 128}
    assert [row["scheduled_ns"] for row in house.requests() if row["id"] == 0] == [6]


def test_growing_extents_of_the_answers_grow_each_alone():
    house = serve(Listed([asked(0, 0, 10, 8, n_samples=3)]), kv=extents(Growing(12, 1.5), 90))
    assert counts(house)["resizes"] == 3
    assert counts(house)["copied_tokens"] == 2 * 10 + 3 * 12, "the prompt, and each when it is full"
    assert len(house.requests()) == 1


@pytest.mark.parametrize(("retention", "kept"), [(Window(60, 4), 10), (Share(0.5, every=50), 5)])
def test_pruned_blocks_are_taken_for_every_answer_and_what_is_kept_is_copied(retention, kept):
    kv = partial(cache_on, PrunedCache, 400, Lru, retention, 1, kv_bytes_per_token=10.0)
    house = serve(Listed([asked(0, 0, 10, 5, n_samples=4)]), kv=kv, max_steps=1)
    assert [row["held_tokens"] for row in house.iterations()] == [40, *(4 * (kept + k) for k in range(4))]
    assert counts(house)["copied_tokens"] == 3 * kept


@pytest.mark.parametrize("kv", [extents(Growing(16), 64), partial(cache_on, PrunedCache, 64, Lru, Share(0.5), 1)])
def test_a_prompt_that_gives_way_before_it_forks_gives_back_the_room_of_all_its_answers(kv):
    cache, ledger = kv(), DecodeLedger()
    prompt = sampled(asked(0, 0, 16, 1, n_samples=4))
    assert cache.admit(prompt, 16, ledger)
    assert cache.held_tokens == 64
    assert not cache.admit(Sequence(asked(1, 0, 1, 1)), 1, ledger)
    cache.release(prompt, 0)
    assert cache.held_tokens == 0
    assert cache.admit(sampled(asked(2, 0, 16, 1, n_samples=4)), 16, ledger)


TOO_MANY = [
    (paged(9), "10 KV blocks needed, the device has 9"),
    (paged(11, window_tokens=12), "12 KV blocks needed, the device has 11"),
    (extents(Maximum(32), 127), "4 times 32 KV slots to reserve, so many pieces can have 31 each"),
    (extents(Maximum(32), 127, Buddy), "4 times 32 KV slots to reserve, so many pieces can have 16 each"),
    (extents(Growing(16), 67), "4 times 17 KV slots to reserve, so many pieces can have 16 each"),
    (partial(cache_on, PrunedCache, 67, Lru, Share(0.5), 1), "68 KV blocks needed, the device has 67"),
]


@pytest.mark.parametrize(("kv", "reason"), TOO_MANY)
def test_answers_that_could_never_all_fit_are_refused_with_the_arithmetic(kv, reason):
    longest = 5 if reason.startswith("10 ") else 8
    house = serve(Listed([asked(0, 0, 10, longest, n_samples=4)]), kv=kv)
    assert house.recorder.refusals == {0: reason}
    alone = serve(Listed([asked(0, 0, 10, longest)]), kv=kv)
    assert len(alone.requests()) == 1


@pytest.mark.parametrize("kv", [paged(10), extents(Growing(16), 68), extents(Maximum(32), 128, Buddy)])
def test_answers_that_just_fit_are_served(kv):
    house = serve(Listed([asked(0, 0, 10, 5, n_samples=4)]), kv=kv)
    assert [row["output_tokens"] for row in house.requests()] == [20]


SCHEDULERS = {
    "chunked": partial(Chunked, 64, 4),
    "planned ahead": partial(Chunked, 64, 4, True),
    "continuous": partial(Continuous, 64, 4),
    "request level": partial(RequestLevel, 4),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_every_answer_counts_for_the_places_of_a_batch(scheduler):
    listed = [asked(0, 0, 4, 9), asked(1, 0, 4, 5, n_samples=4), asked(2, 0, 4, 5, n_samples=2), asked(3, 0, 4, 5)]
    house = serve(Listed(listed), scheduler=scheduler, max_steps=1)
    assert max(row["decode_seqs"] for row in house.iterations()) == 4
    assert sum(row["output_tokens"] for row in house.requests()) == 9 + 20 + 10 + 5
    finished = {row["id"]: row["finish_ns"] for row in house.requests()}
    assert all(row["scheduled_ns"] >= finished[0] for row in house.requests() if row["id"] == 1), "four have no place"


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_more_answers_than_the_batch_has_places_are_refused(scheduler):
    house = serve(Listed([asked(0, 0, 4, 9, n_samples=5)]), scheduler=scheduler)
    assert house.recorder.refusals == {0: "5 answers to sample at once, the batch has 4 places"}
    assert house.recorder.refused.column("output_tokens").tolist() == [45]


def test_prompts_that_wait_to_fork_keep_the_places_of_all_their_answers():
    """Chunks of 4 and 2: beside the second there is time for another prompt, but four places are taken."""
    listed = [asked(0, 0, 6, 3, n_samples=4), asked(1, 0, 2, 3)]
    rows = serve(Listed(listed), scheduler=partial(Chunked, 4, 4), max_steps=1).requests()
    assert {row["id"]: row["scheduled_ns"] for row in rows} == {0: 0, 1: 4}


def test_a_request_ends_with_the_last_of_its_answers_and_a_conversation_goes_on_once_from_the_first():
    first = asked(0, 0, 8, 5, content=((1, 8),), output_id=-1, session_id=7, n_samples=3)
    house = serve(Listed([first], {7: [(10, 4, 2)]}), kv=paged())
    rows = house.requests()
    assert [row["id"] for row in rows] == [0, 1000], "one row for the request, and one turn that follows"
    assert [row["arrival_ns"] for row in rows] == [0, 15]
    assert [row["cached_tokens"] for row in rows] == [0, 12], "of the prompt and the first answer 12 tokens had KV"


WHOLE = [
    extents(Growing(16), 400),
    extents(Maximum(64), 400),
    partial(cache_on, PrunedCache, 400, Lru, Window(60, 4), 1),
]


@pytest.mark.parametrize("kv", WHOLE)
def test_of_answers_that_share_nothing_the_first_stays_for_the_next_turn(kv):
    first = asked(0, 0, 8, 5, content=((1, 8),), output_id=-1, session_id=7, n_samples=3)
    house = serve(Listed([first], {7: [(10, 4, 2)]}), kv=kv)
    assert [row["cached_tokens"] for row in house.requests()] == [0, 12]
    assert house.replicas[0].kv.held_tokens == 0


def test_totals_count_all_answers_and_paces_one():
    """Four answers of 128 to 256 tokens, nobody preempted: each gap is every answer's."""
    result = simulate("scenario=synthetic", "scenario.n_requests=40", "scenario.n_samples=4", "scenario.rate=2")
    requests, numbers = result.requests, summary(result, Slo())
    n_output = requests.column("output_tokens")
    assert set(requests.column("n_samples").tolist()) == {4}
    assert len(requests) == 40
    assert numbers["total_output_tokens"] == n_output.sum()
    assert 4 * 128 <= n_output.min() <= n_output.max() <= 4 * 256
    gaps = token_gaps(result)
    assert gaps.size == (n_output - 4).sum()
    waited_ns = (requests.column("finish_ns") - requests.column("first_token_ns")).sum()
    assert gaps.mean_std()[0] * gaps.size / 1000 == pytest.approx(4 * waited_ns, abs=8 * len(requests))
    paces = (requests.column("finish_ns") - requests.column("first_token_ns")) / (n_output // 4 - 1) / 1e6
    assert numbers["mean_tpot_ms"] == pytest.approx(np.mean(paces))


@pytest.mark.parametrize("batching", ["chunked", "continuous"])
def test_gaps_are_those_of_all_answers_however_often_each_is_preempted(batching):
    result = simulate(
        "scenario=synthetic", "scenario.n_requests=60", "scenario.rate=20", "scenario.n_samples=3",
        f"batching={batching}", "hardware.kv_blocks=400",
    )  # fmt: skip
    assert len(result.preemptions) > 20
    assert len(result.requests) == 60
    assert token_gaps(result).size == (result.requests.column("output_tokens") - 3).sum()
    assert load(result).output_tokens_in_second.total() == result.requests.column("output_tokens").sum()


def test_sharing_saves_what_the_closed_form_says():
    """Prompts of 160 tokens, 4 answers of 320, one request at a time: 3 of 4 readings of ten blocks are saved.

    An answer holds ceil((160 + k) / 16) blocks when k of its tokens have KV; over k = 1 to 319 that is 20.49 on
    average, so 30 of 81.96 blocks.
    """
    lengths = [
        f"scenario.lengths.{name}.{end}={value}"
        for name, value in (("prompt", 160), ("output", 320))
        for end in ("low", "high")
    ]
    how = ("scenario=synthetic", "scenario.n_requests=5", "scenario.rate=0.01", "batching.forks_samples=true", *lengths)
    shared, single = (
        summary(simulate(*how, f"scenario.n_samples={n}"), Slo())["kvtwin"]["kv"]["saved_frac"] for n in (4, 1)
    )
    assert shared == pytest.approx(30 / 81.96, abs=0.005)
    assert single == 0

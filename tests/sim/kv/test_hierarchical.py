"""Blocks below device memory: found again, loaded while others run, lost without harm."""

from dataclasses import replace
from functools import partial

import pytest

from sim.batching import Chunked, Fcfs, Ranked
from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.preemption import Cheaper, Recompute, Swap
from sim.kv.tiers import Tiers, TierSpec
from sim.sequence import Sequence
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve

COST = LinearCost(1_000_000, per_prompt_ps=50_000, per_host_byte_ps=1_000)


def tier(name="dram", n_bytes=1e6, rate=1e9, fails_at_s=None, write_rate=None):
    return TierSpec(name, n_bytes / (1 << 30), rate, write_rate or rate, 0.0, 0.0, Lru, fails_at_s)


DRAM = (tier(),)


def house(listed, turns=None, levels=DRAM, capacity=64, scheduler=Chunked, queue=Fcfs, **fields):
    kv = partial(
        cache_on,
        HierarchicalCache,
        capacity_tokens=capacity,
        eviction=Lru,
        tiers=Tiers(tuple(levels)),
        cost=COST,
        kv_bytes_per_token=10.0,
        block_tokens=4,
        **fields,
    )
    return serve(Listed(listed, turns or {}), kv=kv, cost=lambda: COST, scheduler=scheduler, queue=queue)


def conversation_and_crowd():
    """A conversation, others that push its blocks out, and its next turn."""
    first = asked(0, 0, 40, 5, content=((1, 40),), output_id=-1, session_id=1)
    crowd = asked(1, 10_000, 60, 3, content=((2, 60),), session_id=2)
    return {"listed": [first, crowd], "turns": {1: [(40_000, 4, 3)]}}


def test_what_was_evicted_comes_back_over_the_link():
    run = house(**conversation_and_crowd())
    again = run.requests()[-1]
    assert again["cached_tokens"] == 44, "eleven full blocks of 40 + 4 tokens whose KV was computed"
    counts = run.replicas[0].kv.counts()
    assert counts["hit_tokens_device"] + counts["hit_tokens_dram"] == 44
    assert counts["hit_tokens_dram"] > 0
    names = list(run.recorder.links)
    sent = [(names[row[1]], row[3] - row[2], row[4]) for row in run.recorder.transfers.rows().tolist()]
    assert ("from dram", counts["hit_tokens_dram"] * 10, counts["hit_tokens_dram"] * 10) in sent, "at 1 byte per ns"


@pytest.mark.parametrize(
    ("load", "rate", "is_loaded"),
    [("always", 1e7, True), ("cheaper", 1e9, True), ("cheaper", 1e7, False), ("never", 1e9, False)],
)
def test_what_others_left_is_loaded_as_asked(load, rate, is_loaded):
    """Per token: 10 ns at 1 GB/s and 1,000 ns at 10 MB/s, against 50 ns of computing."""
    run = house(**conversation_and_crowd(), levels=(tier(rate=rate, write_rate=1e9),), load=load)
    assert (run.replicas[0].kv.counts()["hit_tokens_dram"] > 0) == is_loaded


def test_who_waits_for_a_transfer_does_not_hold_up_others():
    slow = tier(rate=1e6, write_rate=1e9)  # 1 byte per us: a load takes up to 440 us
    script = conversation_and_crowd()
    late = asked(2, 810_000, 4, 3, content=((3, 4),), session_id=3)
    script["listed"].append(late)
    script["turns"] = {1: [(790_000, 4, 3)]}
    rows = {row["id"]: row for row in house(**script, levels=(slow,)).requests()}
    assert rows[1000]["scheduled_ns"] < rows[2]["scheduled_ns"] < rows[2]["finish_ns"] < rows[1000]["first_token_ns"]


def test_a_lost_tier_costs_recomputation_and_nothing_else():
    whole = house(**conversation_and_crowd())
    lost = house(**conversation_and_crowd(), levels=(tier(fails_at_s=30e-6),))
    assert len(lost.requests()) == len(whole.requests()) == 3
    assert lost.requests()[-1]["cached_tokens"] < whole.requests()[-1]["cached_tokens"]
    kept = [run.replicas[0].kv.counts()["kept_tokens_dram"] for run in (whole, lost)]
    assert kept[0] > kept[1] == 0, "it is gone, and what it held"


@pytest.mark.parametrize(
    ("fails_at_s", "cached_tokens", "first_token_ns"),
    [
        (None, 44, 487_000 + 1_000 + 5 * 50),
        (48e-6, 0, 487_000 + 1_000 + 49 * 50),  # while the load is under way, from 47,000 on
        (600e-6, 44, 487_000 + 1_000 + 5 * 50),
    ],
)
def test_a_load_under_way_is_lost_with_its_tier(fails_at_s, cached_tokens, first_token_ns):
    """44 tokens at 1 byte per us; 10 bytes each. What is lost is computed when it should have come."""
    slow = tier(rate=1e6, write_rate=1e9, fails_at_s=fails_at_s)
    run = house(**conversation_and_crowd(), levels=(slow,))
    again = run.requests()[-1]
    assert (again["cached_tokens"], again["first_token_ns"]) == (cached_tokens, first_token_ns)
    counts = run.replicas[0].kv.counts()
    assert (counts["hit_tokens_device"], counts["hit_tokens_dram"]) == (0, cached_tokens)
    assert sum(row["prefill_tokens"] for row in run.iterations()) == 40 + 60 + 49 - cached_tokens


@pytest.mark.parametrize(("fails_at_s", "cached_tokens"), [(14.5e-6, 0), (15e-6, 0), (16e-6, 44)])
def test_what_goes_down_from_a_tier_is_lost_with_it(fails_at_s, cached_tokens):
    """The crowd's 600 bytes come to host memory at 14,600, and the 440 there go down to the disk until 15,480."""
    levels = (tier(n_bytes=600, fails_at_s=fails_at_s), tier("nvme", rate=5e8))
    run = house(**conversation_and_crowd(), levels=levels)
    assert run.requests()[-1]["cached_tokens"] == cached_tokens


@pytest.mark.parametrize(("is_per_accelerator", "ns_per_token"), [(True, 10), (False, 20)])
def test_two_accelerators_fill_a_tier_twice_as_fast_and_a_token_takes_twice_the_bytes(is_per_accelerator, ns_per_token):
    """10 bytes of each token lie on each. At 1 byte per ns: over a link each, or over one that both share."""
    levels = (replace(tier(n_bytes=4_000), is_per_accelerator=is_per_accelerator),)
    run = house(**conversation_and_crowd(), levels=levels, tensor_parallel=2)
    counts = run.replicas[0].kv.counts()
    assert counts["room_tokens_dram"] == 200, "50 blocks of 80 bytes"
    loads = [(end - start, n_bytes) for name, start, end, n_bytes in sent_of(run) if name == "from dram"]
    n_tokens = counts["hit_tokens_dram"]
    assert loads == [(ns_per_token * n_tokens, 20 * n_tokens)]


def test_a_full_tier_sends_blocks_further_down_and_they_come_back_from_there():
    levels = (tier(n_bytes=80), tier("nvme", rate=5e8))
    counts = house(**conversation_and_crowd(), levels=levels).replicas[0].kv.counts()
    assert counts["evicted_blocks_dram"] > 0
    assert counts["hit_tokens_nvme"] > 0


def comes_back_from_disk(think_ns, *others, fails_at_s=(None, None), **fields):
    """A conversation of 44 computed tokens that a crowd of 60 has pushed through host memory down to the disk, one that
    takes the device from 50,000 to 72,000 ns, and the conversation's next turn."""
    listed = [
        asked(0, 0, 40, 5, content=((1, 40),), output_id=-1, session_id=1),
        asked(1, 10_000, 60, 3, content=((2, 60),), output_id=-2, session_id=2),
        asked(2, 50_000, 40, 20, content=((3, 40),), output_id=-3, session_id=3),
        *others,
    ]
    levels = (tier(n_bytes=600, fails_at_s=fails_at_s[0]), tier("nvme", rate=5e8, fails_at_s=fails_at_s[1]))
    run = house(listed, {1: [(think_ns, 4, 3)]}, levels=levels, **fields)
    counts = run.replicas[0].kv.counts()
    again = next(row for row in run.requests() if row["id"] == 1000)
    from_disk = [(start_ns, n) for name, start_ns, _, n in sent_of(run) if name == "from nvme"]
    return again, counts["hit_tokens_dram"], counts["hit_tokens_nvme"], from_disk


def test_who_waits_has_its_blocks_brought_up_from_disk_meanwhile():
    """It arrives at 60,000 and is admitted at 72,000. 440 bytes: 880 ns from disk, 440 from host memory, 5 tokens."""
    with_it, *found = comes_back_from_disk(53_000, prefetch=1)
    assert with_it["arrival_ns"] == 60_000
    assert found == [44, 0, [(60_000, 440)]]
    assert with_it["first_token_ns"] == 72_000 + 440 + 1_000 + 5 * 50
    without, *found = comes_back_from_disk(53_000, prefetch=0)
    assert found == [0, 44, [(72_000, 440)]]
    assert without["first_token_ns"] == 72_000 + 880 + 440 + 1_000 + 5 * 50


def test_who_moves_up_in_the_queue_is_prefetched_then():
    """One of 24 tokens waits before it, until 72,000; it takes 2,200 ns to compute and ends at 76,200.

    Its 6 blocks, saved meanwhile, push the last 2 of the 11 back to disk. They come beside the others: 160 ns, then 80
    bytes share the link with 200 that are left.
    """
    before = asked(3, 55_000, 24, 3, content=((4, 24),), output_id=-4, session_id=4)
    again, *found = comes_back_from_disk(53_000, before, prefetch=1)
    assert found == [36, 8, [(72_000, 440), (76_200, 80)]]
    assert again["scheduled_ns"] == 76_200
    assert again["first_token_ns"] == 76_200 + 440 + 1_000 + 5 * 50


def test_who_comes_before_those_that_wait_is_prefetched_when_it_arrives():
    """At 60,000 it jumps the one that has waited since 55,000."""
    before = asked(3, 55_000, 24, 3, content=((4, 24),), output_id=-4, session_id=4, priority=5)
    again, *found = comes_back_from_disk(53_000, before, prefetch=1, queue=partial(Ranked, "priority"))
    assert found == [44, 0, [(60_000, 440)]]
    assert again["first_token_ns"] == 72_000 + 440 + 1_000 + 5 * 50


@pytest.mark.parametrize(
    ("fails_at_s", "n_come", "ends_ns"),
    [((76.3e-6, None), [0, 0], 76_640), ((None, 76.3e-6), [36, 0], 76_560), ((76.7e-6, None), [36, 8], 76_640)],
)
def test_what_follows_a_lost_part_is_lost_too(fails_at_s, n_come, ends_ns):
    """As for who moves up; the 80 bytes from disk share the link to the device from 76,360 on, with 200 others."""
    before = asked(3, 55_000, 24, 3, content=((4, 24),), output_id=-4, session_id=4)
    again, *found = comes_back_from_disk(53_000, before, prefetch=1, fails_at_s=fails_at_s)
    assert (again["cached_tokens"], found[:2]) == (sum(n_come), n_come)
    assert again["first_token_ns"] == ends_ns + 1_000 + (49 - sum(n_come)) * 50


def test_a_prefetch_that_comes_too_late_is_waited_for_and_not_repeated():
    again, *found = comes_back_from_disk(20_000, prefetch=1)
    assert again["arrival_ns"] == again["scheduled_ns"] == 27_000
    assert found == [0, 44, [(27_000, 440)]]
    assert again["first_token_ns"] == 27_000 + 880 + 440 + 1_000 + 5 * 50


@pytest.mark.parametrize(
    ("think_ns", "fails_at_s", "computes_ns"), [(53_000, 60.4e-6, 72_000), (20_000, 27.4e-6, 27_880)]
)
def test_a_prefetch_under_way_is_lost_with_its_tier(think_ns, fails_at_s, computes_ns):
    """From disk until 60,880, long before its request is admitted, or until 27,880, when that waits for it already."""
    again, *found = comes_back_from_disk(think_ns, prefetch=1, fails_at_s=(None, fails_at_s))
    assert (again["cached_tokens"], found[:2]) == (0, [0, 0])
    assert again["first_token_ns"] == computes_ns + 1_000 + 49 * 50


@pytest.mark.parametrize("write", ["through", "back"])
@pytest.mark.parametrize("overlap", [True, False])
def test_every_way_of_writing_finds_the_same(write, overlap):
    run = house(**conversation_and_crowd(), write=write, overlap=overlap)
    assert run.requests()[-1]["cached_tokens"] == 44
    assert len(run.recorder.transfers) > 0


TWO = [asked(i, 0, 16, 40, content=((i + 1, 16),), output_id=-10 - i) for i in range(2)]
"""Both prompts take 1,000 + 32 x 50 = 2,600 ns. 16 iterations later, at 18,600, both hold 32 tokens, all 16 blocks, and
the second gives way. The first goes on for 23 iterations, to 41,600, and takes the last 6 of the 8 blocks. Then the
second, which is to have 33 tokens computed, finds 8 of them in device memory and 24 in 6 blocks of 240 bytes below."""


def preemption_of(run):
    ((_, _, preempted_ns, last_ns, next_ns, is_swap, *_),) = run.recorder.preemptions.rows().tolist()
    assert preempted_ns == last_ns == 18_600
    return next_ns, is_swap


def lost_and_found(run):
    """Of each preemption: tokens whose KV was lost, whether another was to be computed with them, tokens found."""
    return run.recorder.preemptions.rows()[:, -3:].tolist()


def sent_of(run):
    names = list(run.recorder.links)
    return [(names[link], start, end, n) for _, link, start, end, n, _ in run.recorder.transfers.rows().tolist()]


def test_swapped_in_by_hand():
    """240 bytes come in 240 ns, and the 33rd token is computed: 41,600 + 240 + 1,050."""
    run = house(TWO, preemption=Swap())
    assert preemption_of(run) == (42_890, 1)
    assert sent_of(run)[:4] == [
        ("to dram", 2_600, 2_920, 160),  # both prompts, as soon as they are computed, share the link
        ("to dram", 2_600, 2_920, 160),
        ("to dram", 18_600, 18_760, 160),  # the answer so far
        ("from dram", 41_600, 41_840, 240),
    ]
    counts = run.replicas[0].kv.counts()
    assert (counts["swapped_out"], counts["swapped_in"], counts["recomputed"]) == (1, 1, 0)
    assert (counts["reloaded_tokens"], lost_and_found(run)) == (24, [[32, 1, 32]]), "the 33rd is computed at first"


def test_a_swap_that_is_lost_on_its_way_is_a_recomputation():
    """25 tokens, when it turns out that they do not come: 41,840 + 1,000 + 25 x 50."""
    run = house(TWO, levels=(tier(fails_at_s=41.7e-6),), preemption=Swap())
    assert preemption_of(run) == (44_090, 0)
    counts = run.replicas[0].kv.counts()
    assert (counts["swapped_out"], counts["swapped_in"], counts["recomputed"]) == (1, 0, 1)
    assert (counts["reloaded_tokens"], lost_and_found(run)) == (0, [[32, 1, 8]])


def test_text_that_nobody_shares_goes_down_when_it_is_preempted_and_not_before_or_after():
    run = house([asked(i, 0, 16, 40) for i in range(2)], preemption=Swap())
    assert preemption_of(run) == (42_890, 1)
    assert sent_of(run) == [("to dram", 18_600, 18_920, 320), ("from dram", 41_600, 41_840, 240)]


def test_recomputed_by_hand():
    """25 tokens that are not in device memory: 41,600 + 1,000 + 25 x 50."""
    run = house(TWO, preemption=Recompute())
    assert preemption_of(run) == (43_850, 0)
    counts = run.replicas[0].kv.counts()
    assert (counts["swapped_in"], counts["recomputed"]) == (0, 1)
    assert (counts["reloaded_tokens"], lost_and_found(run)) == (0, [[32, 1, 8]])


def test_the_part_of_a_prompt_that_was_not_computed_yet_is_not_computed_again():
    """The second's prompt, 8 tokens an iteration, gives way to the first's answer after 8, and comes back."""
    listed = [asked(0, 0, 16, 25), asked(1, 10_000, 33, 2)]
    run = house(listed, capacity=40, preemption=Recompute(), scheduler=partial(Chunked, 9, 4))
    counts = run.replicas[0].kv.counts()
    assert (counts["recomputed"], lost_and_found(run)) == (1, [[8, 0, 0]])
    assert sum(row["prefill_tokens"] for row in run.iterations()) == 16 + 33 + 8


@pytest.mark.parametrize(("rate", "is_swap"), [(2.1e8, 1), (1.9e8, 0)])
def test_auto_swaps_exactly_where_loading_is_faster(rate, is_swap):
    """240 bytes + 1,050 ns against 2,250 ns: equal at 0.2 bytes a nanosecond."""
    assert preemption_of(house(TWO, levels=(tier(rate=rate, write_rate=1e9),), preemption=Cheaper()))[1] == is_swap


@pytest.mark.parametrize(("each_bytes", "found_tokens"), [(239, 32), (240, 8)])
def test_auto_asks_the_link_as_it_is_at_that_moment(each_bytes, found_tokens):
    """Four transfers under way: 240 bytes beside them take 240 + 4 x 239 ns, which still pays, or 5 x 240."""
    run = house(TWO, preemption=Cheaper())
    kv = run.replicas[0].kv
    again = Sequence(TWO[0])
    again.n_preemptions, again.generated_tokens, again.target_tokens = 1, 17, 33
    assert kv.match(again.request, again.preempted_at_tokens) == 32, (
        "the state of the second, mirrored: 8 tokens in device memory, 24 below"
    )
    for _ in range(4):
        kv.tiers.tiers[0].up.send(each_bytes)
    assert kv.match(again.request, again.preempted_at_tokens) == found_tokens


@pytest.mark.parametrize(
    ("preemption", "rate", "next_ns", "is_swap"),
    [
        (Swap(), 1e9, 43_210, 1),  # 320 ns to save 8 blocks, on the iteration after; 240 ns to load 6, on the last
        (Recompute(), 1e9, 43_850, 0),
        # 33 tokens: 2,650 ns, of which the first loses 1,650 too; saved and loaded: once it alone and once both lose
        # 320 / rate, and both one token more: 3 x 320 / rate + 1,100 against 4,300 ns
        (Cheaper(), 3.1e8, 41_600 + 1_033 + 775 + 1_050, 1),
        (Cheaper(), 2.9e8, 43_850, 0),  # nothing is saved where it would not pay
    ],
)
def test_swap_space_by_hand(preemption, rate, next_ns, is_swap):
    """vLLM v0's: what is preempted is saved, and iterations wait for the copies."""
    how = {"write": "preempted", "overlap": False, "host_bytes_per_s": 1e9}
    run = house(TWO, levels=(tier(rate=rate),), preemption=preemption, **how)
    assert preemption_of(run) == (next_ns, is_swap)
    assert len(run.recorder.transfers) == 2 * is_swap


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Tiers(()), "tiers.levels must name at least one tier"),
        (lambda: Tiers((tier(rate=1e8), tier("x"))), "tiers.levels must go from fast to slow: x reads 1e"),
        (lambda: Tiers((tier(n_bytes=0),)), r"tiers.levels.0.capacity_gib must be > 0 and finite, got 0"),
        (lambda: house([], write="up"), "cache.write must be one of through, back, preempted, got 'up'"),
        (lambda: house([], load="no"), "cache.load must be one of always, cheaper, never, got 'no'"),
        (lambda: house([], prefetch=-1), r"cache.prefetch must be >= 0 \[requests\], got -1"),
        (lambda: house([], levels=(tier(n_bytes=8),)), r"tiers.levels.0.capacity_gib must hold one block of 40 bytes"),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_range(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("chunk_tokens", [1, 4, 8, 12, 256])
def test_transfers_are_cut_into_pieces_of_whole_blocks(chunk_tokens):
    """Blocks are of 4 tokens and 40 bytes: a piece is as many as a chunk holds, and one at least."""
    sent = house(**conversation_and_crowd(), chunk_tokens=chunk_tokens).recorder.transfers
    piece_bytes = max(1, chunk_tokens // 4) * 40
    n_bytes, n_pieces = sent.column("n_bytes"), sent.column("n_pieces")
    assert len(sent) > 0
    assert n_bytes.max() >= 3 * 40, "one of several blocks"
    assert n_pieces.tolist() == (-(-n_bytes // piece_bytes)).tolist()

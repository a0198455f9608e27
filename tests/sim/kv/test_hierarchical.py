"""Blocks below device memory: found again, loaded while others run, lost without harm."""

from functools import partial

import pytest

from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.tiers import Tiers, TierSpec
from tests.sim.serving import LinearCost, Listed, asked, serve

COST = LinearCost(1_000_000, per_prompt_ps=50_000)


def tier(name="dram", n_bytes=1e6, rate=1e9, fails_at_s=None, write_rate=None):
    return TierSpec(name, n_bytes / (1 << 30), rate, write_rate or rate, 0.0, 0.0, Lru, fails_at_s)


DRAM = (tier(),)


def house(listed, turns=None, levels=DRAM, capacity=64, **fields):
    kv = partial(
        HierarchicalCache,
        capacity_tokens=capacity,
        eviction=Lru,
        tiers=Tiers(tuple(levels)),
        cost=COST,
        kv_bytes_per_token=10.0,
        block_tokens=4,
        **fields,
    )
    return serve(Listed(listed, turns or {}), kv=kv, cost=lambda: COST)


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


def test_a_full_tier_sends_blocks_further_down_and_they_come_back_from_there():
    levels = (tier(n_bytes=80), tier("nvme", rate=5e8))
    counts = house(**conversation_and_crowd(), levels=levels).replicas[0].kv.counts()
    assert counts["evicted_blocks_dram"] > 0
    assert counts["hit_tokens_nvme"] > 0


@pytest.mark.parametrize("write", ["through", "back"])
@pytest.mark.parametrize("overlap", [True, False])
def test_every_way_of_writing_finds_the_same(write, overlap):
    run = house(**conversation_and_crowd(), write=write, overlap=overlap)
    assert run.requests()[-1]["cached_tokens"] == 44
    assert bool(len(run.recorder.transfers)) == overlap


def test_preempted_sequences_swap_recompute_or_take_the_cheaper():
    listed = [asked(i, 0, 16, 40) for i in range(3)]
    kinds = {}
    for reload in ("always", "never", "cheaper"):
        for rate in (1e9, 1e5):
            counts = house(listed, levels=(tier(rate=rate),), reload=reload).replicas[0].kv.counts()
            kinds[reload, rate] = counts["swapped_in"] > 0
    assert kinds["always", 1e9]
    assert kinds["cheaper", 1e9]
    assert not kinds["never", 1e9]
    assert not kinds["cheaper", 1e5], "at 10 us a token computing is faster"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Tiers(()), "tiers.levels must name at least one tier"),
        (lambda: Tiers((tier(rate=1e8), tier("x"))), "tiers.levels must go from fast to slow: x reads 1e"),
        (lambda: tier(n_bytes=0), r"tiers.dram.capacity_gib must be > 0 and finite, got 0"),
        (lambda: house([], write="up"), "cache.write must be one of through, back, got 'up'"),
        (lambda: house([], reload="no"), "cache.reload must be one of always, cheaper, never, got 'no'"),
        (lambda: house([], prefetch=-1), r"cache.prefetch must be >= 0 \[requests\], got -1"),
        (lambda: house([], levels=(tier(n_bytes=8),)), r"tiers.dram.capacity_gib must hold one block of 40 bytes"),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_range(build, message):
    with pytest.raises(ConfigError, match=message):
        build()

"""One tier by itself, and tiers under stress: every order of eviction, too little room, too slow a link, failures."""

from functools import partial

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.kv.eviction import Lru
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.preemption import Cheaper, Recompute, Swap
from sim.kv.tiers import Tier, Tiers, TierSpec, after
from sim.metrics.summary import recomputed_tokens
from sim.record import Recorder
from sim.request import block_ranges
from tests.sim.kv.policies import EVICTORS
from tests.sim.kv.sites import cache_on
from tests.sim.kv.test_prefix import Blockwise, Runwise
from tests.sim.serving import LinearCost, Listed, asked, serve

SIZE = 4  # tokens of a block, of 40 bytes


def spec(policy=Lru, n_bytes=40 * 30, rate=1e9, fails_at_s=None, name="dram"):
    return TierSpec(name, n_bytes / (1 << 30), rate, rate, 0.0, 0.0, policy, fails_at_s)


def text(identity, n_blocks):
    return block_ranges(((identity, n_blocks * SIZE),), n_blocks * SIZE, SIZE)


@pytest.mark.parametrize("policy", EVICTORS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 12)), min_size=1, max_size=40))
def test_a_tier_keeps_as_many_blocks_as_came_less_those_it_gave_up_and_never_more_than_fit(policy, puts):
    tier = Tier(spec(EVICTORS[policy]), SIZE, 40, simpy.Environment(), Recorder(), 0, 0)
    assert tier.n_blocks == 30
    n_kept = 0
    for identity, n_blocks in puts:
        blocks = text(identity, n_blocks)
        n_before = tier.match(blocks)
        n_evicted = sum(n for _, _, n in tier.put(blocks))
        n_kept += n_blocks - n_before - n_evicted
        assert tier.n_held <= tier.n_blocks == len(tier._evictor)
        assert tier.match(blocks) == n_blocks, "what has just come is there"
    assert tier.n_held == n_kept or policy != "lru", (
        "other orders leave holes, behind which equal blocks are kept twice"
    )


@pytest.mark.parametrize("policy", EVICTORS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 6), st.integers(1, 12)), min_size=10, max_size=60))
def test_a_tier_of_runs_gives_up_what_one_of_single_blocks_does(policy, puts):
    runs, blocks = (
        Tier(spec(partial(one_by, form, EVICTORS[policy])), SIZE, 40, simpy.Environment(), Recorder(), 0, 0)
        for form in (Runwise, Blockwise)
    )
    for identity, start, n_blocks in puts:
        part = after(text(identity, start + n_blocks), start, SIZE)
        assert runs.match(part) == blocks.match(part)
        assert one_by_one(runs.put(part)) == one_by_one(blocks.put(part))


def one_by(form, policy, n_blocks):
    return form(policy(n_blocks))


def one_by_one(ranges):
    """Blocks of given up ranges, of each the last first."""
    return [(piece, end + i * SIZE) for piece, end, n_blocks in ranges for i in reversed(range(n_blocks))]


def house(levels, preemption, overlap=True, write="through", n_requests=24):
    """Twice as many as fit, all at once: half of them are preempted, some again and again."""
    listed = [
        asked(i, 50 * i, 12, 24, content=((i % 7, 8), (100 + i, 4)), output_id=-50 - i) for i in range(n_requests)
    ]
    kv = partial(
        cache_on,
        HierarchicalCache,
        capacity_tokens=96,
        eviction=Lru,
        tiers=Tiers(tuple(levels)),
        cost=LinearCost(1_000_000, per_prompt_ps=50_000),
        kv_bytes_per_token=10.0,
        block_tokens=SIZE,
        preemption=preemption,
        overlap=overlap,
        write=write,
    )
    return serve(
        Listed(listed), kv=kv, cost=lambda: LinearCost(1_000_000, per_prompt_ps=50_000, per_host_byte_ps=1_000)
    )


STRESS = {
    "every order, dram and disk full": lambda policy: (spec(policy, 400), spec(policy, 800, 5e8, name="disk")),
    "a link that never keeps up": lambda policy: (spec(policy, rate=2e6),),
    "lost in the middle": lambda policy: (spec(policy, fails_at_s=40e-6), spec(policy, 4_000, 5e8, name="disk")),
    "disk lost in the middle": lambda policy: (spec(policy, 400), spec(policy, 4_000, 5e8, 40e-6, "disk")),
}


@pytest.mark.parametrize("policy", EVICTORS)
@pytest.mark.parametrize("stress", STRESS)
@pytest.mark.parametrize("how", [{}, {"write": "back"}, {"write": "preempted"}, {"overlap": False}])
def test_under_stress_everybody_is_served_and_all_memory_comes_back(stress, policy, how):
    run = house(STRESS[stress](EVICTORS[policy]), Cheaper(), **how)
    assert len(run.requests()) == 24
    assert len(run.recorder.preemptions) > 0
    kv = run.replicas[0].kv
    assert (kv.held_tokens, len(kv.tiers._coming), len(kv.tiers._n_sent)) == (0,) * 3
    counts = kv.counts()
    found = sum(row["cached_tokens"] for row in run.requests())
    assert found == sum(n for name, n in counts.items() if name.startswith("hit_tokens_"))


def test_losing_a_tier_costs_time_and_never_an_answer():
    whole, lost = (house((spec(n_bytes=4_000, fails_at_s=at_s),), Swap()) for at_s in (None, 30e-6))
    counts = [run.replicas[0].kv.counts() for run in (whole, lost)]
    assert counts[0]["reloaded_tokens"] > counts[1]["reloaded_tokens"]
    assert recomputed_tokens(whole.recorder.preemptions) < recomputed_tokens(lost.recorder.preemptions)
    assert lost.env.now > whole.env.now
    assert [row["output_tokens"] for row in lost.requests()] == [24] * 24


@pytest.mark.parametrize(("rate", "better"), [(1e9, Swap()), (2e6, Recompute())])
def test_auto_is_as_fast_as_the_better_of_both_over_a_fast_link_and_a_slow_one(rate, better):
    ends = {
        kind: max(row["finish_ns"] for row in house((spec(n_bytes=4_000, rate=rate),), kind()).requests())
        for kind in (Swap, Recompute, Cheaper)
    }
    assert ends[type(better)] == min(ends[Swap], ends[Recompute])
    assert ends[Cheaper] <= 1.01 * ends[type(better)]

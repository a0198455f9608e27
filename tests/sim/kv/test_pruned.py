"""Sinks and windows, shares and bits: what stays, and that it stays constant."""

from functools import partial

import pytest

from sim.batching import Chunked
from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.pruned import PrunedCache
from sim.kv.retention import Share, Window
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve


def pruned(retention, capacity=4096, **fields):
    return lambda: cache_on(PrunedCache, capacity, Lru, retention, kv_bytes_per_token=100.0, **fields)


def test_a_million_tokens_take_the_memory_of_a_window_and_no_more_events():
    house = serve(Listed([asked(0, 0, 2000, 1_000_000)]), kv=pruned(Window(1020, 4)), max_len=4096)
    rows = house.iterations()
    assert house.requests()[0]["output_tokens"] == 1_000_000
    assert max(row["held_tokens"] for row in rows) == 1024
    assert max(row["live_tokens"] for row in rows) == 1024
    assert len(rows) < 10, "the simulator, too, takes no more for more tokens"
    counts = house.replicas[0].kv.counts()
    assert (counts["attended_tokens"], counts["seen_tokens"]) == (1024, 1_001_999)


def test_an_overlapping_window_runs_full_and_keeps_sinks_and_overlap():
    house = serve(Listed([asked(0, 0, 10, 200)]), kv=pruned(Window(60, 4, overlap=20), block_tokens=1))
    live = [row["live_tokens"] for row in house.iterations()]
    assert max(live) <= 64
    assert live.count(24) >= 3, "cut to 4 + 20 whenever 64 are resident"


@pytest.mark.parametrize("model_window", [None, 1000])
def test_a_wider_window_of_the_model_leaves_a_prompt_the_overlapping_one(model_window):
    kv = pruned(Window(60, 4, overlap=20), capacity=80, block_tokens=1, window_tokens=model_window)
    assert kv().refuses(asked(0, 0, 300, 200)) is None
    house = serve(Listed([asked(0, 0, 300, 200)]), kv=kv, scheduler=lambda: Chunked(40, 8))
    assert max(row["live_tokens"] for row in house.iterations()) == 64
    assert max(row["held_tokens"] for row in house.iterations()) == 64


def test_a_dynamic_window_widens_in_empty_memory_and_narrows_in_full_memory():
    wide = Window(64, 4, overlap=16, dynamic=True)
    assert wide.kept(300, 68, 68, 0.2) == (68, 132, 0)
    assert wide.kept(400, 132, 132, 0.2) == (20, 132, 0), "twice the base at most"
    assert wide.kept(400, 132, 132, 0.95) == (20, 68, 0)
    assert wide.kept(400, 36, 36, 0.95) == (20, 36, 0), "half the base at least"


def test_a_share_is_kept_and_its_compaction_is_charged():
    house = serve(
        Listed([asked(0, 0, 100, 202)]),
        kv=pruned(Share(0.25, every=100), block_tokens=1),
        cost=lambda: LinearCost(1000),
    )
    counts = house.replicas[0].kv.counts()
    assert counts["compactions"] == 3, "the prompt, and every 100 tokens"
    assert counts["moved_tokens"] == 25 + 50 + 75
    assert counts["attended_frac"] == 76 / 301


@pytest.mark.parametrize(
    ("turns", "n_quantised"),
    [([], 1_000), ([(1_000, 10, 101)], 1_111), ([(1_000, 10, 101)] * 2, 1_222), ([(1_000, 10, 301)], 1_367)],
)
def test_each_token_is_quantised_once(turns, n_quantised):
    """A prompt when it is complete, an answer every 128 tokens, what it left with the next turn's prompt."""
    first = asked(0, 0, 1_000, 101, content=((1, 1_000),), output_id=-1, session_id=7)
    house = serve(Listed([first], {7: turns}), kv=pruned(Share(1.0, bits=4, every=128)))
    assert house.replicas[0].kv.counts()["moved_tokens"] == n_quantised


def test_what_would_get_no_fewer_bits_is_not_quantised():
    """8 bits with scales and zero points are 9, and a model's fp8 KV has 8."""
    house = serve(Listed([asked(0, 0, 1_000, 500)]), kv=pruned(Share(1.0, bits=8), kv_dtype="fp8"))
    counts = house.replicas[0].kv.counts()
    assert (counts["bits_per_element"], counts["moved_tokens"], counts["compactions"]) == (8.0, 0, 0)


def test_fewer_bits_make_more_room():
    cache = pruned(Share(1.0, bits=4), capacity=16_000)()
    assert cache.bits_per_element == 5.0, "4, and a scale and a zero point of 16 bits per 32 elements"
    assert cache.capacity_tokens == 51_200


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Window(3, 4), r"cache.retention.window must be .* >= cache.retention.sinks \(4\) \[tokens\], got 3"),
        (lambda: Window(8, -1), r"cache.retention.sinks must be >= 0"),
        (lambda: Window(64, 4, 64), r"cache.retention.overlap must be null, or >= 0 and < 64"),
        (lambda: Window(64, 4, dynamic=True), r"cache.retention.overlap must be given"),
        (lambda: Share(0.0), r"cache.retention.keep_ratio must be > 0 and <= 1, got 0.0"),
        (lambda: Share(1.1), r"cache.retention.keep_ratio must be > 0 and <= 1, got 1.1"),
        (lambda: Share(0.5, bits=3), r"cache.retention.bits must be 2, 4, 8 or 16 \[bits\], got 3"),
        (lambda: pruned(Share(0.5), capacity=8)(), r"KV capacity must hold one block of 16 tokens, got 8"),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_range(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_conversation_goes_on_from_what_it_has_kept():
    turns = {7: [(1000, 5, 8)]}
    first = asked(0, 0, 100, 50, content=((1, 100),), output_id=-1, session_id=7)
    house = serve(Listed([first], turns), kv=pruned(Window(60, 4), block_tokens=4))
    assert [row["cached_tokens"] for row in house.requests()] == [0, 149]


FAST_AND_SLOW = [
    Window(20, 4),
    Window(20, 2, overlap=8),
    Window(16, 2, overlap=4, dynamic=True),
    Share(0.5, every=6),
    Share(0.75, bits=4, every=5),
]


@pytest.mark.parametrize("retention", FAST_AND_SLOW, ids=repr)
def test_jumps_equal_single_steps(retention):
    listed = [asked(i, 40 * i, 12 + 5 * i, 30 + 7 * i) for i in range(8)]
    how = {"kv": pruned(retention, capacity=130, block_tokens=4), "cost": partial(LinearCost, 10_003, 7, 101)}
    assert serve(Listed(listed), **how).facts() == serve(Listed(listed), **how, max_steps=1).facts()


def prefilling(house):
    """Iterations that compute a prompt."""
    return [row for row in house.iterations() if row["prefill_tokens"]]


PIECES = partial(Chunked, 40, 8)


def test_a_dense_prompt_is_held_as_a_whole_until_it_is_complete_and_then_cut():
    window = Window(60, 4, prompt="dense")
    house = serve(Listed([asked(0, 0, 200, 50)]), kv=pruned(window, block_tokens=1), scheduler=PIECES)
    assert [row["held_tokens"] for row in prefilling(house)] == [40, 80, 120, 160, 200]
    assert {row["live_tokens"] for row in house.iterations()[5:]} == {64}
    windowed = serve(Listed([asked(0, 0, 200, 50)]), kv=pruned(Window(60, 4), block_tokens=1), scheduler=PIECES)
    assert max(row["held_tokens"] for row in prefilling(windowed)) == 64


def test_a_dense_prompt_must_fit_and_has_an_end():
    dense = pruned(Window(60, 4, prompt="dense"), capacity=160)()
    assert dense.refuses(asked(0, 0, 200, 50)) == "16 KV blocks needed, the device has 10"
    assert not dense.is_endless
    assert pruned(Window(60, 4), capacity=160)().refuses(asked(0, 0, 200, 50)) is None


def test_a_share_taken_by_piece_is_all_that_the_next_piece_finds():
    share = Share(0.25, every=100, prompt="by_piece")
    cost = partial(LinearCost, 0, per_prompt_context_ps=1_000)
    house = serve(Listed([asked(0, 0, 120, 2)]), kv=pruned(share, block_tokens=1), scheduler=PIECES, cost=cost)
    took_ns = [row["first_ps"] // 1_000 for row in prefilling(house)]
    assert took_ns == [0, 10, 20], "a quarter of 40, then of 80"
    assert [row["held_tokens"] for row in prefilling(house)] == [40, 50, 60]
    assert house.replicas[0].kv.counts()["moved_tokens"] == 10 + 20 + 30

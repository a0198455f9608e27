"""What the KV slots held, against the same counted by hand and step by step."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from sim.batching import Chunked
from sim.kv.allocator import Buddy, FirstFit
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.kv.pruned import PrunedCache
from sim.kv.reservation import Growing, Maximum
from sim.kv.retention import Window
from sim.metrics.load import Load, load
from sim.metrics.summary import waste_frac
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, Listed, asked, serve
from tests.sim.tiny_run import tiny_run

CACHES: dict[str, Callable[[], Any]] = {
    "paged": partial(cache_on, PagedCache, 4096, Lru),
    "static": partial(cache_on, ContiguousCache, 4096, Lru, Buddy, Maximum(1000)),
    "dynamic": partial(cache_on, ContiguousCache, 4096, Lru, FirstFit, Growing(96, 1.5)),
    "streaming": partial(cache_on, PrunedCache, 4096, Lru, Window(60, 4)),
}

# Two requests of 80 tokens, of which they share the first 64. Every iteration takes as long as any other, 33 in all:
# the first computes the one's prompt, the second the other's beside the one's decoding, the rest decode both.
TWO = Listed(
    [
        asked(0, 0, 80, 33, content=((7, 64), (8, 16)), output_id=100),
        asked(1, 1, 80, 32, content=((7, 64), (9, 16)), output_id=101),
    ]
)


def served(cache: str, max_steps: int | None = None, traffic: Listed = TWO) -> House:
    return serve(traffic, kv=CACHES[cache], scheduler=Chunked, max_steps=max_steps)


def load_of(house: House, cache: str) -> Load:
    recorder, kv = house.recorder, house.replicas[0].kv
    config = {"cache": {"block_tokens": 16} if cache in ("paged", "streaming") else {}}
    result = replace(
        tiny_run(n_requests=0).result,
        requests=recorder.requests,
        iterations=recorder.iterations,
        capacity_tokens=kv.capacity_tokens,
        end_ns=int(recorder.requests.column("finish_ns").max()),
        config=config,
    )
    return load(result)


def mean(*spans: tuple[int, float]) -> float:
    """Average over all 33 iterations of so many with a value each."""
    assert sum(n for n, _ in spans) == 33
    return sum(n * value for n, value in spans) / 33


def test_blocks_that_two_sequences_share_are_held_and_live_once():
    """Of the other's 80 tokens 64 are the one's: 97 slots with KV as both begin to decode, then 2 more each step."""
    found = load_of(served("paged"), "paged")
    assert found.mean_live_tokens == pytest.approx(mean((1, 40), (1, 80 + 17 / 2), (31, 97 + 31)))
    assert found.mean_reserved_tokens == pytest.approx(mean((1, 40), (1, 8), (31, 0)))
    assert found.mean_shared_tokens == pytest.approx(mean((1, 0), (32, 64)))
    # The last blocks have 16 to 1 free slots as iterations begin, half a token less on average while they run: in two
    # rounds of 16, less one iteration, that is 8 for each of both.
    by_hand = mean((1, 0), (1, 15.5), (31, 16))
    assert found.mean_internal_tokens == pytest.approx(by_hand, abs=0.5)
    assert waste_frac(found) == pytest.approx(
        (by_hand + mean((1, 40), (1, 8), (31, 0))) / found.mean_held_tokens, rel=0.05
    )


def test_of_an_extent_of_the_maximum_most_is_reserved():
    """1,000 slots each, in pieces of 1,024 as a buddy allocator has them."""
    found = load_of(served("static"), "static")
    assert found.mean_held_tokens == pytest.approx(mean((1, 1024), (32, 2048)))
    assert found.mean_internal_tokens == pytest.approx(mean((1, 24), (32, 48)))
    live = mean((1, 40), (1, 80 + 81 / 2), (31, 161 + 31))
    assert found.mean_live_tokens == pytest.approx(live)
    assert waste_frac(found) == pytest.approx(1 - live / found.mean_held_tokens)
    assert found.mean_reserved_tokens == pytest.approx(
        found.mean_held_tokens - found.mean_live_tokens - found.mean_internal_tokens
    )


def test_a_growing_extent_is_held_twice_while_it_is_copied():
    """96 slots each, of which the one's is full after 16 decoded tokens: 144 new ones, and both for one iteration."""
    found = load_of(served("dynamic"), "dynamic")
    held = mean((1, 96), (1, 192), (15, 192), (1, 336), (1, 384), (14, 288))
    assert found.mean_held_tokens == pytest.approx(held)
    assert found.mean_live_tokens == pytest.approx(mean((1, 40), (1, 80 + 81 / 2), (31, 161 + 31)))
    assert found.mean_internal_tokens == 0
    assert found.peak_held_tokens == 384


def test_a_window_holds_64_slots_however_long_the_text():
    found = load_of(served("streaming"), "streaming")
    assert found.mean_held_tokens == pytest.approx(mean((1, 64), (32, 128)), abs=0.05)
    assert found.mean_live_tokens == pytest.approx(mean((1, 32), (1, 96), (31, 128)), abs=0.05)


MANY = Listed(
    [
        asked(
            i, 40 * i, 30 + 37 * i % 90, 20 + 53 * i % 200, content=((7, 16), (i, 14 + 37 * i % 90)), output_id=100 + i
        )
        for i in range(30)
    ]
)


@pytest.mark.parametrize("cache", CACHES)
def test_averages_of_long_runs_are_those_of_single_iterations(cache):
    jumping, stepping = served(cache, traffic=MANY), served(cache, max_steps=1, traffic=MANY)
    assert len(jumping.iterations()) < len(stepping.iterations()) / 3
    found, expected = load_of(jumping, cache), load_of(stepping, cache)
    for name in ("mean_live_tokens", "mean_reserved_tokens", "mean_shared_tokens", "mean_external_tokens"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    assert found.mean_held_tokens == pytest.approx(expected.mean_held_tokens, rel=0.01)
    assert found.mean_internal_tokens == pytest.approx(
        expected.mean_internal_tokens, abs=0.004 * found.mean_held_tokens
    )
    assert found.peak_held_tokens == pytest.approx(expected.peak_held_tokens, rel=0.03)


@pytest.mark.parametrize("cache", CACHES)
def test_what_is_held_is_live_reserved_or_rounding(cache):
    found = load_of(served(cache, traffic=MANY), cache)
    parts = found.mean_live_tokens + found.mean_reserved_tokens + found.mean_internal_tokens
    assert found.mean_held_tokens == pytest.approx(parts)
    assert found.peak_held_tokens <= found.peak_used_tokens <= 4096

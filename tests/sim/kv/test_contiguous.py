"""Extents: what is reserved, how they grow, what a prediction saves."""

from functools import partial

import pytest

from sim.batching import RequestLevel
from sim.config import choices_of
from sim.errors import ConfigError
from sim.kv.allocator import Buddy, FirstFit
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import Lru
from sim.kv.prediction import Predicted
from sim.kv.reservation import Growing, Maximum, Oracle
from sim.run import simulate
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve


def extents(reservation, capacity=4096, allocator=FirstFit, **fields):
    return lambda: cache_on(ContiguousCache, capacity, Lru, allocator, reservation, kv_bytes_per_token=10.0, **fields)


def held(house):
    return [row["held_tokens"] for row in house.iterations()]


@pytest.mark.parametrize(
    ("reservation", "slots"), [(Maximum(2048), 2048), (Oracle(), 125), (Oracle("power_of_two"), 132)]
)
def test_baselines_reserve_once(reservation, slots):
    house = serve(Listed([asked(0, 0, 100, 25)]), kv=extents(reservation))
    assert set(held(house)) == {slots}
    assert house.replicas[0].kv.counts()["resizes"] == 0


def test_a_buddy_rounds_extents_up_and_says_so():
    house = serve(Listed([asked(0, 0, 100, 25)]), kv=extents(Oracle(), allocator=Buddy))
    assert {(row["held_tokens"], row["internal_tokens"]) for row in house.iterations()} == {(128, 3)}


def test_a_full_extent_is_copied_into_one_half_as_long_again_and_both_are_held_meanwhile():
    house = serve(Listed([asked(0, 0, 100, 80)]), kv=extents(Growing(120, 1.5)), cost=lambda: LinearCost(1000))
    rows = house.iterations()
    assert [row["held_tokens"] for row in rows if row["held_tokens"] not in (120, 180)] == [300]
    counts = house.replicas[0].kv.counts()
    assert (counts["resizes"], counts["copied_tokens"], counts["copied_bytes"]) == (1, 120, 1200.0)


def test_growing_by_one_token_copies_everything_at_every_step():
    house = serve(Listed([asked(0, 0, 100, 41)]), kv=extents(Growing(100, 1.0)))
    counts = house.replicas[0].kv.counts()
    assert (counts["resizes"], counts["copied_tokens"]) == (40, sum(range(100, 140)))


def test_no_room_to_grow_means_preemption_and_everybody_is_served_all_the_same():
    listed = [asked(i, 0, 100, 120) for i in range(3)]
    house = serve(Listed(listed), kv=extents(Growing(110, 1.5), capacity=400))
    assert len(house.requests()) == 3
    assert len(house.recorder.preemptions) > 0


def test_of_two_that_ask_for_room_at_once_the_one_admitted_last_gives_way():
    """24 slots, of which both have filled 8: the first finds 16 in one piece beside its own when the second leaves."""
    house = serve(Listed([asked(0, 0, 6, 8), asked(1, 0, 6, 8)]), kv=extents(Growing(8, 2.0), 24))
    assert [row[0] for row in house.recorder.preemptions.rows().tolist()] == [1]
    finish_ns = {row["id"]: row["finish_ns"] for row in house.requests()}
    assert finish_ns[0] == 8 < finish_ns[1]


def test_a_conversation_takes_up_its_extent_again():
    first = asked(0, 0, 100, 50, content=((1, 100),), output_id=-1, session_id=7)
    house = serve(Listed([first], {7: [(1000, 5, 8)]}), kv=extents(Growing(120, 1.5)))
    assert [row["cached_tokens"] for row in house.requests()] == [0, 149], "all but the last token, never computed"


def test_free_slots_in_two_pieces_are_external_waste():
    listed = [asked(i, i, 100, out) for i, out in enumerate([90, 10, 90])]
    house = serve(Listed(listed), kv=extents(Oracle(), capacity=600))
    assert max(row["external_tokens"] for row in house.iterations()) == 110, "the hole that the second leaves"


GROWTH = ("steady", "burst", "periodic", "random")


@pytest.mark.parametrize("pattern", GROWTH)
def test_prediction_saves_resizes_on_every_pattern_of_growth(pattern):
    grown, predicted = (
        simulate(f"scenario=growth_{pattern}", f"cache={cache}").counts[0] for cache in ("dynamic", "predictive")
    )
    assert predicted["resizes"] <= 0.6 * grown["resizes"], "steady: fewer; bursts: at most 5 % more"
    assert predicted["resizes_if_growing"] == pytest.approx(grown["resizes"], rel=0.05)
    assert predicted["predictions"] == 60 * 15, "of every turn but the first"
    assert 0 < predicted["prediction_error_frac"] < (0.01 if pattern == "steady" else 0.08)


@pytest.mark.parametrize("pattern", ["steady", "burst"])
def test_where_memory_is_short_prediction_saves_resizes_too_and_claims_no_more_than_it_saved(pattern):
    how = (f"scenario=growth_{pattern}", "hardware.kv_blocks=4000")
    grown, predicted = (simulate(*how, f"cache={cache}") for cache in ("dynamic", "predictive"))
    before, after = grown.counts[0], predicted.counts[0]
    assert before["evicted_sessions"] > 0
    assert after["resizes"] <= 0.2 * before["resizes"]
    saved = after["resizes_if_growing"] - after["resizes"]
    assert saved <= before["resizes"], "a conversation that starts anew would not have resized"
    assert len(predicted.preemptions) <= len(grown.preemptions)


@pytest.mark.parametrize("cache", [name for name in choices_of("cache") if name != "by_class"])
@pytest.mark.parametrize(
    "scenario",
    [
        ("growth_burst", "scenario.n_sessions=15", "hardware.kv_blocks=1500"),
        ("synthetic", "scenario.n_requests=60", "hardware.kv_blocks=600"),
    ],
)
def test_no_count_of_any_cache_is_negative_where_memory_is_short(cache, scenario):
    """A difference of two counts is no count: requests without a session and what memory forces make it negative."""
    name, *settings = scenario
    if cache == "static":  # a sequence of the longest length must fit
        settings.append("hardware.kv_blocks=20000")
    counts = simulate(f"scenario={name}", *settings, "cost=roofline", f"cache={cache}").counts[0]
    assert counts
    assert not {name: n for name, n in counts.items() if n < 0}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Growing(0), r"cache.reservation.initial must be >= 1 \[tokens\], got 0"),
        (lambda: Growing(8, 0.9), r"cache.reservation.growth must be >= 1 and finite, got 0.9"),
        (lambda: Maximum(0), r"cache.reservation.max_len must be >= 1 \[tokens\], got 0"),
        (lambda: Oracle("up"), r"cache.reservation.rounding must be none or power_of_two, got 'up'"),
        (lambda: Predicted(history=1), r"cache.reservation.history must be >= 2, got 1"),
        (lambda: Predicted(unstable_factor=0.5), r"cache.reservation.unstable_factor must be >= 1 and finite"),
        (lambda: extents(Maximum(9), capacity=0)(), r"KV capacity must hold one token, got 0"),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_range(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_who_pads_a_batch_past_its_extent_is_returned():
    """Answers of 2 and 30 tokens, an extent each: the short one pads until its own is full, and no further."""
    listed = [asked(0, 0, 1, 2), asked(1, 0, 1, 30)]
    kv = partial(cache_on, ContiguousCache, 100, Lru, FirstFit, Oracle())
    house = serve(Listed(listed), scheduler=partial(RequestLevel, 2), kv=kv)
    rows = house.iterations()
    assert all(row["live_tokens"] + row["internal_tokens"] <= row["held_tokens"] for row in rows)
    short, long = sorted(house.requests(), key=lambda row: row["id"])
    assert short["finish_ns"] < long["finish_ns"]
    assert short["n_preemptions"] == 0

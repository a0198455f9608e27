"""Prefix reuse where the model attends to a window: what lies behind it is free, what is overwritten is not found."""

from functools import partial

import pytest

from sim.batching import Chunked
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.request import Request
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, Listed, asked, serve

SIZE, WINDOW = 16, 64


def windowed(n_blocks: int) -> partial:
    return partial(cache_on, PagedCache, n_blocks * SIZE, Lru, SIZE, window_tokens=WINDOW)


def prefixed(number: int, at_ns: int, output: int = 200) -> Request:
    """48 tokens that all begin with, and two of its own."""
    return asked(number, at_ns, 50, output, content=((7, 48), (100 + number, 2)), output_id=-number - 1)


def cached(house: House) -> list[int]:
    """By request."""
    return [row["cached_tokens"] for row in sorted(house.requests(), key=lambda row: row["id"])]


@pytest.mark.parametrize("max_steps", [None, 1])
def test_who_has_slid_past_a_shared_prefix_holds_a_window_of_its_own(max_steps):
    listed = [prefixed(0, 0), prefixed(1, 5), prefixed(2, 10)]
    house = serve(Listed(listed), kv=windowed(40), max_steps=max_steps)
    rows = [row for row in house.iterations() if row["decode_seqs"] == 3]
    assert cached(house) == [0, 48, 48]
    assert rows[0]["shared_tokens"] == 2 * 48
    last = rows[-1]
    assert (last["live_tokens"], last["held_tokens"], last["shared_tokens"]) == (3 * WINDOW, 3 * WINDOW, 0)
    assert last["idle_tokens"] == 48, "free, and still to be found"


def test_a_window_that_slides_is_touched_once_a_run_of_blocks_and_not_in_every_block():
    house = serve(Listed([prefixed(0, 0, output=100_000)]), kv=windowed(7_000))
    assert len(house.iterations()) < 8


def test_what_a_window_has_slid_over_is_found_until_its_blocks_are_taken():
    """16 blocks, of which the first holds 4 from when its window is full: 12 are free, 3 of them with the prefix."""
    filler = asked(1, 100, 190, 1)
    for others, found in (([], 48), ([filler], 0)):
        house = serve(Listed([prefixed(0, 0), *others, prefixed(2, 150, 2)]), kv=windowed(16))
        assert cached(house)[-1] == found


def test_who_has_no_room_for_a_window_of_its_own_is_preempted_and_served():
    """7 blocks: 3 shared and 2 of each, so 2 are free when the first window is full and the prefix takes 3 anew."""
    house = serve(Listed([prefixed(0, 0, 62), prefixed(1, 1, 62)]), kv=windowed(7))
    assert [row["n_preemptions"] for row in sorted(house.requests(), key=lambda row: row["id"])] == [1, 0]


@pytest.mark.parametrize("budget", [32, 48, 64, 128, 256, 512])
def test_what_is_found_does_not_depend_on_the_pieces_in_which_it_was_computed(budget):
    text = (7, 320)
    listed = [asked(0, 0, 320, 2, content=(text,)), asked(1, 1_000, 352, 2, content=(text, (8, 32)))]
    house = serve(Listed(listed), kv=windowed(400), scheduler=partial(Chunked, budget, 16))
    assert cached(house) == [0, 320]


@pytest.mark.parametrize(("n_filled", "n_found"), [(3, 20), (20, 20), (21, 0)])
def test_the_last_window_of_a_text_is_enough_to_go_on_from_it(n_filled, n_found):
    """24 blocks: 20 of the text are given up from its start on, for it was computed in pieces of four blocks.

    Taken are first those that nothing was in, then the text's first; when the last four are touched, nothing is left
    to go on from.
    """
    text = (7, 320)
    listed = [
        asked(0, 0, 320, 1, content=(text,)),
        asked(1, 100, n_filled * SIZE, 1),
        asked(2, 200, 352, 1, content=(text, (8, 32))),
    ]
    house = serve(Listed(listed), kv=windowed(24), scheduler=partial(Chunked, 64, 16))
    assert cached(house)[-1] == n_found * SIZE


def test_a_conversation_goes_on_from_the_last_window_of_its_answer():
    """10 + 200 tokens less the last are 13 full blocks; 4 of them were held, and the prompt's lies long overwritten."""
    first = asked(0, 0, 10, 200, content=((1, 10),), output_id=-1, session_id=0)
    house = serve(Listed([first], {0: [(50, 6, 3)]}), kv=windowed(20))
    assert cached(house) == [0, 13 * SIZE]
    assert max(row["held_tokens"] for row in house.iterations()) == WINDOW + SIZE


def sliding_in_pieces(n_blocks: int, **settings: object) -> partial:
    """A window of 64 and prompts computed 32 tokens at a time: 4 + 2 + 1 blocks at most."""
    return partial(
        cache_on, PagedCache, n_blocks * SIZE, Lru, SIZE, window_tokens=WINDOW, prompt_chunk_tokens=32, **settings
    )


@pytest.mark.parametrize("reserves_prompt", [False, True])
@pytest.mark.parametrize("max_steps", [None, 1])
def test_a_prompt_longer_than_the_memory_is_served_where_a_window_and_a_piece_fit(reserves_prompt, max_steps):
    listed = [asked(i, 7 * i, 1_000 + i, 40, content=((i % 2, 500), (10 + i, 500 + i))) for i in range(3)]
    house = serve(
        Listed(listed),
        kv=sliding_in_pieces(7, reserves_prompt=reserves_prompt),
        scheduler=partial(Chunked, 32, 4),
        max_steps=max_steps,
    )
    assert len(house.requests()) == 3
    assert max(row["held_tokens"] for row in house.iterations()) <= 7 * SIZE


def test_less_than_a_window_and_a_piece_is_refused():
    house = serve(Listed([asked(0, 0, 1_000, 40)]), kv=sliding_in_pieces(6), scheduler=partial(Chunked, 32, 4))
    assert house.recorder.refusals == {0: "7 KV blocks needed, the device has 6"}


def test_a_prompt_that_is_computed_whole_needs_room_as_a_whole():
    assert windowed(7)().refuses(asked(0, 0, 1_000, 40)) == "65 KV blocks needed, the device has 7"

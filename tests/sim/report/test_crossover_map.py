"""The map of swapping against computing again."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from sim.report.crossover import Crossing, Way, map_page, outcome, read_crossings, write_crossing, write_map
from tests.sim.report.browser import CHROMIUM, Browser


def way(e2el_ms, all_ms=100.0, n=4, n_swapped=0):
    return Way(e2el_ms, all_ms, n, n_swapped)


def point(context, gb_per_s, swap_ms, load_s, error=0.01):
    """Computing takes 200 ms of latency and 1 s alone; auto finds the better one."""
    auto_ms = min(swap_ms, 200.0)
    ways = way(200.0), way(swap_ms, 99.0, 4, 4), way(auto_ms, 99.0, 4, 2)
    return Crossing("model on device", context, gb_per_s * 1e9, load_s, 1.0, 5e9, *ways, error, 0.001)


POINTS = [
    point(256, 1.0, 220.0, 9.0),
    point(256, 8.0, 202.0, 0.5),  # within two errors
    point(4096, 1.0, 190.0, 9.0),  # alone it should not have won
    point(4096, 8.0, 150.0, 0.5),
]


def test_the_outcome_counts_winners_beyond_their_errors_and_what_was_foretold():
    text = " ".join(outcome(POINTS))
    assert "Of 4 points, swapping was faster for preempted requests at 2 and slower at 1" in text
    assert "for the mean of all requests it was faster at 4 and slower at 0" in text
    assert "At 256 tokens swapping won at no bandwidth of the map. At 4,096 tokens swapping won at every" in text
    assert "foretold 2 of the 3 winners" in text
    assert "preemption=auto was 0.0 % from the better of both" in text


def test_auto_is_told_how_far_it_was_from_the_better_way():
    worse = replace(POINTS[0], auto=way(210.0))
    assert "+5.0 % at worst" in " ".join(outcome([worse, *POINTS[1:]]))


def test_where_nobody_was_preempted_nothing_is_claimed():
    empty = replace(POINTS[0], recompute=way(None), swap=way(None), auto=way(None), error_frac=None)
    assert outcome([empty]) == ["Nobody was preempted: the memory was large enough."]
    assert "Nobody" in map_page([empty])


def test_points_are_read_back_in_order_and_make_a_page_and_a_table(tmp_path):
    for i, crossing in enumerate(reversed(POINTS)):
        write_crossing(crossing, tmp_path / str(i))
    folders = sorted(tmp_path.iterdir())
    assert read_crossings(folders) == POINTS
    console = Console(file=StringIO(), width=120)
    console.print(write_map(folders, tmp_path))
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["256", "+10.0", "+1.0", "5.00"] in rows
    assert ["4,096", "−5.0", "−25.0", "5.00"] in rows


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/setup_chromium.sh as root")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_map_is_drawn_offline_without_errors(tmp_path, scheme):
    path = tmp_path / "map.html"
    path.write_text(map_page(POINTS))
    with Browser(tmp_path / "profile") as browser:
        browser.open(path, scheme)
        assert browser.n_drawn() == 3
        assert browser.problems == []
        assert browser.requests == []

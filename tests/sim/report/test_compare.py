"""Finished runs beside one another."""

import json
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from sim.config import choices_of, compose
from sim.errors import ConfigError
from sim.metrics import Slo
from sim.report import write
from sim.report.compare import COLUMNS, Column, best_rows, compare, comparison_table, shown_columns
from sim.report.compare_figures import frontier, over_rate, pareto, reuse
from sim.report.overlay import overlay
from sim.report.points import differences, labels, read_points
from sim.report.words import rate as rate_words
from tests.sim.report.browser import CHROMIUM, Browser
from tests.sim.tiny_run import tiny_run

SLO = Slo(ttft_ms=40, tpot_ms=6)


def config(cache, rate, **cache_settings):
    return {
        "cache": {"_target_": f"sim.kv.{cache}", **cache_settings},
        "scenario": {"rate": rate},
        "cost": {"operations": {"scenario": {"rate": rate}}},
        "seed": 0,
    }


def sweep(folder):
    for i, (cache, rate) in enumerate((c, r) for c in ("PagedCache", "StaticCache") for r in (5.0, 20.0, 80.0)):
        settings = {"block_tokens": 16} if cache == "PagedCache" else {"max_len": 4096}
        result = tiny_run(seed=i, rate_per_s=rate, n_requests=30, config=config(cache, rate, **settings)).result
        write(result, SLO, folder / str(i))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("sweep"))


def test_points_are_named_by_what_tells_them_apart(folder):
    assert labels(read_points(folder)) == [
        f"cache {cache}, rate {rate}" for cache in ("paged", "static") for rate in (5, 20, 80)
    ]


def test_a_setting_that_differs_within_a_class_is_told(tmp_path):
    for i, (cache, settings) in enumerate(
        [("PagedCache", {"block_tokens": 16}), ("PagedCache", {"block_tokens": 32}), ("StaticCache", {})]
    ):
        write(tiny_run(config=config(cache, 5.0, **settings)).result, SLO, tmp_path / str(i))
    assert differences(read_points(tmp_path)) == [
        {"cache._target_": "sim.kv.PagedCache", "cache.block_tokens": 16},
        {"cache._target_": "sim.kv.PagedCache", "cache.block_tokens": 32},
        {"cache._target_": "sim.kv.StaticCache"},
    ]


def test_equal_points_are_named_by_their_folders(tmp_path):
    for name in ("a", "b"):
        write(tiny_run(config=config("PagedCache", 5.0)).result, SLO, tmp_path / name)
    assert labels(read_points(tmp_path)) == ["a", "b"]


def test_points_come_in_the_order_of_a_sweep(tmp_path):
    for i in (10, 9, 1):
        write(tiny_run(seed=i, config=config("PagedCache", float(i))).result, SLO, tmp_path / str(i))
    assert [point.path.name for point in read_points(tmp_path)] == ["1", "9", "10"]


def test_the_best_of_each_column_is_marked(folder):
    points = read_points(folder)
    for column in COLUMNS:
        values = [column.of(point.numbers) for point in points]
        words = [column.words(value) for value in values]
        if column.is_more_better is None or len(set(words)) == 1:
            assert best_rows(points, column) == set(), column.heading
        else:
            best = words[values.index(max(values) if column.is_more_better else min(values))]
            assert best_rows(points, column) == {i for i, word in enumerate(words) if word == best}, column.heading


def test_numbers_that_read_the_same_win_alike(folder):
    points = read_points(folder)[:3]
    column = Column("speed", lambda numbers: numbers["nudged"], lambda value: f"{value:.1f}", True)
    nudged = [
        replace(point, numbers={**point.numbers, "nudged": v}) for point, v in zip(points, (5.01, 5.04, 1), strict=True)
    ]
    assert best_rows(nudged, column) == {0, 1}


def test_who_served_nobody_wins_nothing(tmp_path):
    write(tiny_run(config=config("PagedCache", 5.0)).result, SLO, tmp_path / "a")
    write(tiny_run(seed=1, config=config("PagedCache", 6.0)).result, SLO, tmp_path / "b")
    write(tiny_run(n_requests=0, config=config("StaticCache", 5.0)).result, SLO, tmp_path / "c")
    points = read_points(tmp_path)
    assert all(2 not in best_rows(points, column) for column in COLUMNS)
    assert any(best_rows(points, column) for column in COLUMNS)


@pytest.mark.parametrize("width", [60, 80, 250])
def test_the_table_marks_the_best_and_is_whole_on_any_console(folder, width):
    console = Console(file=StringIO(), width=width)
    points = read_points(folder)
    console.print(comparison_table(points))
    text = console.file.getvalue()
    assert "goodput [req/s]" in text
    assert "* " in text
    assert "…" not in text
    for point in points:
        assert rate_words(point.numbers["output_throughput"]) in text


def test_comparing_writes_a_page_and_a_file_beside_the_runs(folder):
    compare(folder, folder)
    rows = json.loads((folder / "compare.json").read_text())
    assert [row["path"] for row in rows] == [str(i) for i in range(6)]
    numbers = json.loads((folder / "3" / "summary.json").read_text())
    assert rows[3]["goodput [req/s]"] == numbers["request_goodput"]
    assert len(re.findall(r"<figure", (folder / "compare.html").read_text())) == 15


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/setup_chromium.sh as root")
def test_the_comparison_is_drawn_offline_without_errors(folder, tmp_path):
    compare(folder, folder)
    with Browser(tmp_path / "profile") as browser:
        browser.open(folder / "compare.html", "dark")
        assert browser.n_drawn() == 15
        assert browser.problems == []
        assert browser.requests == []


def test_curves_over_the_rate_join_points_of_the_same_choice(folder):
    ttft = over_rate(read_points(folder))[0]
    assert [(trace["name"], trace["x"]) for trace in ttft.traces] == [
        (f"cache {cache} {kind}", [5, 20, 80]) for cache in ("paged", "static") for kind in ("p50", "p99")
    ]


def test_without_a_varying_rate_there_are_no_curves_over_it(folder):
    points = read_points(folder)
    assert over_rate([points[0], points[3]]) == []


def test_the_front_is_what_no_point_beats_in_both():
    rng = np.random.default_rng(0)
    x, y = rng.random(40).tolist(), rng.random(40).tolist()
    unbeaten = {i for i in range(40) if not any(x[j] > x[i] and y[j] > y[i] for j in range(40))}
    front = frontier(x, y)
    assert set(front) == unbeaten
    assert [x[i] for i in front] == sorted(x[i] for i in front)


def test_the_pareto_chart_leaves_out_who_served_nobody(tmp_path):
    write(tiny_run(config=config("PagedCache", 5.0)).result, SLO, tmp_path / "a")
    write(tiny_run(n_requests=0, config=config("StaticCache", 5.0)).result, SLO, tmp_path / "b")
    points = read_points(tmp_path)
    assert [trace["name"] for trace in pareto(points, ["a", "b"]).traces[1:]] == ["a"]


def test_overlaid_distributions_end_at_all_and_tell_their_quantiles():
    rng = np.random.default_rng(0)
    samples = {
        "measured": rng.lognormal(3, 0.5, 5_000),
        "simulated": [*rng.lognormal(3, 0.4, 400), float("nan")],
        "none": [],
    }
    chart = overlay("ttft", "TTFT", samples)
    assert [trace["name"] for trace in chart.traces] == ["measured", "simulated"]
    assert all(trace["y"][-1] == 100 and len(trace["x"]) <= 1_000 for trace in chart.traces)
    assert float(chart.rows[0][2]) == pytest.approx(np.median(samples["measured"]), rel=0.01)


@pytest.mark.parametrize(
    ("version", "message"), [(None, "dir must hold finished runs"), (99, "schema_version must be 1, got 99")]
)
def test_folders_that_cannot_be_compared_are_refused(tmp_path, version, message):
    if version is not None:
        (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(ConfigError, match=message):
        compare(tmp_path, tmp_path)


def two(folder, first, second):
    for i, (how, settings) in enumerate((first, second)):
        result = tiny_run(seed=i, n_requests=30, config={**config("PagedCache", 5.0), **settings}, **how).result
        write(result, SLO, folder / str(i))
    return read_points(folder)


def test_hit_rates_are_shown_beside_the_time_they_save(tmp_path):
    points = two(tmp_path, ({}, {"eviction": {"_target_": "a.Lru"}}), ({}, {"eviction": {"_target_": "a.Lfu"}}))
    (chart,) = reuse(points, labels(points))
    for i, (row, point) in enumerate(zip(chart.rows, points, strict=True)):
        hit = 100 * point.numbers["kvtwin"]["prefix_hit_frac"]
        assert row[:2] == (labels(points)[i], f"{hit:.1f} %")
        assert chart.traces[2 * i]["x"] == [float(f"{hit:.5g}")]
        assert chart.traces[2 * i]["y"] == [float(f"{point.numbers['mean_ttft_ms']:.5g}")]
    assert reuse([points[0], points[0]], ["a", "b"]) == [], "the same share: nothing to see"


@pytest.mark.parametrize(("slowest_ms", "kind"), [(2_000.0, "log"), (60.0, None)])
def test_times_to_first_token_far_apart_are_shown_on_a_logarithmic_axis(tmp_path, slowest_ms, kind):
    points = two(tmp_path, ({}, {"eviction": {"_target_": "a.Lru"}}), ({}, {"eviction": {"_target_": "a.Lfu"}}))
    for point, mean_ms, p99_ms in zip(points, (20.0, 30.0), (40.0, slowest_ms), strict=True):
        point.numbers["mean_ttft_ms"], point.numbers["p99_ttft_ms"] = mean_ms, p99_ms
    (chart,) = reuse(points, labels(points))
    assert chart.layout["yaxis"].get("type") == kind


def test_where_prompts_were_found_is_shown_as_soon_as_one_point_has_tiers(tmp_path):
    points = two(tmp_path, ({}, {"seed": 1}), ({"preempts": 0.1}, {"seed": 2}))
    _, found = reuse(points, labels(points))
    assert [trace["name"] for trace in found.traces] == ["device memory", "dram"]
    n_input = points[1].numbers["total_input_tokens"]
    assert found.rows[1][1:] == (f"{100 * 700 / n_input:.1f} %", f"{100 * 300 / n_input:.1f} %")
    assert found.rows[0][2] == "0.0 %"
    headings = {column.heading for column in shown_columns(points)}
    assert {"found below the device", "came back by swap"} <= headings
    assert not {"found below the device", "came back by swap"} & {c.heading for c in shown_columns(points[:1])}


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"cache": {"_target_": "a.Tiered"}, "preemption": {"_target_": "a.Swap"}}, "cache tiered"),
        ({"preemption": {"_target_": "a.Swap"}}, "preemption swap"),
    ],
)
def test_a_choice_that_comes_with_another_is_told_only_where_it_was_made(tmp_path, second, told):
    points = two(tmp_path, ({}, {"preemption": {"_target_": "a.Recompute"}}), ({}, second))
    assert labels(points)[1] == told


def test_a_chosen_device_is_told_by_its_name_alone(tmp_path):
    for name in ("h200", "a100-80g", "l40s"):
        numbers = tiny_run(n_requests=30).result
        write(replace(numbers, config=compose([f"hardware={name}", "cost=roofline"])), SLO, tmp_path / name)
    assert labels(read_points([tmp_path / name for name in ("h200", "a100-80g", "l40s")])) == [
        "hardware h200", "hardware a100-80g", "hardware l40s",
    ]  # fmt: skip


@pytest.mark.parametrize("group", ["model", "hardware", "scenario", "cost", "slo", "tiers", "batching", "router"])
def test_whatever_is_chosen_is_told_by_its_name(tmp_path, group):
    names = [name for name in choices_of(group) if name != "replay"][:4]
    for name in names:
        numbers = tiny_run(n_requests=30).result
        write(replace(numbers, config=compose([f"{group}={name}"])), SLO, tmp_path / name)
    told = labels(read_points([tmp_path / name for name in names]))
    assert all(len(label) <= len(group) + max(map(len, names)) + 1 for label in told), told

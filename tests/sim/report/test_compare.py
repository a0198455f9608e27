"""Finished runs beside one another."""

import json
import re
from array import array
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from sim import simulate
from sim.config import choices_of, compose
from sim.errors import ConfigError
from sim.metrics import Slo
from sim.record import table_of
from sim.report import write
from sim.report.compare import COLUMNS, Column, compare, compared, comparison_page, comparison_table, shown_columns
from sim.report.compare_figures import curves, frontier, pareto, reuse, spread
from sim.report.finding import findings, title
from sim.report.overlay import overlay
from sim.report.points import differences, labels, read_points
from tests.sim.report.browser import CHROMIUM, Browser
from tests.sim.tiny_run import tiny_run

SLO = Slo(ttft_ms=40, tpot_ms=6)
N_FIGURES = 13


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
        f"{cache}, rate {rate}" for cache in ("paged", "static") for rate in (5, 20, 80)
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


def test_folders_that_are_given_stay_in_their_order_and_those_of_a_sweep_are_sorted_by_what_differs(tmp_path):
    names = ["f" * 16, "0" * 16, "8" * 16]
    for name, rate in zip(names, (20.0, 5.0, 10.0), strict=True):
        write(tiny_run(config=config("PagedCache", rate)).result, SLO, tmp_path / name)
    assert [point.path.name for point in read_points([tmp_path / name for name in names])] == names
    assert [point.path.name for point in read_points(tmp_path)] == ["0" * 16, "8" * 16, "f" * 16]


def test_the_best_of_each_column_is_marked_among_points_with_the_same_traffic(folder):
    of = compared(read_points(folder))
    for column in COLUMNS:
        values = [column.of(point.numbers) for point in of.points]
        tones = of.tones(column)
        for traffic in ([0, 3], [1, 4], [2, 5]):
            words = [column.words(values[i]) for i in traffic]
            if column.is_more_better is None or len(set(words)) == 1:
                assert {tones[i] for i in traffic} == {""}, column.heading
            else:
                best = (max if column.is_more_better else min)(traffic, key=values.__getitem__)
                assert tones[best] == "best", column.heading


def test_numbers_that_read_the_same_win_alike(tmp_path):
    for i in range(3):
        write(tiny_run(config=config("PagedCache", 5.0, block_tokens=2**i)).result, SLO, tmp_path / str(i))
    of = compared(read_points(tmp_path))
    column = Column("speed", lambda numbers: numbers["nudged"], lambda value: f"{value:.1f}", True)
    points = [replace(p, numbers={**p.numbers, "nudged": v}) for p, v in zip(of.points, (5.01, 5.04, 1), strict=True)]
    assert replace(of, points=points).tones(column) == ["best", "best", "heat4"]


def test_who_served_nobody_wins_nothing(tmp_path):
    write(tiny_run(config=config("PagedCache", 5.0)).result, SLO, tmp_path / "a")
    write(tiny_run(seed=1, config=config("HierarchicalCache", 5.0)).result, SLO, tmp_path / "b")
    write(tiny_run(n_requests=0, config=config("StaticCache", 5.0)).result, SLO, tmp_path / "c")
    of = compared(read_points(tmp_path))
    assert "tok/s" in comparison_page(of)
    assert all(of.tones(column)[2] == "" for column in COLUMNS)
    assert any("best" in of.tones(column) for column in COLUMNS)


def test_what_may_be_chance_is_grey_and_what_is_not_is_warm(tmp_path):
    served = tiny_run(n_requests=400, max_output=200).result
    later = served.requests.rows().copy()
    first, finish = (served.requests.columns.index(name) for name in ("first_token_ns", "finish_ns"))
    rng = np.random.default_rng(0)
    for name, by_ns in (("a", 0), ("b", rng.integers(-(10**6), 10**6, len(later))), ("c", 40 * 10**6)):
        rows = later.copy()
        rows[:, [first, finish]] += np.broadcast_to(by_ns, len(rows))[:, None]
        moved = replace(served, requests=table_of(served.requests.columns, array("q", rows.ravel().tolist())))
        write(replace(moved, config=config(f"{name.upper()}Cache", 5.0)), SLO, tmp_path / name)
    of = compared(read_points(tmp_path))
    ttft = next(column for column in COLUMNS if column.heading == "TTFT p50")
    tones = of.tones(ttft)
    assert {tones[0], tones[1]} == {"best", "same"}
    assert tones[2].startswith("heat")


@pytest.mark.parametrize("width", [60, 80, 100, 250])
def test_the_table_says_what_was_found_marks_the_best_and_cuts_nothing(folder, width):
    console = Console(file=StringIO(), width=width)
    of = compared(read_points(folder))
    console.print(comparison_table(of))
    text = console.file.getvalue()
    assert text.startswith("Two caches × three rates on the same traffic")
    assert "within" in text
    assert "* " in text
    assert "…" not in text.replace(", …)", "")
    assert max(map(len, text.splitlines())) <= width
    for cell in of.cells([COLUMNS[0]])[0]:
        assert cell in text


def test_many_points_are_rows_and_stay_readable_at_a_hundred_columns(tmp_path):
    names = choices_of("hardware")
    served = tiny_run(n_requests=30).result
    for i, (name, blocks) in enumerate((n, b) for n in names for b in (8, 16, 32)):
        chosen = compose([f"hardware={name}", "cost=roofline", f"cache.block_tokens={blocks}"])
        write(replace(served, config=chosen), SLO, tmp_path / str(i), which="summary")
    console = Console(file=StringIO(), width=100)
    console.print(comparison_table(compared(read_points(tmp_path))))
    lines = console.file.getvalue().splitlines()
    assert len(lines) < len(names) * 3 + 25
    for name in names:
        assert sum(line.split()[:1] == [name] for line in lines) == 3, name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([{"cache": {"_target_": f"a.{kind}Cache"}} for kind in "ABCDEFG"], "Seven caches on a chatbot's traffic"),
        ([{"hardware": {"_target_": kind}} for kind in ("h100", "h200")], "Two devices on a chatbot's traffic"),
        ([{"scenario": {"_target_": kind}} for kind in ("rag", "burst")], "Two runs on two kinds of traffic"),
        ([{"cache": {"block_tokens": n}} for n in range(1, 15)], "14 block sizes on a chatbot's traffic"),
        ([{}, {}], "Two runs on a chatbot's traffic"),
    ],
)
def test_the_title_says_what_is_compared(tmp_path, settings, said):
    served = tiny_run(n_requests=5).result
    for i, mine in enumerate(settings):
        whole = {"scenario": {"_target_": "chatbot"}, "cache": {"_target_": "a.ACache"}, **mine}
        write(replace(served, config=whole), SLO, tmp_path / str(i), which="summary")
    assert title(read_points(tmp_path)) == said


def test_a_finding_names_winner_loser_interval_and_cause(tmp_path):
    few = ("scenario=chatbot", "scenario.n_sessions=150", "scenario.rate=8")
    for name in ("paged", "static"):
        write(simulate(*few, f"cache={name}"), Slo(ttft_ms=500), tmp_path / name)
    of = compared(read_points(tmp_path))
    said = findings(of.points, of.names, of.samples)[0]
    assert re.match(r"paged keeps the objectives for [\d.]+ % of requests, static for [\d.]+ %: ", said), said
    assert re.search(r"times as many \([\d.]+ to [\d.]+ at 95 %\), because requests wait for memory while 9", said), (
        said
    )


def test_comparing_writes_a_page_and_a_file_beside_the_runs(folder):
    compare(folder, folder)
    rows = json.loads((folder / "compare.json").read_text())
    assert [row["path"] for row in rows] == [str(i) for i in range(6)]
    numbers = json.loads((folder / "3" / "summary.json").read_text())
    assert rows[3]["goodput [req/s]"] == numbers["kvtwin"]["steady"]["goodput_per_s"]
    table = (folder / "compare.csv").read_text().splitlines()
    assert len(table) == 7
    assert table[0].startswith("label,path,cache._target_,scenario.rate,within objectives,")
    assert len(re.findall(r"<figure", (folder / "compare.html").read_text())) == N_FIGURES


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/setup_chromium.sh as root")
def test_the_comparison_is_drawn_offline_without_errors(folder, tmp_path):
    compare(folder, folder)
    with Browser(tmp_path / "profile") as browser:
        browser.open(folder / "compare.html", "dark")
        assert browser.n_drawn() == N_FIGURES
        assert browser.problems == []
        assert browser.requests == []


def test_curves_over_the_rate_join_points_of_the_same_choice(folder):
    ttft = curves(read_points(folder))[0]
    assert [(trace["name"], trace["x"]) for trace in ttft.traces] == [
        (f"{cache} {kind}", [5, 20, 80]) for cache in ("paged", "static") for kind in ("p50", "p99")
    ]


def test_whatever_number_was_swept_has_a_curve_and_choices_have_none(tmp_path):
    for i, blocks in enumerate((8, 16, 64)):
        write(tiny_run(config=config("PagedCache", 5.0, block_tokens=blocks)).result, SLO, tmp_path / str(i))
    write(tiny_run(config=config("StaticCache", 5.0)).result, SLO, tmp_path / "3")
    points = read_points(tmp_path)
    assert curves([points[0], points[3]]) == []
    drawn = curves(points[:3])
    assert {chart.id for chart in drawn} >= {"over-block_tokens-ttft", "over-block_tokens-served"}
    assert drawn[0].traces[0]["x"] == [8, 16, 64]


def test_an_axis_does_not_stretch_a_thousandth_over_its_height():
    low, high = spread([499.0, 499.5])
    assert low < 460 < 540 < high


def test_tied_points_are_one_marker_with_both_names(tmp_path):
    for name in ("a", "b"):
        write(tiny_run(config=config(f"{name.upper()}Cache", 5.0)).result, SLO, tmp_path / name)
    points = read_points(tmp_path)
    assert [trace["name"] for trace in pareto(points, labels(points)).traces[1:]] == ["acache = bcache"]


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
    ("version", "message"), [(None, "dir must hold finished runs"), (99, "schema_version must be 2, got 99")]
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
        ({"cache": {"_target_": "a.Tiered"}, "preemption": {"_target_": "a.Swap"}}, "tiered"),
        ({"preemption": {"_target_": "a.Swap"}}, "swap"),
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
        "h200", "a100-80g", "l40s",
    ]  # fmt: skip


@pytest.mark.parametrize("group", ["model", "hardware", "scenario", "cost", "slo", "tiers", "batching", "router"])
def test_whatever_is_chosen_is_told_by_its_name(tmp_path, group):
    names = [name for name in choices_of(group) if name != "replay"][:4]
    for name in names:
        numbers = tiny_run(n_requests=30).result
        write(replace(numbers, config=compose([f"{group}={name}"])), SLO, tmp_path / name)
    told = labels(read_points([tmp_path / name for name in names]))
    assert told == [f"{group} {name}" if name.isdigit() else name for name in names]

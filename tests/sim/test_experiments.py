"""Experiments that list what they compare: every variant is one, points are all combinations, one matrix of them."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sim.build import check_run
from sim.command import main
from sim.config import choices_of, compose
from sim.errors import ConfigError
from sim.experiment import Grid, check_metrics, read_grid
from sim.report.matrix import METRICS, Cell, Matrix, as_number, efficiencies

OWN = """\
# @package _global_
grid:
  title: Two caches, two rates
  axes:
    cache:
      static: [cache=static, cache.max_len=4096]
      paged: [cache=paged, cache.block_tokens=32]
    scenario.rate: [4, 40]
  metrics: [goodput, waste, efficiency]
defaults:
  - override /scenario: synthetic
scenario:
  n_requests: 40
task:
  write: summary
"""
SHIPPED = [name for name in choices_of("experiment") if read_grid([f"experiment={name}"]) is not None]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sim", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own() -> list[str]:
    """A folder of one's own with an experiment in it."""
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/two.yaml").write_text(OWN)
    return ["-m", "--config-dir=mine", "experiment=two", "hydra.sweep.dir=out"]


def rows(folder: str = "out") -> list[dict[str, Any]]:
    return list(json.loads((Path(folder) / "matrix.json").read_text())["rows"])


def test_there_are_the_experiments_that_the_readme_names() -> None:
    assert {
        "caches",
        "eviction",
        "block_size",
        "batching",
        "attention_variants",
        "streaming_window",
        "context_length",
        "deployment",
        "disaggregation",
    } == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_variant_of_an_experiment_composes(name: str) -> None:
    grid = read_grid([f"experiment={name}"])
    assert grid is not None
    assert grid.title
    check_metrics(grid.metrics)
    first = {axis: next(iter(variants.values())) for axis, variants in grid.axes.items()}
    for axis, variants in grid.axes.items():
        for settings in variants.values():
            chosen = [one for other, base in first.items() for one in (settings if other == axis else base)]
            config = compose([f"experiment={name}", *chosen])
            check_run(config)
            assert "grid" not in config


def test_points_are_all_combinations_each_with_its_own_settings(
    monkeypatch: pytest.MonkeyPatch, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *own) == 0

    found = {}
    for point in json.loads(Path("out/points.json").read_text()):
        config = json.loads((Path("out") / point["folder"] / "manifest.json").read_text())["config"]
        found[point["variants"]["cache"], point["variants"]["scenario.rate"]] = config
    assert set(found) == {("static", "4"), ("static", "40"), ("paged", "4"), ("paged", "40")}
    assert found["static", "4"]["cache"]["max_len"] == 4096
    assert found["paged", "40"]["cache"]["block_tokens"] == 32
    assert found["paged", "40"]["scenario"]["rate"] == 40
    assert "Two caches, two rates" in capsys.readouterr().out


def test_the_matrix_is_what_the_points_summaries_say(monkeypatch: pytest.MonkeyPatch, own: list[str]) -> None:
    command(monkeypatch, *own)

    points = json.loads(Path("out/points.json").read_text())
    assert len(rows()) == 4
    for point, row in zip(points, rows(), strict=True):
        numbers = json.loads((Path("out") / point["folder"] / "summary.json").read_text())
        assert point["variants"].items() <= row.items()
        assert row["goodput"] == numbers["request_goodput"]
        assert row["waste"] == numbers["kvtwin"]["kv"]["waste_frac"]
    with Path("out/matrix.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["goodput"]) for row in table] == [row["goodput"] for row in rows()]
    page = Path("out/matrix.html").read_text()
    for words in ("Two caches, two rates", "plot-efficiency", "geometric mean of three shares"):
        assert words in page


def test_it_goes_on_where_it_was_stopped_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, *own)
    before = {name: Path("out", name).read_bytes() for name in ("matrix.json", "matrix.html", "points.json")}
    next(Path("out").glob("*/point.json")).unlink()
    capsys.readouterr()

    assert command(monkeypatch, *own) == 0

    assert "4 points, 3 done before" in capsys.readouterr().out
    assert before == {name: Path("out", name).read_bytes() for name in before}


def test_another_variant_leaves_done_points_done(
    monkeypatch: pytest.MonkeyPatch, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, *own, "cache=paged")
    capsys.readouterr()

    command(monkeypatch, *own, "cache=paged,dynamic")

    assert "4 points, 2 done before" in capsys.readouterr().out
    assert [row["cache"] for row in rows()] == ["paged", "paged", "dynamic", "dynamic"]


def test_what_is_swept_over_besides_is_an_axis_too(monkeypatch: pytest.MonkeyPatch, own: list[str]) -> None:
    assert command(monkeypatch, *own, "cache=paged", "scenario.rate=4", "seed=1,2", "scenario.n_requests=20") == 0

    assert [row["seed"] for row in rows()] == ["1", "2"]
    assert rows()[0]["goodput"] != rows()[1]["goodput"]


def test_a_variant_that_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/experiment/two.yaml").write_text(OWN.replace("cache.max_len=4096", "cache.block_tokens=4"))

    assert command(monkeypatch, *own) == 2

    assert {row["cache"] for row in rows()} == {"paged"}
    assert "kvtwin: job 0, 1: cache.block_tokens is not a setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "    cache:\n      static: [cache=static, cache.max_len=4096]",
            "    cache:\n      static: cache=static",
            "must be a list of",
        ),
        ("metrics: [goodput,", "metrics: [godput,", "did you mean grid.metrics.goodput?"),
        ("title: Two", "titel: Two", "did you mean grid.title?"),
        ("    scenario.rate: [4, 40]", "    scenario.rate: []", "grid.axes.scenario.rate must be"),
    ],
)
def test_what_is_no_grid_is_refused(
    old: str, new: str, words: str, monkeypatch: pytest.MonkeyPatch, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in OWN
    Path("mine/experiment/two.yaml").write_text(OWN.replace(old, new))
    assert command(monkeypatch, *own) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_m_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *own[1:3], "hydra.run.dir=out") == 2
    assert "experiment=two compares several points: python -m sim -m experiment=two" in capsys.readouterr().err


def test_an_axis_is_narrowed_by_its_name() -> None:
    grid = Grid("", {"cache": {"a": ["cache=paged", "seed=1"], "b": ["cache=static"]}}, [])
    narrowed, others = grid.narrowed(["cache=b,dynamic", "replicas=2"])
    assert narrowed.axes == {"cache": {"b": ["cache=static"], "dynamic": ["cache=dynamic"]}}
    assert others == ["replicas=2"]


def numbers(within: float | None, waste: float, speed: float) -> dict[str, Any]:
    return {"output_throughput": speed, "kvtwin": {"slo_attainment_frac": within, "kv": {"waste_frac": waste}}}


def test_efficiency_is_the_mean_of_what_its_definition_names() -> None:
    found = efficiencies(
        {
            ("a", "x"): numbers(1.0, 0.0, 200.0),
            ("b", "x"): numbers(0.5, 0.5, 100.0),
            ("b", "y"): numbers(0.5, 0.5, 100.0),
            ("c", "y"): numbers(None, 0.0, 1.0),
        }
    )
    assert found["a", "x"] == pytest.approx(100.0)
    assert found["b", "x"] == pytest.approx(50.0)
    assert found["b", "y"] == pytest.approx(100.0 * 0.25 ** (1 / 3))
    assert found["c", "y"] is None


def test_a_name_that_is_a_number_is_a_place_on_an_axis() -> None:
    assert [as_number(one) for one in ("16", "256k", "all", "0.5", "k")] == [16.0, 262144.0, None, 0.5, None]


def test_a_metric_that_no_point_has_is_left_out(monkeypatch: pytest.MonkeyPatch, own: list[str]) -> None:
    command(monkeypatch, *own, "slo=none")
    points = json.loads(Path("out/points.json").read_text())
    cells = [Cell(one["variants"], Path("out") / one["folder"]) for one in points]
    assert "efficiency" not in Matrix(cells, []).values
    assert "ttft_p99" in Matrix(cells, []).values


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"grid\.metrics\.nothing is not a setting"):
        check_metrics(["nothing"])
    check_metrics(list(METRICS))

"""How far the profile's standard errors move the metrics."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from sim.config import compose
from sim.errors import ConfigError
from sim.intervals import Intervals, intervals
from sim.report.intervals import METRICS

SMALL = ["scenario.n_sessions=15", "task=intervals"]


def written(folder: Path, *overrides: str) -> dict[str, dict[str, float]]:
    with (folder / "console").open("w", encoding="utf-8") as quiet:
        Intervals(n_draws=6)(config=compose([*SMALL, *overrides]), out=folder, console=Console(file=quiet))
    content = json.loads((folder / "intervals.json").read_text(encoding="utf-8"))
    assert content["n_draws"] == 6
    return {one["key"]: one for one in content["intervals"]}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return written(tmp_path_factory.mktemp("intervals"))


def test_every_metric_has_an_interval_as_wide_as_the_kernels_errors_are(found):
    assert set(found) == set(METRICS)
    for key in ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"):
        one = found[key]
        assert 0.01 < (one["high"] - one["low"]) / one["best"] < 0.4
        assert one["low"] < 1.1 * one["best"]
        assert one["high"] > 0.9 * one["best"]


def test_what_traffic_alone_decides_has_none(found):
    one = found["output_throughput"]
    assert one["high"] / one["low"] < 1.01, "an open stream far below what the device can take"


def test_the_same_seed_gives_the_same_bytes(found, tmp_path):
    assert written(tmp_path) == found
    assert "plotly" in (tmp_path / "intervals.html").read_text(encoding="utf-8").lower()
    assert "TTFT mean [ms]" in (tmp_path / "console").read_text(encoding="utf-8")


def test_an_interval_spans_nine_of_ten_draws():
    draws = [dict.fromkeys(METRICS, float(x)) | {"request_goodput": None} for x in range(101)]
    one, *others = intervals(dict.fromkeys(METRICS, 50.0), draws)
    assert (one.low, one.best, one.high, one.half_frac) == (5.0, 50.0, 95.0, 0.9)
    assert "request_goodput" not in {other.key for other in others}, "without objectives there is none"


@pytest.mark.parametrize("overrides", [["cost=roofline"], ["hardware=h20"]])
def test_a_data_sheet_knows_no_errors(tmp_path, overrides):
    with pytest.raises(ConfigError, match="needs a profile's standard errors"):
        written(tmp_path, *overrides)


def test_too_few_draws_are_refused():
    with pytest.raises(ConfigError, match=r"task\.n_draws must be >= 5, got 2"):
        Intervals(n_draws=2)

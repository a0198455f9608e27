"""The part of the page about replicas that come and go."""

import pytest

from sim import simulate
from sim.metrics import Slo, measure, summary
from sim.record import Result
from sim.report.fleet_figures import fleet_section
from sim.report.page import report_page
from sim.report.timeline import timelines

TRAFFIC = ("scenario=synthetic", "scenario.n_requests=400", "scenario.rate=20", "hardware.price_per_hour=4")


@pytest.fixture(scope="module")
def grown() -> Result:
    """One replica, from 5 s on three, from 15 s on two."""
    steps = "scaler.steps=[[5,3],[15,2]]"
    return simulate(*TRAFFIC, "scaler=schedule", steps, "scaler.start_up.engine_s=1")


def ours(result: Result) -> dict:
    return summary(result, Slo())["kvtwin"]


def test_the_page_shows_how_many_there_were_when_and_what_they_cost(grown):
    section = fleet_section(grown, ours(grown))
    (figure,) = section.figures
    there, is_open = (trace["y"] for trace in figure.traces)
    assert (there[0], max(there), is_open[0], max(is_open), is_open[-1]) == (1, 3, 1, 3, 2)
    assert [row[1].split(" ")[-1] for row in section.tables[1].rows][:5] == [
        "started",
        "started",
        "opened",
        "opened",
        "drained",
    ]
    fleet = ours(grown)["fleet"]
    assert fleet["cost"] == pytest.approx(4 * fleet["gpu_hours"])
    page = report_page(grown, Slo(), measure(grown, Slo()), summary(grown, Slo()))
    assert "Replicas over time" in page
    assert 'id="plot-replicas"' in page


def test_where_nothing_changed_the_page_says_nothing():
    still = simulate(*TRAFFIC, "replicas=2")
    assert fleet_section(still, ours(still)) is None
    numbers = summary(still, Slo())
    fleet = numbers["kvtwin"]["fleet"]
    assert fleet["mean_replicas"] == fleet["peak_replicas"] == numbers["kvtwin"]["n_replicas"] == 2
    assert fleet["gpu_hours"] == pytest.approx(2 * numbers["duration"] / 3600)
    assert numbers["kvtwin"]["total_token_throughput_per_device"] == numbers["total_token_throughput"] / 2


def test_averages_are_over_the_replicas_that_are_there(grown):
    """What all decode together is the average times the replicas that are there, bin by bin."""
    numbers = ours(grown)
    fleet = numbers["fleet"]
    assert 1.5 < fleet["mean_replicas"] < 2.5
    assert numbers["busy_frac"] <= 1.0
    assert numbers["output_throughput_per_device"] == pytest.approx(
        summary(grown, Slo())["output_throughput"] / fleet["mean_replicas"]
    )
    lines = timelines(grown)
    assert (lines.levels["decode_seqs"].mean <= lines.levels["decode_seqs"].high + 1e-9).all()

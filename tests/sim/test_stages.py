"""Traffic in stages, runs that are stopped, numbers after a warm-up."""

import numpy as np
import pytest

from scenarios.arrivals import Poisson, Regular, Stages
from sim import simulate
from sim.config import compose
from sim.errors import ConfigError
from sim.metrics import Slo, measure, summary
from sim.record import iteration_ends_ns
from sim.report.page import report_page
from sim.run import run

THREE = [[2.0, 10.0], [0.0, 5.0], [8.0, 10.0]]
RUN = ("scenario=stages", "scenario.arrivals.stages=[[5,20],[20,20]]", "scenario.duration_s=40")


def test_each_stage_has_its_rate_for_its_time_and_then_nobody_comes():
    arrivals = Stages(Regular(), THREE)
    times_s = np.concatenate(list(arrivals.times_ns(1.0, np.random.default_rng(0)))) / 1e9
    assert times_s.tolist() == [*(0.5 * i for i in range(1, 20)), *(15 + i / 8 for i in range(1, 80))]
    doubled = np.concatenate(list(arrivals.times_ns(2.0, np.random.default_rng(0)))) / 1e9
    assert len(doubled) == 39 + 159


def test_counts_in_a_stage_are_poissons():
    rng = np.random.default_rng(3)
    arrivals = Stages(Poisson(), [[50.0, 4.0], [10.0, 4.0]])
    counts = []
    for _ in range(300):
        times_s = np.concatenate(list(arrivals.times_ns(1.0, rng))) / 1e9
        counts.append(np.histogram(times_s, [0, 4, 8])[0])
    for found, expected in zip(np.mean(counts, axis=0), (200, 40), strict=True):
        assert abs(found - expected) < 4 * (expected / 300) ** 0.5


@pytest.mark.parametrize("stages", [[], [[1.0]], [[-1.0, 5.0]], [[1.0, 0.0]], [[0.0, 5.0]]])
def test_stages_that_are_none_are_refused(stages):
    with pytest.raises(ConfigError, match=r"scenario\.arrivals\.stages must be"):
        Stages(Poisson(), stages)


def test_numbers_by_stage_are_those_of_the_requests_that_arrive_in_it():
    result = simulate(*RUN, "warmup_s=5")
    slo = Slo(ttft_ms=60.0)
    measures = measure(result, slo)
    ours = summary(result, slo, measures)["kvtwin"]
    arrival_s = result.requests.column("arrival_ns") / 1e9
    ttft = measures.latency_ms["ttft_ms"]
    for stage, (low, high, rate) in zip(ours["stages"], ((0, 20, 5), (20, 40, 20)), strict=True):
        mine = (arrival_s >= low) & (arrival_s < high)
        assert stage["rate"] == rate
        assert stage["completed"] == mine.sum()
        assert stage["request_rate"] == mine.sum() / 20
        assert stage["p99_ttft_ms"] == np.percentile(ttft[mine], 99)
        assert stage["request_goodput"] == (ttft[mine] <= 60.0).sum() / 20
    late = arrival_s >= result.start_ns / 1e9 + 5
    assert ours["after_warmup"]["completed"] == late.sum()
    assert ours["after_warmup"]["median_ttft_ms"] == np.median(ttft[late])
    assert sum(stage["completed"] for stage in ours["stages"]) == len(result.requests)
    page = report_page(result, slo, measures, summary(result, slo, measures))
    assert "By stage" in page
    assert "after warm-up" in page


def test_conversations_come_in_stages_too():
    scenario = compose(["scenario=chatbot", "scenario.n_sessions=200"])["scenario"]
    base = {"_target_": "scenarios.arrivals.Poisson"}
    arrivals = {"_target_": "scenarios.arrivals.Stages", "base": base, "stages": [[1, 30], [4, 30]]}
    node = {**scenario, "arrivals": arrivals, "rate": 1.0}
    result = run({**compose(["scenario=chatbot"]), "scenario": node})
    assert [stage.rate for stage in result.stages] == [1, 4]
    first_turns = result.requests.column("turn") == 0
    assert result.requests.column("arrival_ns")[first_turns].max() < 60e9


def test_a_stopped_run_is_the_beginning_of_the_whole_one():
    whole, stopped = simulate(*RUN), simulate(*RUN, "stop_s=30")
    stop_ns = whole.start_ns + 30 * 10**9
    done = whole.requests.rows()[whole.requests.column("finish_ns") < stop_ns]
    assert stopped.requests.rows().tolist() == done.tolist()
    n_arrived = int((whole.requests.column("arrival_ns") < stop_ns).sum())
    assert stopped.n_unfinished == n_arrived - len(stopped.requests) > 0
    assert stopped.end_ns == stop_ns
    numbers = summary(stopped, Slo())
    assert numbers["duration"] == 30.0
    assert numbers["kvtwin"]["unfinished"] == stopped.n_unfinished
    assert any("still under way" in line for line in numbers["kvtwin"]["warnings"])
    whole_ends, ends = (iteration_ends_ns(result.iterations) for result in (whole, stopped))
    assert ends.tolist() == whole_ends[whole_ends < stop_ns].tolist(), "to the last iteration that has ended"
    assert report_page(stopped, Slo(), measure(stopped, Slo()), numbers)


@pytest.mark.parametrize("stop_s", [0.5, 3.0, 12.0])
def test_a_fleet_of_two_pools_can_be_stopped_while_kv_travels(stop_s):
    stopped = run(compose(["scenario=chatbot", "fleet=pd", "scenario.rate=50", f"stop_s={stop_s}"]))
    numbers = summary(stopped, Slo())
    assert stopped.n_unfinished == numbers["kvtwin"]["unfinished"] > 0
    assert set(numbers["kvtwin"]["hand_over"]["stages_ms"])
    assert report_page(stopped, Slo(), measure(stopped, Slo()), numbers)


def test_one_whose_kv_travels_when_a_run_is_stopped_is_unfinished(tmp_path):
    (tmp_path / "one.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,4000,50\n")
    slow = ["scenario=replay", f"scenario.path={tmp_path / 'one.csv'}", "fleet=pd", "fleet.link.bytes_per_s=1e8"]
    column = {name: int(ns[0]) for name, ns in run(compose(slow)).handovers.frame().items()}
    for stop_ns in (column["admitted_ns"] + 1, (column["ready_ns"] + column["come_ns"]) // 2, column["come_ns"] - 1):
        stopped = run(compose([*slow, f"stop_s={stop_ns / 1e9}"]))
        assert (len(stopped.requests), stopped.n_unfinished) == (0, 1)


def test_a_run_that_ends_before_it_is_stopped_is_as_ever():
    usual, late = simulate(*RUN), simulate(*RUN, "stop_s=1000")
    assert late.requests.rows().tobytes() == usual.requests.rows().tobytes()
    assert (late.n_unfinished, late.end_ns) == (0, usual.end_ns)


@pytest.mark.parametrize(
    "setting", ["stop_s=0", "stop_s=-1", "stop_s=soon", "warmup_s=-1", "warmup_s=null", "stop_s=true"]
)
def test_times_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"^{setting.partition('=')[0]} must be a number >= "):
        simulate(*RUN, setting)

"""Time begins with the first request that is served: a run looks the same whenever it happened."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from sim import simulate
from sim.metrics import Slo, measure, summary
from sim.record import REFUSED_COLUMNS
from sim.report.files import write
from sim.report.links import link_uses
from sim.report.page import report_page
from sim.report.timeline import timelines
from sim.report.trace import trace_json
from tests.sim.tiny_run import later, table, tiny_run

SLO = Slo(ttft_ms=40, tpot_ms=6)
LATER_NS = {"BurstGPT's middle": 819_000 * 10**9, "Unix time": 1_764_331_200_250_000_000}


@pytest.fixture(params=LATER_NS.values(), ids=LATER_NS)
def runs(request):
    run = tiny_run(seed=4, n_requests=60, n_replicas=2, preempts=0.1, n_refused=2).result
    return run, later(run, request.param)


def page(result):
    measures = measure(result, SLO)
    return report_page(result, SLO, measures, summary(result, SLO, measures))


def test_every_number_axis_and_chart_is_the_same_whenever_a_run_happened(runs):
    run, late = runs
    assert summary(late, SLO) == summary(run, SLO)
    assert page(late) == page(run)
    assert trace_json(late) == trace_json(run)


def test_the_trace_and_the_timelines_begin_with_the_first_request(runs):
    _, late = runs
    trace = json.loads(gzip.decompress(trace_json(late)))
    begins = [event["ts"] for event in trace["traceEvents"] if event["ph"] != "M"]
    assert 0 <= min(begins) < 1
    assert trace["otherData"]["of_s"] == summary(late, SLO)["duration"]
    found = timelines(late)
    assert found.edges_s[-1] == pytest.approx(summary(late, SLO)["duration"])
    assert np.count_nonzero(found.decoded_per_s) > 300
    assert link_uses(late, found.edges_s * 1e9)[0].busy_frac > 0.1


def test_who_is_refused_before_the_first_is_served_sets_no_origin():
    run = tiny_run(seed=4).result
    earlier = replace(run, refused=table(REFUSED_COLUMNS, [{"id": 99}]))
    assert run.start_ns > 0
    assert summary(earlier, SLO)["kvtwin"]["busy_frac"] == summary(run, SLO)["kvtwin"]["busy_frac"]
    assert trace_json(earlier) == trace_json(run)


@pytest.mark.parametrize("cache", ["paged", "hierarchical"])
def test_a_trace_cut_out_of_the_middle_replays_like_the_same_rows_from_0(cache, tmp_path):
    rows = [(90 + 300 * k + 10 * (k % 7), 300 + 37 * k % 900, 20 + k % 90) for k in range(120)]
    written = {}
    for start_s in (0, 819_000, 1_764_331_200):
        lines = "".join(f"{start_s + ms // 1000}.{ms % 1000:03},{prompt},{output}\n" for ms, prompt, output in rows)
        path = tmp_path / f"{start_s}.csv"
        path.write_text("arrival_s,prompt_tokens,output_tokens\n" + lines)
        result = simulate("scenario=replay", f"scenario.path={path}", f"cache={cache}", "hardware.kv_blocks=400")
        folder = write(result, SLO, tmp_path / f"run-{start_s}")
        written[start_s] = [(folder / name).read_bytes() for name in ("summary.json", "trace.json.gz")]
    assert json.loads(written[0][0])["kvtwin"]["busy_frac"] > 0.5
    assert written[0] == written[819_000] == written[1_764_331_200]

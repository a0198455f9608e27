"""Recorded engine runs: read, simulated, compared, learnt from."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from calibration.comparison import Line, compare
from calibration.engine_run import read_engine_run
from calibration.host_time import first_third, learn_host
from calibration.prediction import configuration, kernels_of, predictor, queued_ns
from calibration.steps.fit import fit
from calibration.steps.validate import learnt_nothing, saturation, validate
from sim.cost.host import HostCost
from sim.errors import ConfigError, ProfileError, TraceError
from sim.profile import read_profile
from sim.record import ITERATION_COLUMNS, Table

RUN = Path("../shared/data/engine_runs/rtxpro6000_llama-3.1-8b_vllm-0.19")
needs_run = pytest.mark.skipif(not RUN.exists(), reason=f"{RUN} is not there")

KWARGS = {"tensor_parallel_size": 1, "max_num_seqs": 128, "max_num_batched_tokens": 2048, "dtype": "bfloat16"}
META = {"model": "meta-llama/Llama-3.1-8B", "vllm_version": "0.19.0", "engine_kwargs": KWARGS}
EPOCH_S = 1_700_000_000.0


def row(number=0, **changes):
    times = {
        "arrival_time": EPOCH_S + number,
        "queued_ts": 500.25 + number,
        "scheduled_ts": 500.25 + number,
        "first_token_ts": 501.0 + number,
        "last_token_ts": 502.0 + number,
    }
    return {"request_id": f"r{number}", "input_toks": 10, "output_toks": 5, **times, **changes}


@pytest.fixture
def folder(tmp_path):
    def write(rows=None, meta=META, **files):
        rows = [row(0), row(1)] if rows is None else rows
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        (tmp_path / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        for name, text in files.items():
            (tmp_path / f"{name}.csv").write_text(text)
        return tmp_path

    return write


def test_two_clocks_are_laid_over_one_another_by_the_least_delay(folder):
    run = read_engine_run(folder([row(0), row(1, queued_ts=501.35)]))
    assert run.arrival_ns.tolist() == [0, 1_000_000_000]
    assert run.queued_ns.tolist() == [0, 1_100_000_000]
    assert run.first_token_ns.tolist() == [750_000_000, 1_750_000_000]


def test_requests_come_in_order_of_arrival(folder):
    run = read_engine_run(folder([row(3, input_toks=33), row(1, input_toks=11)]))
    assert run.prompt_tokens.tolist() == [11, 33]


def test_what_was_not_recorded_takes_vllms_default_and_is_said_to(folder):
    run = read_engine_run(folder())
    settings = run.settings
    assert (settings.block_tokens, settings.has_prefix_caching, settings.memory_utilization_frac) == (16, True, 0.9)
    assert settings.is_async
    assert settings.capture_sizes[-1] == 256
    assert settings.reported_blocks is None
    for word in ("block_size 16", "enable_prefix_caching True", "async_scheduling true", "CUDA graphs up to 256"):
        assert word in run.notes[0]


def test_what_newer_recorders_resolved_is_read(folder):
    meta = META | {
        "kv_cache": {"num_gpu_blocks": 777, "block_size": 32, "gpu_memory_utilization": 0.8},
        "resolved_config": {
            "scheduler_config": {"async_scheduling": False},
            "compilation_config": {"cudagraph_capture_sizes": [8, 1, 4]},
        },
        "hardware": {"device_name": "NVIDIA H200"},
    }
    settings = read_engine_run(folder(meta=meta)).settings
    assert (settings.reported_blocks, settings.block_tokens, settings.memory_utilization_frac) == (777, 32, 0.8)
    assert not settings.is_async
    assert settings.capture_sizes == (1, 4, 8)
    assert settings.device == "NVIDIA H200"


@pytest.mark.parametrize(
    ("version", "is_async"), [("0.13.2", False), ("0.14.0", True), ("1.0", True), ("dev", True), ("v0.10", False)]
)
def test_async_scheduling_is_the_default_since_0_14(folder, version, is_async):
    assert read_engine_run(folder(meta=META | {"vllm_version": version})).settings.is_async is is_async


def test_an_eager_engine_has_no_graphs(folder):
    meta = META | {"engine_kwargs": KWARGS | {"enforce_eager": True}}
    assert read_engine_run(folder(meta=meta)).settings.capture_sizes == ()


@pytest.mark.parametrize(
    ("kwargs", "resolved", "sizes"),
    [
        ({"cudagraph_capture_sizes": []}, {}, ()),
        ({"compilation_config": {"cudagraph_capture_sizes": [1, 512]}}, {}, (1, 512)),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, {}, ()),
        ({}, {"compilation_config": {"cudagraph_mode": 0, "max_cudagraph_capture_size": 256}}, ()),
        ({}, {"compilation_config": {"cudagraph_mode": [2, 1], "cudagraph_capture_sizes": [1, 2]}}, (1, 2)),
    ],
)
def test_graphs_are_those_that_were_captured(folder, kwargs, resolved, sizes):
    run = read_engine_run(folder(meta=META | {"engine_kwargs": KWARGS | kwargs, "resolved_config": resolved}))
    assert run.settings.capture_sizes == sizes
    assert "CUDA graphs" not in run.notes[0]
    assert "not simulated" not in " ".join(run.notes)


def test_arguments_that_nobody_reads_are_said(folder):
    kwargs = KWARGS | {"enable_lora": True, "frobnicate": 3, "cpu_offload_gb": 0, "seed": 42}
    notes = " ".join(read_engine_run(folder(meta=META | {"engine_kwargs": kwargs})).notes)
    assert "recorded, but not simulated: enable_lora True, frobnicate 3" in notes
    assert "cpu_offload_gb" not in notes
    assert "seed" not in notes


def test_tokens_an_iteration_may_schedule_are_the_budget_where_they_were_recorded(folder):
    meta = META | {"resolved_config": {"scheduler_config": {"max_num_scheduled_tokens": 256}}}
    assert read_engine_run(folder(meta=meta)).settings.max_num_batched_tokens == 256


@pytest.mark.parametrize(
    ("device", "version", "limits", "largest_graph"),
    [
        ("NVIDIA H100 80GB HBM3", "0.28.0", (1024, 8192), 512),
        ("NVIDIA A100-SXM4-80GB", "0.28.0", (256, 2048), 512),
        ("NVIDIA GeForce RTX 4090", "0.19.0", (256, 2048), 512),
    ],
)
def test_a_batch_that_was_not_recorded_is_the_engines_for_the_device(folder, device, version, limits, largest_graph):
    meta = META | {"vllm_version": version, "engine_kwargs": {}, "hardware": {"device_name": device}}
    run = read_engine_run(folder(meta=meta))
    assert "max_num_seqs by device, max_num_batched_tokens by device" in run.notes[0]
    config = configuration(run, None)
    assert (config["batching"]["max_num_seqs"], config["batching"]["max_num_batched_tokens"]) == limits
    assert config["cost"]["capture_sizes"][-1] == largest_graph


@pytest.mark.parametrize("facts", [{"device_name": 7}, {"device_total_memory_bytes": "many"}])
def test_a_device_told_in_other_words_is_refused(folder, facts):
    with pytest.raises(TraceError, match=f"{next(iter(facts))} must be a"):
        read_engine_run(folder(meta=META | {"hardware": facts}))


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"enable_expert_parallel": True}, "enable_expert_parallel True"),
        ({"speculative_config": {"method": "eagle"}}, "speculative_config"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 2"),
        ({"enable_chunked_prefill": False}, "chunked prefill"),
        ({"scheduling_policy": "priority"}, "scheduling_policy 'priority'"),
        ({"dtype": "int3"}, "dtype must be one of"),
    ],
)
def test_engines_that_are_not_simulated_are_refused_by_name(folder, kwargs, said):
    with pytest.raises(ConfigError, match=said):
        read_engine_run(folder(meta=META | {"engine_kwargs": KWARGS | kwargs}))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no request with queued_ts"),
        ([{"request_id": "a"}], "line 1: no input_toks"),
        ([row(0), row(1, input_toks=0)], r"line 2, input_toks: must be a whole number >= 1 \[tokens\], got 0"),
        ([row(0, queued_ts="soon")], "line 1, queued_ts: must be a time"),
        ([row(0, first_token_ts=503.0)], "must ascend, got 500.25, 503.0, 502.0"),
        ([row(0, first_token_ts=502.0)], "must ascend, got 500.25, 502.0, 502.0"),
        ([row(0, first_token_ts=500.25)], "must ascend, got 500.25, 500.25, 502.0"),
    ],
)
def test_malformed_requests_are_refused_with_line_and_field(folder, rows, said):
    with pytest.raises(TraceError, match=said):
        read_engine_run(folder(rows))


def test_missing_files_and_counts_that_differ_are_refused(folder, tmp_path):
    with pytest.raises(TraceError, match=r"meta\.json: missing"):
        read_engine_run(tmp_path)
    with pytest.raises(TraceError, match=r"2 requests, but meta\.json says num_requests 3"):
        read_engine_run(folder(meta=META | {"num_requests": 3}))
    (folder() / "requests.jsonl").unlink()
    with pytest.raises(TraceError, match=r"requests\.jsonl: missing"):
        read_engine_run(tmp_path)
    with pytest.raises(TraceError, match="no such folder"):
        read_engine_run(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("requests.jsonl", b"\xff\xfe\x00", r"requests\.jsonl: line 1: not JSON"),
        ("timeseries.csv", b"t,running\n\xff,1\n", "line 2, column t: must be a number"),
        ("timeseries.csv", b"t,running\n", r"timeseries\.csv: no rows"),
    ],
)
def test_files_that_are_no_text_or_hold_nothing_are_refused(folder, name, content, said):
    (path := folder()).joinpath(name).write_bytes(content)
    with pytest.raises(TraceError, match=said):
        read_engine_run(path)


def test_requests_that_failed_are_left_out_and_counted(folder):
    failed = [
        row(1, first_token_ts=None, last_token_ts=None),
        row(2, last_token_ts=None, output_toks=0),
        row(3, last_token_ts=float("nan")),
        row(4, first_token_ts=0.0, last_token_ts=0.0),
    ]
    run = read_engine_run(folder([row(0), *failed]))
    assert len(run) == 1
    assert any("4 requests have no times" in note for note in run.notes)


def test_without_arrival_times_requests_arrive_when_they_were_queued(folder):
    run = read_engine_run(folder([row(0, arrival_time=None), row(1)]))
    assert run.arrival_ns.tolist() == run.queued_ns.tolist()
    assert any("1 of 2 requests have no arrival_time" in note for note in run.notes)


def test_arrivals_may_count_from_the_first_beside_a_clock_that_runs_since_an_hour(folder):
    run = read_engine_run(folder([row(0, arrival_time=0.0), row(1, arrival_time=1.0)]))
    assert run.last_token_ns.tolist() == [1_750_000_000, 2_750_000_000]


def test_the_time_series_may_have_other_columns_but_not_other_words(folder):
    series = read_engine_run(folder(timeseries="t,running,preempted\n1.0,3,0\n2.0,4,1\n")).timeseries
    assert series == {"t": [1.0, 2.0], "running": [3.0, 4.0], "preempted": [0.0, 1.0]}
    with pytest.raises(TraceError, match="line 2, column running: must be a number, got 'many'"):
        read_engine_run(folder(timeseries="t,running\n1.0,many\n"))
    with pytest.raises(TraceError, match="no column t"):
        read_engine_run(folder(timeseries="time,running\n1.0,3\n"))


def test_a_run_without_kernel_times_of_an_unnamed_device_says_what_it_needs(folder):
    with pytest.raises(ProfileError, match="profile: missing, and the run names no device: give hardware="):
        kernels_of(read_engine_run(folder()), Path("nowhere"))


def test_a_device_that_nobody_measured_is_simulated_from_its_data_sheet_and_that_is_said(folder, tmp_path, capsys):
    meta = META | {"hardware": {"device_name": "NVIDIA GB200"}}
    validate(str(folder(meta=meta)), None, str(tmp_path / "out"))

    printed = capsys.readouterr().out
    assert "no profile of meta-llama/Llama-3.1-8B with tensor_parallel 1 on NVIDIA GB200" in printed
    assert "kernel times: nobody measured them; from the data sheet" in printed
    lines = json.loads((tmp_path / "out" / "validation.json").read_text())["lines"]
    tpot_ms = next(line["simulated"] for line in lines if line["metric"] == "tpot")  # kernels alone
    weights_ms = 16e9 / 8.0e12 * 1e3  # read once a token, at the data sheet's bandwidth
    assert weights_ms < tpot_ms < 2 * weights_ms
    with pytest.raises(ProfileError, match="no profile to write the host's time into"):
        fit("run", None, str(tmp_path), None, str(tmp_path / "profile.json"), 0, False)


def test_a_custom_all_reduce_that_was_off_is_said_where_there_are_ranks(folder):
    for degree, is_said in ((1, False), (2, True)):
        kwargs = KWARGS | {"disable_custom_all_reduce": True, "tensor_parallel_size": degree}
        notes = " ".join(read_engine_run(folder(meta=META | {"engine_kwargs": kwargs})).notes)
        assert ("not simulated: disable_custom_all_reduce true" in notes) == is_said


def test_a_request_is_queued_when_the_iteration_it_arrives_in_ends():
    table = Table(ITERATION_COLUMNS)
    zeros = (0,) * (len(ITERATION_COLUMNS) - 6)
    table.add(0, 100, 0, 3, 10_000, 2_000, *zeros)  # ends at 110, 122, 136
    table.add(0, 200, 0, 1, 10_000, 0, *zeros)
    table.add(1, 0, 0, 1, 500_000, 0, *zeros)
    arrivals = np.array([50, 105, 110, 111, 136, 150, 209])
    assert queued_ns(arrivals, table).tolist() == [50, 110, 110, 122, 136, 150, 210]


def test_errors_beyond_the_tolerance_are_missed():
    assert Line("tpot", "mean", "ms", 100.0, 104.9).is_met
    assert not Line("tpot", "mean", "ms", 100.0, 105.1).is_met
    assert Line("tpot", "p99", "ms", 100.0, 92.1).is_met
    assert not Line("tpot", "p99", "ms", 100.0, 91.9).is_met


COLUMNS = ("arrival_ns", "queued_ns", "first_token_ns", "last_token_ns", "prompt_tokens", "output_tokens", "prompts")


@pytest.fixture(scope="module")
def recorded():
    run = read_engine_run(RUN)
    profile = kernels_of(run, Path("outputs/validate"))
    return run, profile, predictor(run, profile)


@needs_run
def test_the_engine_is_simulated_as_it_was_configured(recorded):
    run, profile, _ = recorded
    config = configuration(run, profile)
    assert config["batching"]["max_num_seqs"] == 128
    assert config["batching"]["max_num_batched_tokens"] == 2048
    assert config["batching"]["plans_ahead"] is True
    assert config["cost"]["capture_sizes"][-1] == 256
    elsewhere = dataclasses.replace(run, settings=dataclasses.replace(run.settings, device="GPU from Mars"))
    with pytest.raises(ConfigError, match="no data sheet of 'GPU from Mars'"):
        configuration(elsewhere, profile)


@needs_run
@pytest.mark.parametrize("name", ["rtxpro6000_llama-3.1-8b_vllm-0.19", "rtx4090_llama-3.1-8b_vllm-0.19"])
def test_recorded_runs_are_predicted_with_the_documented_host_and_with_a_learnt_one(name, tmp_path):
    run = read_engine_run(RUN.parent / name)
    predict = predictor(run, kernels_of(run, tmp_path, lambda _: None))
    default = compare(run, predict(predict.default_host()))
    assert len(default) == 16
    assert [line for line in default if line.statistic == "mean" and abs(line.error_frac) > 0.03] == []
    assert [line for line in default if abs(line.error_frac) > 0.05] == []
    learnt = compare(run, predict(learn_host(predict)), ~first_third(run))
    assert [line for line in learnt if line.statistic == "mean" and abs(line.error_frac) > 0.015] == []
    assert [line for line in learnt if abs(line.error_frac) > 0.03] == []


@needs_run
def test_prompts_that_begin_alike_are_computed_once(recorded):
    run, _, predict = recorded
    unknown = dataclasses.replace(predict, recorded=dataclasses.replace(run, prompts=(None,) * len(run)))
    hits = [int(p(p.host()).result.requests.column("cached_tokens").sum()) for p in (predict, unknown)]
    assert 0.05 < hits[0] / run.prompt_tokens.sum() < 0.08
    assert hits[1] == 0


def test_a_learnt_host_of_nothing_says_whether_the_kernels_are_already_too_slow():
    def alone(simulated: float) -> dict[str, list[Line]]:
        return {"kernels alone": [Line("tpot", "mean", "ms", 100.0, simulated)]}

    nothing, something = HostCost(0.0, 0.0), HostCost(0.0, 0.0, gap_s=1e-4)
    assert learnt_nothing(alone(104.0), something) == []
    assert learnt_nothing(alone(104.0), None) == []
    assert "TPOT is +4.0% off, so the kernels' times are already too slow" in learnt_nothing(alone(104.0), nothing)[0]
    assert "TPOT is -0.1% off, so none is missing" in learnt_nothing(alone(99.9), nothing)[0]


@needs_run
def test_a_run_near_saturation_says_what_three_percent_of_an_iteration_do_to_ttft(recorded):
    run, _, predict = recorded
    said = saturation(predict, predict(predict.default_host()))
    shorter, longer = (float(x) for x in re.search(r"by (-[\d.]+)% or \+([\d.]+)%", said[0]).groups())
    assert shorter < -6.0
    assert longer > 6.0
    few = dataclasses.replace(run, **{name: getattr(run, name)[:4] for name in COLUMNS})
    calm = dataclasses.replace(predict, recorded=few)  # four requests wait for nobody
    assert saturation(calm, calm(calm.default_host())) == []


@needs_run
def test_a_rank_launches_what_its_kernels_alone_launch(recorded):
    _, _, predict = recorded
    assert predict.operations.n_launches == predict.operations.alone.n_launches == 324


@needs_run
def test_an_idle_device_is_seen_in_every_statistic(recorded):
    run, _, predict = recorded
    alone, slow = (compare(run, predict(predict.host(gap_s=gap))) for gap in (0.0, 4e-3))
    tpot = [(a.simulated, b.simulated) for a, b in zip(alone, slow, strict=True) if a.metric == "tpot"]
    assert all(b > 1.05 * a for a, b in tpot)


@needs_run
def test_host_time_learnt_from_a_third_predicts_the_rest_of_a_run_simulated_with_it(recorded):
    run, _, predict = recorded
    short = dataclasses.replace(run, **{name: getattr(run, name)[:90] for name in COLUMNS})
    predict = dataclasses.replace(predict, recorded=short)
    made = predict(predict.host(gap_s=1e-3, prefill_gap_s=4e-3))
    times = {name: getattr(made, name) for name in ("queued_ns", "first_token_ns", "last_token_ns")}
    predict = dataclasses.replace(predict, recorded=dataclasses.replace(short, **times))
    judged = ~first_third(short)
    without, learnt = (compare(predict.recorded, predict(h), judged) for h in (predict.host(), learn_host(predict)))
    assert min(line.error_frac for line in without if line.metric == "tpot") < -0.05
    assert max(abs(line.error_frac) for line in learnt if line.metric != "ttft") < 0.015


def test_a_short_run_teaches_nothing(folder):
    with pytest.raises(TraceError, match="at least 30 requests, got 2"):
        first_third(read_engine_run(folder()))


@needs_run
def test_the_step_writes_table_and_page_and_the_learnt_host_time_into_a_profile(tmp_path, capsys):
    (tmp_path / "profile").symlink_to((RUN / "profile").resolve())
    meta = json.loads((RUN / "meta.json").read_text()) | {"num_requests": 45, "kv_cache": {"num_gpu_blocks": 30_000}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    rows = (RUN / "requests.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "requests.jsonl").write_text("".join(rows[:45]))
    validate(str(tmp_path), None, str(tmp_path / "out"))
    lines = json.loads((tmp_path / "out" / "validation.json").read_text())["lines"]
    assert {line["prediction"] for line in lines} == {"kernels alone", "default host time", "learnt host time"}
    assert len(lines) == 3 * 16
    page = (tmp_path / "out" / "validation.html").read_text()
    for name in ("cdf-ttft", "scatter-e2el", "time-waiting"):
        assert name in page
    said = capsys.readouterr().out
    assert "against the engine's 30000: WRONG" in said
    assert "no timeseries.csv" in said
    out = tmp_path / "profile.json"
    fit("run", None, str(tmp_path), None, str(out), 0, False)
    assert read_profile(out).provenance["host_time"]["requests"] == "the first 15 of 45 to arrive"


def test_fit_says_which_folder_is_missing():
    with pytest.raises(ConfigError, match="run must be given with source=run"):
        fit("run", None, None, None, None, 0, False)
    with pytest.raises(ConfigError, match="source must be one of measurements, run, got 'guess'"):
        fit("guess", None, None, None, None, 0, False)

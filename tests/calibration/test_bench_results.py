"""Results of ``vllm bench serve`` as recorded runs: a simulated engine, seen through its front end, is recovered."""

import json

import numpy as np
import pytest

from calibration.__main__ import main
from calibration.bench_results import engine_arguments, read_bench_results
from calibration.comparison import compare
from calibration.prediction import kernels_of, predictor
from sim.config import compose, make
from sim.errors import ConfigError, TraceError
from sim.run import run
from sim.units import NS_PER_S
from tests.calibration.engine_folder import Listed, traffic

ARGUMENTS = "vllm serve meta-llama/Llama-3.1-8B --max-num-seqs 64 --max-num-batched-tokens=2048 --max-model-len 8k"
SETTINGS = ["hardware=h100", "model=llama-3.1-8b", "engine=vllm-0.28", "cache=paged", "router=least_loaded", "slo=none"]
SETTINGS += [
    "batching.max_num_seqs=64",
    "batching.max_num_batched_tokens=2048",
    "model.max_len=8000",
    "cost=calibrated",
]
FRONT = {"before_s": 0.020, "after_s": 0.010}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What clients of such an engine would write down, and its requests."""
    config = compose([*SETTINGS, *(f"frontend.{key}={value}" for key, value in FRONT.items())])
    served = run(config, Listed(traffic(80, 8.0, (50, 900), (2, 120))))
    frame = served.requests.frame().sort_values("id")
    clients_ns = make(config["frontend"], "frontend").added_ns
    ttfts = (frame.first_token_ns - frame.arrival_ns + clients_ns) / NS_PER_S
    gaps = (frame.finish_ns - frame.first_token_ns) / NS_PER_S
    content = {
        "model_id": "meta-llama/Llama-3.1-8B",
        "completed": len(frame),
        "start_times": (353_399.0 + frame.arrival_ns / NS_PER_S).tolist(),
        "input_lens": frame.prompt_tokens.tolist(),
        "output_lens": frame.output_tokens.tolist(),
        "ttfts": ttfts.tolist(),
        "itls": [[gap / (n - 1)] * (n - 1) for gap, n in zip(gaps, frame.output_tokens, strict=True)],
        "errors": [""] * len(frame),
    }
    path = tmp_path_factory.mktemp("bench") / "results.json"
    path.write_text(json.dumps(content))
    return path


def written(results, tmp_path, **changed):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(results.read_text()) | changed))
    return path


def errors(recorded, **how):
    profile = kernels_of(recorded, recorded.path.parent, lambda _: None, "h100")
    predict = predictor(recorded, profile, "h100", **how)
    lines = compare(recorded, predict(predict.default_host()))
    return {(one.metric, one.statistic): one.error_frac for one in lines}


def test_an_engine_is_recovered_from_what_its_clients_saw(results, tmp_path):
    recorded = read_bench_results(results, ARGUMENTS, "0.28.0")
    profile = kernels_of(recorded, tmp_path, lambda _: None, "h100")
    predict = predictor(recorded, profile, "h100")
    predict.config["frontend"].update(FRONT)
    lines = compare(recorded, predict(predict.default_host()))
    assert {one.metric for one in lines} == {"ttft", "tpot", "e2el", "throughput"}
    assert all(abs(one.error_frac) < 1e-6 for one in lines)


def test_without_its_front_end_the_first_token_comes_too_early_and_the_others_in_time(results):
    recorded = read_bench_results(results, ARGUMENTS, "0.28.0")
    bare = errors(recorded, frontend="none")
    assert bare["ttft", "mean"] < -0.3
    assert abs(bare["tpot", "mean"]) < 1e-6


def test_failed_requests_are_left_out_and_said(results, tmp_path):
    content = json.loads(results.read_text())
    content["output_lens"][3], content["ttfts"][3], content["itls"][3] = 0, 0.0, []
    recorded = read_bench_results(written(results, tmp_path, **content), ARGUMENTS, None)
    assert len(recorded) == 79
    assert "1 requests failed or have no times, and are left out" in recorded.notes
    assert (np.diff(recorded.arrival_ns) >= 0).all()
    assert recorded.arrival_ns[0] == 0


def test_the_step_takes_the_file_and_says_that_times_are_a_clients(results, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = tmp_path / "args.yaml"
    arguments.write_text("max-num-seqs: 64\nmax-num-batched-tokens: 2048\nmax_model_len: 8000\n")
    code = main(
        ["step=validate", f"run={results}", f"args={arguments}", "vllm_version=0.28.0", "hardware=h100", f"out={out}"]
    )
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "times are a client's" in told.out
    assert (out / "validation.html").is_file()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, {}),
        ("--tensor-parallel-size 4 -dp 2", {"tensor_parallel_size": 4, "data_parallel_size": 2}),
        ("--enforce-eager --no-enable-prefix-caching", {"enforce_eager": True, "enable_prefix_caching": False}),
        ("--gpu-memory-utilization .85 --kv-cache-dtype x", {"gpu_memory_utilization": 0.85, "kv_cache_dtype": "x"}),
        ("--max-model-len 32k --max-num-batched-tokens=2K", {"max_model_len": 32_000, "max_num_batched_tokens": 2_048}),
        ("--compilation-config '{\"mode\": 3}' --port 8000", {"compilation_config": {"mode": 3}, "port": 8000}),
        ("a/model --cudagraph-capture-sizes 1 2 4", {"model": "a/model", "cudagraph_capture_sizes": [1, 2, 4]}),
    ],
)
def test_arguments_are_read_as_vllm_does(given, found):
    assert engine_arguments(given) == found


@pytest.mark.parametrize("given", ["--max-num-seqs 'x", "--? 4"])
def test_arguments_that_are_none_are_refused_in_one_line(given):
    with pytest.raises(ConfigError, match="args must be arguments of vllm serve"):
        engine_arguments(given)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ttfts": None}, "ttfts must be a list"),
        ({"start_times": None}, "start_times must be a list .*--save-detailed"),
        ({"input_lens": [1]}, "lists must be of one length"),
        ({"ttfts": ["x"] * 80}, "ttfts must be times >= 0"),
        ({"itls": [[-1.0]] * 80}, r"itls\[0\] must be times >= 0"),
        ({"output_lens": [0] * 80}, "no request was answered"),
        ({"output_lens": [1.5] * 80}, "output_lens must be whole numbers >= 0"),
        ({"model_id": None}, "model must be a name"),
    ],
)
def test_results_that_are_none_are_refused_in_one_line(results, tmp_path, changed, said):
    with pytest.raises(TraceError, match=said):
        read_bench_results(written(results, tmp_path, **changed), None, None)


def test_a_recorders_folder_takes_no_arguments(tmp_path, capsys):
    (tmp_path / "meta.json").write_text("{}")
    assert main(["step=validate", f"run={tmp_path}", "args=--max-num-seqs 4"]) == 2
    assert "args is for results of vllm bench serve" in capsys.readouterr().err

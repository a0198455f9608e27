"""What "as in vLLM" means, version by version: each difference on the smallest traffic that shows it."""

import json

import pytest

import sim
from calibration.prediction import engine_of
from sim.build import Builder
from sim.config import compose, conf_dir
from sim.errors import ConfigError
from sim.metrics import Slo
from sim.report import write

ENGINES = sorted(path.stem for path in (conf_dir() / "engine").glob("*.yaml"))


def replayed(tmp_path, rows, *overrides, columns="arrival_s,prompt_tokens,output_tokens"):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return sim.simulate("scenario=replay", f"scenario.path={path}", *overrides)


def computed_tokens(result):
    return int(result.iterations.column("prefill_tokens").sum())


def preemptions(result):
    return int(result.requests.column("n_preemptions").sum())


def batching(*overrides):
    return compose(list(overrides))["batching"]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_version_serves_and_is_named_in_report_manifest_and_summary(engine, tmp_path):
    result = replayed(tmp_path, ["0,100,5", "1,100,5"], f"engine={engine}")
    out = write(result, Slo(), tmp_path / "out")
    name = result.config["engine"]["name"]
    assert name == engine.replace("vllm-", "vLLM ")
    assert json.loads((out / "manifest.json").read_text())["config"]["engine"]["name"] == name
    assert json.loads((out / "summary.json").read_text())["kvtwin"]["engine"] == name
    assert f"engine {engine}" in (out / "report.html").read_text()


def test_long_prompts_are_admitted_whole_or_by_their_first_piece(tmp_path):
    """Sixteen prompts of 30,000 in room for eight: by pieces they chase each other out, over and over."""
    rows = [f"{0.05 * i},30000,300" for i in range(16)]
    settings = ("cache.prefix_caching=false", "hardware.kv_blocks=16000")
    whole = replayed(tmp_path, rows, *settings)
    pieces = replayed(tmp_path, rows, *settings, "engine=vllm-0.10")
    told = replayed(tmp_path, rows, *settings, "engine=vllm-0.10", "cache.reserves_prompt=true")
    assert preemptions(whole) <= 2 < 5 * preemptions(whole) + 5 < preemptions(pieces)
    assert computed_tokens(whole) < computed_tokens(pieces)
    assert preemptions(told) <= 2, "what is set goes before the engine's"


@pytest.mark.parametrize(("engine", "found"), [("vllm-0.19", 0), ("vllm-0.28", 144)])
def test_blocks_without_content_push_content_out_or_not(engine, found, tmp_path):
    """Ten blocks of content in a hundred, then 150 prompts of half a block: is the content still there?"""
    rows = ["0,160,1,7:160", *(f"{1 + i / 10:.1f},8,1," for i in range(150)), "30,160,1,7:160"]
    columns = "arrival_s,prompt_tokens,output_tokens,content"
    result = replayed(tmp_path, rows, "hardware.kv_blocks=100", f"engine={engine}", columns=columns)
    assert result.requests.column("cached_tokens").tolist()[-1] == found


def test_several_answers_are_requests_of_their_own(tmp_path):
    """1,600 tokens, four answers: each after the first finds 99 blocks; without prefix caching it computes all."""
    columns = "arrival_s,prompt_tokens,output_tokens,n_samples"
    found = replayed(tmp_path, ["0,1600,50,4"], columns=columns)
    alone = replayed(tmp_path, ["0,1600,50,4"], "cache.prefix_caching=false", columns=columns)
    shared = replayed(
        tmp_path, ["0,1600,50,4"], "cache.prefix_caching=false", "batching.forks_samples=true", columns=columns
    )
    apart = replayed(tmp_path, ["0,1600,50"] * 4, "cache.prefix_caching=false")
    assert computed_tokens(found) == 1_648
    assert computed_tokens(alone) == computed_tokens(apart) == 6_400
    assert computed_tokens(shared) == 1_600
    assert alone.requests.column("finish_ns").tolist() == [apart.requests.column("finish_ns").max()]
    assert alone.requests.column("first_token_ns").tolist() == [apart.requests.column("first_token_ns").min()]


def test_more_answers_than_places_take_turns(tmp_path):
    columns = "arrival_s,prompt_tokens,output_tokens,n_samples"
    result = replayed(tmp_path, ["0,100,10,8", "0.1,100,10,1"], "batching.max_num_seqs=4", columns=columns)
    assert (len(result.requests), len(result.refused)) == (2, 0)
    assert sorted(result.requests.column("output_tokens").tolist()) == [10, 80]
    assert result.iterations.column("decode_seqs").max() <= 4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("hardware", "limits"),
    [("h200", (8192, 1024)), ("h100", (8192, 1024)), ("a100-80g", (2048, 256)), ("l40s", (2048, 256))],
)
def test_the_largest_iteration_goes_by_the_device(engine, hardware, limits):
    chosen = batching(f"hardware={hardware}", f"engine={engine}")
    assert (chosen["max_num_batched_tokens"], chosen["max_num_seqs"]) == limits


def test_a_device_counts_by_its_memory_and_its_name():
    small = batching("hardware=h200", "hardware.device.memory_gib=69.9")
    named = batching("hardware=h200", "hardware.device.name=NVIDIA A100X")
    assert small["max_num_seqs"] == named["max_num_seqs"] == 256


def test_what_is_set_goes_before_the_engines():
    chosen = batching("batching.max_num_seqs=7", "batching.plans_ahead=false", "hardware=a100-80g")
    assert (chosen["max_num_seqs"], chosen["plans_ahead"], chosen["max_num_batched_tokens"]) == (7, False, 2048)
    assert batching("batching.max_num_batched_tokens=512")["max_num_seqs"] == 512
    assert compose(["eviction.blank_first=false"])["eviction"]["blank_first"] is False
    assert compose(["cost.capture_sizes=[1,2]"])["cost"]["capture_sizes"] == [1, 2]


@pytest.mark.parametrize(("engine", "n_graphs", "scheduling"), [("vllm-0.10", 67, "sync"), ("vllm-0.28", 51, "async")])
def test_graphs_and_the_hosts_place_are_the_versions(engine, n_graphs, scheduling):
    cost = compose([f"engine={engine}"])["cost"]
    assert (len(cost["capture_sizes"]), cost["host"]["scheduling"]) == (n_graphs, scheduling)
    assert compose([f"engine={engine}", "batching.max_num_seqs=16"])["cost"]["capture_sizes"][-1] == 32


def test_an_answer_that_a_stop_token_ends_is_decoded_once_more_in_vain(tmp_path):
    """Planned ahead nobody knows of the stop token; between iterations everybody does."""
    columns = "arrival_s,prompt_tokens,output_tokens"
    ahead = replayed(tmp_path, ["0,100,5", "0,100,9"], columns=columns)
    assert ahead.iterations.column("padding_seqs").sum() == 0, "a trace's answers end by their length"
    chat = ("scenario=chatbot", "scenario.n_sessions=20")
    counts = {engine: sim.simulate(*chat, f"engine={engine}") for engine in ("vllm-0.10", "vllm-0.28")}
    assert counts["vllm-0.10"].iterations.column("padding_seqs").sum() == 0
    assert counts["vllm-0.28"].iterations.column("padding_seqs").sum() > 0


@pytest.mark.parametrize(
    ("version", "engine"),
    [
        ("0.9.2", "vllm-0.10"),
        ("0.10.1", "vllm-0.10"),
        ("v0.15.0", "vllm-0.10"),
        ("0.19.0", "vllm-0.19"),
        ("0.28.1.dev3", "vllm-0.28"),
        ("1.0.0", "vllm-0.28"),
        ("nightly", "vllm-0.28"),
    ],
)
def test_a_recorded_run_selects_the_newest_engine_that_is_not_newer(version, engine):
    assert engine_of(version) == engine


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine=vllm-0.5"], "engine=vllm-0.5 is not a choice"),
        (["engine.batch_limits=[]"], "engine.batch_limits must name a limit for every device"),
        (["engine.async_scheduling=7"], "engine.async_scheduling must be true or false, got 7"),
    ],
)
def test_what_is_no_engine_is_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as error:
        sim.simulate(*overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("engine", "h200", "b200"),
    [("vllm-0.10", "0.14", "0.24"), ("vllm-0.19", "0.14", "0.24"), ("vllm-0.28", "0.24", "0.24")],
)
@pytest.mark.parametrize("cost", ["auto", "calibrated"])
def test_a_version_is_simulated_with_the_kernels_of_its_own_time(engine, h200, b200, cost):
    for hardware, version in (("h200", h200), ("b200", b200)):
        made = Builder(compose([f"engine={engine}", f"cost={cost}", f"hardware={hardware}"]))
        assert made.cost.provenance["vllm"].startswith(version)


def test_a_profile_that_is_named_goes_before_the_engines():
    chosen = ["engine=vllm-0.10", "cost=calibrated", "cost.profile=h200/published"]
    assert Builder(compose(chosen)).cost.provenance["profile"] == "h200/published"

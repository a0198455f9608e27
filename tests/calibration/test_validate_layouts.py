"""Recorded runs of other layouts: a simulated engine, written down as a recorder does, is recovered from its folder.

Each is simulated with a configuration composed here by hand, written with the metadata such an engine would leave, and
predicted from that metadata: whatever the reader takes wrongly shows as an error.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from calibration.__main__ import main
from calibration.comparison import compare
from calibration.engine_run import read_engine_run
from calibration.importers.llmservingsim import import_llmservingsim, model_key
from calibration.prediction import Predicted, RankOperations, configuration, kernels_of, predictor, queued_ns
from calibration.steps.recordings import recordings
from calibration.steps.validate import capacity_words, validate
from sim.config import compose, make
from sim.cost.host import HostCost
from sim.cost.iteration import IterationCost
from sim.errors import ConfigError, ProfileError, TraceError
from sim.run import run
from tests.calibration.engine_folder import Listed, attention_us, traffic, write_bundle, write_run
from tests.sim.report.browser import CHROMIUM, Browser

LLAMA = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj", "embedding")
LLAMA = (*LLAMA, "final_layernorm")
QWEN = (*LLAMA, "qk_norm")
INTERCONNECT = """\
measured:
  interconnect:
    npus: 2
    samples:
    - {collective: all_gather, bytes: 4096, us: 1000.0}
    - {collective: all_reduce, bytes: 4096, us: 13.0}
    - {collective: all_reduce, bytes: 1048576, us: 41.0}
    - {collective: all_reduce, bytes: 16777216, us: 471.0}
"""


def answered(profile, overrides: list[str], scheduling: str, capture: tuple[int, ...], requests) -> Predicted:
    """What an engine of this configuration answers."""
    config = compose(overrides)
    model, hardware = make(config["model"], "model"), make(config["hardware"], "hardware")
    host = HostCost(0.0, 0.0, scheduling=scheduling)
    result = run(config, Listed(requests), cost=IterationCost(RankOperations(profile, model, hardware), host, capture))
    order = np.argsort(result.requests.column("id"))
    arrival, first, last = (result.requests.column(n)[order] for n in ("arrival_ns", "first_token_ns", "finish_ns"))
    return Predicted(queued_ns(arrival, result.iterations), first, last, result)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """A newer engine on two ranks, its configuration resolved, its model named by where it lay."""
    folder = tmp_path_factory.mktemp("two_ranks")
    write_bundle(folder / "profile", "Qwen/Qwen3-32B", 2, is_new=True, layers=QWEN)
    (folder / "profile" / "hardware.yaml").write_text(INTERCONNECT, encoding="utf-8")
    requests = traffic(60, 12.0, (50, 900), (20, 150))
    meta = {
        "schema_version": 1,
        "model": "/data/model/Qwen3-32B",
        "vllm_version": "0.28.0",
        "engine_kwargs": {"tensor_parallel_size": 2, "max_num_seqs": 48, "max_num_batched_tokens": 256},
        "kv_cache": {"num_gpu_blocks": 120, "block_size": 32, "enable_prefix_caching": True},
        "hardware": {"device_name": "NVIDIA RTX PRO 6000 Blackwell Server Edition"},
        "resolved_config": {
            "cache_config": {"cache_dtype": "auto", "gpu_memory_utilization": 0.92},
            "compilation_config": {"cudagraph_capture_sizes": [1, 8, 64]},
            "model_config": {"dtype": "torch.bfloat16", "max_model_len": 4096, "quantization": None},
            "scheduler_config": {
                "async_scheduling": True,
                "enable_chunked_prefill": True,
                "policy": "fcfs",
                "scheduler_reserve_full_isl": True,
                "watermark": 0.01,
            },
        },
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (folder / "requests.jsonl").write_text(json.dumps(PLACEHOLDER) + "\n")
    profile = kernels_of(read_engine_run(folder), folder, lambda _: None)
    overrides = [
        "model=qwen3-32b", "model.max_len=4096", "hardware=rtxpro6000", "hardware.tensor_parallel=2",
        "hardware.kv_blocks=119", "cache=paged", "cache.block_tokens=32", "batching=chunked",
        "cache.reserves_prompt=true", "cache.watermark=0.01",
        "batching.max_num_seqs=48", "batching.max_num_batched_tokens=256", "batching.plans_ahead=true",
    ]  # fmt: skip
    write_run(folder, meta, requests, answered(profile, overrides, "async", (1, 8, 64), requests))
    return folder


PLACEHOLDER = {"input_toks": 1, "output_toks": 1, "queued_ts": 1.0, "first_token_ts": 2.0, "last_token_ts": 2.0}


@pytest.fixture(scope="module")
def short_of_memory(tmp_path_factory) -> Path:
    """An old engine that schedules in lock-step and is short of KV: nothing but its arguments was recorded."""
    folder = tmp_path_factory.mktemp("short_of_memory")
    write_bundle(folder / "profile", "meta-llama/Llama-3.1-8B", 1, is_new=False, layers=LLAMA)
    requests = traffic(60, 40.0, (50, 900), (100, 300))
    meta = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "vllm_version": "0.11.2",
        "engine_kwargs": {"max_num_seqs": 32, "max_num_batched_tokens": 512, "enforce_eager": True},
        "kv_cache": {"num_gpu_blocks": 700},
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (folder / "requests.jsonl").write_text(json.dumps(PLACEHOLDER) + "\n")
    profile = kernels_of(read_engine_run(folder), folder, lambda _: None)
    overrides = [
        "engine=vllm-0.10",
        "model=llama-3.1-8b", "hardware=rtxpro6000", "hardware.kv_blocks=699", "cache=paged", "batching=chunked",
        "batching.max_num_seqs=32", "batching.max_num_batched_tokens=512", "batching.plans_ahead=false",
    ]  # fmt: skip
    told = answered(profile, overrides, "sync", (), requests)
    assert len(told.result.preemptions) > 5
    write_run(folder, meta, requests, told)
    return folder


@pytest.mark.parametrize("which", ["two_ranks", "short_of_memory"])
def test_a_run_written_by_a_simulation_is_predicted_exactly(which, request):
    folder = request.getfixturevalue(which)
    recorded = read_engine_run(folder)
    predict = predictor(recorded, kernels_of(recorded, folder, lambda _: None))
    lines = compare(recorded, predict(predict.host()))
    assert len(lines) == 16
    assert max(abs(line.error_frac) for line in lines) < 1e-4, [(line.metric, line.error_frac) for line in lines]


@pytest.mark.parametrize("argument", [{"num_gpu_blocks_override": 700}, {"kv_cache_memory_bytes": 700 * 16 * 131_072}])
def test_a_capacity_that_was_given_is_simulated_with_where_none_was_reported(short_of_memory, tmp_path, argument):
    def change(text: str) -> str:
        meta = json.loads(text)
        del meta["kv_cache"]
        return json.dumps(meta | {"engine_kwargs": meta["engine_kwargs"] | argument})

    folder = spoil(short_of_memory, tmp_path, "meta.json", change)
    recorded = read_engine_run(folder)
    predict = predictor(recorded, kernels_of(recorded, folder, lambda _: None))
    assert max(abs(line.error_frac) for line in compare(recorded, predict(predict.host()))) < 1e-4
    assert "derived from the engine's arguments: 700 blocks" in capacity_words(predict)


def test_the_device_of_a_run_can_be_named_on_the_command_line(short_of_memory, tmp_path, capsys):
    command = ["step=validate", f"run={short_of_memory}", f"out={tmp_path}"]

    assert main([*command, "hardware=rtxpro6000"]) == 0
    assert (tmp_path / "validation.json").is_file()
    assert main([*command, "hardware=h200"]) == 0, "a stand-in where a device has no data sheet"
    assert "data sheet of NVIDIA H200" in capsys.readouterr().out
    assert main([*command, "hardware=abacus"]) == 2
    assert main(["step=list", "hardware=h200"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [word in line for word, line in zip(("abacus", "not a setting"), told, strict=True)] == [True] * 2


def test_the_command_prints_the_table_of_two_ranks(two_ranks, tmp_path, capsys):
    validate(str(two_ranks), None, str(tmp_path))
    said = capsys.readouterr().out
    assert "TTFT mean [ms]" in said
    assert "against the engine's 120: WRONG" in said
    assert "nothing is shared" in said
    assert str(Path(__file__).resolve().parents[2]) not in said


def test_every_run_of_a_folder_is_predicted_and_each_mechanism_weighed(short_of_memory, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "lock_step").symlink_to(short_of_memory)
    assert main(["step=recordings", f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "lock_step, kernels alone: TTFT 0.0 %, TPOT 0.0 %, E2EL 0.0 %, THROUGHPUT 0.0 %" in printed
    found = json.loads((tmp_path / "out" / "recordings.json").read_text())
    means = {
        row["prediction"]: row["error_frac"]
        for row in found["ablation"]["lock_step"]
        if (row["metric"], row["statistic"]) == ("e2el", "mean")
    }
    assert means["all"] > 0.0  # the documented host, which this engine had not
    assert means["without what passes between kernels"] < means["all"]
    assert means["without unequal contexts"] == means["all"]  # its kernels were not measured with any
    assert means["without the engine's own KV capacity (derived instead)"] < means["all"]  # which was short
    page = (tmp_path / "out" / "recordings.html").read_text()
    assert "What each mechanism is worth" in page
    with pytest.raises(TraceError, match="no recorded run"):
        recordings(str(tmp_path / "out"), str(tmp_path))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: whether the page is drawn cannot be seen")
def test_the_page_is_drawn_in_light_and_dark_without_network(two_ranks, tmp_path, capsys):
    validate(str(two_ranks), None, str(tmp_path))
    capsys.readouterr()
    with Browser(tmp_path / "profile") as browser:
        for scheme in ("light", "dark"):
            browser.open(tmp_path / "validation.html", scheme)
            assert browser.n_drawn() == 3 + 3 + 4  # distributions, scatters, courses
        assert "kernels alone" in browser.evaluate("document.body.innerText")
        assert browser.problems == []
        assert browser.requests == []


def test_ranks_wait_for_all_reduces_as_measured_between_them(two_ranks):
    recorded = read_engine_run(two_ranks)
    predict = predictor(recorded, kernels_of(recorded, two_ranks, lambda _: None))
    alone = predict.operations.alone
    n_tokens = 1_048_576 // (5120 * 2)
    waited = predict.operations.dense_s(n_tokens) - alone.dense_s(n_tokens)
    assert waited == pytest.approx((2 * 64 + 1) * 41e-6, rel=0.03)
    assert predict.operations.sequences_s(48) > alone.sequences_s(48) + 13e-6


def test_newer_columns_mean_what_older_ones_did(tmp_path):
    write_bundle(tmp_path / "old", "Qwen/Qwen3-32B", 2, is_new=False, layers=QWEN)
    write_bundle(tmp_path / "new", "Qwen/Qwen3-32B", 2, is_new=True, layers=QWEN)
    old, new = (import_llmservingsim(tmp_path / name, 2) for name in ("old", "new"))
    assert old.rows.equals(new.rows)
    assert any("unequal contexts were not measured" in note for note in new.notes)


def test_unequal_contexts_are_not_charged_where_the_bundle_says_that_they_were_not_profiled(tmp_path):
    write_bundle(tmp_path, "meta-llama/Llama-3.1-8B", 1, is_new=False, layers=LLAMA)
    header = "regime,n,nb,ratio,skew,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_max_us,t_skew_us,alpha"
    on_grid = 3 * attention_us(0, 0, 8, 512)
    (tmp_path / "tp1" / "skew.csv").write_text(f"{header}\npure,8,1,0.1,4,0,0,16,512,78,30,{on_grid},60,0.5\n")
    assert len(import_llmservingsim(tmp_path).of("skewed_attention")) == 1
    with (tmp_path / "meta.yaml").open("a", encoding="utf-8") as meta:
        meta.write("skew_profile:\n  enabled: false\n")
    measured = import_llmservingsim(tmp_path)
    assert not len(measured.of("skewed_attention"))
    assert any("skew_profile is not enabled" in note for note in measured.notes)


def test_a_models_name_is_its_last_word():
    assert model_key("/data/model/Qwen3-32B/") == model_key("Qwen/Qwen3-32B") == "qwen3-32b"
    assert model_key("meta-llama/Llama-3.1-8B-Instruct") == "llama-3.1-8b"


def spoil(folder: Path, tmp_path: Path, name: str, change) -> Path:
    """A copy of a run's folder with one file changed, or removed where the change gives nothing."""
    import shutil

    copy = tmp_path / "spoilt"
    shutil.copytree(folder, copy)
    text = change((copy / name).read_text(encoding="utf-8"))
    (copy / name).write_text(text, encoding="utf-8") if text else (copy / name).unlink()
    return copy


@pytest.mark.parametrize(
    ("name", "change", "error", "said"),
    [
        ("meta.json", lambda _: "", TraceError, "meta.json: missing; a recorded run has"),
        ("requests.jsonl", lambda _: "", TraceError, "requests.jsonl: missing"),
        ("profile/meta.yaml", lambda _: "", ProfileError, "meta.yaml: missing"),
        ("profile/meta.yaml", lambda _: "a: [1", ProfileError, "meta.yaml: not YAML (while parsing"),
        ("profile/meta.yaml", lambda _: "- 1", ProfileError, "meta.yaml: must hold a mapping, got list"),
        ("profile/hardware.yaml", lambda _: "a: [1", ProfileError, "hardware.yaml: not YAML (while parsing"),
        ("profile/tp2/dense.csv", lambda _: "layer,tokens,time_us\n", ProfileError, "dense.csv: no rows"),
        ("profile/tp2/attention.csv", lambda t: t + "1,2,3,4,5,6,7,8\n", ProfileError, "attention.csv: not a CSV (E"),
        ("profile/meta.yaml", lambda t: t.replace("gpu:", "card:"), ProfileError, "meta.yaml: names no gpu"),
        ("profile/meta.yaml", lambda t: t.replace("Qwen3-32B", "Qwen9"), ProfileError, "model 'Qwen/Qwen9' has"),
        ("profile/tp2/dense.csv", lambda _: "", ProfileError, "dense.csv: missing"),
        ("profile/tp2/dense.csv", lambda t: t.replace("qk_norm", "moe"), ProfileError, "layers moe are not simulated"),
        ("profile/tp2/dense.csv", lambda t: t.replace("time_us", "ms"), ProfileError, "dense.csv: no column time_us"),
        ("profile/tp2/attention.csv", lambda t: t.replace("prefill_key", "x"), ProfileError, "no column kv_prefill or"),
        ("profile/tp2/attention.csv", lambda t: t.replace("attention,", "indexer,"), ProfileError, "other than att"),
        ("meta.json", lambda t: t.replace('size": 2', 'size": 4', 1), ProfileError, "no kernel times of that tensor-p"),
        ("meta.json", lambda t: t.replace("/data/model/Qwen3-32B", "a/b"), ProfileError, "measured Qwen/Qwen3-32B"),
        ("meta.json", lambda t: t.replace("NVIDIA RTX PRO", "NVIDIA GTX"), ProfileError, "run is of 'NVIDIA GTX 60"),
        ("meta.json", lambda t: t.replace('"fcfs"', '"priority"'), ConfigError, "policy 'priority' are not simulated"),
        ("meta.json", lambda t: t.replace('_length"', '"').replace("true", "1"), TraceError, "must be a bool, got 1"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_refused_by_file_and_field(two_ranks, tmp_path, name, change, error, said):
    folder = spoil(two_ranks, tmp_path, name, change)
    with pytest.raises(error, match=re.escape(said)):
        kernels_of(read_engine_run(folder), tmp_path, lambda _: None)


def test_answers_of_one_token_have_no_tpot_and_a_page_without_it(short_of_memory, tmp_path, capsys):
    rows = [json.loads(line) for line in (short_of_memory / "requests.jsonl").read_text().splitlines()]
    single = [row | {"output_toks": 1, "last_token_ts": row["first_token_ts"]} for row in rows]
    folder = spoil(
        short_of_memory, tmp_path, "requests.jsonl", lambda _: "".join(json.dumps(row) + "\n" for row in single)
    )
    validate(str(folder), None, str(tmp_path / "out"))
    page = (tmp_path / "out" / "validation.html").read_text(encoding="utf-8")
    assert "cdf-ttft" in page
    assert "cdf-tpot" not in page
    assert "TPOT" not in capsys.readouterr().out


def test_kernel_times_of_another_device_are_not_a_shipped_profiles_though_they_be_the_same(short_of_memory, tmp_path):
    recorded = read_engine_run(short_of_memory)
    known = kernels_of(recorded, tmp_path, lambda _: None)
    folder = spoil(
        short_of_memory, tmp_path, "profile/meta.yaml", lambda t: t.replace(known.device, "NVIDIA A100-SXM4-80GB")
    )
    recorded = read_engine_run(folder)
    assert kernels_of(recorded, tmp_path, lambda _: None).device == "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize(
    ("cuda_name", "choice"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtxpro6000"),
    ],
)
def test_a_data_sheet_is_found_by_the_name_that_cuda_gives_the_device(short_of_memory, cuda_name, choice):
    recorded = read_engine_run(short_of_memory)
    profile = kernels_of(recorded, short_of_memory, lambda _: None)
    elsewhere = dataclasses.replace(recorded, settings=dataclasses.replace(recorded.settings, device=cuda_name))
    sheet = compose([f"hardware={choice}"])["hardware"]["device"]
    assert configuration(elsewhere, profile)["hardware"]["device"] == sheet


def test_settings_that_only_shade_the_schedule_are_noted(two_ranks, tmp_path):
    folder = spoil(
        two_ranks, tmp_path, "meta.json", lambda t: t.replace('"fcfs"', '"fcfs", "max_num_partial_prefills": 2')
    )
    notes = " ".join(read_engine_run(folder).notes)
    assert "max_num_partial_prefills 2" in notes
    assert "not simulated" in notes

"""The closed loop at a tiny size: measured, fitted, served, simulated, compared; and the recorded run it leaves."""

import json

import pytest

from calibration.engine_run import read_engine_run
from calibration.measurements import read_measurements
from calibration.steps.engine import METRICS, Told, engine, line, table
from sim.config import compose
from sim.errors import ConfigError

STACK = (
    "model.stack=[{_target_:sim.spec.Layers,n_layers:2,attention:{_target_:sim.spec.Gqa,n_heads:2,n_kv_heads:1,"
    "head_dim:64},feed_forward:{_target_:sim.spec.Dense,d_ff:64}}]"
)
TINY = [
    "model=llama-3.1-8b", "model.name=tiny", STACK, "model.d_model=32", "model.vocab=300", "model.max_len=256",
    "model.weight_dtype=fp32", "model.kv_dtype=fp32",
]  # fmt: skip
SETTINGS = [
    "hardware.kv_blocks=64", "batching=chunked", "batching.max_num_seqs=8", "batching.max_num_batched_tokens=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def caches():
    return compose(["calibration/step=engine"], "calibration")["caches"]


@pytest.fixture(scope="module")
def closed(tmp_path_factory, caches):
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("engine")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        engine("cpu", "cpu", TINY, caches, SETTINGS, 12, 0.01, None, str(folder), 0)
    return folder, said.getvalue()


def test_every_cache_is_served_twice_simulated_and_compared(closed, caches):
    folder, said = closed
    assert set(caches) == {"paged", "static", "dynamic", "predictive", "streaming", "compressed", "hierarchical"}
    for name in caches:
        assert f"{name}: TTFT " in said
    assert "noise" in said
    profile = json.loads((folder / "profile.json").read_text())
    assert profile["subject"]["model"] == "tiny"
    assert {"layers", "decode_attention", "batched_prefill_attention", "cached_prefill_attention"} <= set(
        profile["operations"]
    )
    assert {"ragged_decode_attention", "append", "block_copy", "link"} <= set(profile["operations"])


def test_parts_are_measured_where_they_run(closed):
    rows = read_measurements(closed[0]).rows
    assert (rows["seconds"] > 0).all()
    layers = rows[rows["operation"] == "layer"]
    assert set(layers["detail"]) >= {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "layernorm", "embedding"}
    assert layers[layers["detail"] == "gate_up_proj"]["new_tokens"].nunique() > 5


def test_what_was_served_is_a_recorded_run_with_the_identity_of_its_prompts(closed):
    folder = closed[0] / "paged" / "1"
    run = read_engine_run(folder)
    assert len(run) == 12
    settings = run.settings
    assert (settings.model, settings.max_num_seqs, settings.max_num_batched_tokens) == ("tiny", 8, 64)
    assert not settings.is_async
    assert settings.capture_sizes == ()
    assert settings.has_prefix_caching
    lines = [json.loads(text) for text in (folder / "prompt_blocks.jsonl").read_text().splitlines()]
    assert [len(row["hash_ids"]) for row in lines] == [int(n) // 16 for n in run.prompt_tokens]
    assert len({tuple(row["hash_ids"][:3]) for row in lines}) == 1, "all begin with the same 48 tokens"
    assert len({tuple(row["hash_ids"]) for row in lines}) > 6
    cached = [json.loads(text)["cached_toks"] for text in (folder / "requests.jsonl").read_text().splitlines()]
    assert cached[0] == 0
    assert max(cached) >= 48


def test_a_run_of_a_model_and_device_with_data_sheets_is_validated_like_any_other(closed, tmp_path, capsys):
    from shutil import copytree

    from calibration.__main__ import main

    folder = copytree(closed[0] / "paged" / "1", tmp_path / "run")
    meta = json.loads((folder / "meta.json").read_text())
    meta["model"] = meta["engine_kwargs"]["model"] = "meta-llama/Llama-3.1-8B"  # as if it had been served there
    meta["engine_kwargs"]["dtype"] = "bfloat16"
    meta["hardware"]["device_name"] = "NVIDIA H200"
    (folder / "meta.json").write_text(json.dumps(meta))
    assert main(["step=validate", f"run={folder}", f"out={tmp_path / 'out'}"]) == 0
    assert "TTFT mean" in capsys.readouterr().out


def test_errors_are_against_the_mean_of_both_runs_and_noise_is_between_them():
    told = [Told(1.0, 0.1, 2.0), Told(1.2, 0.1, 2.0)]
    simulated = Told(1.1, 0.11, 1.9)
    assert line("x", told, simulated) == "x: TTFT +0.0%, TPOT +10.0%, E2EL -5.0%"
    cells = [next(iter(column.cells)) for column in table([("x", told, simulated)]).columns]
    assert cells[1:5] == ["1,100.00", "1,100.00", "+0.0%", "+20.0%"]
    assert len(cells) == 1 + 4 * len(METRICS)


@pytest.mark.parametrize(
    ("cache", "more", "said"),
    [
        ("by_class", [], "one the engine has"),
        ("static", [], "session_caching=false"),
        ("hierarchical", [], "cache.write=back"),
        ("paged", ["batching.plans_ahead=true"], "plans_ahead=false"),
        ("paged", ["hardware.kv_blocks=null"], "kv_blocks must be given"),
        ("compressed", ["cache.session_caching=false", "cache.retention.bits=8"], "bits must be 16"),
    ],
)
def test_what_the_engine_does_not_do_is_refused(cache, more, said):
    import torch

    from calibration.engine.build import engine_of
    from calibration.engine.decoder import Decoder
    from sim.config import make

    classify = ["classify=true"] if cache == "by_class" else []
    config = compose([*TINY, *SETTINGS, *classify, "batching.plans_ahead=false", f"cache={cache}", *more])
    with pytest.raises(ConfigError, match=said):
        engine_of(config, Decoder(make(config["model"], "model"), torch.device("cpu")))

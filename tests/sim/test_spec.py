"""Data sheets: published parameter counts, KV sizes, what is refused, every YAML builds."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from sim.config import compose, make
from sim.errors import ConfigError
from sim.spec import Dense, DeviceSpec, Gqa, HardwareSpec, Layers, ModelSpec, as_given

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
HARDWARE = sorted(path.stem for path in (CONF / "hardware").glob("*.yaml"))


@cache
def model(name: str, *overrides: str) -> ModelSpec:
    return make(compose([f"model={name}", *overrides])["model"], "model")


@cache
def hardware(name: str, *overrides: str) -> HardwareSpec:
    return make(compose([f"hardware={name}", *overrides])["hardware"], "hardware")


TINY = ModelSpec("tiny", 32, 100, 128, [Layers(2, Gqa(4, 2, 8), Dense(64))])
DEVICE = DeviceSpec("device", 80.0, 2e12, {"bf16": 3e14, "fp8": 6e14}, 108, 3e11, 2.5e10, 1e-5)


@pytest.mark.parametrize(
    ("name", "n_params"),
    [  # safetensors metadata of the checkpoints on the Hugging Face Hub
        ("gpt2", 124_439_808),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("falcon-7b", 6_921_720_704),
        ("mistral-7b", 7_241_732_096),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_a_models_parameters_are_the_published_number_but_for_biases(name, n_params):
    assert model(name).n_params == pytest.approx(n_params, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "kib_per_token"),
    [("gpt2", 36), ("llama-2-7b", 512), ("llama-3.1-8b", 128), ("falcon-7b", 8), ("qwen3-32b", 256)],
)
def test_kv_of_a_token_follows_the_kv_heads(name, kib_per_token):
    assert model(name).kv_bytes_per_token() == kib_per_token * 1024
    assert model(name, "model.kv_dtype=fp8").kv_bytes_per_token() == kib_per_token * 512


def test_every_model_is_named_like_its_file_and_names_its_source():
    assert {name: model(name).name for name in MODELS} == {name: name for name in MODELS}
    assert all(model(name).source.startswith("https://") for name in MODELS)


@pytest.mark.parametrize("name", HARDWARE)
def test_every_hardware_builds_below_its_data_sheets_memory(name):
    device = hardware(name).device
    paper_gb = {
        "h200": 141, "h100": 80, "a100-80g": 80, "l40s": 48, "rtx4090": 24, "rtxpro6000": 96,
        "b200": 192, "gb200": 192, "h20": 96, "mi300x": 192,
    }[name]  # fmt: skip
    assert 0.9 * paper_gb * 1e9 < device.memory_bytes < paper_gb * 2**30 * 1.07
    assert device.source


def test_a_device_without_fp8_units_computes_it_as_bf16():
    assert hardware("a100-80g").device.flops_per_s("fp8") == 312e12
    assert DEVICE.flops_per_s("fp8") == 6e14


def test_the_matrices_of_a_layer_multiply_what_the_model_counts():
    spec = model("qwen3-32b")
    shapes = {name: (inputs, outputs) for name, inputs, outputs in spec.stack[0].gemms(spec.d_model)}
    assert shapes["qkv"] == (5120, 64 * 128 + 2 * 8 * 128)
    assert shapes["attention_out"] == (8192, 5120)
    assert shapes["mlp_in"] == (5120, 2 * 25600)


def test_ranks_share_the_heads_and_copy_kv_heads_when_there_are_too_few():
    heads = Gqa(64, 8, 128)
    assert heads.shard(8) == Gqa(8, 1, 128)
    assert heads.shard(16) == Gqa(4, 1, 128)
    with pytest.raises(ConfigError, match=r"hardware\.tensor_parallel must divide the model's 71 heads"):
        model("falcon-7b").rank_stack(2)


def test_a_rank_multiplies_with_its_share_and_with_the_keys_of_the_heads_it_copies():
    spec = model("llama-3.1-70b")

    def gemms(ranks):
        return spec.rank_stack(ranks)[0].gemms(spec.d_model)

    assert gemms(1) == spec.stack[0].gemms(spec.d_model)
    assert gemms(8)[0] == ("qkv", 8192, (8 + 2) * 128)
    assert gemms(16)[0] == ("qkv", 8192, (4 + 2) * 128)  # a KV head each, as on 8 ranks
    assert gemms(16)[1:] == (
        ("attention_out", 512, 8192),
        ("mlp_in", 8192, 2 * 1792),
        ("mlp_out", 1792, 8192),
    )


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (TINY, {"d_model": 0}, "model.d_model must be a whole number >= 1, got 0"),
        (TINY, {"stack": []}, "model.stack must name at least one kind of layer, got none"),
        (TINY, {"kv_dtype": "int3"}, "model.kv_dtype must be one of fp32, bf16, fp16, fp8, got 'int3'"),
        (TINY.stack[0], {"n_layers": 0}, "model.stack.n_layers must be a whole number >= 1, got 0"),
        (Dense(64), {"d_ff": 1.5}, "model.feed_forward.d_ff must be a whole number >= 1, got 1.5"),
        (Gqa(4, 2, 8), {"n_kv_heads": 3}, "model.attention.n_heads must be a multiple of n_kv_heads (3), got 4"),
        (Gqa(4, 2, 8), {"window": 0}, "model.attention.window must be a whole number >= 1, got 0"),
    ],
)
def test_a_wrong_model_is_refused_by_key_and_value(part, fields, message):
    with pytest.raises(ConfigError) as refused:
        replace(part, **fields)
    assert str(refused.value) == message


def test_layers_of_two_kinds_add_up():
    """Twice the layers of one kind are the same model as two groups of it, in every number asked of it."""
    whole = replace(TINY, stack=[Layers(6, Gqa(4, 2, 8), Dense(64))])
    apart = replace(TINY, stack=[Layers(4, Gqa(4, 2, 8), Dense(64)), Layers(2, Gqa(4, 2, 8), Dense(64))])
    assert (apart.n_layers, apart.n_params, apart.rank_attentions(2)) == (6, whole.n_params, whole.rank_attentions(2))
    assert apart.kv_bytes_per_token(2) == whole.kv_bytes_per_token(2) == 6 * 2 * 8 * 2.0
    mixed = replace(TINY, stack=[Layers(4, Gqa(4, 2, 8, window=16), Dense(64)), Layers(2, Gqa(4, 1, 16), Dense(8))])
    assert mixed.kv_bytes_per_token() == 4 * 2 * 2 * 8 * 2.0 + 2 * 2 * 16 * 2.0
    assert mixed.n_matrix_params() == 4 * (32 * 64 + 32 * 32 + 3 * 32 * 64) + 2 * (32 * 96 + 64 * 32 + 3 * 32 * 8)


def test_the_models_window_is_the_widest_and_none_where_a_layer_sees_all():
    narrow, wide, all_of_it = (Layers(1, Gqa(4, 2, 8, window=window), Dense(64)) for window in (16, 64, None))
    assert replace(TINY, stack=[narrow]).window == 16
    assert replace(TINY, stack=[narrow, wide]).window == 64
    assert replace(TINY, stack=[narrow, all_of_it]).window is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory_gib": float("nan")}, "hardware.device.memory_gib must be a finite number > 0, got nan"),
        ({"n_sms": 0}, "hardware.device.n_sms must be a whole number >= 1, got 0"),
        ({"peak_flops": {"fp8": 1e15}}, "hardware.device.peak_flops must name bf16, got fp8"),
        ({"peak_flops": {"bf16": -1.0}}, "hardware.device.peak_flops.bf16 must be a finite number > 0, got -1"),
    ],
)
def test_a_wrong_device_is_refused_by_key_and_value(fields, message):
    with pytest.raises(ConfigError) as refused:
        replace(DEVICE, **fields)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor_parallel": 0}, "hardware.tensor_parallel must be a whole number >= 1, got 0"),
        ({"memory_utilization_frac": 1.2}, "hardware.memory_utilization_frac must be > 0 and <= 1, got 1.2"),
        ({"kv_blocks": 0}, "hardware.kv_blocks must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_hardware_is_refused_by_key_and_value(fields, message):
    with pytest.raises(ConfigError) as refused:
        HardwareSpec(DEVICE, **fields)
    assert str(refused.value) == message


def test_a_wrong_number_reads_the_same_whether_or_not_it_was_given_as_a_float():
    assert as_given(1) == as_given(1.0) == "1"
    assert as_given(-0.5) == "-0.5"
    assert (as_given(True), as_given("x")) == ("True", "'x'")

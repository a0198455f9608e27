"""Data sheets: published parameter counts, KV sizes, what is refused, every YAML builds."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sim.config import compose, make
from sim.errors import ConfigError
from sim.spec import (
    DTYPE_BYTES,
    Dense,
    DeviceSpec,
    Gemm,
    Gqa,
    HardwareSpec,
    Layers,
    LinearAttention,
    Mla,
    ModelSpec,
    Moe,
    as_given,
)

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
LATENT = Mla(n_heads=4, q_rank=16, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8)
STATE = LinearAttention(n_key_heads=2, n_value_heads=4, key_dim=8, value_dim=16)
DEVICE = DeviceSpec("device", 80.0, 2e12, {"bf16": 3e14, "fp8": 6e14}, 108, 3e11, 2.5e10, 1e-5)


PUBLISHED = {
    # Whole numbers: parameters of the checkpoints on the Hugging Face Hub as safetensors counts them. First written
    # from memory; those of Llama-3.1-8B and 70B, Mixtral-8x7B, Qwen3-8B, 32B, 30B-A3B and 235B-A22B, GPT-2, Qwen2.5-7B
    # and 72B were since found quoted alike in public repositories, and test_huggingface counts the tensors of every
    # published config.json by name. Of Falcon, CodeLlama and the Llamas 2 and 3.2 only our own arithmetic was at hand.
    "gpt2": 124_439_808,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "codellama-34b": 33_743_970_304,
    "falcon-7b": 6_921_720_704,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-coder-480b-a35b": 480_154_875_392,
    "gpt-oss-20b": 20.91e9,  # OpenAI's model card, table 1
    "gpt-oss-120b": 116.83e9,
    "deepseek-v3": 671e9,  # arXiv 2412.19437, abstract
    "deepseek-r1": 671e9,
    "deepseek-v3.2": 671e9,
    "kimi-k2": 1.03e12,  # arXiv 2507.20534: 1.04 T; its tensors, counted, are 1.026 T
    "kimi-k2.5": 1.03e12,
    "minimax-m2.5": 229e9,  # from memory, not found again; its tensors, counted, are 228.7
    "glm-5": 744e9,  # its technical report's table of sizes, as quoted in glennklockwood.com/garden/GLM-5
    "gemma-4-26b-a4b": 25.2e9,  # its model card, as quoted in huggingface.co/OpenExplorer/gemma-4-26B-A4B-it
    "qwen3.5-35b-a3b": 35e9,  # their names
    "qwen3.5-397b-a17b": 397e9,
}
ACTIVE = {
    # billions as published, and whether the embeddings, which are looked up and not multiplied, are counted in
    "mixtral-8x7b": (12.9, True),  # arXiv 2401.04088: 13 B active; Mistral's announcement: 12.9 B
    "mixtral-8x22b": (39, True),  # Mistral's announcement
    "qwen3-30b-a3b": (3.3, True),  # arXiv 2505.09388, table 2
    "qwen3-235b-a22b": (22, True),
    "qwen3-coder-480b-a35b": (35, True),
    "gpt-oss-20b": (3.61, False),  # OpenAI's model card, table 1: "unembedding parameters are counted, embedding not"
    "gpt-oss-120b": (5.13, False),
    "deepseek-v3": (37, False),  # arXiv 2412.19437, abstract
    "deepseek-r1": (37, False),
    "kimi-k2": (32, False),  # arXiv 2507.20534, abstract
    "glm-5": (40, False),  # as above
    "gemma-4-26b-a4b": (3.8, False),  # as above
    "qwen3.5-397b-a17b": (17, True),  # its name
}


@pytest.mark.parametrize("name", MODELS)
def test_a_models_parameters_are_the_published_number(name):
    is_exact = isinstance(PUBLISHED[name], int)
    assert model(name).n_params == pytest.approx(
        PUBLISHED[name], rel=1e-3 if name == "gpt2" else 1e-6 if is_exact else 0.01
    )


@pytest.mark.parametrize("name", ACTIVE)
def test_the_parameters_that_a_token_is_multiplied_with_are_the_published_number(name):
    spec = model(name)
    billions, counts_embeddings = ACTIVE[name]
    n_active = spec.n_active_params + (spec.vocab * spec.d_model if counts_embeddings else 0)
    assert n_active / 1e9 == pytest.approx(billions, rel=0.025)


def test_all_parameters_of_a_dense_model_but_the_embeddings_are_active():
    spec = model("llama-3.1-8b")
    assert spec.n_active_params == spec.n_params - spec.vocab * spec.d_model
    tied = model("llama-3.2-1b")
    assert tied.n_active_params == tied.n_params


@pytest.mark.parametrize(
    ("name", "kib_per_token"),
    [
        ("gpt2", 36),
        ("llama-2-7b", 512),
        ("llama-3.1-8b", 128),
        ("falcon-7b", 8),
        ("qwen3-32b", 256),
        ("mixtral-8x7b", 128),
        ("qwen3-30b-a3b", 96),
        ("gpt-oss-120b", 72),  # all 36 layers: 2 x 8 x 64 bf16
        ("deepseek-v3", 68.625),  # DeepSeek's own 70.272 KB: 61 x 576 bf16
        ("qwen3.5-35b-a3b", 20),  # its 10 layers of full attention: 2 x 2 x 256 bf16
    ],
)
def test_kv_of_a_token_follows_the_kinds_of_attention(name, kib_per_token):
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
        "b200": 192, "gb200": 192, "h20": 96, "mi300x": 192, "cpu": 69,
    }[name]  # fmt: skip
    assert 0.9 * paper_gb * 1e9 < device.memory_bytes < paper_gb * 2**30 * 1.07
    assert device.source


def test_a_device_without_fp8_units_computes_it_as_bf16():
    assert hardware("a100-80g").device.flops_per_s("fp8") == 312e12
    assert DEVICE.flops_per_s("fp8") == 6e14


def test_the_matrices_of_a_layer_multiply_what_the_model_counts():
    spec = model("qwen3-32b")
    shapes = {gemm.name: (gemm.inputs, gemm.outputs) for gemm in spec.stack[0].gemms(spec.d_model)}
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
        return tuple(gemm[:3] for gemm in spec.rank_stack(ranks)[0].gemms(spec.d_model))

    assert gemms(1) == tuple(gemm[:3] for gemm in spec.stack[0].gemms(spec.d_model))
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
        (TINY, {"kv_dtype": "int4"}, "model.kv_dtype must be one of bf16, fp8, got 'int4'"),
        (TINY, {"weight_dtype": "int3"}, f"model.weight_dtype must be one of {', '.join(DTYPE_BYTES)}, got 'int3'"),
        (TINY, {"routing_skew": -1.0}, "model.routing_skew must be 0 or from 1 to 1.5, got -1"),
        (TINY, {"routing_skew": 3.0}, "model.routing_skew must be 0 or from 1 to 1.5, got 3"),
        (Moe(4, 2, 8), {"top_k": 5}, "model.feed_forward.top_k must be <= n_experts (4), got 5"),
        (
            Moe(4, 2, 8),
            {"weight_dtype": "x"},
            f"model.feed_forward.weight_dtype must be one of {', '.join(DTYPE_BYTES)}, got 'x'",
        ),
        (LATENT, {"kv_rank": 0}, "model.attention.kv_rank must be a whole number >= 1, got 0"),
        (LATENT, {"n_selected": 8}, "model.attention.index_heads must be a whole number >= 1, got 0"),
        (LATENT, {"window": 8}, "model.attention.window must be null for latent attention, got 8"),
        (STATE, {"n_value_heads": 0}, "model.attention.n_value_heads must be a whole number >= 1, got 0"),
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


@pytest.mark.parametrize("weight_dtype", DTYPE_BYTES)
def test_kv_is_cached_in_bf16_or_fp8_or_in_the_full_width_a_model_is_served_in(weight_dtype):
    own = {weight_dtype} & {"fp16", "fp32"}
    for kv_dtype in (*DTYPE_BYTES, "BF16", "auto", ""):
        if kv_dtype in {"bf16", "fp8", *own}:
            assert replace(TINY, weight_dtype=weight_dtype, kv_dtype=kv_dtype).kv_bytes == DTYPE_BYTES[kv_dtype]
        else:
            with pytest.raises(ConfigError, match=rf"^model.kv_dtype must be one of bf16, fp8.*, got '{kv_dtype}'$"):
                replace(TINY, weight_dtype=weight_dtype, kv_dtype=kv_dtype)


NAMES = {  # every setting of the data sheets that is a name out of a few, and what it may be
    "weight_dtype": (TINY, DTYPE_BYTES),
    "feed_forward.weight_dtype": (Moe(4, 2, 8), DTYPE_BYTES),
    "attention.state_dtype": (STATE, ("fp32", "bf16", "fp16")),
    "interconnect": (DEVICE, ("nvlink", "pcie")),
}


@pytest.mark.parametrize("setting", NAMES)
@pytest.mark.parametrize("wrong", ["fp99", "BF16", "float32", "NVLink", "auto", ""])
def test_a_name_that_nothing_has_is_refused_and_every_known_one_is_taken(setting, wrong):
    part, allowed = NAMES[setting]
    key = setting.rpartition(".")[2]
    for name in allowed:
        assert getattr(replace(part, **{key: name}), key) == name
    for name in {wrong, *DTYPE_BYTES} - set(allowed):
        with pytest.raises(ConfigError, match=rf"{key} must be one of {', '.join(allowed)}, got '{name}'$"):
            replace(part, **{key: name})


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
        (
            {"peak_flops": {"bf16": 1e15, "fp16x": 1e15}},
            f"hardware.device.peak_flops must name some of {', '.join(DTYPE_BYTES)}, got 'fp16x'",
        ),
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


def test_ranks_copy_the_latent_vector_and_the_router_and_share_the_rest():
    rank = LATENT.shard(2)
    assert rank.kv_bytes_per_token(2.0) == LATENT.kv_bytes_per_token(2.0) == 12 * 2.0
    assert [(gemm.inputs, gemm.outputs) for gemm in rank.gemms(32)] == [(32, 28), (16, 24), (8, 32), (16, 32)]
    with pytest.raises(ConfigError, match=r"hardware\.tensor_parallel must divide the model's 4 heads, got 3"):
        LATENT.shard(3)
    experts = Moe(8, 2, 64, shared_d_ff=32).shard(4)
    sizes = {gemm.name: (gemm.inputs, gemm.outputs, gemm.n_matrices) for gemm in experts.gemms(32)}
    assert sizes == {
        "router": (32, 8, 1),
        "shared_in": (32, 16, 1),
        "shared_out": (8, 32, 1),
        "experts_in": (32, 32, 8),
        "experts_out": (16, 32, 8),
    }
    assert STATE.shard(2).state_bytes_per_seq() * 2 == STATE.state_bytes_per_seq()
    with pytest.raises(ConfigError, match=r"must divide the 2 key heads and 4 value heads"):
        STATE.shard(4)


def test_an_indexer_keeps_a_key_of_its_own_for_every_token():
    sparse = replace(LATENT, n_selected=64, index_heads=2, index_dim=16)
    assert sparse.kv_bytes_per_token(2.0) == LATENT.kv_bytes_per_token(2.0) + 16 + 4
    assert (sparse.n_read, sparse.window) == (64, None)


def test_a_state_takes_the_same_memory_however_long_the_sequence():
    spec = replace(TINY, stack=[Layers(3, STATE, Dense(64)), Layers(1, Gqa(4, 2, 8), Dense(64))])
    assert spec.kv_bytes_per_token() == TINY.kv_bytes_per_token() / 2
    convolved = 2 * 2 * 8 + 4 * 16
    assert spec.state_bytes_per_seq() == 3 * (4 * 8 * 16 * 4 + 3 * convolved * 2)
    assert TINY.state_bytes_per_seq() == 0.0


def test_experts_touched_are_those_that_drawing_finds():
    gemm = Gemm("experts", 8, 8, n_matrices=16, n_taken=2)
    rng = np.random.default_rng(0)
    for n_tokens in (1, 4, 30):
        found = [len({i for _ in range(n_tokens) for i in rng.choice(16, 2, replace=False)}) for _ in range(400)]
        assert gemm.n_touched(n_tokens) == pytest.approx(np.mean(found), rel=0.02)
    assert gemm.n_touched(10_000) == pytest.approx(16, rel=1e-3)


def test_each_matrix_is_stored_in_its_own_format():
    spec = replace(TINY, stack=[Layers(2, Gqa(4, 2, 8), Moe(8, 2, 64, weight_dtype="mxfp4"))])
    n_experts = 2 * 8 * 3 * 32 * 64
    others = spec.n_matrix_params() - n_experts
    assert spec.matrix_bytes() == n_experts * (0.5 + 1 / 32) + others * 2.0
    narrow = replace(spec, weight_dtype="fp8")  # but for the router
    assert narrow.matrix_bytes() == n_experts * (0.5 + 1 / 32) + (others - 2 * 32 * 8) * 1.0 + 2 * 32 * 8 * 2.0

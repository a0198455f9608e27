"""A model's own config.json: the same as the YAML we ship, or refused with what is missing."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from sim.config import compose, conf_dir, make
from sim.cost import Roofline
from sim.errors import ConfigError
from sim.spec import HardwareSpec, ModelSpec
from sim.spec.huggingface import config_file, model_node
from sim.step import Chunk

CONFIGS = Path(__file__).parents[2] / "../shared/data/model_configs"
FOLDERS = sorted(path.parent.name for path in CONFIGS.glob("*/config.json"))
REFUSED = {
    "deepseek-ai--DeepSeek-V4-Flash": r"no kind of layer here expresses attention to compressed tokens",
    "meta-llama--Llama-4-Scout-17B-16E-Instruct": r"no kind of layer here expresses attention within chunks",
    "nvidia--Nemotron-H-56B-Base-8K": r"no kind of layer here expresses a Mamba-2 state",
}
NOT_SHIPPED = {"Qwen--Qwen3-235B-A22B-FP8", "nvidia--Llama-3.1-70B-Instruct-FP8", "nvidia--Qwen3-235B-A22B-NVFP4"}


@cache
def shipped() -> dict[str, ModelSpec]:
    """By the name of the repository that their source names."""
    found = {}
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        spec = make(yaml.safe_load(path.read_text(encoding="utf-8")), "model")
        found[spec.source.partition("huggingface.co/")[2].partition("/blob/")[0].replace("/", "--")] = spec
    return found


def read(folder: str) -> ModelSpec:
    return make(model_node(config_file(str(CONFIGS / folder))), "model")


def written(tmp_path: Path, **fields: object) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def test_the_files_are_here():
    if not FOLDERS:
        pytest.skip(f"no published configurations in {CONFIGS}")
    assert len(FOLDERS) == 28


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name not in REFUSED])
def test_a_published_configuration_is_priced(folder):
    spec = read(folder)
    device = make(yaml.safe_load((conf_dir() / "hardware/h200.yaml").read_text(encoding="utf-8")), "hardware").device
    assert isinstance(HardwareSpec(device, tensor_parallel=2), HardwareSpec)
    times = Roofline(spec, device, 2)
    assert times.dense_s(1) > spec.n_active_params * 0.5 / 2 / device.bandwidth_bytes_per_s
    assert times.dense_s(2_000) > times.dense_s(1)
    assert times.prefill_attention_s((Chunk(2_000, 100),)) > times.prefill_attention_s((Chunk(20, 100),)) > 0.0
    assert list(times.decode_attention(8).seconds) == sorted(times.decode_attention(8).seconds)
    assert spec.kv_bytes_per_token() > 0.0


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name not in {*REFUSED, *NOT_SHIPPED}])
def test_it_is_the_model_that_is_shipped(folder):
    name = folder.replace("Meta-Llama", "Llama")
    ours = shipped()[name]
    assert replace(read(folder), name=ours.name, source=ours.source) == ours


def counted(config: dict) -> int:
    """Parameters by the tensors that a checkpoint of transformers' modules has, one by one; nothing of `sim.spec`."""
    config = {**config, **(config.get("text_config") or {})}
    kind, d, n_layers = config["model_type"], config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    vocab = config["vocab_size"] * d
    total = vocab * (1 if config.get("tie_word_embeddings") else 2) + d  # embed_tokens, lm_head, norm
    n_experts = next((config[k] for k in ("num_local_experts", "num_experts", "n_routed_experts") if k in config), 0)
    for layer in range(n_layers):
        total += 2 * d  # input_layernorm, post_attention_layernorm
        if "kv_lora_rank" in config:
            q, kv, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
            nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
            total += d * q + q + q * heads * (nope + rope)  # q_a_proj, q_a_layernorm, q_b_proj
            total += d * (kv + rope) + kv + kv * heads * (nope + v) + heads * v * d  # kv_a, its norm, kv_b, o_proj
            if "index_topk" in config:
                n, width = config["index_n_heads"], config["index_head_dim"]
                total += q * n * width + d * width + 2 * width + d * n  # wq_b, wk, k_norm, weights_proj
        else:
            width = config.get("head_dim") or d // heads
            kv_heads = config["num_key_value_heads"]
            total += 2 * d * heads * width + 2 * d * kv_heads * width  # q, o, k, v
            if kind == "gpt_oss":
                total += heads * width + 2 * kv_heads * width + d + heads  # biases, sinks
            if kind in ("qwen3", "qwen3_moe"):
                total += 2 * width  # q_norm, k_norm
        is_dense = not n_experts or layer < config.get("first_k_dense_replace", 0)
        inner = config.get("intermediate_size") if is_dense else config.get("moe_intermediate_size")
        inner = inner or config["intermediate_size"]
        if is_dense:
            total += 3 * d * inner
            continue
        total += d * n_experts + n_experts * 3 * d * inner  # gate, experts
        total += 3 * d * inner * (config.get("n_shared_experts") or 0)
        if kind == "gpt_oss":
            total += n_experts + n_experts * (2 * inner + d)
        if config.get("topk_method") == "noaux_tc" or config.get("use_routing_bias"):
            total += n_experts  # e_score_correction_bias
    return total


COUNTED = ("llama", "qwen3", "qwen3_moe", "mixtral", "minimax_m2", "gpt_oss", "deepseek_v3", "deepseek_v32", "kimi_k2",
           "glm_moe_dsa")  # fmt: skip


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name not in REFUSED])
def test_parameters_are_the_tensors_of_the_checkpoint_counted_one_by_one(folder):
    config = json.loads((CONFIGS / folder / "config.json").read_text(encoding="utf-8"))
    kind = {**config, **(config.get("text_config") or {})}["model_type"]
    if kind not in COUNTED:
        assert kind in ("qwen3_5_moe_text", "gemma4_text"), "another kind of layers: held to its published sum alone"
        return
    assert read(folder).n_params == counted(config)


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name in REFUSED])
def test_what_no_kind_expresses_is_refused_by_name(folder):
    with pytest.raises(ConfigError, match=REFUSED[folder]):
        read(folder)


def test_checkpoints_say_how_they_are_quantised():
    if not FOLDERS:
        pytest.skip(f"no published configurations in {CONFIGS}")
    assert read("Qwen--Qwen3-235B-A22B-FP8").weight_dtype == "fp8_block"
    assert read("deepseek-ai--DeepSeek-V3").weight_dtype == "fp8_block"
    experts = {
        name: read(name).stack[-1].feed_forward.weight_dtype
        for name in ("openai--gpt-oss-20b", "moonshotai--Kimi-K2.5")
    }
    assert experts == {"openai--gpt-oss-20b": "mxfp4", "moonshotai--Kimi-K2.5": "int4_g32"}
    assert read("moonshotai--Kimi-K2.5").weight_dtype == "bf16"


def test_a_file_or_its_folder_is_named(tmp_path):
    path = written(tmp_path, **LLAMA)
    assert config_file(str(path)) == config_file(str(tmp_path)) == path
    assert config_file("llama-3.1-8b") is None
    node = model_node(path)
    assert node["name"] == tmp_path.name
    assert make(node, "model").stack[0].attention.n_kv_heads == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "rwkv"}, r"model_type 'rwkv' is not known, there are .*deepseek_v3.*qwen3_moe"),
        (
            {key: value for key, value in LLAMA.items() if key != "intermediate_size"},
            r"llama needs the field 'intermediate_size'",
        ),
        ({**LLAMA, "hidden_size": None}, r"a field of llama is not what it should be"),
        (
            {**LLAMA, "quantization_config": {"quant_method": "aqlm"}},
            r"weights quantised by aqlm in this way are not known",
        ),
        ({**LLAMA, "model_type": "qwen3", "use_sliding_window": True}, r"windows from a layer on are not read"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message) as refused:
        model_node(written(tmp_path, **fields))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_configuration_is_one_line(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json: No such file"):
        model_node(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not JSON"):
        model_node(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"must hold an object, got list"):
        model_node(path)


def test_a_run_takes_it_like_a_name_and_settings_are_set_in_it(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    written(folder, **LLAMA)
    for choice in (folder, folder / "config.json"):
        config = compose([f"model={choice}", "model.kv_dtype=fp8", "model.stack.0.attention.window=32"])
        spec = make(config["model"], "model")
        assert (spec.name, spec.kv_dtype, spec.window, config["choices"]["model"]) == (
            "my-model",
            "fp8",
            32,
            "my-model",
        )


def test_a_shipped_name_is_taken_before_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    written(tmp_path / "gpt2", **LLAMA)
    monkeypatch.chdir(tmp_path)
    assert compose(["model=gpt2"])["model"]["d_model"] == 768
    assert compose(["model=./gpt2"])["model"]["d_model"] == 64


@pytest.mark.parametrize(
    ("how", "weights", "kv"),
    [
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}, "fp8", "fp8"),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16}, "nvfp4", "bf16"),
        ({"quant_algo": "FP8_PB_WO"}, "fp8_block", "bf16"),
        ({"quant_algo": "W4A16_AWQ"}, "int4", "bf16"),
    ],
)
def test_a_file_of_modelopt_beside_the_configuration_says_how_it_is_quantised(tmp_path, how, weights, kv):
    path = written(tmp_path, **LLAMA)
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": how}), encoding="utf-8")
    spec = make(model_node(path), "model")
    assert (spec.weight_dtype, spec.kv_dtype) == (weights, kv)
    own = written(tmp_path, **LLAMA, quantization_config={"quant_method": "fp8"})  # the configuration itself goes first
    assert make(model_node(own), "model").weight_dtype == "fp8"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"hf_quant_config\.json: not JSON"),
        ("[]", "must hold an object under quantization"),
        ('{"quantization": {"quant_algo": "MIXED_PRECISION"}}', "quant_algo MIXED_PRECISION of ModelOpt is not known"),
        ('{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}}', "kv_cache_quant_algo NVFP4"),
    ],
)
def test_what_modelopt_says_and_is_not_known_is_refused(tmp_path, content, message):
    path = written(tmp_path, **LLAMA)
    (tmp_path / "hf_quant_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        model_node(path)
    assert "\n" not in str(refused.value)

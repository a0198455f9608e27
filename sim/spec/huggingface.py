"""A model's own ``config.json``, as published on the Hugging Face Hub, becomes the same settings as a YAML file has.

Each architecture is read by name, since fields mean different things in different ones; what cannot be expressed by the
kinds there are is refused, naming what is missing. Sources are the configuration and modeling files of transformers,
and of DeepSeek and Moonshot the modeling code published with the weights.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sim.errors import ConfigError

Node = dict[str, Any]
Config = Mapping[str, Any]
LAYERS = "sim.spec.Layers"
GQA, MLA, LINEAR = "sim.spec.Gqa", "sim.spec.Mla", "sim.spec.LinearAttention"
DENSE, MOE = "sim.spec.Dense", "sim.spec.Moe"


def config_file(path: str) -> Path | None:
    """The ``config.json`` that a choice of model names: the file itself, or the one in a folder; None if neither."""
    named = Path(path)
    if named.suffix == ".json":
        return named
    return named / "config.json" if named.is_dir() else None


def model_node(path: Path) -> Node:
    """Settings of a `ModelSpec` from a ``config.json``.

    Raises
    ------
    ConfigError
        If the file cannot be read, lacks a field, or describes layers that no kind here expresses.
    """
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model={path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"model={path}: not JSON ({error})") from None
    if not isinstance(outer, dict):
        raise ConfigError(f"model={path}: must hold an object, got {type(outer).__name__}")
    inner = outer.get("text_config")
    config = {**outer, **inner} if isinstance(inner, dict) else outer
    kind = str(config.get("model_type"))
    if kind in REFUSED:
        raise ConfigError(f"model={path}: no kind of layer here expresses {REFUSED[kind]} ({kind})")
    if kind not in READERS:
        raise ConfigError(f"model={path}: model_type {kind!r} is not known, there are {', '.join(sorted(READERS))}")
    try:
        stack = READERS[kind](config)
        node: Node = {
            "_target_": "sim.spec.ModelSpec",
            "name": path.resolve().parent.name.rpartition("--")[2] or kind,
            "d_model": config["hidden_size"],
            "vocab": config["vocab_size"],
            "max_len": config["max_position_embeddings"],
            "stack": stack,
            "has_tied_embeddings": bool(config.get("tie_word_embeddings", False)),
            "source": str(path),
            "weight_dtype": "bf16",
            "kv_dtype": "bf16",
        }
        _quantise(node, config.get("quantization_config") or _beside(path), path)
    except KeyError as error:
        raise ConfigError(f"model={path}: {kind} needs the field {error}") from None
    except (TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"model={path}: a field of {kind} is not what it should be ({error})") from None
    return node


def _stack(*layers: tuple[int, Node, Node]) -> list[Node]:
    """Layers of each kind, those of equal kinds together, none left out but those of which there are none."""
    merged: list[Node] = []
    for n_layers, *parts in layers:
        attention, feed_forward = map(dict, parts)
        for one in merged:
            if one["attention"] == attention and one["feed_forward"] == feed_forward:
                one["n_layers"] += n_layers
                break
        else:
            if n_layers:
                node = {"_target_": LAYERS, "n_layers": n_layers, "attention": attention, "feed_forward": feed_forward}
                merged.append(node)
    return merged


def _given(target: str, **fields: Any) -> Node:
    """A part, without what is not given: None and False are the constructors' defaults."""
    return {"_target_": target, **{key: value for key, value in fields.items() if value not in (None, False)}}


def _gqa(config: Config, **more: Any) -> Node:
    heads = config["num_attention_heads"]
    fields = {
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "has_bias": bool(config.get("attention_bias") or config.get("qkv_bias")),
        "has_out_bias": bool(config.get("attention_bias")),
    }
    return _given(GQA, **{**fields, **more})


def _llama(config: Config) -> list[Node]:
    return _stack((config["num_hidden_layers"], _gqa(config), _given(DENSE, d_ff=config["intermediate_size"])))


def _mistral(config: Config) -> list[Node]:
    attention = _gqa(config, window=config.get("sliding_window"))
    return _stack((config["num_hidden_layers"], attention, _given(DENSE, d_ff=config["intermediate_size"])))


def _qwen2(config: Config) -> list[Node]:
    _no_windows(config)
    attention = _gqa(config, has_bias=True)
    return _stack((config["num_hidden_layers"], attention, _given(DENSE, d_ff=config["intermediate_size"])))


def _qwen3(config: Config) -> list[Node]:
    _no_windows(config)
    attention = _gqa(config, has_qk_norm=True)
    return _stack((config["num_hidden_layers"], attention, _given(DENSE, d_ff=config["intermediate_size"])))


def _no_windows(config: Config) -> None:
    if config.get("use_sliding_window"):
        raise ConfigError(
            f"model_type {config['model_type']} with use_sliding_window: windows from a layer on are not read"
        )


def _qwen3_moe(config: Config) -> list[Node]:
    _no_windows(config)
    dense = set(config.get("mlp_only_layers") or ())
    step = config.get("decoder_sparse_step", 1)
    n_layers = config["num_hidden_layers"]
    is_sparse = [i not in dense and (i + 1) % step == 0 for i in range(n_layers)]
    attention = _gqa(config, has_qk_norm=True)
    experts = _given(
        MOE, n_experts=config["num_experts"], top_k=config["num_experts_per_tok"], d_ff=config["moe_intermediate_size"]
    )
    plain = _given(DENSE, d_ff=config["intermediate_size"])
    return _stack((n_layers - sum(is_sparse), attention, plain), (sum(is_sparse), attention, experts))


def _mixtral(config: Config) -> list[Node]:
    experts = _given(
        MOE,
        n_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        d_ff=config["intermediate_size"],
    )
    return _stack((config["num_hidden_layers"], _gqa(config, window=config.get("sliding_window")), experts))


def _minimax_m2(config: Config) -> list[Node]:
    experts = _given(
        MOE,
        n_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        d_ff=config["intermediate_size"],
        shared_d_ff=config.get("shared_intermediate_size") or None,
        has_router_bias=bool(config.get("use_routing_bias")),
    )
    return _stack((config["num_hidden_layers"], _gqa(config), experts))


def _gpt_oss(config: Config) -> list[Node]:
    experts = _given(
        MOE,
        n_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        d_ff=config["intermediate_size"],
        has_bias=True,
    )
    wide = _gqa(config, has_sinks=True)
    near = {**wide, "window": config["sliding_window"]}
    n_wide = config["layer_types"].count("full_attention")
    n_near = config["layer_types"].count("sliding_attention")
    return _stack((n_wide, wide, experts), (n_near, near, experts))


def _gemma4(config: Config) -> list[Node]:
    """Every layer has a dense part beside its experts: a shared expert. Its further norms, 0.01 %, are left out."""
    if not config.get("enable_moe_block") or config.get("num_kv_shared_layers") or config.get("use_double_wide_mlp"):
        raise ConfigError("model_type gemma4_text: layers that share KV, or without experts, are not read")
    experts = _given(
        MOE,
        n_experts=config["num_experts"],
        top_k=config["top_k_experts"],
        d_ff=config["moe_intermediate_size"],
        shared_d_ff=config["intermediate_size"],
    )
    near = _gqa(config, window=config["sliding_window"], has_qk_norm=True)
    full = _gqa(
        config,
        n_kv_heads=config["num_global_key_value_heads"],
        head_dim=config["global_head_dim"],
        has_qk_norm=True,
        are_keys_values=bool(config.get("attention_k_eq_v")),
    )
    n_near = config["layer_types"].count("sliding_attention")
    n_full = config["layer_types"].count("full_attention")
    return _stack((n_full, full, experts), (n_near, near, experts))


def _deepseek(config: Config) -> list[Node]:
    attention = _given(
        MLA,
        n_heads=config["num_attention_heads"],
        q_rank=config.get("q_lora_rank"),
        kv_rank=config["kv_lora_rank"],
        nope_dim=config["qk_nope_head_dim"],
        rope_dim=config["qk_rope_head_dim"],
        v_dim=config["v_head_dim"],
        n_selected=config.get("index_topk"),
        index_heads=config.get("index_n_heads"),
        index_dim=config.get("index_head_dim"),
    )
    width = config["moe_intermediate_size"]
    experts = _given(
        MOE,
        n_experts=config["n_routed_experts"],
        top_k=config["num_experts_per_tok"],
        d_ff=width,
        shared_d_ff=width * config["n_shared_experts"] if config.get("n_shared_experts") else None,
        has_router_bias=config.get("topk_method") == "noaux_tc",
    )
    n_layers, n_dense = config["num_hidden_layers"], config.get("first_k_dense_replace", 0)
    if config.get("moe_layer_freq", 1) != 1:
        raise ConfigError(
            f"model_type {config['model_type']}: moe_layer_freq must be 1, got {config['moe_layer_freq']}"
        )
    plain = _given(DENSE, d_ff=config["intermediate_size"])
    return _stack((n_dense, attention, plain), (n_layers - n_dense, attention, experts))


def _qwen3_next(config: Config) -> list[Node]:
    experts = _given(
        MOE,
        n_experts=config["num_experts"],
        top_k=config["num_experts_per_tok"],
        d_ff=config["moe_intermediate_size"],
        shared_d_ff=config["shared_expert_intermediate_size"],
        has_shared_gate=True,
    )
    full = _gqa(config, has_qk_norm=True, is_gated=True)
    state = _given(
        LINEAR,
        n_key_heads=config["linear_num_key_heads"],
        n_value_heads=config["linear_num_value_heads"],
        key_dim=config["linear_key_head_dim"],
        value_dim=config["linear_value_head_dim"],
        conv_tokens=config["linear_conv_kernel_dim"],
        state_dtype={"float32": "fp32", "bfloat16": "bf16"}[config.get("mamba_ssm_dtype", "float32")],
    )
    n_full = config["layer_types"].count("full_attention")
    n_state = config["layer_types"].count("linear_attention")
    return _stack((n_full, full, experts), (n_state, state, experts))


READERS: dict[str, Callable[[Config], list[Node]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "minimax_m2": _minimax_m2,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek,
    "deepseek_v32": _deepseek,
    "kimi_k2": _deepseek,
    "glm_moe_dsa": _deepseek,
    "qwen3_next": _qwen3_next,
    "qwen3_5_moe_text": _qwen3_next,
    "gemma4_text": _gemma4,
}
REFUSED = {  # by model_type
    "deepseek_v4": "attention to compressed tokens (compress_ratios) and several residual streams (hc_mult)",
    "llama4_text": "attention within chunks (attention_chunk_size)",
    "nemotron_h": "a Mamba-2 state, and layers of attention or feed-forward alone (hybrid_override_pattern)",
}
"""What is missing for architectures that are known but not expressed."""


MODELOPT = {"FP8": "fp8", "FP8_PB_WO": "fp8_block", "NVFP4": "nvfp4", "W4A16_AWQ": "int4"}
"""Formats of NVIDIA's Model Optimizer that are known here, by its ``quant_algo``."""


def _beside(path: Path) -> Any:
    """What ``hf_quant_config.json`` says, where one lies beside the configuration: checkpoints of NVIDIA's ModelOpt."""
    beside = path.with_name("hf_quant_config.json")
    if not beside.is_file():
        return None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model={beside}: not JSON ({error})") from None
    how = content.get("quantization") if isinstance(content, dict) else None
    if not isinstance(how, dict):
        raise ConfigError(f"model={beside}: must hold an object under quantization")
    return {**how, "quant_method": "modelopt"}


def _modelopt(node: Node, how: Config, path: Path) -> None:
    """Formats as NVIDIA's Model Optimizer names them: of matrices, of KV, and which layers keep their own."""
    algorithm, kv = how.get("quant_algo"), how.get("kv_cache_quant_algo")
    if algorithm not in MODELOPT:
        raise ConfigError(
            f"model={path}: quant_algo {algorithm} of ModelOpt is not known, there are {', '.join(MODELOPT)}"
        )
    if kv not in (None, "FP8"):
        raise ConfigError(f"model={path}: kv_cache_quant_algo {kv} of ModelOpt is not known, there is FP8")
    if kv == "FP8":
        node["kv_dtype"] = "fp8"
    left = [str(name) for name in (*how.get("exclude_modules", ()), *how.get("ignore", ()))]
    if any("self_attn" in name for name in left):
        _experts_in(node, MODELOPT[algorithm])
        return
    node["weight_dtype"] = MODELOPT[algorithm]


def _quantise(node: Node, how: Any, path: Path) -> None:
    """Set the number formats that a checkpoint is stored in."""
    if how is None:
        return
    method = how.get("quant_method")
    if method == "modelopt" and "quant_algo" in how:
        _modelopt(node, how, path)
        return
    if method == "fp8":
        node["weight_dtype"] = "fp8_block" if how.get("weight_block_size") else "fp8"
        return
    if method == "mxfp4":
        _experts_in(node, "mxfp4")
        return
    if method in ("gptq", "awq") and how.get("bits", how.get("w_bit")) == 4:
        node["weight_dtype"] = "int4"
        return
    weights = [group.get("weights") or {} for group in (how.get("config_groups") or {}).values()]
    if method == "compressed-tensors" and len(weights) == 1:
        bits, form, group = (weights[0].get(key) for key in ("num_bits", "type", "group_size"))
        known: dict[Any, str] = {(4, "int", 32): "int4_g32", (4, "int", 128): "int4", (4, "float", 16): "nvfp4"}
        dtype = known.get((bits, form, group))
        if (bits, form) == (8, "float"):
            dtype = "fp8"
        if dtype is not None:
            if any("self_attn" in str(left) for left in how.get("ignore", ())):
                _experts_in(node, dtype)
            else:
                node["weight_dtype"] = dtype
            return
    raise ConfigError(f"model={path}: weights quantised by {method} in this way are not known; set model.weight_dtype")


def _experts_in(node: Node, dtype: str) -> None:
    """The experts alone are in a narrow format."""
    for layers in node["stack"]:
        if layers["feed_forward"]["_target_"] == MOE:
            layers["feed_forward"]["weight_dtype"] = dtype

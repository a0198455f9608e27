"""vLLM's flags: each sets what it means, all are said, none is ignored."""

import re
import subprocess
import sys

import pytest

import sim
from sim.config import compose
from sim.engine_args import FLAGS, NOT_MODELLED, SHORT, told
from sim.errors import ConfigError


def of(config: dict, key: str):
    for name in key.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--max-num-seqs 256", "batching.max_num_seqs", 256),
        ("--max_num_batched_tokens=8k", "batching.max_num_batched_tokens", 8_000),
        ("--max-num-batched-tokens 8K", "batching.max_num_batched_tokens", 8_192),
        ("-tp 2", "hardware.tensor_parallel", 2),
        ("--pipeline-parallel-size 2", "hardware.pipeline_parallel", 2),
        ("--enable-expert-parallel", "hardware.expert_parallel", True),
        ("--gpu-memory-utilization 0.85", "hardware.memory_utilization_frac", 0.85),
        ("--num-gpu-blocks-override 1000", "hardware.kv_blocks", 1_000),
        ("--max-model-len 16384", "model.max_len", 16_384),
        ("--block-size 32", "cache.block_tokens", 32),
        ("--no-enable-prefix-caching", "cache.prefix_caching", False),
        ("--kv-cache-dtype fp8_e4m3", "model.kv_dtype", "fp8"),
        ("--kv-cache-dtype auto", "model.kv_dtype", "bf16"),
        ("--quantization fp8", "model.weight_dtype", "fp8"),
        ("--enforce-eager", "cost.capture_sizes", []),
        ("--cudagraph-capture-sizes 1 2 8 4", "cost.capture_sizes", [1, 2, 4, 8]),
        ("--no-async-scheduling", "engine.async_scheduling", False),
        ("--no-async-scheduling", "batching.plans_ahead", False),
        ("--scheduling-policy priority", "choices.queue", "priority"),
        ("--preemption-mode swap", "choices.preemption", "swap"),
        ("vllm serve mistralai/Mixtral-8x7B --seed 3", "choices.model", "mixtral-8x7b"),
        ("--model meta-llama/Llama-3.1-70B-Instruct", "choices.model", "llama-3.1-70b"),
    ],
)
def test_a_flag_sets_what_it_means(flags, key, value):
    assert of(compose([f"engine.args={flags}"]), key) == value
    assert compose([f'engine.args="{flags}"']) == compose([f"engine.args={flags}"])


def test_what_is_set_after_the_flags_goes_before_them():
    flags = "engine.args=--max-num-seqs 64 --max-num-batched-tokens 2048"
    assert compose([flags, "batching.max_num_seqs=32"])["batching"]["max_num_seqs"] == 32
    assert compose(["batching.max_num_seqs=32", flags])["batching"]["max_num_seqs"] == 64
    assert compose([flags])["engine"]["args"] == flags.partition("=")[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--speculative-config {}", "--speculative-config is not modelled: drafts of other models"),
        ("--data-parallel-size 8", "--data-parallel-size is not modelled: ranks of a model with experts step together"),
        ("--max-num-seq 4", r"--max-num-seq is not modelled; did you mean --max-num-seqs\?"),
        ("--max-num-seqs", "--max-num-seqs needs a value"),
        ("--max-num-seqs --enforce-eager", "--max-num-seqs needs a value"),
        ("--max-num-seqs many", "--max-num-seqs must be a whole number, as 8192 or 8k, got 'many'"),
        ("--max-num-seqs 1.5", "must be a whole number"),
        ("--gpu-memory-utilization lots", "--gpu-memory-utilization must be a number, got 'lots'"),
        ("--enforce-eager 1", "'1' is no flag"),
        ("--enforce-eager=1", "--enforce-eager takes no value"),
        ("--kv-cache-dtype fp8_inc", "--kv-cache-dtype fp8_inc is not modelled, there are auto, bfloat16, fp8"),
        ("--dtype float32", "--dtype float32 is not modelled"),
        ("--model who/knows", r"model=knows is not a choice"),
        ("--max-num-seqs 'a", "No closing quotation"),
        ("--gpu-memory-utilization 1.5 --model gpt2", ""),
    ],
)
def test_what_is_not_modelled_is_refused_in_one_line(flags, message):
    if not message:  # the setting itself refuses its value
        with pytest.raises(ConfigError, match=r"hardware\.memory_utilization_frac must be > 0 and <= 1"):
            sim.simulate("scenario=chatbot", "scenario.n_sessions=1", f"engine.args={flags}")
        return
    with pytest.raises(ConfigError, match=message) as refused:
        compose([f"engine.args={flags}"])
    assert "\n" not in str(refused.value)


def test_every_flag_means_a_setting_that_is_there_or_says_that_it_changes_nothing():
    values = {
        "model": "gpt2", "kv-cache-dtype": "fp8", "quantization": "fp8", "dtype": "half", "preemption-mode": "swap",
        "scheduling-policy": "fcfs", "max-num-partial-prefills": "1", "gpu-memory-utilization": "0.5",
    }  # fmt: skip
    for name, meaning in FLAGS.items():
        flag = f"--{name}" if meaning.read is None else f"--{name} {values.get(name, '64')}"
        (one,) = told(flag)
        assert one.words().startswith(flag)
        if meaning.key:
            assert f"{meaning.key}=" in one.words()
            compose([f"engine.args={flag}"])
        else:
            assert one.words().endswith("changes nothing that is simulated")
    assert not FLAGS.keys() & NOT_MODELLED.keys()
    assert set(SHORT.values()) <= FLAGS.keys()


def test_the_command_line_says_what_was_set(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sim", "scenario=chatbot", "scenario.n_sessions=2", f"hydra.run.dir={tmp_path}",
         "engine.args=--max-num-seqs 8 --port 8000"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "engine.args: --max-num-seqs 8: batching.max_num_seqs=8" in done.stdout
    assert re.search(r"engine\.args: --port 8000: changes nothing that is simulated", done.stdout)

"""KV capacity: vLLM's own start-up figures, and the arithmetic shown to the user."""

import re
from dataclasses import replace
from functools import cache

import pytest

import sim
from sim.build import Builder
from sim.clock import Clock
from sim.config import compose, make
from sim.errors import ConfigError
from sim.kv.capacity import activation_peak_bytes, arithmetic, kv_capacity, weights_bytes
from sim.record import Recorder
from sim.run import run
from sim.units import GIB


@cache
def specs(*overrides: str):
    config = compose(list(overrides))
    return make(config["model"], "model"), make(config["hardware"], "hardware")


def test_capacity_is_vllms_within_one_percent():
    """vLLM 0.31 on an A100-80G, Llama-3.1-8B, its defaults: 460,496 tokens (start-up log)."""
    model, hardware = specs("model=llama-3.1-8b", "hardware=a100-80g", "hardware.memory_utilization_frac=0.92")
    assert kv_capacity(model, hardware, max_batched_tokens=2048, max_seqs=256).n_tokens == pytest.approx(
        460_496, rel=0.01
    )


@pytest.mark.parametrize(
    ("name", "tensor_parallel", "max_seqs", "peak_gib"),
    [  # llm-d capacity planner, vLLM on H100 with 1,024 sequences; vLLM pull request 10511 with 256
        ("llama-3.1-8b", 1, 1024, 4.76),
        ("llama-3.1-70b", 2, 1024, 4.84),
        ("llama-3.1-8b", 1, 256, 1.26),
    ],
)
def test_the_activation_peak_is_what_vllm_reports(name, tensor_parallel, max_seqs, peak_gib):
    model, _ = specs(f"model={name}")
    peak = activation_peak_bytes(model, 8192, max_seqs, tensor_parallel)
    assert peak / GIB == pytest.approx(peak_gib, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "gib"),
    [  # "model weights take" and "Model loading took" in vLLM's logs
        (("model=llama-3.1-8b",), 14.99),
        (("model=llama-3.1-8b", "hardware.tensor_parallel=2"), 7.48),
    ],
)
def test_weights_are_what_vllm_loads(overrides, gib):
    model, hardware = specs(*overrides)
    assert weights_bytes(model, hardware.tensor_parallel) / GIB == pytest.approx(gib, rel=0.005)


def test_fp8_halves_the_matrices_but_not_the_embeddings():
    wide, _ = specs("model=llama-3.1-8b")
    narrow, _ = specs("model=llama-3.1-8b", "model.weight_dtype=fp8")
    assert weights_bytes(wide) - weights_bytes(narrow) == wide.n_matrix_params()


def test_the_terms_add_up_to_the_kv_cache_and_fill_whole_blocks():
    capacity = kv_capacity(*specs("hardware=h100"), block_tokens=16)
    *before, left = capacity.terms.values()
    assert sum(before) == pytest.approx(left)
    assert 0 <= left - capacity.n_tokens * capacity.bytes_per_token < 16 * capacity.bytes_per_token
    assert not capacity.is_given


def test_ranks_with_a_kv_head_each_hold_twice_the_tokens_and_copies_hold_no_more():
    bytes_per_token = {
        ranks: kv_capacity(*specs("model=llama-3.1-70b", f"hardware.tensor_parallel={ranks}")).bytes_per_token
        for ranks in (4, 8, 16)
    }
    assert bytes_per_token[4] == 2 * bytes_per_token[8]
    assert bytes_per_token[16] == bytes_per_token[8]


def test_the_graphs_counted_are_those_the_run_captures():
    few, none = (sim.simulate("scenario.n_sessions=1", f"cost.capture_sizes={sizes}") for sizes in ("[1,2,4]", "[]"))
    usual = sim.simulate("scenario.n_sessions=1")
    assert none.memory["CUDA graphs"] == 0.0
    assert usual.memory["CUDA graphs"] == pytest.approx(51 / 3 * few.memory["CUDA graphs"])
    assert none.capacity_tokens > few.capacity_tokens > usual.capacity_tokens


def test_caches_move_and_reports_count_the_bytes_that_copied_kv_heads_take():
    config = compose(["model=llama-3.1-70b", "hardware.tensor_parallel=16", "scenario.n_sessions=1", "cost=roofline"])
    made = Builder(config)
    capacity = made.capacity()
    of_a_rank = 80 * 2 * 128 * 2.0  # one of the 8 KV heads, as on 8 ranks
    assert capacity.bytes_per_token == of_a_rank
    assert run(config).kv_bytes_per_token == 16 * of_a_rank
    config["cache"] = compose(["cache=dynamic"])["cache"]
    cache = Builder(config).cache(capacity, Clock(), None, Recorder(), 0)
    assert cache.bytes_per_token == of_a_rank


def test_given_blocks_win_over_the_derivation():
    capacity = kv_capacity(*specs("hardware=rtx4090", "model=llama-3.1-70b", "hardware.kv_blocks=1000"))
    assert (capacity.n_tokens, capacity.is_given) == (16_000, True)
    assert capacity.terms["KV cache"] == 16_000 * 327_680


def test_weights_that_do_not_fit_are_refused_with_the_arithmetic():
    with pytest.raises(ConfigError) as refused:
        kv_capacity(*specs("model=llama-3.1-70b", "hardware=h100"), max_seqs=256)
    message = str(refused.value)
    assert message.startswith(
        "model=llama-3.1-70b (bf16 weights) does not fit hardware=NVIDIA H100 80GB HBM3 (tensor_parallel=1): "
        "memory 79.20 - kept free 7.92 - weights 131.42 - activation peak "
    )
    assert (
        "GiB for the KV cache. hardware.tensor_parallel=2 or hardware.pipeline_parallel=2 would do; or take" in message
    )


def test_a_refusal_names_the_smallest_degree_that_would_do():
    for overrides in (("model=mixtral-8x22b",), ("model=deepseek-v3",), ("model=gpt-oss-120b", "hardware=l40s")):
        with pytest.raises(ConfigError) as refused:
            kv_capacity(*specs(*overrides))
        degree = int(re.search(r"hardware\.tensor_parallel=(\d+) or \S+ would do", str(refused.value))[1])
        assert kv_capacity(*specs(*overrides, f"hardware.tensor_parallel={degree}")).n_blocks >= 1
        with pytest.raises(ConfigError):
            kv_capacity(*specs(*overrides, f"hardware.tensor_parallel={degree // 2}"))
    with pytest.raises(ConfigError, match=r"More or larger devices would do"):
        kv_capacity(*specs("model=llama-3.1-405b", "hardware=rtx4090"))


def test_states_of_constant_size_are_reserved_for_every_sequence():
    model, hardware = specs("model=qwen3.5-35b-a3b")
    few, many = (kv_capacity(model, hardware, max_seqs=n) for n in (64, 128))
    assert many.terms["sequences' states"] == 2 * few.terms["sequences' states"] == -128 * model.state_bytes_per_seq()
    assert "sequences' states" not in kv_capacity(*specs("model=llama-3.1-8b")).terms


def test_llama_70b_fits_two_h200_and_one_in_fp8():
    with pytest.raises(ConfigError):
        kv_capacity(*specs("model=llama-3.1-70b"))
    assert kv_capacity(*specs("model=llama-3.1-70b", "hardware.tensor_parallel=2")).n_blocks > 10_000
    assert kv_capacity(*specs("model=llama-3.1-70b", "model.weight_dtype=fp8")).n_blocks > 5_000


def test_capacity_of_an_rtx_4090_is_within_3_percent_of_what_vllm_0_19_allocated():
    """2,588 blocks, in a recorded run with max_num_seqs 256 and 2,048 tokens; 25,250,627,584 B of memory."""
    model, hardware = specs("model=llama-3.1-8b", "hardware=rtx4090", "hardware.counts_graphs=false")
    hardware = replace(hardware, device=replace(hardware.device, memory_gib=25_250_627_584 / GIB))
    capacity = kv_capacity(model, hardware, max_batched_tokens=2048, max_seqs=256)
    assert capacity.terms["CUDA graphs"] == 0.0
    assert capacity.n_blocks == pytest.approx(2588, rel=0.03)
    counting = kv_capacity(model, replace(hardware, counts_graphs=True), max_batched_tokens=2048, max_seqs=256)
    assert counting.n_blocks < capacity.n_blocks


def test_the_arithmetic_says_every_term_and_what_they_leave():
    words = arithmetic(kv_capacity(*specs("hardware=h100")).terms)
    assert re.fullmatch(
        r"memory 79\.20 - kept free 7\.92 - weights 14\.96 - activation peak [\d.]+ - CUDA graphs 0\.23 - "
        r"context 0\.10 = [\d.]+ GiB for the KV cache",
        words,
    )

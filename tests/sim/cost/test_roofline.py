"""The roofline: published kernel times of two devices, and the laws of the arithmetic."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.importers.aiconfigurator import import_aiconfigurator
from sim.config import compose, make
from sim.cost import Efficiency, IterationCost, Roofline
from sim.cost.roofline import attended_pairs
from sim.errors import ConfigError
from sim.spec import Dense, Gqa, Layers
from sim.step import Chunk, StepShape
from sim.units import FAR

DATA = Path(__file__).parents[3] / "../shared/data"
H200 = DATA / "published_kernels/h200_sxm"
RTX = DATA / "engine_runs/rtxpro6000_llama-3.1-8b_vllm-0.19/profile/tp1"


@cache
def cost(*overrides: str) -> IterationCost:
    return make(compose(["cost=roofline", *overrides])["cost"], "cost")


@cache
def roofline(*overrides: str) -> Roofline:
    return cost(*overrides).operations


def with_stack(device: Roofline, *stack: Layers) -> Roofline:
    """The same roofline of a model with other layers."""
    return replace(device, model=replace(device.model, stack=stack))


def table(path: Path):
    """A published table as a DataFrame."""
    pd = pytest.importorskip("pandas")
    if not path.exists():
        pytest.skip(f"published measurements are not here: {path}")
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def median_error(predicted, measured) -> float:
    return float(np.median(np.abs(np.asarray(predicted) / np.asarray(measured) - 1.0)))


@pytest.mark.parametrize(
    ("hardware", "folder", "gemm_most", "decode_most"),
    [
        ("a100-80g", "a100_sxm_vllm_0.14.0", 0.10, 0.17),
        ("h100", "h100_sxm", 0.06, 0.10),
        ("l40s", "l40s", 0.09, 0.13),
        ("b200", "b200_sxm", 0.07, 0.18),
    ],
)
def test_each_architecture_has_shares_of_its_own(hardware, folder, gemm_most, decode_most):
    if not (DATA / "published_kernels" / folder).is_dir():
        pytest.skip(f"published measurements are not here: {DATA / 'published_kernels' / folder}")
    measured = import_aiconfigurator(DATA / "published_kernels" / folder)
    device = roofline(f"hardware={hardware}", "model=llama-3.1-8b")
    unknown = replace(device.device, architecture="")
    foreign = replace(device, device=unknown, efficiency=Efficiency())
    rows = measured.of("gemm")
    rows = rows[(rows["dtype"] == "bf16") & (rows["n"] >= 2048) & (rows["k"] >= 4096)].sample(2000, random_state=0)
    shapes = list(zip(rows["m"].tolist(), rows["k"].tolist(), rows["n"].tolist(), strict=True))
    assert median_error([device.gemm_s(m, k, n, "bf16") for m, k, n in shapes], rows["seconds"]) < gemm_most
    rows = measured.of("decode_attention")
    rows = rows[(rows["n_heads"] == 32) & (rows["n_kv_heads"] == 8) & (rows["head_dim"] == 128)]
    rows = rows[rows["kv_dtype"] == "bf16"]

    def decode(of: Roofline) -> list[float]:
        found = []
        for batch, total in zip(rows["decode_seqs"].tolist(), rows["decode_total_tokens"].tolist(), strict=True):
            (near, far), (at_near, at_far), *_ = of.decode_attention(batch)
            found.append((at_near + (at_far - at_near) * (total - near) / (far - near)) / 32)  # one layer
        return found

    own, others = median_error(decode(device), rows["seconds"]), median_error(decode(foreign), rows["seconds"])
    assert own < decode_most
    if hardware in ("a100-80g", "b200"):
        assert own < 0.7 * others


def test_a_share_that_was_set_is_kept_and_the_others_are_the_architectures():
    given = Efficiency(gemm_flops_frac=0.5).on("sm_80")
    assert (given.gemm_flops_frac, given.decode_bandwidth_frac) == (0.5, 0.61)
    assert Efficiency().on("sm_90") == Efficiency().on("") == Efficiency()


@pytest.mark.parametrize(("dtype", "name", "most"), [("bf16", "bfloat16", 0.06), ("fp8", "fp8", 0.15)])
def test_gemms_are_near_the_published_h200_kernels(dtype, name, most):
    rows = table(H200 / "gemm_vllm_0.24.0_gemm_perf.parquet")
    rows = rows[(rows.gemm_dtype == name) & (rows.m <= 16384) & (rows.n >= 2048) & (rows.k >= 4096)]
    rows = rows.sample(3000, random_state=0)
    device = roofline()
    predicted = [device.gemm_s(m, k, n, dtype) for m, k, n in zip(rows.m, rows.k, rows.n, strict=True)]
    assert median_error(predicted, rows.latency / 1e3) < most


@pytest.mark.parametrize(("dtype", "name", "most"), [("bf16", "bfloat16", 0.12), ("fp8", "fp8", 0.18)])
def test_decode_attention_is_near_the_published_h200_kernels(dtype, name, most):
    rows = table(H200 / "attention_vllm_0.24.0_generation_attention_perf.parquet")
    rows = rows[
        (rows.num_heads == 32)
        & (rows.num_key_value_heads == 8)
        & (rows.head_dim == 128)
        & (rows.window_size == 0)
        & (rows.kv_cache_dtype == name)
    ]
    device = roofline("model=llama-3.1-8b", f"model.kv_dtype={dtype}")
    predicted = []
    for batch, tokens in zip(rows.batch_size, rows.isl + rows.step, strict=True):
        (near, far), (at_near, at_far), *_ = device.decode_attention(batch)
        whole = at_near + (at_far - at_near) * (batch * tokens - near) / (far - near)
        predicted.append(whole / 32)  # one layer
    assert len(rows) > 50
    assert median_error(predicted, rows.latency / 1e3) < most


@pytest.mark.parametrize(("head_dim", "model"), [(128, "llama-3.1-8b"), (64, "gpt2")])
def test_prefill_attention_is_near_the_published_h200_kernels(head_dim, model):
    rows = table(H200 / "attention_vllm_0.24.0_context_attention_perf.parquet")
    rows = rows[
        (rows.num_heads == 32)
        & (rows.num_key_value_heads == 8)
        & (rows.head_dim == head_dim)
        & (rows.window_size == 0)
        & (rows.kv_cache_dtype == "bfloat16")
        & (rows.isl >= 1024)
    ]
    spec = make(compose([f"model={model}"])["model"], "model")
    device = replace(roofline(), model=replace(spec, stack=[Layers(1, Gqa(32, 8, head_dim), Dense(64))]))
    predicted = [
        device.prefill_attention_s((Chunk(tokens, 0),) * batch)
        for batch, tokens in zip(rows.batch_size, rows.isl, strict=True)
    ]
    assert len(rows) > 50
    assert median_error(predicted, rows.latency / 1e3) < 0.2


def test_dense_layers_carry_over_to_a_device_the_efficiencies_do_not_come_from():
    rows = table(RTX / "dense.csv").pivot(index="tokens", columns="layer", values="time_us")
    rows = rows.loc[[1, 16, 64, 128, 256, 512, 1024, 2048]]
    names = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "act_fn", "rotary_emb"]
    measured_s = 32e-6 * (rows[names].sum(axis=1) + 2 * rows["layernorm"])
    device = roofline("model=llama-3.1-8b", "hardware=rtxpro6000")
    predicted_s = [device.dense_s(n_tokens) for n_tokens in rows.index]
    assert predicted_s == pytest.approx(measured_s.to_list(), rel=0.2)
    assert median_error(predicted_s, measured_s) < 0.08


def test_lm_head_and_sampler_carry_over_to_another_device():
    rows = table(RTX / "per_sequence.csv").pivot(index="sequences", columns="layer", values="time_us")
    measured_s = 1e-6 * rows.loc[[1, 16, 64, 128, 256], ["lm_head", "sampler"]].sum(axis=1)
    device = roofline("model=llama-3.1-8b", "hardware=rtxpro6000")
    assert [device.sequences_s(n) for n in measured_s.index] == pytest.approx(measured_s.to_list(), rel=0.3)


def test_a_lone_token_takes_little_more_than_reading_the_weights():
    model = roofline().model
    read_s = 2.0 * (model.n_matrix_params() + model.vocab * model.d_model) / 4.8e12
    shape = StepShape(decode_seqs=1, decode_context_tokens=100, decode_max_context_tokens=100, decode_growing=1)
    assert read_s < cost().pace(shape)[0] / 1e12 < 1.7 * read_s


@given(first=st.integers(0, 300), second=st.integers(0, 300), context=st.integers(0, 500), window=st.integers(1, 600))
def test_a_prompt_cut_in_two_attends_to_as_many_pairs(first, second, context, window):
    for limit in (FAR, window):
        whole = attended_pairs(first + second, context, limit)
        assert whole == attended_pairs(first, context, limit) + attended_pairs(second, context + first, limit)
        slow = sum(min(context + i + 1, limit) for i in range(first + second))
        assert whole == slow


def test_a_sliding_window_bounds_what_a_prompt_costs_per_token():
    windowed = roofline("model=mistral-7b")
    far = windowed.prefill_attention_s((Chunk(1024, 20_000),))
    assert far == windowed.prefill_attention_s((Chunk(1024, 30_000),))
    (layers,) = windowed.model.stack
    full = with_stack(windowed, replace(layers, attention=replace(layers.attention, window=None)))
    assert full.prefill_attention_s((Chunk(1024, 20_000),)) > 3 * far


@given(
    batch=st.integers(1, 400),
    contexts=st.lists(st.integers(0, 40_000), min_size=1, max_size=6),
    windows=st.lists(st.sampled_from([None, 16, 128, 1024]), min_size=1, max_size=3),
)
def test_layers_with_windows_of_their_own_read_no_more_than_those(batch, contexts, windows):
    """Decoding: layer for layer the line of its own kind, at what it reads of the context."""
    base = roofline()
    (layers,) = base.model.stack
    kinds = [replace(layers, attention=replace(layers.attention, window=window), n_layers=1) for window in windows]
    curve = with_stack(base, *kinds).decode_attention(batch)
    lone = with_stack(base, replace(layers, n_layers=1)).decode_attention(batch)
    widest = None if None in windows else max(windows)

    def at(line, tokens):
        return float(np.interp(tokens, line.knots, line.seconds))

    for mean in contexts:
        tokens = batch * (mean if widest is None else min(mean, widest))
        expected = sum(at(lone, tokens if window is None else min(tokens, batch * window)) for window in windows)
        assert at(curve, tokens) == pytest.approx(expected, rel=1e-6)


def test_a_prompt_costs_windowed_layers_their_window_and_the_others_all_of_it():
    base = roofline()
    (layers,) = base.model.stack
    near = replace(layers, attention=replace(layers.attention, window=128), n_layers=3)
    far = replace(layers, n_layers=5)
    chunks = (Chunk(700, 9_000), Chunk(40, 0))
    apart = sum(with_stack(base, one).prefill_attention_s(chunks) for one in (near, far))
    assert with_stack(base, near, far).prefill_attention_s(chunks) == pytest.approx(apart)
    dense = sum(with_stack(base, one).dense_s(300) for one in (near, far))
    assert with_stack(base, near, far).dense_s(300) == pytest.approx(dense)


def test_two_ranks_halve_the_work_but_talk_to_each_other():
    one, two = roofline("model=llama-3.1-70b"), roofline("model=llama-3.1-70b", "hardware.tensor_parallel=2")
    assert one.all_reduce_s(1e6) == 0.0
    talk_s = 80 * 2 * two.all_reduce_s(64 * 8192 * 2)
    assert 0.5 < (two.dense_s(64) - talk_s) / one.dense_s(64) < 0.6
    over_pcie = roofline("model=llama-3.1-70b", "hardware.tensor_parallel=2", "hardware.device.link_bytes_per_s=25e9")
    assert over_pcie.dense_s(2048) > two.dense_s(2048)


@pytest.mark.parametrize(
    ("n_ranks", "n_bytes", "measured_s"),
    [  # NVIDIA's tables of an H200, whose sizes are in elements of two bytes: vLLM's all-reduce in a graph
        (2, 1 << 14, 4.6e-6),
        (8, 1 << 14, 5.2e-6),
        (2, 1 << 26, 280.6e-6),
        (4, 1 << 26, 320.2e-6),
        (8, 1 << 26, 323.3e-6),
    ],
)
def test_all_reduce_is_within_a_quarter_of_the_published_h200_kernels(n_ranks, n_bytes, measured_s):
    device = roofline("model=llama-3.1-70b", f"hardware.tensor_parallel={n_ranks}")
    assert device.all_reduce_s(n_bytes) == pytest.approx(measured_s, rel=0.25)


@pytest.mark.parametrize(
    ("n_bytes", "measured_s"),
    [  # NCCL between two RTX PRO 6000: LLMServingSim, profiler/perf/RTXPRO6000/hardware.yaml
        (4_096, 12.7e-6),
        (131_072, 17.4e-6),
        (524_288, 29.8e-6),
        (1_048_576, 41.0e-6),
        (4_194_304, 124.9e-6),
        (20_971_520, 587.1e-6),
    ],
)
def test_all_reduce_over_pcie_is_within_a_tenth_of_the_published_times(n_bytes, measured_s):
    device = roofline("model=qwen3-32b", "hardware=rtxpro6000", "hardware.tensor_parallel=2")
    assert device.all_reduce_s(n_bytes) == pytest.approx(measured_s, rel=0.1)


@pytest.mark.parametrize("cost", ["roofline", "auto"])
def test_a_host_without_peer_to_peer_halves_what_pcie_moves_and_every_run_says_what_it_took(cost):
    def of(*overrides: str):
        config = compose(["model=qwen3-32b", f"cost={cost}", "hardware=rtxpro6000", *overrides])
        return make(config["cost"], "cost")

    two, through_host, one = (
        of("hardware.tensor_parallel=2", "hardware.peer_to_peer=true"),
        of("hardware.tensor_parallel=2", "hardware.peer_to_peer=false"),
        of(),
    )
    assert through_host.operations.all_reduce_s(20e6) == pytest.approx(20e6 / 15.9e9, rel=0.02)
    assert two.operations.all_reduce_s(20e6) == pytest.approx(20e6 / 36.5e9, rel=0.03)
    if cost == "auto":
        assert "through host memory: nobody measured them" in through_host.provenance["interconnect"]
        assert "with peer-to-peer: nobody measured them" in two.provenance["interconnect"]
        assert "interconnect" not in one.provenance


def test_a_profile_measured_on_two_pcie_devices_tells_two_and_the_data_sheet_four():
    def of(*overrides: str):
        config = compose(["model=llama-3.1-8b", "cost=calibrated", "hardware=l40s", *overrides])
        return make(config["cost"], "cost")

    two, four = of("hardware.tensor_parallel=2"), of("hardware.tensor_parallel=4")
    slow = of("hardware.tensor_parallel=2", "hardware.peer_to_peer=false")
    assert "interconnect" not in two.provenance
    assert "4 devices over PCIe with peer-to-peer: nobody measured" in four.provenance["interconnect"]
    assert "through host memory" in slow.provenance["interconnect"]
    assert slow.operations.dense_s(2048) > 1.2 * two.operations.dense_s(2048)


def test_ranks_gather_their_logits_and_reduce_after_the_embedding_too():
    two = roofline("model=qwen3-32b", "hardware=rtxpro6000", "hardware.tensor_parallel=2")
    lone = with_stack(two, replace(two.model.stack[0], n_layers=1))
    both = lone.dense_s(64) - two.dense_s(64) / 64
    assert both == pytest.approx((3 - 129 / 64) * two.all_reduce_s(64 * 5120 * 2))
    assert two.sequences_s(128) > 128 * 151_936 * 2 / 2 / 50e9  # half of the bf16 logits over the link


def test_fp8_weights_and_kv_make_decoding_faster():
    wide, narrow = roofline(), roofline("model.weight_dtype=fp8", "model.kv_dtype=fp8")
    assert 0.5 < narrow.dense_s(8) / wide.dense_s(8) < 0.8
    assert narrow.decode_attention(8).seconds[1] < wide.decode_attention(8).seconds[1]


def test_fp8_weights_save_traffic_but_no_arithmetic_without_fp8_units():
    wide, narrow = roofline("hardware=a100-80g"), roofline("hardware=a100-80g", "model.weight_dtype=fp8")
    assert narrow.dense_s(1) < 0.65 * wide.dense_s(1)
    assert narrow.dense_s(8192) == pytest.approx(wide.dense_s(8192), rel=1e-3)


def test_grouped_queries_read_a_quarter_of_the_kv():
    many, grouped = roofline("model=llama-2-7b"), roofline("model=llama-3.1-8b")
    (_, far), (zero, at_far), *_ = grouped.decode_attention(1)
    (_, _), (zero_many, at_far_many), *_ = many.decode_attention(1)
    assert (at_far_many - zero_many) / (at_far - zero) == pytest.approx(4.0)
    assert far > 1_000_000


@pytest.mark.parametrize("name", ["gpt2", "falcon-7b", "mistral-7b", "qwen3-32b"])
def test_all_parts_grow_with_what_is_computed(name):
    device = roofline(f"model={name}")
    dense = [device.dense_s(n) for n in (1, 64, 300, 1000, 8000)]
    heads = [device.sequences_s(n) for n in (1, 64, 500)]
    prompts = [device.prefill_attention_s((Chunk(n, 500),)) for n in (1, 64, 500, 2000)]
    for parts in (dense, heads, prompts):
        assert parts == sorted(parts)
        assert parts[0] > 0.0


def test_copies_take_the_host_link_or_the_memory_twice():
    device = roofline("hardware=h100")
    assert device.copy_s(0.0, 50e9) == pytest.approx(1.0, rel=1e-3)
    assert device.copy_s(3.35e12 * 0.84 / 2, 0.0) == pytest.approx(1.0, rel=1e-3)
    assert device.copy_s(0.0, 0.0) == 0.0


def test_a_share_above_one_is_refused():
    with pytest.raises(ConfigError, match=r"efficiency\.gemm_flops_frac must be > 0 and <= 1, got 1\.5"):
        Efficiency(gemm_flops_frac=1.5)

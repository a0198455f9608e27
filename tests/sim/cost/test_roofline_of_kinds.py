"""Experts and latent attention from the data sheet, beside kernel times of the device of its shares and of another."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sim.config import compose, make
from sim.cost import Roofline
from sim.spec import Dense, DeviceSpec, Gemm, Layers, LinearAttention, Mla, ModelSpec, Moe
from sim.step import Chunk

KERNELS = Path(__file__).parents[3] / "../shared/data/published_kernels"
DEEPSEEK = Mla(n_heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
FORMATS = {"bfloat16": "bf16", "fp8_block": "fp8_block", "w4a16_mxfp4": "mxfp4", "fp8": "fp8"}
NOT_GATED = {(128, 1856), (512, 5120)}  # (experts, width) of Nemotron-H's shapes: one matrix up, not two


@cache
def device(name: str) -> DeviceSpec:
    return make(compose([f"hardware={name}"])["hardware"], "hardware").device


def of(attention, feed_forward, name: str = "h200", **formats) -> Roofline:
    model = ModelSpec("one layer", 7168, 1000, 4096, [Layers(1, attention, feed_forward)], **formats)
    return Roofline(model, device(name))


def table(folder: str, name: str):
    pd = pytest.importorskip("pandas")
    path = KERNELS / folder / name
    if not path.exists():
        pytest.skip(f"published measurements are not here: {path}")
    rows = pd.read_parquet(path)
    numbers = [
        c for c in rows if c.startswith(("num_", "moe_tp", "moe_ep", "hidden", "inter", "topk", "batch", "isl", "step"))
    ]
    return rows.astype(dict.fromkeys(numbers, int)).assign(seconds=rows["latency"].astype(float) / 1e3)


def errors(predicted, measured):
    return np.abs(np.asarray(predicted) / np.asarray(measured) - 1.0)


def experts(folder: str, dtype: str, distribution: str = "balanced"):
    rows = table(folder, "moe_vllm_0.24.0_moe_perf.parquet")
    rows = rows[(rows.moe_dtype == dtype) & (rows.moe_ep_size == 1) & (rows.moe_tp_size <= 8)]
    rows = rows[[pair not in NOT_GATED for pair in zip(rows.num_experts, rows.inter_size, strict=True)]]
    return rows[rows.distribution == distribution]


def moe_s(times: Roofline, row, n_touched=None) -> float:
    """Both products of a layer's experts; a table that is evenly routed reads as many as there are choices."""
    width, total = row.inter_size // row.moe_tp_size, 0.0
    for inputs, outputs in ((row.hidden_size, 2 * width), (width, row.hidden_size)):
        total += times.matrix_s(row.num_tokens, Gemm("experts", inputs, outputs, None, row.num_experts, row.topk))
    if n_touched is not None:
        expected = Gemm("experts", 1, 1, None, row.num_experts, row.topk).n_touched(row.num_tokens)
        bytes_s = times.device.bandwidth_bytes_per_s * times.efficiency.expert_bandwidth_frac
        total += (n_touched - expected) * 3 * row.hidden_size * width * times.model.weight_bytes / bytes_s
    return total


@pytest.mark.parametrize(
    ("folder", "name", "most", "most_p90"),
    [("h200_sxm", "h200", 0.10, 0.25), ("h100_sxm", "h100", 0.13, 0.30)],
)
def test_experts_are_near_the_published_kernels(folder, name, most, most_p90):
    rows = experts(folder, "bfloat16")
    times = of(DEEPSEEK, Moe(8, 2, 64), name)
    predicted = [moe_s(times, row, min(row.num_experts, row.num_tokens * row.topk)) for row in rows.itertuples()]
    found = errors(predicted, rows.seconds)
    assert len(found) > 500
    assert (found.mean(), np.quantile(found, 0.9)) < (most, 1.0)
    assert np.quantile(found, 0.9) < most_p90


def test_experts_beat_one_matrix_of_all_of_them_wherever_few_are_touched():
    rows = experts("h200_sxm", "bfloat16")
    few = rows[rows.num_tokens * rows.topk < rows.num_experts]
    times = of(DEEPSEEK, Moe(8, 2, 64))

    def as_one_s(row) -> float:
        width = row.num_experts * row.inter_size // row.moe_tp_size
        return times.gemm_s(row.num_tokens, row.hidden_size, 2 * width, "bf16") + times.gemm_s(
            row.num_tokens, width, row.hidden_size, "bf16"
        )

    ours = errors([moe_s(times, row) for row in few.itertuples()], few.seconds)
    assert ours.mean() < 0.15
    assert ours.mean() < errors([as_one_s(row) for row in few.itertuples()], few.seconds).mean() / 5


@pytest.mark.parametrize(
    ("folder", "name", "most_decode", "most_prefill"),
    [("h200_sxm", "h200", 0.065, 0.03), ("h100_sxm", "h100", 0.12, 0.12)],
)
def test_latent_attention_is_near_the_published_kernels(folder, name, most_decode, most_prefill):
    """DeepSeek-V3's attention module in bf16, its matrices among it, of 1 to 128 heads a rank."""
    decode = table(folder, "mla_vllm_0.24.0_mla_generation_module_perf.parquet")
    prefill = table(folder, "mla_vllm_0.24.0_mla_context_module_perf.parquet")
    decode, prefill = (
        rows[(rows.kv_cache_dtype == "bfloat16") & (rows.gemm_type == "bfloat16")] for rows in (decode, prefill)
    )
    prefill = prefill[prefill.kernel_source == "FLASH_ATTN"]  # prompts of more than 512 tokens
    found = {"decode": [], "prefill": []}
    for n_heads in (1, 2, 4, 8, 16, 32, 64, 128):
        attention = replace(DEEPSEEK, n_heads=n_heads)
        times = of(attention, Dense(8), name)

        def matrices_s(n_tokens: int, times=times, attention=attention) -> float:
            return sum(times.matrix_s(n_tokens, gemm) for gemm in attention.gemms(7168))

        for row in decode[decode.num_heads == n_heads].itertuples():
            curve, n = times.decode_attention(row.batch_size), row.batch_size
            at = np.interp(n * (row.step + 1), curve.knots, curve.seconds)
            if n * (row.step + 1) > curve.knots[-1]:
                continue
            found["decode"].append(errors(at + matrices_s(n), row.seconds))
        for row in prefill[prefill.num_heads == n_heads].itertuples():
            chunks = (Chunk(row.isl, 0),) * row.batch_size
            predicted = times.prefill_attention_s(chunks) + matrices_s(row.isl * row.batch_size)
            found["prefill"].append(errors(predicted, row.seconds))
    assert len(found["decode"]) > 1000
    assert np.mean(found["decode"]) < most_decode
    assert len(found["prefill"]) > 300
    assert np.mean(found["prefill"]) < most_prefill


def test_what_is_not_selected_costs_its_index_key_alone():
    dense = of(DEEPSEEK, Dense(8))
    sparse = of(replace(DEEPSEEK, n_selected=2048, index_heads=64, index_dim=128), Dense(8))
    near, full, far = (sparse.decode_attention(4).seconds for _ in range(3))
    knots = sparse.decode_attention(4).knots
    assert knots[1] == 4 * 2048
    slopes = np.diff(near) / np.diff(knots)
    scan_s = slopes[1]
    assert scan_s == pytest.approx((128 + 4) / (4.8e12 * 0.92), rel=0.2)
    assert slopes[0] == pytest.approx(np.diff(dense.decode_attention(4).seconds)[0] / knots[-1] + scan_s, rel=1e-6)
    assert full == far
    long = (Chunk(1_000, 60_000),)
    assert sparse.prefill_attention_s(long) < dense.prefill_attention_s(long)


def test_linear_attention_costs_the_same_after_any_context():
    state = LinearAttention(16, 32, 128, 128)
    times = of(state, Dense(8))
    assert times.prefill_attention_s((Chunk(500, 0),)) == times.prefill_attention_s((Chunk(500, 90_000),))
    curve = times.decode_attention(64)
    assert curve.seconds[0] == curve.seconds[-1]
    more = times.decode_attention(128).seconds[0] - curve.seconds[0]
    assert more == pytest.approx(64 * 2 * state.state_bytes_per_seq() / (4.8e12 * 0.84))


def test_skewed_routing_touches_fewer_experts_and_reads_less():
    even = of(DEEPSEEK, Moe(256, 8, 2048))
    skewed = replace(even, model=replace(even.model, routing_skew=1.2))
    assert skewed.dense_s(32) < 0.8 * even.dense_s(32)
    assert skewed.dense_s(1) <= even.dense_s(1)


@pytest.mark.parametrize("dtype", ["fp8_block", "w4a16_mxfp4"])
def test_narrow_experts_are_near_the_published_kernels(dtype):
    rows = experts("h200_sxm", dtype)
    times = of(DEEPSEEK, Moe(8, 2, 64), weight_dtype=FORMATS[dtype])
    found = errors([moe_s(times, row) for row in rows.itertuples()], rows.seconds)
    assert len(found) > 200
    assert np.median(found) < 0.12


def test_experts_of_a_device_nothing_was_taken_from_are_near_where_enough_of_them_are_read():
    """LLMServingSim's times of one Qwen3-30B-A3B layer on an RTX PRO 6000, over tokens and experts touched."""
    pd = pytest.importorskip("pandas")
    path = KERNELS / "rtxpro6000_qwen3-30b-a3b_vllm-0.19" / "tp1" / "moe.csv"
    if not path.exists():
        pytest.skip(f"published measurements are not here: {path}")
    rows = pd.read_csv(path)
    rows = rows.assign(num_tokens=rows.tokens, num_experts=128, topk=8, hidden_size=2048, inter_size=768, moe_tp_size=1)
    times = of(DEEPSEEK, Moe(8, 2, 64), "rtxpro6000")
    predicted = [moe_s(times, row, row.activated_experts) for row in rows.itertuples()]
    found = errors(predicted, rows.time_us * 1e-6)
    assert np.median(found) < 0.08
    assert found[(rows.activated_experts >= 16).to_numpy()].mean() < 0.12
    assert found.mean() < 0.16  # eight experts, of all tokens alike, lie in its cache there

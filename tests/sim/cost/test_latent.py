"""Latent attention from a profile's part, its matrices beside it, against the published blocks."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from calibration.importers.aiconfigurator_layers import latent_rows
from sim.config import compose, make
from sim.cost.calibrated import CalibratedOperations
from sim.cost.dense import gemm_curve
from sim.cost.latent import LatentAttention
from sim.profile import find_profile, part_path, read_profile, shipped_profiles
from sim.step import Chunk
from sim.units import FAR

KERNELS = Path(__file__).parents[3] / "../shared/data/published_kernels"
PARTS = sorted(
    (name, path.stem)
    for name, whole in shipped_profiles().items()
    for path in part_path(whole, "latent").parent.glob("latent_*.json")
)


@cache
def served(n_ranks: int, *overrides: str) -> CalibratedOperations:
    config = compose(["model=deepseek-v3", "hardware=h200", f"hardware.tensor_parallel={n_ranks}", *overrides])
    model, hardware = (make(config[group], group) for group in ("model", "hardware"))
    model = replace(model, stack=[replace(model.stack[0], n_layers=1)])  # one of the dense layers
    return CalibratedOperations(find_profile("h200/published", hardware.device.name), model, hardware.device, n_ranks)


@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8"])
def test_whole_blocks_are_within_6_percent_of_the_table(kv_dtype):
    if not (KERNELS / "h200_sxm").is_dir():
        pytest.skip(f"published measurements are not here: {KERNELS}")
    both = next(
        rows
        for dtype, kv, rows in latent_rows(KERNELS / "h200_sxm", "0.24.0")
        if (dtype, kv) == ("fp8_block", kv_dtype)
    )
    gemm = read_profile(shipped_profiles()["h200/published"]).operation("gemm_fp8")
    for n_ranks in (2, 4, 8):
        times = served(n_ranks, f"model.kv_dtype={kv_dtype}")
        attention = make(compose(["model=deepseek-v3"])["model"], "model").stack[0].attention.shard(n_ranks)
        curves = [gemm_curve(gemm, one.outputs, one.inputs, 1.0, 0.0) for one in attention.gemms(7168)]
        for name, rows in both.items():
            rows = rows[rows["n_heads"] == attention.n_heads]
            told = []
            for row in rows.itertuples():
                computed = row.n_seqs if name == "latent_decode" else row.n_seqs * row.n_tokens
                matrices = sum(curve(computed) for curve in curves)
                if name == "latent_decode":
                    curve = times.decode_attention(row.n_seqs)
                    left = np.interp(row.n_seqs * row.n_tokens, curve.knots, curve.seconds)
                else:
                    left = times.prefill_attention_s((Chunk(row.n_tokens, 0),) * row.n_seqs)
                told.append(matrices + left)
            errors = np.abs(np.array(told) / rows["seconds"].to_numpy() - 1.0)
            assert len(errors) > 50
            assert errors.mean() < 0.06, (name, n_ranks)


@pytest.mark.parametrize(("profile", "part"), PARTS)
def test_blocks_held_out_are_within_6_percent(profile, part):
    for name, form in read_profile(part_path(shipped_profiles()[profile], part)).operations.items():
        error = form["error"]
        assert error["held_out"]["n"] > 100, name
        assert error["held_out"]["mape"] <= 0.06, name
        assert error["matrices_alone"]["mape"] > 3 * error["held_out"]["mape"], name


def test_what_is_cached_before_a_chunk_is_unpacked_and_attended_to():
    times = served(8)
    after = [times.prefill_attention_s((Chunk(512, context),)) for context in (0, 1_000, 8_000, 32_000)]
    assert after == sorted(after)
    assert after[2] > 2 * after[0]
    assert times.prefill_attention_s((Chunk(512, 0), Chunk(512, 0))) < 2 * after[0]


def test_unpacking_is_asked_for_what_is_cached_and_attended_to():
    profile = find_profile("h200/published", "NVIDIA H200 SXM").with_part("latent_bf16_bf16")
    attention = make(compose(["model=deepseek-v3"])["model"], "model").stack[0].attention.shard(8)
    plain, counting = (
        LatentAttention(profile.operations, attention, 2.0, lambda n, s=s: s * n, {}) for s in (0.0, 1.0)
    )
    for chunks, cached in (
        (((512, 0, FAR),), 0),
        (((512, 3_000, FAR),), 3_000),
        (((512, 3_000, FAR), (64, 500, FAR)), 3_500),
        (((512, 3_000, 1_000),), 1_000),
    ):
        assert counting.chunks_s(chunks) - plain.chunks_s(chunks) == pytest.approx(cached)


def test_decoding_rises_with_the_batch_and_with_the_context():
    times = served(8)
    for n in (1, 7, 64, 300):
        curve = times.decode_attention(n)
        assert list(curve.seconds) == sorted(curve.seconds)
    assert times.decode_attention(64).seconds[-1] > times.decode_attention(8).seconds[-1]


def test_fp8_kv_has_times_of_its_own():
    assert served(8, "model.kv_dtype=fp8").decode_attention(64).seconds != served(8).decode_attention(64).seconds


def test_blocks_of_other_dimensions_are_the_data_sheets():
    config = compose(["model=glm-5", "hardware=h200", "hardware.tensor_parallel=8"])
    model, hardware = (make(config[group], group) for group in ("model", "hardware"))
    found = CalibratedOperations(find_profile("h200/published", hardware.device.name), model, hardware.device, 8)
    assert "Mla: data sheet" in found.provenance["attention"]
    assert found.provenance["experts"].startswith("measured")

"""Experts as a profile's part tells them, beside the published table, and what stands in for them elsewhere."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from calibration.experts import fit_experts
from calibration.importers.aiconfigurator_layers import expert_rows
from calibration.split import SEED
from sim.config import compose, make
from sim.cost.calibrated import CalibratedOperations
from sim.cost.dense import gemm_curve
from sim.cost.experts import ExpertShape, expected, expert_times, expert_work, features, measured_loads
from sim.errors import ProfileError
from sim.profile import find_profile, part_path, read_profile, shipped_profiles
from sim.spec import DTYPE_BYTES

KERNELS = Path(__file__).parents[3] / "../shared/data/published_kernels"
MIXTRAL = ExpertShape(4096, 14336, 2, 8, 1, 1)
QWEN3 = ExpertShape(2048, 768, 8, 128, 1, 1)
MOST_OFF = {"h200/published": (0.08, 0.15), "h100/published": (0.08, 0.15), "b200/published": (0.08, 0.16)}
COLUMNS = ["hidden", "width", "top_k", "n_experts", "tensor_ranks", "expert_ranks"]
PARTS = sorted(
    (name, path.stem)
    for name, whole in shipped_profiles().items()
    for path in part_path(whole, "experts_bf16").parent.glob("experts_*.json")
)


@cache
def form(dtype: str = "bf16", profile: str = "h200/published"):
    name = f"experts_{dtype}"
    return read_profile(part_path(shipped_profiles()[profile], name)).operation(name)


@cache
def table(dtype: str):
    if not (KERNELS / "h200_sxm").is_dir():
        pytest.skip(f"published measurements are not here: {KERNELS}")
    return dict(expert_rows(KERNELS / "h200_sxm", "0.24.0"))[dtype]


def measured(shape: ExpertShape, skew: float, dtype: str = "bf16"):
    rows = table(dtype)
    rows = rows[(rows[COLUMNS] == list(shape)).all(axis=1) & (rows["skew"] == skew)].sort_values("m")
    return rows["m"].to_numpy(float), rows["seconds"].to_numpy()


def dealt_s(times, counts, skew: float = 0.0):
    """As the table routes: in turn where it says balanced."""
    work = expert_work(times.shape, measured_loads(times.shape, skew, counts), times.weight_bytes)
    return times.line.seconds(work) * np.exp(times.table.at(times.shape, skew, counts))


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp8_block"])
@pytest.mark.parametrize("skew", [0.0, 1.01, 1.2])
def test_shapes_that_were_measured_are_served_as_measured(dtype, skew):
    for shape in (MIXTRAL, MIXTRAL._replace(tensor_ranks=2), QWEN3, QWEN3._replace(expert_ranks=4)):
        counts, seconds = measured(shape, skew, dtype)
        if not len(counts):
            continue
        times = expert_times(form(dtype), shape, DTYPE_BYTES[dtype], skew)
        assert dealt_s(times, counts, skew) == pytest.approx(seconds, rel=6e-4)
        if skew:
            assert times(counts) == pytest.approx(seconds, rel=6e-4)


def test_tokens_that_choose_at_random_read_no_more_than_those_dealt_out_in_turn():
    counts = np.array([1.0, 2.0, 8.0, 16.0, 64.0, 4096.0])
    times = expert_times(form(), QWEN3, 2.0)
    ratio = times(counts) / dealt_s(times, counts)
    assert (ratio <= 1.0 + 1e-9).all()
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[3] < 0.85  # 82 of 128 experts where all are dealt out
    assert ratio[-1] == pytest.approx(1.0, rel=1e-6)


def test_experts_beat_one_matrix_of_all_of_them_at_every_count_and_where_their_shape_is_unknown():
    """What stood for Mixtral: a dense layer with the weights of all experts, and of two where arithmetic decides."""
    counts, seconds = measured(MIXTRAL, 0.0)
    gemm = find_profile("h200/published", "NVIDIA H200 SXM").operation("gemm")
    up, down = (gemm_curve(gemm, n, k, 2.0, 0.0).at(counts) for n, k in ((8 * 2 * 14336, 4096), (4096, 8 * 14336)))
    stand_in = np.abs((up + down) / seconds - 1.0)
    times = expert_times(form(), MIXTRAL, 2.0)
    served = np.abs(dealt_s(times, counts) / seconds - 1.0)
    assert (served <= np.maximum(stand_in, 6e-4)).all()
    unknown = [shape[:4] != MIXTRAL[:4] or shape == MIXTRAL._replace(tensor_ranks=2) for shape in times.table.shapes]
    rest = replace(
        times.table,
        shapes=tuple(s for s, is_kept in zip(times.table.shapes, unknown, strict=True) if is_kept),
        residuals=times.table.residuals[np.array(unknown)],
    )
    told = np.abs(dealt_s(replace(times, table=rest), counts) / seconds - 1.0)
    assert told.mean() < stand_in.mean() / 3
    for low, high in ((1, 4), (1_000, 20_000)):
        at = (counts >= low) & (counts <= high)
        assert told[at].mean() < stand_in[at].mean() / 2, (low, high)


@pytest.mark.parametrize(("profile", "part"), PARTS)
def test_experts_held_out_are_as_near_as_the_readme_says(profile, part):
    error = form(part.removeprefix("experts_"), profile)["error"]
    most, most_p90 = MOST_OFF.get(profile, (0.20, 0.42))
    for kind in ("held_out", "held_out_tokens"):
        assert error[kind]["n"] > 500
        assert error[kind]["mape"] <= most, kind
        assert error[kind]["p90"] <= most_p90, kind
        assert error[kind]["mape"] < error["roofline_alone"]["mape"] / 1.5


def test_a_part_is_what_its_table_gives_and_says_which_table():
    again, kept = fit_experts(table("int4"), SEED), form("int4")
    assert again["thousandths_of_log"] == kept["thousandths_of_log"]
    assert again["error"]["held_out"]["mape"] == pytest.approx(kept["error"]["held_out"]["mape"], rel=0.05)
    whole = read_profile(part_path(shipped_profiles()["h200/published"], "experts_int4"))
    (name,) = (name for name in whole.provenance["tables_sha256"] if "moe" in name)
    content = (KERNELS / "h200_sxm" / name).read_bytes()
    assert whole.provenance["tables_sha256"][name] == hashlib.sha256(content).hexdigest()


def test_a_damaged_part_is_refused(tmp_path):
    whole = shipped_profiles()["h200/published"]
    copy = tmp_path / "published.json"
    copy.write_bytes(whole.read_bytes())
    part = part_path(copy, "experts_int4")
    part.parent.mkdir()
    part.write_text(part_path(whole, "experts_int4").read_text().replace("0.24.0", "0.25.0", 1))
    assert "experts_int4" not in read_profile(copy).operations
    with pytest.raises(ProfileError, match="altered after it was written"):
        read_profile(copy).with_part("experts_int4")
    assert read_profile(copy).with_part("experts_bf16").operations.keys() == read_profile(copy).operations.keys()


def test_a_shape_is_told_by_its_neighbours_and_an_unlike_one_by_the_mean():
    table = expert_times(form(), QWEN3, 2.0).table
    near = np.abs(expected(table, features([QWEN3]))[0] - table.residual(QWEN3)).mean()
    assert near < 0.05
    far = features([ExpertShape(2**20, 2**20, 2, 8, 1, 1)])
    assert np.abs(expected(table, far)[0] - table.residuals.mean(0)).mean() < 0.05


def operations(model: str, *overrides: str) -> CalibratedOperations:
    config = compose([f"model={model}", "hardware=h200", *overrides])
    model_spec, hardware = (make(config[group], group) for group in ("model", "hardware"))
    profile = find_profile("h200/published", hardware.device.name)
    return CalibratedOperations(profile, model_spec, hardware.device, hardware.tensor_parallel)


def test_a_hybrid_keeps_what_was_measured_and_says_what_was_not():
    found = operations("qwen3.5-35b-a3b")
    assert "LinearAttention" in found.provenance["attention"]
    assert found.provenance["experts"].startswith("measured (experts_bf16")
    curve = found.decode_attention(8)
    assert list(curve.seconds) == sorted(curve.seconds)
    assert curve.seconds[-1] > curve.seconds[0] > 0.0


def test_only_models_with_experts_read_their_part():
    assert "parts" not in operations("llama-3.1-8b").provenance
    assert set(operations("qwen3-30b-a3b").provenance["parts"]) == {"experts_bf16"}
    deepseek = operations("deepseek-v3", "hardware.tensor_parallel=8").provenance
    assert set(deepseek["parts"]) == {"experts_fp8_block", "latent_fp8_block_bf16"}


def test_a_skew_is_served_and_a_steeper_one_is_faster_while_experts_are_read():
    even, steep = (operations("qwen3-30b-a3b", f"model.routing_skew={skew}").dense_s(16) for skew in (0.0, 1.2))
    assert steep < even
    assert "power law of 1.2" in operations("qwen3-30b-a3b", "model.routing_skew=1.2").provenance["experts"]

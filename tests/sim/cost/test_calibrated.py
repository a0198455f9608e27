"""Times from profiles: monotone, exact along a run, counted outside the range, off by drawn errors only when asked."""

import math
from itertools import pairwise

import numpy as np
import pytest

from sim.config import compose, make
from sim.cost.attention import nodes
from sim.cost.calibrated import CalibratedOperations, draw_errors
from sim.cost.dense import TABULATED_SEQS, TABULATED_TOKENS, Curve
from sim.cost.host import HostCost
from sim.cost.iteration import IterationCost
from sim.cost.surface import SoftRoofline, monotone
from sim.cost.table import Axis, Plane, Space, Table
from sim.errors import ConfigError, ProfileError
from sim.profile import find_profile, read_profile, shipped_profiles
from sim.step import Chunk, Pace, StepShape
from sim.units import ps_from_s


def part(group: str, *overrides: str):
    return make(compose([*overrides])[group], group)


@pytest.fixture(scope="module")
def rtx() -> CalibratedOperations:
    device = part("hardware", "hardware=rtxpro6000").device
    return CalibratedOperations(find_profile(None, device.name), part("model", "model=llama-3.1-8b"), device)


@pytest.fixture(scope="module")
def h200() -> CalibratedOperations:
    device = part("hardware", "hardware=h200").device
    return CalibratedOperations(
        find_profile("h200/published", device.name), part("model", "model=llama-3.1-70b"), device, tensor_parallel=4
    )


@pytest.fixture(params=["rtx", "h200"])
def operations(request) -> CalibratedOperations:
    return request.getfixturevalue(request.param)


def test_decode_attention_never_falls_with_context(operations):
    for batch in (1, 3, 8, 37, 128):
        curve = operations.decode_attention(batch)
        assert curve.knots[0] == batch
        assert list(curve.knots) == sorted(set(curve.knots))
        assert list(curve.seconds) == sorted(curve.seconds)
        assert curve.seconds[0] > 0.0


def test_decode_attention_never_falls_with_the_batch(operations):
    for mean in (17, 300, 4_000, 16_000):
        times = [operations._decode_s(n, mean) for n in (1, 2, 3, 5, 8, 13, 32, 100, 256)]
        assert all(a <= b * (1 + 1e-9) for a, b in pairwise(times)), mean


def test_a_prompts_attention_never_falls_with_its_tokens_or_context(rtx):
    by_tokens = [rtx.prefill_attention_s((Chunk(new, 1_000),)) for new in range(1, 2_049, 50)]
    by_context = [rtx.prefill_attention_s((Chunk(256, context),)) for context in range(0, 16_385, 256)]
    assert by_tokens == sorted(by_tokens)
    assert by_context == sorted(by_context)


def test_layers_measured_whole_never_fall_with_tokens(rtx):
    times = [rtx.dense_s(n) for n in range(1, 2_049)]
    assert min(times) > 0.0
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(times))


def test_matrices_measured_on_a_grid_keep_steps_down_too_but_rise_in_the_long_run(h200):
    times = [h200.dense_s(n) for n in range(1, 2_049)]
    assert min(times) > 0.0
    assert any(b < a for a, b in pairwise(times))
    assert times[15] < times[255] < times[1_023] < times[2_047]


def test_a_run_of_decode_iterations_is_the_series_of_single_ones():
    cost = part("cost", "hardware=rtxpro6000", "cost=calibrated")
    shape = StepShape((), 40, 40 * 700, 900, 40)
    first = Pace(*cost.pace(shape))
    for k in range(0, first.n_steps, max(1, first.n_steps // 7)):
        later = shape._replace(decode_context_tokens=40 * (700 + k), decode_max_context_tokens=900 + k)
        assert cost.pace(later)[0] == first.first_ps + k * first.growth_ps
    assert first.n_steps > 1


def test_unequal_contexts_cost_more_than_equal_ones(rtx):
    cost = part("cost", "hardware=rtxpro6000", "cost=calibrated")
    chunk = (Chunk(256, 0),)
    for chunks in ((), chunk):
        equal = cost.pace(StepShape(chunks, 64, 64 * 1_000, 1_000, 64))[0]
        unequal = cost.pace(StepShape(chunks, 64, 64 * 1_000, 4_000, 64))[0]
        assert unequal > equal


def test_unequal_contexts_cost_what_batches_of_both_neighbouring_sizes_say(rtx):
    form = rtx._copies["decode_skew"]
    known = dict(zip(form["decode_seqs"], form["seconds_per_token"], strict=True))
    per_token = {n: rtx.decode_attention(n).skew_s / 32 for n in (1, 32, 45, 64, 65)}
    assert per_token[1] == 0.0
    assert [per_token[n] for n in (32, 64)] == pytest.approx([known[32], known[64]])
    assert known[32] < per_token[45] < known[64]  # a peak of one size is not carried down to the next smaller one
    assert per_token[45] == pytest.approx((known[32] + known[64]) / 2, rel=0.03)
    assert per_token[65] == pytest.approx(known[64], rel=0.03)


def test_prompts_beside_decodes_take_the_fused_measurement_not_the_sum(rtx):
    chunks = (Chunk(16, 16_384),)
    fused = rtx.fused_attention_s(chunks, 1, 16_385, 16_385)
    apart = rtx.prefill_attention_s(chunks) + rtx.decode_attention(1).seconds[-1]
    assert fused < 0.9 * apart  # both walk their 16k keys side by side


def test_several_chunks_cost_more_than_one_and_pay_the_floor_once(rtx):
    one = rtx.prefill_attention_s((Chunk(512, 0),))
    two = rtx.prefill_attention_s((Chunk(512, 0), Chunk(512, 0)))
    assert one < two < 2.0 * one


def test_of_several_chunks_it_is_the_heaviest_that_the_others_are_added_to_wherever_it_stands(rtx):
    light, heavy = Chunk(64, 0), Chunk(512, 4_000)
    both = rtx.prefill_attention_s((light, heavy))
    assert both == pytest.approx(rtx.prefill_attention_s((heavy, light)), rel=1e-12)
    assert rtx.prefill_attention_s((heavy,)) < both < rtx.prefill_attention_s((heavy, heavy))


def test_a_chunk_after_a_context_costs_more_than_without(h200):
    assert h200.prefill_attention_s((Chunk(512, 8_000),)) > 2.0 * h200.prefill_attention_s((Chunk(512, 0),))


def test_tensor_parallel_ranks_pay_for_all_reduce():
    device = part("hardware", "hardware=h200").device
    model = part("model", "model=llama-3.1-70b")
    profile = find_profile("h200/published", device.name)
    two, eight = (CalibratedOperations(profile, model, device, ranks) for ranks in (2, 8))
    assert eight.dense_s(1) < two.dense_s(1) < 4.5 * eight.dense_s(1)  # less than linear: all-reduce and floors
    with pytest.raises(ProfileError, match="all-reduce was measured over 2, 4, 8 devices, not 16"):
        CalibratedOperations(profile, model, device, 16)


def test_kernels_timed_one_by_one_say_how_many_an_iteration_launches(rtx, h200):
    assert rtx.n_launches == 32 * (8 + 2) + 2 + 2  # of a layer: two norms, four matrices, rotary, activation, attention
    assert h200.n_launches == 0


def test_outside_the_range_is_counted(rtx):
    assert rtx.decode_attention(300).valid_to_tokens == 0
    assert rtx.decode_attention(8).valid_to_tokens == 8 * 16_385
    before = rtx.extrapolated_runs
    rtx.prefill_attention_s((Chunk(2_048, 0),))
    assert rtx.extrapolated_runs == before
    rtx.prefill_attention_s((Chunk(4_096, 0),))
    rtx.prefill_attention_s((Chunk(16, 20_000),))
    assert rtx.extrapolated_runs == before + 2


def test_what_lies_outside_is_named_with_its_axis_and_the_range_measured(rtx):
    device = part("hardware", "hardware=rtxpro6000").device
    cost = IterationCost(
        CalibratedOperations(find_profile(None, device.name), part("model"), device), HostCost(0.0, 0.0)
    )
    cost.pace(StepShape((Chunk(512, 0),), 4, 400, 100, 4))
    assert cost.extrapolations() == []
    cost.pace(StepShape((Chunk(4_096, 20_000),)))
    cost.pace(StepShape((), 300, 300 * 30_000, 30_000, 300))
    assert cost.extrapolations() == [
        "prompt attention: new tokens up to 4,096, measured 16 to 2,048",
        "prompt attention: cached tokens up to 20,000, measured 0 to 16,384",
        "decode attention: sequences up to 300, measured 1 to 256",
        "decode attention: tokens a sequence up to 30,000, measured 17 to 16,385",
    ]


def test_a_profile_of_one_model_refuses_another():
    device = part("hardware", "hardware=rtxpro6000").device
    profile = find_profile(None, device.name)
    with pytest.raises(ProfileError, match=r"measured with n_kv_heads 8.*the model has 32; take cost=roofline"):
        CalibratedOperations(profile, part("model", "model=llama-2-7b"), device)
    with pytest.raises(ProfileError, match="with vocab 128256, got 32000"):
        CalibratedOperations(profile, part("model", "model=mistral-7b"), device)
    with pytest.raises(ProfileError, match="measured with n_heads 32"):
        CalibratedOperations(profile, part("model", "model=llama-3.1-8b"), device, tensor_parallel=2)


def test_a_number_format_that_was_not_measured_is_refused():
    device = part("hardware", "hardware=rtxpro6000").device
    with pytest.raises(ProfileError, match="with kv_dtype bf16, got fp8"):
        CalibratedOperations(find_profile(None, device.name), part("model", "model.kv_dtype=fp8"), device)


def test_fp8_reads_faster_than_bf16():
    device = part("hardware", "hardware=h200").device
    profile = find_profile("h200/published", device.name)
    wide = CalibratedOperations(profile, part("model", "model=llama-3.1-8b"), device)
    model = part("model", "model=llama-3.1-8b", "model.kv_dtype=fp8", "model.weight_dtype=fp8")
    narrow = CalibratedOperations(profile, model, device)
    assert narrow.dense_s(1) < 0.8 * wide.dense_s(1)
    assert narrow.decode_attention(64).seconds[-1] < 0.8 * wide.decode_attention(64).seconds[-1]


def test_errors_are_drawn_only_when_asked_and_hang_on_the_seed():
    profile = read_profile(shipped_profiles()["rtxpro6000/published"])
    assert draw_errors(profile, 1) == draw_errors(profile, 1) != draw_errors(profile, 2)
    plain, again, drawn, other = (
        part("cost", "hardware=rtxpro6000", "cost=calibrated", *more).operations.dense_s(64)
        for more in ((), ("seed=9",), ("cost.sample=true", "seed=1"), ("cost.sample=true", "seed=2"))
    )
    assert plain == again
    assert len({plain, drawn, other}) == 3


def test_an_error_of_one_standard_deviation_moves_a_time_by_it():
    device = part("hardware", "hardware=rtxpro6000").device
    model, profile = part("model"), find_profile(None, device.name)
    off = CalibratedOperations(profile, model, device, errors={"layers": 1.0})
    spread = profile.operation("layers")["standard_error"]["layers_log_sd"]
    plain = CalibratedOperations(profile, model, device)
    assert off.dense_s(64) / plain.dense_s(64) == pytest.approx(math.exp(spread))
    assert off.decode_attention(4) == plain.decode_attention(4)


def test_a_misspelt_key_of_the_cost_is_refused():
    with pytest.raises(ConfigError, match="profil"):
        part("cost", "cost=calibrated", "+cost.profil=h200/published")


def test_a_soft_roofline_is_its_floor_when_idle_and_its_rate_when_busy():
    line = SoftRoofline({"bytes": 2.0}, floor_s=1.0, p=4.0)
    idle, busy = line.seconds({"bytes": np.array([0.0, 2e6])})
    assert idle == pytest.approx(1.0)
    assert busy == pytest.approx(1e6)


def test_a_table_is_exact_for_powers_inside_and_outside_its_grid():
    axes = [nodes((1.0, 64.0), 2, 0.0), nodes((0.0, 1_000.0), 1, 10.0)]
    grid = np.array([[math.log(3.0 * x**1.5 * (y + 10.0) ** 0.5) for y in axes[1]] for x in axes[0]])
    table = Table(axes, (0.0, 10.0), grid)
    for x, y in ((1.0, 0.0), (5.3, 77.0), (64.0, 1_000.0), (200.0, 5_000.0), (0.5, 0.0)):
        assert table(x, y) == pytest.approx(3.0 * x**1.5 * (y + 10.0) ** 0.5)


def test_monotone_changes_nothing_that_rises_and_keeps_every_axis_rising():
    rising = np.arange(12.0).reshape(3, 4)
    assert (monotone(rising) == rising).all()
    noisy = monotone(np.random.default_rng(0).random((5, 6, 7)))
    for axis in range(3):
        assert (np.diff(noisy, axis=axis) >= -1e-12).all()


def test_a_curve_goes_on_past_its_ends_and_is_never_negative():
    curve = Curve([1.0, 2.0, 4.0], [1.0, 3.0, 5.0])
    assert [curve(x) for x in (1, 1.5, 3, 6)] == [1.0, 2.0, 4.0, 7.0]
    assert curve(0.1) == 0.0
    with pytest.raises(ProfileError, match="ascending knots"):
        Curve([2.0, 1.0], [1.0, 1.0])


def test_a_table_of_two_axes_says_what_the_general_one_says():
    axes = [nodes((1.0, 256.0), 1, 0.0), nodes((0.0, 16_384.0), 3, 64.0)]
    rng = np.random.default_rng(0)
    logs = rng.normal(size=(len(axes[0]), len(axes[1])))
    general, plane = Table(axes, (0.0, 64.0), logs), Plane(axes, (0.0, 64.0), logs)
    for x, y in zip(rng.uniform(0.5, 400.0, 500).tolist(), rng.uniform(0.0, 30_000.0, 500).tolist(), strict=True):
        assert plane(x, y) == general(x, y) == pytest.approx(math.exp(general.log(x, y)))


@pytest.mark.parametrize("is_clamped", [False, True])
def test_a_table_of_four_axes_says_what_the_general_one_says(is_clamped):
    ranges, shifts = [(1.0, 64.0), (0.0, 16_384.0), (1.0, 256.0), (17.0, 9_000.0)], (0.0, 64.0, 0.0, 0.0)
    axes = [nodes(ends, 1, shift) for ends, shift in zip(ranges, shifts, strict=True)]
    rng = np.random.default_rng(0)
    logs = rng.normal(size=[len(axis) for axis in axes])
    general, space = Table(axes, shifts, logs), Space(axes, shifts, logs, is_clamped)
    for _ in range(500):
        point = [float(rng.uniform(low / 2.0, 1.5 * high)) for low, high in ranges]
        asked = [min(max(x, low), high) for x, (low, high) in zip(point, ranges, strict=True)] if is_clamped else point
        places = [axis.place(x) for axis, x in zip(space.axes, point, strict=True)]
        told = space.between(sum(at for at, _ in places), *(share for _, share in places))
        assert told == pytest.approx(general.log(*asked), rel=1e-9)
        assert told == pytest.approx(space.log(*point), rel=1e-12)


def test_whole_numbers_are_placed_in_advance_where_they_lie():
    axis = Axis(nodes((16.0, 2_048.0), 2, 0.0), 0.0, 7)
    assert [axis.place(max(x, 16)) for x in range(3_000)] == axis.places(2_999, 16.0)


def test_a_table_with_uneven_nodes_is_refused():
    with pytest.raises(ProfileError, match="evenly"):
        Table([[1.0, 2.0, 8.0]], (0.0,), np.zeros(3))


def test_prompts_remembered_are_told_the_same_and_those_outside_the_range_counted_each_time():
    cost = part("cost", "hardware=h200", "cost=calibrated")
    inside, beyond = StepShape(chunks=(Chunk(64, 400), Chunk(512, 0))), StepShape(chunks=(Chunk(64, 400_000),))
    assert cost.pace(inside) == cost.pace(inside) == part("cost", "hardware=h200", "cost=calibrated").pace(inside)
    assert cost.operations.extrapolated_runs == 0
    assert cost.pace(beyond) == cost.pace(beyond)
    assert cost.operations.extrapolated_runs == 2


def test_what_is_remembered_of_prompts_is_bounded(monkeypatch):
    monkeypatch.setattr("sim.cost.iteration.MOST_REMEMBERED", 10)
    cost = part("cost", "hardware=h200", "cost=calibrated")
    times = [cost.pace(StepShape(chunks=(Chunk(new, 0),))) for new in range(1, 40)]
    assert len(cost._prefill_ps) <= 10
    assert times == [cost.pace(StepShape(chunks=(Chunk(new, 0),))) for new in range(1, 40)]


def test_dense_parts_beyond_the_list_go_on_with_the_same_formula(operations):
    dense = operations._dense
    for whole, most in ((dense.dense_s, TABULATED_TOKENS), (dense.sequences_s, TABULATED_SEQS)):
        counts = np.array([1.0, 63.0, 641.0, most - 1.0, most, most + 1.0, 2.0 * most])
        assert [whole(int(n)) for n in counts] == pytest.approx(whole._function(counts).tolist(), rel=1e-15)


def test_prompts_measured_apart_add_to_the_very_decode_times_of_a_pure_batch():
    cost = part("cost", "hardware=h200", "cost=calibrated")
    chunks, decoding = (Chunk(600, 0),), StepShape((), 40, 40 * 700, 900, 40)
    both = cost._once_ps(decoding._replace(chunks=chunks))
    alone = cost._once_ps(decoding)
    rest = cost._dense(640) + cost._sequences(41) - cost._dense(40) - cost._sequences(40)
    assert both == alone + rest + ps_from_s(cost.operations.prefill_attention_s(chunks))

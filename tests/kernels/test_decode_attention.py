from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.configs import Tiles
from kernels.decode_attention import decode_attention
from kernels.decode_plan import cut, plan_decode, visible_tokens
from kernels.paging import extents
from tests.kernels.poison import DTYPES, GATES, Guarded, filled_cache, relative_error

SMALL = Tiles(16, 16, 4, 2)
WIDE = Tiles(16, 64, 4, 2)


def check(
    kv_lens, *, heads=(4, 2), head_dim=64, dtype=torch.float32, config=WIDE, n_programs=4, ring_blocks=None,
    is_fixed_grid=False, block_tokens=16, **span,
):  # fmt: skip
    torch.manual_seed(1)
    n_heads, n_kv_heads = heads
    k, v, table = filled_cache(
        kv_lens,
        [length - 1 for length in kv_lens],
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        block_tokens=block_tokens,
        ring_blocks=ring_blocks,
        **span,
    )
    q = torch.randn(len(kv_lens), n_heads, head_dim).to(dtype)
    out = Guarded(q.shape, dtype)
    plan = plan_decode(
        kv_lens,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        device="cpu",
        n_programs=n_programs,
        is_fixed_grid=is_fixed_grid,
        config=config,
        **span,
    )
    plan.part_out.fill_(float("nan"))
    plan.part_lse.fill_(float("nan"))
    got = decode_attention(q, k.tensor, v.tensor, table, plan, ring_blocks=ring_blocks, out=out.tensor)
    truth = reference.decode_attention(q, k.tensor, v.tensor, table, plan, ring_blocks=ring_blocks)
    assert relative_error(got, truth) < GATES[dtype], "differs from the float64 reference"
    assert out.is_intact(), "wrote outside out"
    return plan


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("span", [{}, {"window": 20, "n_sinks": 3}], ids=["whole", "window"])
def test_every_dtype_and_head_dim_matches_float64(dtype, head_dim, span):
    check([33, 70], dtype=dtype, head_dim=head_dim, **span)


@pytest.mark.parametrize("kv_len", [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65])
def test_edge_lengths_match_float64(kv_len):
    check([kv_len, 2], heads=(2, 1))


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (8, 2), (6, 1), (7, 1), (20, 1)], ids=str)
def test_every_grouping_of_heads_matches_float64(heads):
    check([40, 9], heads=heads)


@pytest.mark.parametrize("window", [1, 16, 17, 40, 1000])
@pytest.mark.parametrize("n_sinks", [0, 1, 17])
def test_windows_and_sinks_match_float64(window, n_sinks):
    check([70], heads=(2, 1), window=window, n_sinks=n_sinks, config=SMALL, n_programs=1)


@pytest.mark.parametrize("n_programs", [2, 4, 8, 64])
def test_splitting_a_sequence_changes_nothing(n_programs):
    plan = check([130, 1, 0, 40], heads=(4, 1), n_programs=n_programs, config=SMALL)
    assert plan.is_split == (len(plan.work) > 4)


@pytest.mark.parametrize("span", [{}, {"window": 30, "n_sinks": 2}], ids=["whole", "window"])
def test_a_fixed_grid_leaves_idle_programs_idle(span):
    check([50, 3], heads=(2, 1), n_programs=6, is_fixed_grid=True, config=SMALL, **span)


def test_more_pieces_than_one_reduction_step_are_added_up():
    plan = check([33 * 16], heads=(1, 1), n_programs=33, config=SMALL)
    assert int(plan.part_starts[-1]) == 33


@pytest.mark.parametrize("block_tokens", [1, 8, 32, 64])
def test_every_block_size_matches_float64(block_tokens):
    check([70, 5], block_tokens=block_tokens)


@pytest.mark.parametrize("n_sinks", [0, 5, 16])
@pytest.mark.parametrize("kv_len", [9, 60, 131])
def test_a_ring_matches_float64_after_it_wrapped(n_sinks, kv_len):
    check([kv_len], heads=(2, 1), window=24, n_sinks=n_sinks, ring_blocks=4, block_tokens=8)


def test_contiguous_extents_run_the_same_kernel():
    torch.manual_seed(2)
    pool = torch.full((90, 2, 64), float("nan"))
    starts, kv_lens = [3, 47], [40, 21]
    for start, length in zip(starts, kv_lens, strict=True):
        pool[start : start + length] = torch.randn(length, 2, 64)
    cache = extents(pool, 43)
    table = torch.tensor(starts, dtype=torch.int32)[:, None]
    q = torch.randn(2, 4, 64)
    plan = plan_decode(kv_lens, n_heads=4, n_kv_heads=2, head_dim=64, device="cpu", n_programs=8, config=SMALL)
    got = decode_attention(q, cache, cache, table, plan)
    assert relative_error(got, reference.decode_attention(q, cache, cache, table, plan)) < GATES[torch.float32]


def test_a_plan_can_be_refilled_in_place():
    torch.manual_seed(3)
    k, v, table = filled_cache([90, 20], [0, 0], n_kv_heads=1, head_dim=64, dtype=torch.float32)
    q = torch.randn(2, 2, 64)
    plan = plan_decode(
        [5, 5], n_heads=2, n_kv_heads=1, head_dim=64, device="cpu", n_programs=5, is_fixed_grid=True, config=SMALL
    )
    where = plan.work.data_ptr()
    plan.refill([90, 20])
    got = decode_attention(q, k.tensor, v.tensor, table, plan)
    assert plan.work.data_ptr() == where
    assert relative_error(got, reference.decode_attention(q, k.tensor, v.tensor, table, plan)) < GATES[torch.float32]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    kv_lens=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 60),
    n_sinks=st.integers(0, 20),
    n_programs=st.integers(1, 8),
    is_fixed_grid=st.booleans(),
)
def test_any_shape_matches_float64(kv_lens, window, n_sinks, n_programs, is_fixed_grid):
    span = {} if window is None else {"window": window, "n_sinks": n_sinks}
    check([1, *kv_lens], heads=(2, 1), n_programs=n_programs, is_fixed_grid=is_fixed_grid, **span)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kv_lens=st.lists(st.integers(0, 100_000), min_size=1, max_size=40),
    window=st.none() | st.integers(1, 5_000),
    n_sinks=st.integers(0, 200),
    n_pieces=st.integers(1, 300),
)
def test_pieces_cover_every_visible_key_once_and_fit_the_grid(kv_lens, window, n_sinks, n_pieces):
    work, part_starts = cut(kv_lens, window, n_sinks, 64, n_pieces)
    visible = visible_tokens(kv_lens, window, n_sinks)
    assert len(work) <= n_pieces + len(kv_lens)
    assert len(work) <= max(n_pieces, len(kv_lens)) or len(kv_lens) > n_pieces
    parts = sorted(int(p) for p in work[:, 3] if p >= 0)
    assert parts == list(range(part_starts[-1]))
    for seq, n_visible in enumerate(visible):
        pieces = sorted(work[work[:, 0] == seq][:, 1:].tolist())
        edges = [start for start, _, _ in pieces] + [pieces[-1][1]]
        assert edges[0] == 0
        assert edges[-1] == n_visible
        assert all(stop == start for (_, stop, _), (start, _, _) in pairwise(pieces))
        if len(pieces) == 1:
            assert pieces[0][2] == -1
        else:
            assert [p for _, _, p in pieces] == list(range(part_starts[seq], part_starts[seq + 1]))
    assert np.all(np.diff(work[:, 2] - work[:, 1]) <= 0), "longest first"


def test_one_long_sequence_among_many_short_ones_is_split():
    work, _ = cut([100_000] + [500] * 255, None, 0, 64, 33)
    assert (work[:, 0] == 0).sum() > 10


def arguments():
    plan = plan_decode([4, 5], n_heads=2, n_kv_heads=1, head_dim=64, device="cpu", config=SMALL)
    cache = torch.zeros(2, 16, 1, 64)
    table = torch.tensor([[1], [0]], dtype=torch.int32)
    return {"q": torch.zeros(2, 2, 64), "k_cache": cache, "v_cache": cache, "block_table": table, "plan": plan}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("q", torch.zeros(3, 2, 64)),
        ("q", torch.zeros(2, 2, 64, dtype=torch.float64)),
        ("q", torch.zeros(2, 64, 2).transpose(1, 2)),
        ("k_cache", torch.zeros(2, 16, 1, 32)),
        ("k_cache", torch.zeros(2, 16, 2, 64)),
        ("v_cache", torch.zeros(3, 16, 1, 64)),
        ("v_cache", torch.zeros(2, 16, 1, 64, dtype=torch.float16)),
        ("block_table", torch.tensor([[1], [0]])),
        ("block_table", torch.tensor([[2], [0]], dtype=torch.int32)),
        ("block_table", torch.zeros(1, 1, dtype=torch.int32)),
        ("out", torch.zeros(2, 2, 32)),
        ("scale", 0.0),
    ],
)
def test_a_wrong_argument_is_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        decode_attention(**(arguments() | {name: wrong}))


def test_a_ring_too_small_for_its_window_is_refused():
    plan = plan_decode([90], n_heads=1, n_kv_heads=1, head_dim=64, device="cpu", window=40)
    cache = torch.zeros(8, 16, 1, 64)
    table = torch.zeros(1, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^ring_blocks must be >= 3"):
        decode_attention(torch.zeros(1, 1, 64), cache, cache, table, plan, ring_blocks=2)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("kv_lens", []), ("kv_lens", [-1]), ("window", 0), ("n_sinks", -1), ("n_sinks", 1), ("n_programs", 0)],
)
def test_a_wrong_plan_is_refused_by_name(name, wrong):
    right = {"kv_lens": [4], "n_heads": 2, "n_kv_heads": 1, "head_dim": 64, "device": "cpu"}
    with pytest.raises(ValueError, match=rf"^{name} must"):
        plan_decode(**(right | {name: wrong}))


def test_a_refill_that_does_not_fit_is_refused():
    plan = plan_decode([4], n_heads=2, n_kv_heads=1, head_dim=64, device="cpu")
    with pytest.raises(ValueError, match=r"^kv_lens must have length 1"):
        plan.refill([1, 2])
    with pytest.raises(ValueError, match=r"^kv_lens can only be refilled"):
        plan.refill([5])

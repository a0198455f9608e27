import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.configs import Tiles
from kernels.paging import extents
from kernels.prefill_attention import prefill_attention
from kernels.prefill_plan import plan_prefill
from tests.kernels.poison import DTYPES, GATES, Guarded, filled_cache, relative_error

SMALL = Tiles(16, 16, 4, 2)  # several tiles even in short sequences
WIDE = Tiles(64, 32, 4, 2)


def check(q_lens, kv_lens, *, heads=(4, 2), head_dim=64, dtype=torch.float16, config=WIDE, ring_blocks=None, **span):
    torch.manual_seed(1)
    n_heads, n_kv_heads = heads
    block_tokens = span.pop("block_tokens", 16)
    first_pos = [kv - q for q, kv in zip(q_lens, kv_lens, strict=True)]
    k, v, table = filled_cache(
        kv_lens,
        first_pos,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        block_tokens=block_tokens,
        ring_blocks=ring_blocks,
        **span,
    )
    q = torch.randn(sum(q_lens), n_heads, head_dim).to(dtype)
    out = Guarded(q.shape, dtype)
    plan = plan_prefill(
        q_lens, kv_lens, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, device="cpu", config=config, **span
    )
    got = prefill_attention(q, k.tensor, v.tensor, table, plan, ring_blocks=ring_blocks, out=out.tensor)
    truth = reference.prefill_attention(q, k.tensor, v.tensor, table, plan, ring_blocks=ring_blocks)
    assert relative_error(got, truth) < GATES[dtype], "differs from the float64 reference"
    assert out.is_intact(), "wrote outside out"
    assert k.is_intact(), "wrote outside the cache"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("span", [{}, {"window": 9, "n_sinks": 3}], ids=["causal", "window"])
def test_every_dtype_and_head_dim_matches_float64(dtype, head_dim, span):
    check([5, 19], [21, 19], head_dim=head_dim, dtype=dtype, **span)


@pytest.mark.parametrize("n_new", [1, 15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("context", [0, 1, 16, 33])
def test_edge_lengths_match_float64(n_new, context):
    check([n_new], [context + n_new], dtype=torch.float32, heads=(2, 1))


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (8, 2), (6, 1), (7, 1), (10, 2)], ids=str)
def test_every_grouping_of_heads_matches_float64(heads):
    check([7, 2], [13, 30], heads=heads, dtype=torch.float32)


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 40, 1000])
@pytest.mark.parametrize("n_sinks", [0, 1, 17])
def test_windows_and_sinks_match_float64_across_tiles(window, n_sinks):
    check([18], [70], window=window, n_sinks=n_sinks, config=SMALL, heads=(1, 1), dtype=torch.float32)


def test_tiles_between_sinks_and_window_are_never_read():
    check([4], [200], window=20, n_sinks=2, config=SMALL, heads=(1, 1), dtype=torch.float32)


@pytest.mark.parametrize("block_tokens", [1, 8, 16, 32, 64])
def test_every_block_size_matches_float64(block_tokens):
    check([3, 20], [40, 20], block_tokens=block_tokens)


@pytest.mark.parametrize("q_lens", [[0, 5], [5, 0, 1], [0]], ids=str)
def test_sequences_without_new_tokens_are_left_out(q_lens):
    check([*q_lens, 3], [q + 4 for q in q_lens] + [3], heads=(2, 2))


@pytest.mark.parametrize("n_sinks", [0, 5, 16])
@pytest.mark.parametrize("kv_len", [9, 60, 131])
def test_a_ring_matches_float64_after_it_wrapped(n_sinks, kv_len):
    check([9], [kv_len], window=24, n_sinks=n_sinks, ring_blocks=5, block_tokens=8, config=SMALL, heads=(2, 2))


def test_contiguous_extents_run_the_same_kernel():
    torch.manual_seed(2)
    pool = torch.full((90, 2, 64), float("nan"))
    starts, kv_lens, q_lens = [3, 47], [40, 21], [10, 21]
    for start, length in zip(starts, kv_lens, strict=True):
        pool[start : start + length] = torch.randn(length, 2, 64)
    cache = extents(pool, 43)
    table = torch.tensor(starts, dtype=torch.int32)[:, None]
    q = torch.randn(31, 4, 64)
    plan = plan_prefill(q_lens, kv_lens, n_heads=4, n_kv_heads=2, head_dim=64, device="cpu", config=WIDE)
    got = prefill_attention(q, cache, cache, table, plan)
    assert relative_error(got, reference.prefill_attention(q, cache, cache, table, plan)) < GATES[torch.float32]


def test_queries_may_be_a_slice_of_the_qkv_output():
    torch.manual_seed(3)
    qkv = torch.randn(12, 8, 64)
    k, v, table = filled_cache([12], [0], n_kv_heads=2, head_dim=64, dtype=torch.float32)
    plan = plan_prefill([12], [12], n_heads=4, n_kv_heads=2, head_dim=64, device="cpu", config=WIDE)
    got = prefill_attention(qkv[:, :4], k.tensor, v.tensor, table, plan)
    truth = reference.prefill_attention(qkv[:, :4], k.tensor, v.tensor, table, plan)
    assert relative_error(got, truth) < GATES[torch.float32]


def test_large_scores_do_not_overflow():
    torch.manual_seed(4)
    k, v, table = filled_cache([20], [0], n_kv_heads=1, head_dim=64, dtype=torch.float32)
    q = torch.randn(20, 1, 64) * 100
    plan = plan_prefill([20], [20], n_heads=1, n_kv_heads=1, head_dim=64, device="cpu", config=SMALL)
    got = prefill_attention(q, k.tensor, v.tensor, table, plan, scale=1.0)
    truth = reference.prefill_attention(q, k.tensor, v.tensor, table, plan, scale=1.0)
    assert relative_error(got, truth) < 1e-3  # fp32 scores near 1e4 carry an error near 1e-3


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lens=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 40),
    n_sinks=st.integers(0, 20),
)
def test_any_shape_matches_float64(lens, window, n_sinks):
    span = {} if window is None else {"window": window, "n_sinks": n_sinks}
    q_lens = [1, *(new for new, _ in lens)]
    kv_lens = [1, *(new + context for new, context in lens)]
    check(q_lens, kv_lens, heads=(2, 1), dtype=torch.float32, config=Tiles(32, 32, 4, 2), **span)


def arguments():
    plan = plan_prefill([4], [4], n_heads=2, n_kv_heads=1, head_dim=64, device="cpu", config=SMALL)
    cache = torch.zeros(2, 16, 1, 64)
    table = torch.tensor([[1]], dtype=torch.int32)
    return {"q": torch.zeros(4, 2, 64), "k_cache": cache, "v_cache": cache, "block_table": table, "plan": plan}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("q", torch.zeros(5, 2, 64)),
        ("q", torch.zeros(4, 2, 64, dtype=torch.float64)),
        ("q", torch.zeros(4, 64, 2).transpose(1, 2)),
        ("k_cache", torch.zeros(2, 16, 1, 32)),
        ("k_cache", torch.zeros(2, 16, 2, 64)),
        ("k_cache", torch.zeros(2, 16, 1, 64, dtype=torch.float16)),
        ("v_cache", torch.zeros(3, 16, 1, 64)),
        ("block_table", torch.tensor([[1]])),
        ("block_table", torch.tensor([[2]], dtype=torch.int32)),
        ("block_table", torch.tensor([[-1]], dtype=torch.int32)),
        ("block_table", torch.zeros(1, 0, dtype=torch.int32)),
        ("block_table", torch.zeros(2, 1, dtype=torch.int32)),
        ("out", torch.zeros(4, 2, 32)),
        ("scale", -1.0),
        ("ring_blocks", 0),
        ("q", torch.zeros(4, 2, 64, device="meta")),
    ],
)
def test_a_wrong_argument_is_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=rf"^{'(ring_blocks|block_table)' if name == 'ring_blocks' else name} must"):
        prefill_attention(**(arguments() | {name: wrong}))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("q_lens", [5]),
        ("q_lens", [-1]),
        ("kv_lens", [4, 4]),
        ("window", 0),
        ("n_sinks", -1),
        ("n_sinks", 2),
        ("n_heads", 34),
    ],
)
def test_a_wrong_plan_is_refused_by_name(name, wrong):
    right = {"q_lens": [4], "kv_lens": [4], "n_heads": 2, "n_kv_heads": 1, "head_dim": 64, "device": "cpu"}
    with pytest.raises(ValueError, match=rf"^{name} must"):
        plan_prefill(**(right | {"config": SMALL} | {name: wrong}))


@pytest.mark.parametrize("wrong", [{"head_dim": 80}, {"n_heads": 3, "n_kv_heads": 2}])
def test_heads_no_kernel_serves_are_refused(wrong):
    right = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 64, "device": "cpu"}
    with pytest.raises(ValueError, match=r"^q must have"):
        plan_prefill([4], [4], **(right | wrong))


def test_heavy_tiles_come_first_and_every_query_is_planned_once():
    plan = plan_prefill([40, 3, 0], [40, 100, 7], n_heads=4, n_kv_heads=2, head_dim=64, device="cpu", config=SMALL)
    seen = sorted(
        (seq, first + i) for seq, first in plan.work.tolist() for i in range(8) if first + i < [40, 3, 0][seq]
    )
    assert seen == [(0, i) for i in range(40)] + [(1, i) for i in range(3)]
    assert plan.work[:2].tolist() == [[1, 0], [0, 32]]


def test_visible_pairs_count_what_the_mask_lets_through():
    plan = plan_prefill([5, 3], [9, 3], n_heads=1, n_kv_heads=1, head_dim=64, device="cpu", window=4, n_sinks=2)
    by_hand = sum(
        1 for q, kv in ((5, 9), (3, 3)) for p in range(kv - q, kv) for key in range(p + 1) if key > p - 4 or key < 2
    )
    assert plan.visible_pairs() == by_hand

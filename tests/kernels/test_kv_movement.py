import pytest
import torch

from kernels import reference
from kernels.kv_append import kv_append
from kernels.kv_copy import kv_copy
from kernels.kv_importance import compact, keep_lowest, key_norms
from kernels.paging import extents
from tests.kernels.poison import DTYPES, NOWHERE, Guarded, bits, filled_cache


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_tokens", [0, 1, 7, 37])
@pytest.mark.parametrize(("n_kv_heads", "head_dim"), [(8, 128), (3, 64), (1, 96)])
def test_append_writes_every_row_bit_for_bit_and_nothing_else(dtype, n_tokens, n_kv_heads, head_dim):
    torch.manual_seed(1)
    k, v = (torch.randn(n_tokens, n_kv_heads, head_dim).to(dtype) for _ in "kv")
    caches = [Guarded((9, 5, n_kv_heads, head_dim), dtype) for _ in "kv"]
    want = [cache.tensor.clone() for cache in caches]
    slots = torch.randperm(45)[:n_tokens]
    slots[3:4] = -1  # padding
    kv_append(k, v, caches[0].tensor, caches[1].tensor, slots)
    reference.kv_append(k, v, *want, slots)
    assert all(torch.equal(bits(c.tensor), bits(w)) and c.is_intact() for c, w in zip(caches, want, strict=True))


def test_append_takes_slices_of_the_qkv_output():
    torch.manual_seed(2)
    qkv = torch.randn(6, 8, 64)
    caches = [torch.zeros(2, 4, 2, 64) for _ in "kv"]
    kv_append(qkv[:, 4:6], qkv[:, 6:], *caches, torch.arange(6))
    assert torch.equal(caches[0].flatten(0, 1)[:6], qkv[:, 4:6])
    assert torch.equal(caches[1].flatten(0, 1)[:6], qkv[:, 6:])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("k", torch.zeros(3, 1, 64, dtype=torch.float64)),
        ("k", torch.zeros(3, 64)),
        ("v", torch.zeros(2, 1, 64)),
        ("k_cache", torch.zeros(2, 4, 1, 32)),
        ("k_cache", torch.zeros(2, 4, 2, 64)),
        ("v_cache", torch.zeros(3, 4, 1, 64)),
        ("v_cache", torch.zeros(2, 4, 1, 128)[..., ::2]),
        ("slots", torch.tensor([0, 1, 8])),
        ("slots", torch.tensor([0, 1, -2])),
        ("slots", torch.arange(3, dtype=torch.int32)),
    ],
)
def test_a_wrong_argument_to_append_is_refused_by_name(name, wrong):
    cache = torch.zeros(2, 4, 1, 64)
    row = torch.zeros(3, 1, 64)
    right = {"k": row, "v": row, "k_cache": cache, "v_cache": cache.clone(), "slots": torch.arange(3)}
    with pytest.raises(ValueError, match=rf"^{name} must"):
        kv_append(**(right | {name: wrong}))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("row", [(16, 2, 128), (4,), (1, 2052)], ids=str)
def test_copy_moves_rows_bit_for_bit_and_nothing_else(dtype, row):
    torch.manual_seed(3)
    source = torch.randint(0, 100, (7, *row)).to(dtype)
    target = Guarded((9, *row), dtype, fill=3)
    want = target.tensor.clone()
    from_rows, to_rows = torch.tensor([6, 0, -1, 3, 2]), torch.tensor([0, 8, 1, 4, -1])
    kv_copy(source, target.tensor, from_rows, to_rows)
    reference.kv_copy(source, want, from_rows, to_rows)
    assert torch.equal(target.tensor, want)
    assert target.is_intact()


def test_copying_nothing_does_nothing():
    target = torch.zeros(2, 4)
    kv_copy(torch.ones(2, 4), target, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert not target.any()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("source", torch.zeros(4)),
        ("source", torch.zeros(4, 8, 6).transpose(1, 2)),
        ("target", torch.zeros(4, 6)),
        ("target", torch.zeros(4, 6, 8, dtype=torch.float16)),
        ("from_rows", torch.tensor([0, 4])),
        ("from_rows", torch.tensor([0, 1], dtype=torch.int32)),
        ("to_rows", torch.tensor([0, -2])),
        ("to_rows", torch.tensor([0])),
    ],
)
def test_a_wrong_argument_to_copy_is_refused_by_name(name, wrong):
    right = {"source": torch.zeros(4, 6, 8), "target": torch.zeros(4, 6, 8)}
    right |= {"from_rows": torch.tensor([0, 1]), "to_rows": torch.tensor([2, 3])}
    if name == "source":
        right["target"] = wrong.clone(memory_format=torch.preserve_format)
    with pytest.raises(ValueError, match=rf"^{name} must"):
        kv_copy(**(right | {name: wrong}))


def test_rows_that_are_no_whole_words_are_refused():
    ids = torch.tensor([0])
    with pytest.raises(ValueError, match=r"^source must have rows of a multiple of 4 bytes"):
        kv_copy(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8), ids, ids)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96])
def test_key_norms_match_float64_and_padding_is_infinite(dtype, head_dim):
    torch.manual_seed(4)
    k, _, table = filled_cache([17, 0, 33], [0, 0, 0], n_kv_heads=2, head_dim=head_dim, dtype=dtype)
    kv_lens = torch.tensor([17, 0, 33], dtype=torch.int32)
    got, want = key_norms(k.tensor, table, kv_lens), reference.key_norms(k.tensor, table, kv_lens)
    assert torch.allclose(got, want, rtol=1e-5)
    assert got[0, 17:].isinf().all()


def test_the_lowest_norms_are_kept_in_order_of_position():
    norms = torch.tensor([[5.0, 1.0, 4.0, 2.0], [1.0, 9.0, 2.0, float("inf")]])
    assert keep_lowest(norms, 2).tolist() == [[1, 3], [0, 2]]


def test_compaction_moves_the_kept_tokens_to_the_front_even_over_each_other():
    torch.manual_seed(5)
    k, _, table = filled_cache([60, 40], [0, 0], n_kv_heads=2, head_dim=64, dtype=torch.float16)
    kept = torch.stack([torch.randperm(60)[:20].sort().values, torch.randperm(40)[:20].sort().values])
    kept[1, 18:] = -1
    table = table.where(table < NOWHERE, 0)
    want = k.tensor.clone()
    compact(k.tensor, table, kept)
    reference.compact(want, table, kept)
    assert torch.equal(bits(k.tensor), bits(want))
    assert k.is_intact()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: keep_lowest(torch.zeros(1, 4), 0), "n_keep"),
        (lambda: keep_lowest(torch.zeros(1, 4), 5), "n_keep"),
        (lambda: keep_lowest(torch.zeros(4), 1), "norms"),
        (lambda: key_norms(torch.zeros(2, 4, 1, 80), TABLE, torch.tensor([3], dtype=torch.int32)), "k_cache"),
        (lambda: key_norms(torch.zeros(2, 4, 1, 64), TABLE, torch.tensor([9], dtype=torch.int32)), "kv_lens"),
        (lambda: key_norms(torch.zeros(1, 4, 1, 64), TABLE, torch.tensor([8], dtype=torch.int32)), "block_table"),
        (lambda: compact(torch.zeros(2, 4, 1, 64), TABLE, torch.tensor([[8]])), "kept"),
        (lambda: compact(torch.zeros(2, 4, 1, 64), TABLE, torch.zeros(1, 9, dtype=torch.int64)), "kept"),
        (lambda: compact(torch.zeros(2, 4), TABLE, torch.tensor([[0]])), "cache"),
        (lambda: extents(torch.zeros(4, 1, 64), 5), "extent_tokens"),
        (lambda: extents(torch.zeros(4, 64), 2), "pool"),
    ],
)
def test_wrong_arguments_to_importance_and_extents_are_refused_by_name(call, says):
    with pytest.raises(ValueError, match=rf"^{says} must"):
        call()


TABLE = torch.tensor([[0, 1]], dtype=torch.int32)

"""Which cached tokens matter, and closing the gaps once the others are dropped.

Keys of small norm draw the attention (Devoto et al. 2024, arXiv:2406.11430, "A Simple and Effective L2 Norm-Based
Strategy for KV Cache Compression"): the tokens whose keys have the lowest mean norm over the KV heads are kept. One
choice for all heads, because a block of the cache holds all heads of its tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import HEAD_DIMS, model_dtypes, need, need_cache, need_device, need_ids, need_rows, need_tensor
from kernels.configs import padded
from kernels.kv_copy import kv_copy
from kernels.paging import load_block_ids, load_rows, need_block_table

KEYS = 32  # of one program


@triton.jit
def norm_kernel(
    k_ptr,
    norms_ptr,
    kv_lens_ptr,
    table_ptr,
    n_slots,
    k_stride_block,
    k_stride_token,
    k_stride_head,
    table_stride,
    N_KV_HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Mean key norm over the KV heads of some tokens of one sequence."""
    seq = tl.program_id(0).to(tl.int64)
    keys = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    is_key = keys < tl.load(kv_lens_ptr + seq)
    block_ids = load_block_ids(table_ptr + seq * table_stride, keys, is_key, 0, 1, BLOCK_TOKENS, False)
    mean = tl.zeros([KEYS], tl.float32)
    for head in range(N_KV_HEADS):
        k = load_rows(
            k_ptr + head * k_stride_head,
            block_ids,
            keys,
            is_key,
            k_stride_block,
            k_stride_token,
            BLOCK_TOKENS,
            D,
            D_PAD,
            True,
            True,
        ).to(tl.float32)
        mean += tl.sqrt(tl.sum(k * k, 1)) / N_KV_HEADS
    tl.store(norms_ptr + seq * n_slots + keys, tl.where(is_key, mean, float("inf")), mask=keys < n_slots)


def key_norms(k_cache: Tensor, block_table: Tensor, kv_lens: Tensor, *, check_ids: bool = True) -> Tensor:
    """Mean L2 norm of each cached token's keys over the KV heads.

    Parameters
    ----------
    k_cache : Tensor, shape (n_blocks, block_tokens, n_kv_heads, head_dim), bf16 or fp16
    block_table : Tensor, shape (n_seqs, n_columns), int32
    kv_lens : Tensor, shape (n_seqs,), int32
        Cached tokens of each sequence.
    check_ids : bool
        Look at lengths and block ids (waits for the device); switch off inside CUDA graphs.

    Returns
    -------
    Tensor, shape (n_seqs, n_columns * block_tokens), float32
        Infinite beyond a sequence's length, so that padding is never kept first.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_tensor("k_cache", k_cache, ("n_blocks", "block_tokens", "n_kv_heads", "head_dim"), model_dtypes())
    _, block_tokens, n_kv_heads, head_dim = k_cache.shape
    need(head_dim in HEAD_DIMS, f"k_cache must have head_dim in {HEAD_DIMS}, got {head_dim}")
    need_cache("k_cache", k_cache, head_dim, k_cache.dtype)
    need_tensor("block_table", block_table, ("n_seqs", "n_columns"), (torch.int32,))
    need_rows("block_table", block_table)
    need_tensor("kv_lens", kv_lens, (len(block_table),), (torch.int32,))
    need_rows("kv_lens", kv_lens)
    need_device(k_cache=k_cache, block_table=block_table, kv_lens=kv_lens)
    n_slots = block_table.shape[1] * block_tokens
    if check_ids:
        need_ids("kv_lens", kv_lens, n_slots + 1)
        need_block_table(block_table, kv_lens.tolist(), [0] * len(kv_lens), 0, k_cache, None, True)
    norms = torch.empty(len(kv_lens), n_slots, dtype=torch.float32, device=k_cache.device)
    if norms.numel() == 0:
        return norms

    norm_kernel[(len(kv_lens), triton.cdiv(n_slots, KEYS))](
        k_cache,
        norms,
        kv_lens,
        block_table,
        n_slots,
        *k_cache.stride()[:3],
        block_table.stride(0),
        N_KV_HEADS=n_kv_heads,
        BLOCK_TOKENS=block_tokens,
        D=head_dim,
        D_PAD=padded(head_dim),
        KEYS=KEYS,
        num_warps=4,
    )
    return norms


def keep_lowest(norms: Tensor, n_keep: int) -> Tensor:
    """Positions of the ``n_keep`` lowest norms of each sequence, in order, shape (n_seqs, n_keep), int64."""
    need_tensor("norms", norms, ("n_seqs", "n_slots"), (torch.float32,))
    need(1 <= n_keep <= norms.shape[1], f"n_keep must be in [1, {norms.shape[1]}], got {n_keep}")
    return norms.topk(n_keep, dim=1, largest=False).indices.sort(dim=1).values


def compact(cache: Tensor, block_table: Tensor, kept: Tensor, *, check_ids: bool = True) -> None:
    """Move the kept tokens of each sequence to the front of its blocks, in order; the blocks behind become free.

    Parameters
    ----------
    cache : Tensor, shape (n_blocks, block_tokens, ...)
        Keys, values, codes or params; contiguous.
    block_table : Tensor, shape (n_seqs, n_columns), int32
    kept : Tensor, shape (n_seqs, n_keep), int64
        Positions to keep, ascending; -1 for none.
    check_ids : bool
        Look at the ids (waits for the device); switch off inside CUDA graphs.

    Copies twice, through a staging buffer: in one pass, a program could overwrite what another has yet to read.
    """
    need(cache.ndim >= 3, f"cache must have shape (n_blocks, block_tokens, ...), got {tuple(cache.shape)}")
    need_rows("cache", cache, cache.ndim)
    need_tensor("block_table", block_table, ("n_seqs", "n_columns"), (torch.int32,))
    need_tensor("kept", kept, (len(block_table), "n_keep"), (torch.int64,))
    block_tokens = cache.shape[1]
    n_slots = block_table.shape[1] * block_tokens
    need(kept.shape[1] <= n_slots, f"kept must have <= {n_slots} columns (block_table's slots), got {kept.shape[1]}")
    if check_ids:
        need_ids("kept", kept, n_slots, lowest=-1)

    table = block_table.long()
    to = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    from_slots, to_slots = (
        table.gather(1, at.clamp(min=0) // block_tokens) * block_tokens + at.clamp(min=0) % block_tokens
        for at in (kept, to)
    )
    from_slots = torch.where(kept >= 0, from_slots, -1).flatten()
    to_slots = torch.where(kept >= 0, to_slots, -1).flatten()
    slots = cache.flatten(0, 1)
    staging = torch.empty(len(from_slots), *slots.shape[1:], dtype=cache.dtype, device=cache.device)
    lane = torch.arange(len(from_slots), device=kept.device)
    kv_copy(slots, staging, from_slots, lane, check_ids=check_ids)
    kv_copy(staging, slots, lane, to_slots, check_ids=check_ids)

"""Write new tokens' keys and values into the cache, each at its slot.

A slot is ``block * block_tokens + offset``, as in vLLM's slot mapping (Kwon et al. 2023, arXiv:2309.06180). Slots of
-1 are padding and write nothing, so that a captured graph can run with fewer tokens than it was captured for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import (
    model_dtypes,
    need,
    need_cache,
    need_device,
    need_ids,
    need_rows,
    need_same_shape,
    need_tensor,
)

ELEMENTS = 4096  # of one program: 8 KiB of keys and as much of values, 16-byte vectors for each of 128 threads


@triton.jit
def append_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    n_tokens,
    k_stride_token,
    v_stride_token,
    k_cache_stride_block,
    k_cache_stride_token,
    v_cache_stride_block,
    v_cache_stride_token,
    BLOCK_TOKENS: tl.constexpr,
    ROW: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some tokens by some columns of their rows; a row is all KV heads' channels."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    slot = tl.load(slots_ptr + token, mask=token < n_tokens, other=-1)
    is_element = (slot >= 0)[:, None] & (column < ROW)[None, :]
    block = slot // BLOCK_TOKENS
    offset = slot % BLOCK_TOKENS
    wide = token.to(tl.int64)
    k = tl.load(k_ptr + (wide * k_stride_token)[:, None] + column[None, :], mask=is_element)
    v = tl.load(v_ptr + (wide * v_stride_token)[:, None] + column[None, :], mask=is_element)
    k_row = block * k_cache_stride_block + offset * k_cache_stride_token
    v_row = block * v_cache_stride_block + offset * v_cache_stride_token
    tl.store(k_cache_ptr + k_row[:, None] + column[None, :], k, mask=is_element)
    tl.store(v_cache_ptr + v_row[:, None] + column[None, :], v, mask=is_element)


def kv_append(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, check_ids: bool = True) -> None:
    """Write rows of k and v into the caches.

    Parameters
    ----------
    k, v : Tensor, shape (n_tokens, n_kv_heads, head_dim), bf16 or fp16
        Heads and channels contiguous.
    k_cache, v_cache : Tensor, shape (n_blocks, block_tokens, n_kv_heads, head_dim), dtype of k
        Heads and channels contiguous. A pool of contiguous extents is ``pool.unsqueeze(1)``: blocks of one token.
    slots : Tensor, shape (n_tokens,), int64
        Where each token goes; -1 for padding. No slot twice.
    check_ids : bool
        Look at the slots (waits for the device); switch off inside CUDA graphs.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_tensor("k", k, ("n_tokens", "n_kv_heads", "head_dim"), model_dtypes())
    n_tokens, n_kv_heads, head_dim = k.shape
    need_tensor("v", v, (n_tokens, n_kv_heads, head_dim), (k.dtype,))
    need_cache("k_cache", k_cache, head_dim, k.dtype)
    need_cache("v_cache", v_cache, head_dim, k.dtype)
    need(k_cache.shape[2] == n_kv_heads, f"k_cache must have k's {n_kv_heads} KV heads, got {k_cache.shape[2]}")
    need_same_shape(k_cache=k_cache, v_cache=v_cache)
    for name, tensor in (("k", k), ("v", v), ("k_cache", k_cache), ("v_cache", v_cache)):
        need_rows(name, tensor, 2)
    need_tensor("slots", slots, (n_tokens,), (torch.int64,))
    need_rows("slots", slots)
    need_device(k=k, v=v, k_cache=k_cache, v_cache=v_cache, slots=slots)
    if check_ids:
        need_ids("slots", slots, k_cache.shape[0] * k_cache.shape[1], lowest=-1)
    if n_tokens == 0:
        return

    row = n_kv_heads * head_dim
    columns = min(1024, triton.next_power_of_2(row))
    tokens = max(1, ELEMENTS // columns)
    append_kernel[(triton.cdiv(n_tokens, tokens), triton.cdiv(row, columns))](
        k,
        v,
        k_cache,
        v_cache,
        slots,
        n_tokens,
        k.stride(0),
        v.stride(0),
        *k_cache.stride()[:2],
        *v_cache.stride()[:2],
        BLOCK_TOKENS=k_cache.shape[1],
        ROW=row,
        TOKENS=tokens,
        COLUMNS=columns,
        num_warps=4,
    )

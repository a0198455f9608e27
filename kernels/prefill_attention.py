"""Attention of prompt chunks over paged, contiguous or ring caches.

Flash attention (Dao 2023, arXiv:2307.08691): tiles of queries walk over tiles of keys with a running maximum and sum.
A tile's rows are (token, head of one KV group), so that grouped heads share the keys they read; keys are read from
the cache, where the chunk's own keys were appended before. Tiles that no query of the tile may see are never visited.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import (
    IS_INTERPRETED,
    model_dtypes,
    need,
    need_cache,
    need_device,
    need_rows,
    need_same_shape,
    need_tensor,
)
from kernels.configs import padded
from kernels.paging import load_block_ids, load_rows, need_block_table
from kernels.prefill_plan import PrefillPlan


@triton.jit
def _masked_tile(i, n_sink_tiles, left_tile, n_left_tiles, diagonal_tile, WINDOWED: tl.constexpr):
    """The i-th key tile that needs a mask: first those of the sinks, then the window's left edge, then the diagonal."""
    if WINDOWED:
        n_before = n_sink_tiles + n_left_tiles
        inner = tl.where(i < n_sink_tiles, i, left_tile + i - n_sink_tiles)
        return tl.where(i < n_before, inner, diagonal_tile + i - n_before)
    return diagonal_tile + i


@triton.jit
def prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    work_ptr,
    q_starts_ptr,
    kv_lens_ptr,
    table_ptr,
    scale_log2,
    window,
    n_sinks,
    sink_blocks,
    ring_blocks,
    q_stride_token,
    q_stride_head,
    out_stride_token,
    out_stride_head,
    k_stride_block,
    k_stride_token,
    k_stride_head,
    v_stride_block,
    v_stride_token,
    v_stride_head,
    table_stride,
    N_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGED: tl.constexpr,
    WINDOWED: tl.constexpr,
    RING: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of queries of one KV head against every key tile it may see."""
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0) % N_KV_HEADS
    tile = tl.program_id(0) // N_KV_HEADS
    seq = tl.load(work_ptr + 2 * tile)
    first_token = tl.load(work_ptr + 2 * tile + 1)
    q_start = tl.load(q_starts_ptr + seq)
    q_len = tl.load(q_starts_ptr + seq + 1) - q_start
    kv_len = tl.load(kv_lens_ptr + seq)
    first_pos = kv_len - q_len + first_token  # position of the tile's first query
    stop_pos = tl.minimum(first_pos + TOKENS, kv_len)  # no query of the tile sees keys from here on

    row = tl.arange(0, BLOCK_M)
    channel = tl.arange(0, D_PAD)
    token = first_token + row // GROUP
    is_row = (row < TOKENS * GROUP) & (token < q_len)
    is_element = is_row[:, None] & (channel[None, :] < D)
    head = kv_head * GROUP + row % GROUP
    position = first_pos + row // GROUP
    q_row = (q_start + token).to(tl.int64) * q_stride_token + head * q_stride_head
    q = tl.load(q_ptr + q_row[:, None] + channel[None, :], mask=is_element, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)

    # Key tiles: [sinks] ... [left edge | seen by every query | diagonal]
    stop_tile = tl.cdiv(stop_pos, BLOCK_N)
    if WINDOWED:
        first_key = tl.maximum(first_pos - window + 1, 0)
        left_tile = first_key // BLOCK_N
        n_sink_tiles = tl.minimum(tl.cdiv(n_sinks, BLOCK_N), left_tile)
        full_tile = tl.minimum(tl.cdiv(tl.maximum(stop_pos - window, 0), BLOCK_N), stop_tile)
        full_tile = tl.maximum(full_tile, left_tile)
    else:
        first_key = 0
        left_tile = 0
        n_sink_tiles = 0
        full_tile = 0
    diagonal_tile = tl.maximum((first_pos + 1) // BLOCK_N, full_tile)
    n_left_tiles = full_tile - left_tile
    n_masked = n_sink_tiles + n_left_tiles + stop_tile - diagonal_tile

    k_ptr += kv_head * k_stride_head
    v_ptr += kv_head * v_stride_head
    table_ptr += seq.to(tl.int64) * table_stride
    lane = tl.arange(0, BLOCK_N)
    block_ids = tl.load(table_ptr)  # the whole extent, when contiguous
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D_PAD], tl.float32)

    # Block ids are loaded one tile ahead: a load that feeds an address within the loop halves the pipeline.
    keys = full_tile * BLOCK_N + lane
    if PAGED:
        block_ids = load_block_ids(table_ptr, keys, keys < stop_pos, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)
    for _ in range(full_tile, diagonal_tile):
        k = load_rows(
            k_ptr, block_ids, keys, keys >= 0, k_stride_block, k_stride_token, BLOCK_TOKENS, D, D_PAD, PAGED, False
        )
        v = load_rows(
            v_ptr, block_ids, keys, keys >= 0, v_stride_block, v_stride_token, BLOCK_TOKENS, D, D_PAD, PAGED, False
        )
        keys += BLOCK_N
        if PAGED:
            block_ids = load_block_ids(table_ptr, keys, keys < stop_pos, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        now_highest = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
        shrink = tl.exp2(highest - now_highest)
        weights = tl.exp2(scores * scale_log2 - now_highest[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        highest = now_highest

    keys = _masked_tile(0, n_sink_tiles, left_tile, n_left_tiles, diagonal_tile, WINDOWED) * BLOCK_N + lane
    is_key = (keys < stop_pos) & ((keys >= first_key) | (keys < n_sinks))
    if PAGED:
        block_ids = load_block_ids(table_ptr, keys, is_key, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)
    for i in range(n_masked):
        k = load_rows(
            k_ptr, block_ids, keys, is_key, k_stride_block, k_stride_token, BLOCK_TOKENS, D, D_PAD, PAGED, True
        )
        v = load_rows(
            v_ptr, block_ids, keys, is_key, v_stride_block, v_stride_token, BLOCK_TOKENS, D, D_PAD, PAGED, True
        )
        is_seen = is_row[:, None] & (keys[None, :] <= position[:, None])
        if WINDOWED:
            is_seen &= (keys[None, :] > position[:, None] - window) | (keys[None, :] < n_sinks)
        keys = _masked_tile(i + 1, n_sink_tiles, left_tile, n_left_tiles, diagonal_tile, WINDOWED) * BLOCK_N + lane
        is_key = (keys < stop_pos) & ((keys >= first_key) | (keys < n_sinks))
        if PAGED:
            block_ids = load_block_ids(table_ptr, keys, is_key, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(is_seen, scores * scale_log2, float("-inf"))
        now_highest = tl.maximum(highest, tl.max(scores, 1))
        reference = tl.where(now_highest == float("-inf"), 0.0, now_highest)  # a row that has seen nothing yet
        shrink = tl.exp2(highest - reference)
        weights = tl.exp2(scores - reference[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        highest = now_highest

    acc = acc / tl.where(is_row, total, 1.0)[:, None]
    out_row = (q_start + token).to(tl.int64) * out_stride_token + head * out_stride_head
    tl.store(out_ptr + out_row[:, None] + channel[None, :], acc.to(out_ptr.dtype.element_ty), mask=is_element)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    plan: PrefillPlan,
    *,
    scale: float | None = None,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,
) -> Tensor:
    """Causal attention of new tokens over the cached context and themselves.

    Query ``i`` of a sequence stands at position ``kv_len - q_len + i``. The new tokens' keys and values must already
    be in the cache (``kv_append``).

    Parameters
    ----------
    q : Tensor, shape (n_tokens, n_heads, head_dim), bf16 or fp16
        The chunks' queries one after another; ``n_tokens = sum(plan.q_lens)``. Channels contiguous.
    k_cache, v_cache : Tensor, shape (n_blocks, block_tokens, n_kv_heads, head_dim), dtype of q
        Channels contiguous.
    block_table : Tensor, shape (n_seqs, n_columns), int32
        Blocks of each sequence in order; a single column means contiguous extents.
    plan : PrefillPlan
        Lengths, window and tiles.
    scale : float, optional
        Of the scores before the softmax, ``head_dim ** -0.5`` unless told; > 0.
    ring_blocks : int, optional
        The table is a ring: the sinks' blocks, then this many written round and round.
    out : Tensor, optional
        Like q; allocated unless given.
    check_ids : bool
        Look at the block ids (waits for the device); switch off inside CUDA graphs.

    Returns
    -------
    Tensor, shape (n_tokens, n_heads, head_dim)

    Raises
    ------
    ValueError
        Naming the argument.
    """
    n_heads, head_dim, config = plan.n_heads, plan.head_dim, plan.tiles
    need_tensor("q", q, (sum(plan.q_lens), n_heads, head_dim), model_dtypes())
    need_rows("q", q)
    need_cache("k_cache", k_cache, head_dim, q.dtype)
    need_cache("v_cache", v_cache, head_dim, q.dtype)
    need(k_cache.shape[2] == plan.n_kv_heads, f"k_cache must have {plan.n_kv_heads} KV heads, got {k_cache.shape[2]}")
    need_same_shape(k_cache=k_cache, v_cache=v_cache)
    need_block_table(block_table, plan.kv_lens, plan.first_keys(), plan.n_sinks, k_cache, ring_blocks, check_ids)
    scale = head_dim**-0.5 if scale is None else scale
    need(scale > 0, f"scale must be > 0, got {scale}")
    out = torch.empty_like(q) if out is None else out
    need_tensor("out", out, tuple(q.shape), (q.dtype,))
    need_rows("out", out)
    need_device(q=q, k_cache=k_cache, v_cache=v_cache, block_table=block_table, out=out, plan=plan.work)
    if len(plan.work) == 0:
        return out

    is_paged = block_table.shape[1] > 1 or ring_blocks is not None
    prefill_kernel[(len(plan.work) * plan.n_kv_heads,)](
        q,
        k_cache,
        v_cache,
        out,
        plan.work,
        plan.q_starts,
        plan.kv_lens_device,
        block_table,
        scale * math.log2(math.e),
        plan.window or 0,
        plan.n_sinks,
        -(-plan.n_sinks // k_cache.shape[1]),
        ring_blocks or 1,
        *q.stride()[:2],
        *out.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        block_table.stride(0),
        N_KV_HEADS=plan.n_kv_heads,
        GROUP=n_heads // plan.n_kv_heads,
        BLOCK_TOKENS=k_cache.shape[1] if is_paged else 1,
        D=head_dim,
        D_PAD=padded(head_dim),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        PAGED=is_paged,
        WINDOWED=plan.window is not None,
        RING=ring_blocks is not None,
        UPCAST=IS_INTERPRETED and q.dtype == torch.bfloat16,
        num_warps=config.n_warps,
        num_stages=config.n_stages,
    )
    return out

"""Attention of one new token a sequence over paged, contiguous or ring caches.

Flash-Decoding (Dao et al. 2023): long sequences are cut into pieces read by different programs, and a second kernel
adds the pieces up by their log-sum-exp. The query heads of one KV head are packed into the rows of a tile, so the KV
is read once. Keys are numbered as the plan numbers them: sinks, then window, without gaps.
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
from kernels.decode_plan import DecodePlan
from kernels.paging import load_block_ids, load_rows, need_block_table


@triton.jit
def attended_position(index, kv_len, window, n_sinks, WINDOWED: tl.constexpr):
    """Position in the sequence of the index-th key that its query attends to."""
    if WINDOWED:
        first = tl.maximum(kv_len - window, 0)
        sinks = tl.minimum(n_sinks, first)
        return tl.where(index < sinks, index, index + first - sinks)
    return index


@triton.jit
def store_piece(
    acc,
    total,
    highest,
    part,
    seq,
    head,
    channel,
    is_head,
    is_channel,
    out_ptr,
    out_stride_seq,
    out_stride_head,
    part_out_ptr,
    part_lse_ptr,
    N_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Write a piece's output: the answer itself, or a partial one with the log2 of its sum of exponentials."""
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    is_element = is_head[:, None] & is_channel[None, :]
    out = out_ptr + seq.to(tl.int64) * out_stride_seq + head[:, None] * out_stride_head + channel[None, :]
    if SPLIT:
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=is_element & (part < 0))
        rows = part.to(tl.int64) * N_HEADS + head
        tl.store(part_out_ptr + rows[:, None] * HEAD_DIM + channel[None, :], acc, mask=is_element & (part >= 0))
        tl.store(part_lse_ptr + rows, highest + tl.log2(tl.where(total > 0, total, 1.0)), mask=is_head & (part >= 0))
    else:
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=is_element)


@triton.jit
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    part_out_ptr,
    part_lse_ptr,
    work_ptr,
    kv_lens_ptr,
    table_ptr,
    scale_log2,
    window,
    n_sinks,
    sink_blocks,
    ring_blocks,
    q_stride_seq,
    q_stride_head,
    out_stride_seq,
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
    SPLIT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One piece of one sequence's KV, of one KV head."""
    kv_head = tl.program_id(0) % N_KV_HEADS
    work = work_ptr + 4 * (tl.program_id(0) // N_KV_HEADS)
    seq = tl.load(work)
    if seq >= 0:
        start = tl.load(work + 1)
        stop = tl.load(work + 2)
        part = tl.load(work + 3)
        kv_len = tl.load(kv_lens_ptr + seq)

        row = tl.arange(0, BLOCK_M)
        channel = tl.arange(0, D_PAD)
        is_head = row < GROUP
        is_channel = channel < D
        head = kv_head * GROUP + row
        q_row = seq.to(tl.int64) * q_stride_seq + head * q_stride_head
        q = tl.load(q_ptr + q_row[:, None] + channel[None, :], mask=is_head[:, None] & is_channel[None, :], other=0.0)
        if UPCAST:
            q = q.to(tl.float32)

        k_head = k_ptr + kv_head * k_stride_head
        v_head = v_ptr + kv_head * v_stride_head
        table_row = table_ptr + seq.to(tl.int64) * table_stride
        index = start + tl.arange(0, BLOCK_N)
        keys = attended_position(index, kv_len, window, n_sinks, WINDOWED)
        if PAGED:
            block_ids = load_block_ids(table_row, keys, index < stop, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)
        else:
            block_ids = tl.load(table_row, mask=start < stop, other=0)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, D_PAD], tl.float32)
        for _ in range(start, stop, BLOCK_N):
            is_key = index < stop
            k = load_rows(
                k_head, block_ids, keys, is_key, k_stride_block, k_stride_token, BLOCK_TOKENS, D, D_PAD, PAGED, True
            )
            v = load_rows(
                v_head, block_ids, keys, is_key, v_stride_block, v_stride_token, BLOCK_TOKENS, D, D_PAD, PAGED, True
            )
            # Block ids are loaded one tile ahead: a load that feeds an address within the loop halves the pipeline.
            index += BLOCK_N
            keys = attended_position(index, kv_len, window, n_sinks, WINDOWED)
            if PAGED:
                block_ids = load_block_ids(table_row, keys, index < stop, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)
            if UPCAST:
                k = k.to(tl.float32)
                v = v.to(tl.float32)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            scores = tl.where(is_key[None, :], scores * scale_log2, float("-inf"))
            now_highest = tl.maximum(highest, tl.max(scores, 1))
            shrink = tl.exp2(highest - now_highest)
            weights = tl.exp2(scores - now_highest[:, None])
            total = total * shrink + tl.sum(weights, 1)
            acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
            highest = now_highest

        store_piece(
            acc,
            total,
            highest,
            part,
            seq,
            head,
            channel,
            is_head,
            is_channel,
            out_ptr,
            out_stride_seq,
            out_stride_head,
            part_out_ptr,
            part_lse_ptr,
            N_KV_HEADS * GROUP,
            D,
            SPLIT,
        )


@triton.jit
def reduce_kernel(
    part_out_ptr,
    part_lse_ptr,
    part_starts_ptr,
    out_ptr,
    out_stride_seq,
    out_stride_head,
    N_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add up the pieces of one sequence and head, ``PARTS`` at a time; nothing to do where there is one piece."""
    seq = tl.program_id(0) // N_HEADS
    head = tl.program_id(0) % N_HEADS
    start = tl.load(part_starts_ptr + seq)
    stop = tl.load(part_starts_ptr + seq + 1)
    if stop > start:
        channel = tl.arange(0, D_PAD)
        highest = float("-inf")
        total = 0.0
        acc = tl.zeros([D_PAD], tl.float32)
        for first in range(start, stop, PARTS):
            part = first + tl.arange(0, PARTS)
            row = part.to(tl.int64) * N_HEADS + head
            lse = tl.load(part_lse_ptr + row, mask=part < stop, other=float("-inf"))
            is_element = (part < stop)[:, None] & (channel < D)[None, :]
            piece = tl.load(part_out_ptr + row[:, None] * D + channel[None, :], mask=is_element, other=0.0)
            now_highest = tl.maximum(highest, tl.max(lse, 0))
            shrink = tl.exp2(highest - now_highest)
            weight = tl.exp2(lse - now_highest)
            total = total * shrink + tl.sum(weight, 0)
            acc = acc * shrink + tl.sum(weight[:, None] * piece, 0)
            highest = now_highest
        out = out_ptr + seq.to(tl.int64) * out_stride_seq + head * out_stride_head + channel
        tl.store(out, (acc / total).to(out_ptr.dtype.element_ty), mask=channel < D)


def reduce_pieces(plan: DecodePlan, out: Tensor) -> None:
    """Add up the partial outputs of a plan's split sequences into ``out``, shape (n_seqs, n_heads, head_dim)."""
    reduce_kernel[(len(plan.kv_lens) * plan.n_heads,)](
        plan.part_out,
        plan.part_lse,
        plan.part_starts,
        out,
        *out.stride()[:2],
        N_HEADS=plan.n_heads,
        D=plan.head_dim,
        D_PAD=padded(plan.head_dim),
        PARTS=16,
        num_warps=4,
    )


def need_queries(q: Tensor, out: Tensor, plan: DecodePlan) -> None:
    """Refuse queries and outputs that do not fit a plan."""
    shape = (len(plan.kv_lens), plan.n_heads, plan.head_dim)
    need_tensor("q", q, shape, model_dtypes())
    need_tensor("out", out, shape, (q.dtype,))
    need_rows("q", q)
    need_rows("out", out)
    need_device(q=q, out=out, plan=plan.work)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    plan: DecodePlan,
    *,
    scale: float | None = None,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,
) -> Tensor:
    """Attention of one query a sequence, at position ``kv_len - 1``, over the cache.

    The query's own key and value must already be in the cache (``kv_append``). With a plan made for a fixed grid the
    launch can be captured in a CUDA graph (give ``out`` and ``check_ids=False``) and replayed after ``plan.refill``.

    Parameters
    ----------
    q : Tensor, shape (n_seqs, n_heads, head_dim), bf16 or fp16
        Channels contiguous.
    k_cache, v_cache : Tensor, shape (n_blocks, block_tokens, n_kv_heads, head_dim), dtype of q
        Channels contiguous.
    block_table : Tensor, shape (n_seqs, n_columns), int32
        Blocks of each sequence in order; a single column means contiguous extents.
    plan : DecodePlan
        Lengths, window and pieces. Its partial buffers are written: one launch at a time per plan.
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
    Tensor, shape (n_seqs, n_heads, head_dim)
        Zeros for sequences without keys.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    out = torch.empty_like(q) if out is None else out
    need_queries(q, out, plan)
    need_cache("k_cache", k_cache, plan.head_dim, q.dtype)
    need_cache("v_cache", v_cache, plan.head_dim, q.dtype)
    need(k_cache.shape[2] == plan.n_kv_heads, f"k_cache must have {plan.n_kv_heads} KV heads, got {k_cache.shape[2]}")
    need_same_shape(k_cache=k_cache, v_cache=v_cache)
    need_device(q=q, k_cache=k_cache, v_cache=v_cache, block_table=block_table)
    need_block_table(block_table, plan.kv_lens, plan.first_keys(), plan.n_sinks, k_cache, ring_blocks, check_ids)
    scale = plan.head_dim**-0.5 if scale is None else scale
    need(scale > 0, f"scale must be > 0, got {scale}")

    group = plan.n_heads // plan.n_kv_heads
    is_paged = block_table.shape[1] > 1 or ring_blocks is not None
    decode_kernel[(len(plan.work) * plan.n_kv_heads,)](
        q,
        k_cache,
        v_cache,
        out,
        plan.part_out,
        plan.part_lse,
        plan.work,
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
        GROUP=group,
        BLOCK_TOKENS=k_cache.shape[1] if is_paged else 1,
        D=plan.head_dim,
        D_PAD=padded(plan.head_dim),
        BLOCK_M=max(plan.tiles.block_m, padded(group)),
        BLOCK_N=plan.tiles.block_n,
        PAGED=is_paged,
        WINDOWED=plan.window is not None,
        RING=ring_blocks is not None,
        SPLIT=plan.is_split,
        UPCAST=IS_INTERPRETED and q.dtype == torch.bfloat16,
        num_warps=plan.tiles.n_warps,
        num_stages=plan.tiles.n_stages,
    )
    if plan.is_split:
        reduce_pieces(plan, out)
    return out

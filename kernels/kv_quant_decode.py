"""Attention of one new token a sequence over a cache of 8- or 4-bit codes.

The decode attention of ``kernels.decode_attention`` with a factored dequantisation: codes go to the tensor cores as
they are, scales and lowest values are applied to scores and weights, one multiplication a key instead of one an
element. Channels come in two halves, the two nibbles of a byte when there are 4 bits.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import IS_INTERPRETED, need, need_device, need_same_shape
from kernels.configs import QUANT_DECODE, padded, tiles
from kernels.decode_attention import attended_position, need_queries, reduce_pieces, store_piece
from kernels.decode_plan import DecodePlan
from kernels.kv_quant import need_codes
from kernels.paging import load_block_ids, need_block_table


@triton.jit
def load_codes(codes_ptr, row, is_key, HALF: tl.constexpr, HALF_PAD: tl.constexpr, BITS: tl.constexpr):
    """Both halves (n_keys, HALF_PAD) of some rows' codes; zeros where ``is_key`` is false."""
    channel = tl.arange(0, HALF_PAD)
    is_code = is_key[:, None] & (channel < HALF)[None, :]
    address = codes_ptr + (row * (2 * HALF * BITS // 8))[:, None] + channel[None, :]
    first = tl.load(address, mask=is_code, other=0)
    if BITS == 4:
        return first & 15, first >> 4
    return first, tl.load(address + HALF, mask=is_code, other=0)


@triton.jit
def load_params(params_ptr, row, is_key):
    """Scale and lowest value of some rows, fp32; both in one 4-byte word."""
    word = tl.load(params_ptr + row, mask=is_key, other=0)
    step = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    low = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return step.to(tl.float32), low.to(tl.float32)


@triton.jit
def quant_decode_kernel(
    q_ptr,
    k_codes_ptr,
    k_params_ptr,
    v_codes_ptr,
    v_params_ptr,
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
    table_stride,
    N_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
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

        group_row = tl.arange(0, BLOCK_M)
        channel = tl.arange(0, HALF_PAD)
        is_head = group_row < GROUP
        is_channel = channel < HALF
        head = kv_head * GROUP + group_row
        q_at = q_ptr + (seq.to(tl.int64) * q_stride_seq + head * q_stride_head)[:, None] + channel[None, :]
        is_q = is_head[:, None] & is_channel[None, :]
        q_first = tl.load(q_at, mask=is_q, other=0.0)
        q_second = tl.load(q_at + HALF, mask=is_q, other=0.0)
        if UPCAST:
            q_first = q_first.to(tl.float32)
            q_second = q_second.to(tl.float32)
        q_sum = tl.sum(q_first.to(tl.float32), 1) + tl.sum(q_second.to(tl.float32), 1)  # times a key's lowest value

        table_row = table_ptr + seq.to(tl.int64) * table_stride
        index = start + tl.arange(0, BLOCK_N)
        keys = attended_position(index, kv_len, window, n_sinks, WINDOWED)
        block_ids = load_block_ids(table_row, keys, index < stop, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        lows = tl.zeros([BLOCK_M], tl.float32)  # weighted sum of the values' lowest, the same for every channel
        acc_first = tl.zeros([BLOCK_M, HALF_PAD], tl.float32)
        acc_second = tl.zeros([BLOCK_M, HALF_PAD], tl.float32)
        for _ in range(start, stop, BLOCK_N):
            is_key = index < stop
            row = (block_ids.to(tl.int64) * BLOCK_TOKENS + keys % BLOCK_TOKENS) * N_KV_HEADS + kv_head
            k_first, k_second = load_codes(k_codes_ptr, row, is_key, HALF, HALF_PAD, BITS)
            v_first, v_second = load_codes(v_codes_ptr, row, is_key, HALF, HALF_PAD, BITS)
            k_step, k_low = load_params(k_params_ptr, row, is_key)
            v_step, v_low = load_params(v_params_ptr, row, is_key)
            # Block ids are loaded one tile ahead: a load that feeds an address within the loop halves the pipeline.
            index += BLOCK_N
            keys = attended_position(index, kv_len, window, n_sinks, WINDOWED)
            block_ids = load_block_ids(table_row, keys, index < stop, sink_blocks, ring_blocks, BLOCK_TOKENS, RING)

            scores = tl.dot(q_first, tl.trans(k_first.to(q_first.dtype)), input_precision="ieee")
            scores = tl.dot(q_second, tl.trans(k_second.to(q_first.dtype)), scores, input_precision="ieee")
            scores = (scores * k_step[None, :] + q_sum[:, None] * k_low[None, :]) * scale_log2
            scores = tl.where(is_key[None, :], scores, float("-inf"))
            now_highest = tl.maximum(highest, tl.max(scores, 1))
            shrink = tl.exp2(highest - now_highest)
            weights = tl.exp2(scores - now_highest[:, None])
            total = total * shrink + tl.sum(weights, 1)
            lows = lows * shrink + tl.sum(weights * v_low[None, :], 1)
            scaled = (weights * v_step[None, :]).to(q_first.dtype)
            acc_first = tl.dot(scaled, v_first.to(q_first.dtype), acc_first * shrink[:, None], input_precision="ieee")
            acc_second = tl.dot(
                scaled, v_second.to(q_first.dtype), acc_second * shrink[:, None], input_precision="ieee"
            )
            highest = now_highest

        acc_first += lows[:, None]
        acc_second += lows[:, None]
        store_piece(
            acc_first,
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
            2 * HALF,
            SPLIT,
        )
        store_piece(
            acc_second,
            total,
            highest,
            part,
            seq,
            head,
            channel + HALF,
            is_head,
            is_channel,
            out_ptr,
            out_stride_seq,
            out_stride_head,
            part_out_ptr,
            part_lse_ptr,
            N_KV_HEADS * GROUP,
            2 * HALF,
            SPLIT,
        )


def quant_decode_attention(
    q: Tensor,
    k_codes: Tensor,
    k_params: Tensor,
    v_codes: Tensor,
    v_params: Tensor,
    block_table: Tensor,
    plan: DecodePlan,
    *,
    bits: int,
    scale: float | None = None,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,
) -> Tensor:
    """Attention of one query a sequence, at position ``kv_len - 1``, over a quantised cache.

    Parameters
    ----------
    q : Tensor, shape (n_seqs, n_heads, head_dim), bf16 or fp16
        Channels contiguous.
    k_codes, v_codes : Tensor, shape (n_blocks, block_tokens, n_kv_heads, head_dim * bits / 8), uint8, contiguous
    k_params, v_params : Tensor, shape (n_blocks, block_tokens, n_kv_heads, 2), float16, contiguous
        As ``kernels.kv_quant`` writes them.
    block_table, plan, scale, ring_blocks, out, check_ids
        As in ``kernels.decode_attention``.
    bits : int
        8 or 4.

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
    need_codes("k", k_codes, k_params, plan.n_kv_heads, plan.head_dim, bits)
    need_codes("v", v_codes, v_params, plan.n_kv_heads, plan.head_dim, bits)
    need_same_shape(k_codes=k_codes, v_codes=v_codes)
    need_device(q=q, k_codes=k_codes, k_params=k_params, v_codes=v_codes, v_params=v_params, block_table=block_table)
    need_block_table(block_table, plan.kv_lens, plan.first_keys(), plan.n_sinks, k_codes, ring_blocks, check_ids)
    scale = plan.head_dim**-0.5 if scale is None else scale
    need(scale > 0, f"scale must be > 0, got {scale}")

    group = plan.n_heads // plan.n_kv_heads
    half = plan.head_dim // 2
    config = tiles(QUANT_DECODE, q.device, plan.head_dim)  # pieces may end anywhere, so the plan's need not agree
    quant_decode_kernel[(len(plan.work) * plan.n_kv_heads,)](
        q,
        k_codes,
        k_params.view(torch.int32),
        v_codes,
        v_params.view(torch.int32),
        out,
        plan.part_out,
        plan.part_lse,
        plan.work,
        plan.kv_lens_device,
        block_table,
        scale * math.log2(math.e),
        plan.window or 0,
        plan.n_sinks,
        -(-plan.n_sinks // k_codes.shape[1]),
        ring_blocks or 1,
        *q.stride()[:2],
        *out.stride()[:2],
        block_table.stride(0),
        N_KV_HEADS=plan.n_kv_heads,
        GROUP=group,
        BLOCK_TOKENS=k_codes.shape[1],
        HALF=half,
        HALF_PAD=padded(half),
        BITS=bits,
        BLOCK_M=max(config.block_m, padded(group)),
        BLOCK_N=config.block_n,
        WINDOWED=plan.window is not None,
        RING=ring_blocks is not None,
        SPLIT=plan.is_split,
        UPCAST=IS_INTERPRETED and q.dtype == torch.bfloat16,
        num_warps=config.n_warps,
        num_stages=config.n_stages,
    )
    if plan.is_split:
        reduce_pieces(plan, out)
    return out

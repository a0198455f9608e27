"""Quantise keys or values into a cache of 8- or 4-bit codes.

Asymmetric rounding to nearest, one scale and one lowest value for each token and KV head, as KIVI does for values (Liu
et al. 2024, arXiv:2402.02750). With 4 bits, byte ``j`` holds channel ``j`` in its low nibble and channel
``j + head_dim / 2`` in its high one, so that unpacking needs no shuffle. Scale and lowest value are fp16: an element
costs ``bits + 32 / head_dim`` bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import HEAD_DIMS, model_dtypes, need, need_device, need_ids, need_rows, need_tensor

BITS = (4, 8)
ROWS = 16  # of one program


@triton.jit
def quantise_kernel(
    x_ptr,
    codes_ptr,
    params_ptr,
    slots_ptr,
    from_slots_ptr,
    n_rows,
    x_stride_token,
    N_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    GATHER: tl.constexpr,
):
    """Some rows, a row being one KV head of one token; its channels in two halves."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, HALF_PAD)
    token = row // N_KV_HEADS
    head = row % N_KV_HEADS
    slot = tl.load(slots_ptr + token, mask=row < n_rows, other=-1)
    source = token.to(tl.int64)
    if GATHER:
        source = tl.load(from_slots_ptr + token, mask=slot >= 0, other=0)
    is_element = (slot >= 0)[:, None] & (channel < HALF)[None, :]
    x = x_ptr + (source * x_stride_token + head * 2 * HALF)[:, None] + channel[None, :]
    first = tl.load(x, mask=is_element, other=0.0).to(tl.float32)
    second = tl.load(x + HALF, mask=is_element, other=0.0).to(tl.float32)

    LEVELS: tl.constexpr = 2**BITS - 1
    least = tl.minimum(tl.where(is_element, first, float("inf")), tl.where(is_element, second, float("inf")))
    most = tl.maximum(tl.where(is_element, first, float("-inf")), tl.where(is_element, second, float("-inf")))
    low = tl.where(slot >= 0, tl.min(least, 1), 0.0).to(tl.float16)
    high = tl.where(slot >= 0, tl.max(most, 1), 0.0)
    step = ((high - low.to(tl.float32)) / LEVELS).to(tl.float16)
    divisor = tl.where(step == 0.0, 1.0, step.to(tl.float32))[:, None]
    base = low.to(tl.float32)[:, None]
    first = tl.minimum(tl.maximum(tl.floor((first - base) / divisor + 0.5), 0.0), LEVELS).to(tl.int32)
    second = tl.minimum(tl.maximum(tl.floor((second - base) / divisor + 0.5), 0.0), LEVELS).to(tl.int32)

    target = slot * N_KV_HEADS + head
    codes = codes_ptr + (target * (2 * HALF * BITS // 8))[:, None] + channel[None, :]
    if BITS == 4:
        tl.store(codes, (first | (second << 4)).to(tl.uint8), mask=is_element)
    else:
        tl.store(codes, first.to(tl.uint8), mask=is_element)
        tl.store(codes + HALF, second.to(tl.uint8), mask=is_element)
    tl.store(params_ptr + 2 * target, step, mask=slot >= 0)
    tl.store(params_ptr + 2 * target + 1, low, mask=slot >= 0)


def need_codes(name: str, codes: Tensor, params: Tensor, n_kv_heads: int, head_dim: int, bits: int) -> None:
    """Refuse a quantised cache that is not codes and params of the same blocks, contiguous."""
    need(bits in BITS, f"bits must be in {BITS}, got {bits}")
    n_bytes = head_dim * bits // 8
    need_tensor(f"{name}_codes", codes, ("n_blocks", "block_tokens", n_kv_heads, n_bytes), (torch.uint8,))
    need_tensor(f"{name}_params", params, (*codes.shape[:3], 2), (torch.float16,))
    need_rows(f"{name}_codes", codes, 4)
    need_rows(f"{name}_params", params, 4)


def kv_quantise(
    x: Tensor,
    codes: Tensor,
    params: Tensor,
    slots: Tensor,
    *,
    bits: int,
    from_slots: Tensor | None = None,
    check_ids: bool = True,
) -> None:
    """Quantise tokens' keys (or values) and write them at their slots of a quantised cache.

    Parameters
    ----------
    x : Tensor, shape (n_rows, n_kv_heads, head_dim), bf16 or fp16
        New tokens or, with ``from_slots``, an unquantised cache seen as slots. Heads and channels contiguous.
    codes : Tensor, shape (n_blocks, block_tokens, n_kv_heads, head_dim * bits / 8), uint8, contiguous
    params : Tensor, shape (n_blocks, block_tokens, n_kv_heads, 2), float16, contiguous
        Scale and lowest value of each row: a code stands for ``code * scale + lowest``.
    slots : Tensor, shape (n_tokens,), int64
        Where each token goes; -1 for padding. No slot twice.
    bits : int
        8 or 4.
    from_slots : Tensor, optional, shape (n_tokens,), int64
        Row of x each token is read from; token ``i`` is row ``i`` unless given.
    check_ids : bool
        Look at the slots (waits for the device); switch off inside CUDA graphs.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_tensor("x", x, ("n_rows", "n_kv_heads", "head_dim"), model_dtypes())
    need_rows("x", x, 2)
    n_rows, n_kv_heads, head_dim = x.shape
    need(head_dim in HEAD_DIMS, f"x must have head_dim in {HEAD_DIMS}, got {head_dim}")
    need_codes("x", codes, params, n_kv_heads, head_dim, bits)
    need_tensor("slots", slots, ("n_tokens",) if from_slots is not None else (n_rows,), (torch.int64,))
    need_rows("slots", slots)
    if from_slots is not None:
        need_tensor("from_slots", from_slots, tuple(slots.shape), (torch.int64,))
        need_rows("from_slots", from_slots)
        need_device(x=x, from_slots=from_slots)
    need_device(x=x, codes=codes, params=params, slots=slots)
    if check_ids:
        need_ids("slots", slots, codes.shape[0] * codes.shape[1], lowest=-1)
        if from_slots is not None:
            need_ids("from_slots", from_slots[slots >= 0], n_rows)
    if slots.numel() == 0:
        return

    n_work = len(slots) * n_kv_heads
    quantise_kernel[(triton.cdiv(n_work, ROWS),)](
        x,
        codes,
        params,
        slots,
        slots if from_slots is None else from_slots,
        n_work,
        x.stride(0),
        N_KV_HEADS=n_kv_heads,
        HALF=head_dim // 2,
        HALF_PAD=triton.next_power_of_2(head_dim // 2),
        BITS=bits,
        ROWS=ROWS,
        GATHER=from_slots is not None,
        num_warps=4,
    )

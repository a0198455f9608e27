"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of queries and keys, in place, halves convention."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import HEAD_DIMS, model_dtypes, need, need_device, need_ids, need_rows, need_tensor
from kernels.configs import padded


@triton.jit
def rope_kernel(
    x_ptr,
    positions_ptr,
    cos_sin_ptr,
    stride_token,
    stride_head,
    N_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
):
    """Some heads of one token: channel ``j`` and channel ``j + HALF`` turn together."""
    token = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    channel = tl.arange(0, HALF_PAD)
    is_channel = channel < HALF
    is_element = (head < N_HEADS)[:, None] & is_channel[None, :]
    angles = cos_sin_ptr + tl.load(positions_ptr + token) * (2 * HALF) + channel
    cos = tl.load(angles, mask=is_channel, other=0.0)[None, :]
    sin = tl.load(angles + HALF, mask=is_channel, other=0.0)[None, :]
    at = x_ptr + token.to(tl.int64) * stride_token + (head * stride_head)[:, None] + channel[None, :]
    first = tl.load(at, mask=is_element, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=is_element, other=0.0).to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(x_ptr.dtype.element_ty), mask=is_element)
    tl.store(at + HALF, (second * cos + first * sin).to(x_ptr.dtype.element_ty), mask=is_element)


def rope(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, check_ids: bool = True) -> None:
    """Rotate q and k in place by their tokens' positions.

    Parameters
    ----------
    q : Tensor, shape (n_tokens, n_heads, head_dim), bf16 or fp16
    k : Tensor, shape (n_tokens, n_kv_heads, head_dim), dtype of q
        Channels contiguous; both may be slices of one QKV output.
    positions : Tensor, shape (n_tokens,), int64
    cos_sin : Tensor, shape (max_len, head_dim), float32, contiguous
        From ``kernels.angles``.
    check_ids : bool
        Look at the positions (waits for the device); switch off inside CUDA graphs.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_tensor("q", q, ("n_tokens", "n_heads", "head_dim"), model_dtypes())
    n_tokens, _, head_dim = q.shape
    need(head_dim in HEAD_DIMS, f"q must have head_dim in {HEAD_DIMS}, got {head_dim}")
    need_tensor("k", k, (n_tokens, "n_kv_heads", head_dim), (q.dtype,))
    need_tensor("positions", positions, (n_tokens,), (torch.int64,))
    need_tensor("cos_sin", cos_sin, ("max_len", head_dim), (torch.float32,))
    for name, tensor, n_dims in (("q", q, 1), ("k", k, 1), ("positions", positions, 1), ("cos_sin", cos_sin, 2)):
        need_rows(name, tensor, n_dims)
    need_device(q=q, k=k, positions=positions, cos_sin=cos_sin)
    if check_ids:
        need_ids("positions", positions, len(cos_sin))
    if n_tokens == 0:
        return

    half = head_dim // 2
    for x in (q, k):
        heads = min(16, triton.next_power_of_2(x.shape[1]))
        rope_kernel[(n_tokens, triton.cdiv(x.shape[1], heads))](
            x,
            positions,
            cos_sin,
            *x.stride()[:2],
            N_HEADS=x.shape[1],
            HEADS=heads,
            HALF=half,
            HALF_PAD=padded(half),
            num_warps=2,
        )

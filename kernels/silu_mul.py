"""The gate of a gated MLP: SiLU of one half of a row times the other (Shazeer 2020, arXiv:2002.05202)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import model_dtypes, need, need_device, need_rows, need_tensor

COLUMNS = 1024  # of one program


@triton.jit
def silu_mul_kernel(x_ptr, out_ptr, x_stride, out_stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Some columns of one token's row."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < WIDTH
    x = x_ptr + token * x_stride + column
    gate = tl.load(x, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(x + WIDTH, mask=is_column, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + token * out_stride + column, value.to(out_ptr.dtype.element_ty), mask=is_column)


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` of rows that hold gate and up side by side.

    Parameters
    ----------
    gate_up : Tensor, shape (n_tokens, 2 * width), bf16 or fp16
        Columns contiguous.
    out : Tensor, optional, shape (n_tokens, width)
        Allocated unless given.

    Returns
    -------
    Tensor, shape (n_tokens, width)

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_tensor("gate_up", gate_up, ("n_tokens", "2 * width"), model_dtypes())
    need(gate_up.shape[1] % 2 == 0, f"gate_up must have an even number of columns, got {gate_up.shape[1]}")
    n_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(n_tokens, width, dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    need_tensor("out", out, (n_tokens, width), (gate_up.dtype,))
    need_rows("gate_up", gate_up)
    need_rows("out", out)
    need_device(gate_up=gate_up, out=out)
    if out.numel() == 0:
        return out

    silu_mul_kernel[(n_tokens, triton.cdiv(width, COLUMNS))](
        gate_up, out, gate_up.stride(0), out.stride(0), WIDTH=width, COLUMNS=COLUMNS, num_warps=4
    )
    return out

"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), with the residual added on the way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import model_dtypes, need, need_device, need_rows, need_tensor


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    eps,
    x_stride,
    residual_stride,
    out_stride,
    WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """One token's row."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH_PAD)
    is_column = column < WIDTH
    x = tl.load(x_ptr + token * x_stride + column, mask=is_column, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = residual_ptr + token * residual_stride + column
        x += tl.load(at, mask=is_column, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)  # what later layers will read
        tl.store(at, rounded, mask=is_column)
        x = rounded.to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=is_column, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    tl.store(out_ptr + token * out_stride + column, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=is_column)


def rms_norm(
    x: Tensor, weight: Tensor, *, residual: Tensor | None = None, eps: float = 1e-6, out: Tensor | None = None
) -> Tensor:
    """Normalise each token's row, after adding it to the residual if there is one.

    Parameters
    ----------
    x : Tensor, shape (n_tokens, width), bf16 or fp16
        Columns contiguous.
    weight : Tensor, shape (width,), dtype of x
    residual : Tensor, optional, like x
        Becomes ``residual + x``, which is then normalised.
    eps : float
        Added to the mean square, > 0.
    out : Tensor, optional
        Like x; allocated unless given.

    Returns
    -------
    Tensor, shape (n_tokens, width)

    Raises
    ------
    ValueError
        Naming the argument.
    """
    out = torch.empty_like(x) if out is None else out
    need_tensor("x", x, ("n_tokens", "width"), model_dtypes())
    need_tensor("weight", weight, (x.shape[1],), (x.dtype,))
    need_rows("weight", weight)
    rows = {"x": x, "out": out} if residual is None else {"x": x, "out": out, "residual": residual}
    for name, tensor in rows.items():
        need_tensor(name, tensor, tuple(x.shape), (x.dtype,))
        need_rows(name, tensor)
    need(eps > 0, f"eps must be > 0, got {eps}")
    need_device(weight=weight, **rows)
    if len(x) == 0:
        return out

    extra = x if residual is None else residual
    width_pad = triton.next_power_of_2(x.shape[1])
    rms_norm_kernel[(len(x),)](
        x,
        extra,
        weight,
        out,
        eps,
        x.stride(0),
        extra.stride(0),
        out.stride(0),
        WIDTH=x.shape[1],
        WIDTH_PAD=width_pad,
        HAS_RESIDUAL=residual is not None,
        num_warps=min(16, max(1, width_pad // 512)),
    )
    return out

"""The dense parts of a decoder layer: matrix products left to torch, which hands them to cuBLAS."""

import torch
from torch import Tensor

from kernels.checks import model_dtypes, need_tensor


def dense_shapes(
    d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, d_ff: int, vocab: int, *, is_gated: bool = True
) -> dict[str, tuple[int, int]]:
    """Weight shapes (n_out, n_in) of a layer's products and of the head, by name.

    Examples
    --------
    >>> dense_shapes(4096, 32, 8, 128, 14336, 128256)["qkv"]
    (6144, 4096)
    """
    return {
        "qkv": ((n_heads + 2 * n_kv_heads) * head_dim, d_model),
        "output": (d_model, n_heads * head_dim),
        "gate_up" if is_gated else "up": ((2 if is_gated else 1) * d_ff, d_model),
        "down": (d_model, d_ff),
        "lm_head": (vocab, d_model),
    }


def dense(x: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T``.

    Parameters
    ----------
    x : Tensor, shape (n_tokens, n_in), bf16 or fp16
    weight : Tensor, shape (n_out, n_in), dtype of x
    out : Tensor, optional, shape (n_tokens, n_out)

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_tensor("x", x, ("n_tokens", "n_in"), model_dtypes())
    need_tensor("weight", weight, ("n_out", x.shape[1]), (x.dtype,))
    if out is not None:
        need_tensor("out", out, (len(x), len(weight)), (x.dtype,))
    return torch.mm(x, weight.T, out=out)

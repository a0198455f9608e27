"""What a launcher refuses: one line per rule, each message naming the argument."""

import os

import torch
from torch import Tensor

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors; Triton reads the variable when it decorates."""

HALF_DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 96, 128, 256)


def need(is_met: bool, message: str) -> None:
    """Refuse with ``message`` unless the rule is met.

    Raises
    ------
    ValueError
        Always this type, whatever is wrong.
    """
    if not is_met:
        raise ValueError(message)


def need_tensor(name: str, tensor: Tensor, dims: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a tensor of another rank, of other sizes where ``dims`` holds numbers, or of another dtype."""
    need(isinstance(tensor, Tensor), f"{name} must be a torch tensor, got {type(tensor).__name__}")
    shown = "(" + ", ".join(str(d) for d in dims) + ")"
    fits = tensor.ndim == len(dims) and all(
        isinstance(want, str) or want == got for want, got in zip(dims, tensor.shape, strict=True)
    )
    need(fits, f"{name} must have shape {shown}, got {tuple(tensor.shape)}")
    need(tensor.dtype in dtypes, f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {tensor.dtype}")


def need_rows(name: str, tensor: Tensor, n_dims: int = 1) -> None:
    """Refuse a tensor whose last ``n_dims`` dimensions do not lie side by side in memory."""
    want = 1
    for dim in range(1, n_dims + 1):
        if tensor.shape[-dim] != 1:
            need(
                tensor.stride(-dim) == want,
                f"{name} must be contiguous in its last {n_dims} dimension(s), got strides {tensor.stride()}",
            )
        want *= tensor.shape[-dim]


def need_same_shape(**pair: Tensor) -> None:
    """Refuse a second tensor that is not shaped like the first."""
    (first, want), (second, got) = pair.items()
    need(want.shape == got.shape, f"{second} must have {first}'s shape {tuple(want.shape)}, got {tuple(got.shape)}")


def need_device(**tensors: Tensor) -> None:
    """Refuse tensors that are not all where the kernels run: one CUDA device, or the CPU under the interpreter."""
    first = next(iter(tensors.values()))
    want = "cpu" if IS_INTERPRETED else "cuda"
    for name, tensor in tensors.items():
        need(tensor.device.type == want, f"{name} must be on a {want} device, got {tensor.device}")
        need(tensor.device == first.device, f"{name} must be on {first.device} like the rest, got {tensor.device}")


def model_dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes of activations: bf16 and fp16; fp32 too under the interpreter, where it proves the arithmetic."""
    return (*HALF_DTYPES, torch.float32) if IS_INTERPRETED else HALF_DTYPES


def need_cache(name: str, cache: Tensor, head_dim: int, dtype: torch.dtype) -> None:
    """Refuse a KV cache that is not ``(n_blocks, block_tokens, n_kv_heads, head_dim)`` of this dtype, rows whole."""
    need_tensor(name, cache, ("n_blocks", "block_tokens", "n_kv_heads", head_dim), (dtype,))
    need_rows(name, cache)


def need_heads(n_heads: int, n_kv_heads: int, head_dim: int) -> None:
    """Refuse head counts that do not group evenly and head dimensions no kernel was proven for."""
    need(head_dim in HEAD_DIMS, f"q must have head_dim in {HEAD_DIMS}, got {head_dim}")
    need(
        n_kv_heads >= 1 and n_heads % n_kv_heads == 0,
        f"q must have a multiple of k_cache's {n_kv_heads} KV heads, got {n_heads} heads",
    )


def need_span(window: int | None, n_sinks: int) -> None:
    """Refuse windows and sinks that describe no set of keys."""
    need(window is None or window >= 1, f"window must be >= 1 [tokens] or None, got {window}")
    need(n_sinks >= 0, f"n_sinks must be >= 0 [tokens], got {n_sinks}")
    need(window is not None or n_sinks == 0, f"n_sinks must be 0 without a window, got {n_sinks}")


def need_ids(name: str, ids: Tensor, n_rows: int, lowest: int = 0) -> None:
    """Refuse ids outside ``[lowest, n_rows)``. Reads the values: on a GPU this waits for the device."""
    if ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        need(lowest <= low and high < n_rows, f"{name} must hold ids in [{lowest}, {n_rows}), got {low} to {high}")

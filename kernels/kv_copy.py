"""Copy rows of one tensor into rows of another: the work of swapping, growing, forking and compacting caches.

A row is whatever lies under the first dimension: a block of a paged cache, or one token's slot. Either side may be
pinned host memory, which the GPU reads and writes over the link.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import IS_INTERPRETED, need, need_device, need_ids, need_rows, need_tensor

WORDS = 1024  # of one program: 8 KiB


@triton.jit
def copy_kernel(
    source_ptr,
    target_ptr,
    from_rows_ptr,
    to_rows_ptr,
    source_stride,
    target_stride,
    N_WORDS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Some words of one row."""
    pair = tl.program_id(0)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    from_row = tl.load(from_rows_ptr + pair)
    to_row = tl.load(to_rows_ptr + pair)
    is_word = (word < N_WORDS) & (from_row >= 0) & (to_row >= 0)
    words = tl.load(source_ptr + from_row * source_stride + word, mask=is_word)
    tl.store(target_ptr + to_row * target_stride + word, words, mask=is_word)


def words_of(name: str, tensor: Tensor) -> Tensor:
    """View a tensor's rows as machine words, shape (n_rows, n_words), int64 or, where rows do not divide, int32."""
    need(tensor.ndim >= 2, f"{name} must have rows, a first dimension and more, got shape {tuple(tensor.shape)}")
    need_rows(name, tensor, tensor.ndim - 1)
    flat = tensor.flatten(1)
    size = tensor.element_size()
    sizes = (flat.shape[1] * size, flat.stride(0) * size, flat.storage_offset() * size)
    need(all(n % 4 == 0 for n in sizes), f"{name} must have rows of a multiple of 4 bytes, got {sizes[0]}")
    return flat.view(torch.int64 if all(n % 8 == 0 for n in sizes) else torch.int32)


def kv_copy(source: Tensor, target: Tensor, from_rows: Tensor, to_rows: Tensor, *, check_ids: bool = True) -> None:
    """Copy ``source[from_rows[i]]`` to ``target[to_rows[i]]`` for every ``i``, bit for bit.

    Parameters
    ----------
    source, target : Tensor, shape (n_rows, ...), same dtype and row shape
        Contiguous below the first dimension. On the GPU, or pinned host memory.
    from_rows, to_rows : Tensor, shape (n_pairs,), int64
        Row ids; a pair with -1 is padding. No target row twice, and none that is also read in this call: programs run
        in any order (``kernels.kv_importance.compact`` stages such copies).
    check_ids : bool
        Look at the ids (waits for the device); switch off inside CUDA graphs.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_tensor("from_rows", from_rows, ("n_pairs",), (torch.int64,))
    need_tensor("to_rows", to_rows, tuple(from_rows.shape), (torch.int64,))
    need_rows("from_rows", from_rows)
    need_rows("to_rows", to_rows)
    need(
        target.shape[1:] == source.shape[1:] and target.dtype == source.dtype,
        f"target must have source's rows, {tuple(source.shape[1:])} of {source.dtype}, "
        f"got {tuple(target.shape[1:])} of {target.dtype}",
    )
    need_device(from_rows=from_rows, to_rows=to_rows)
    for name, tensor in (("source", source), ("target", target)):
        is_pinned = not IS_INTERPRETED and tensor.device.type == "cpu" and tensor.is_pinned()
        if not is_pinned:
            need_device(from_rows=from_rows, **{name: tensor})
    source_words, target_words = words_of("source", source), words_of("target", target)
    need(source_words.dtype == target_words.dtype, "target must be aligned to 8 bytes like source, or neither of them")
    if check_ids:
        need_ids("from_rows", from_rows, len(source), lowest=-1)
        need_ids("to_rows", to_rows, len(target), lowest=-1)
    if from_rows.numel() == 0:
        return

    n_words = source_words.shape[1]
    words = min(WORDS, triton.next_power_of_2(n_words))
    copy_kernel[(len(from_rows), triton.cdiv(n_words, words))](
        source_words,
        target_words,
        from_rows,
        to_rows,
        source_words.stride(0),
        target_words.stride(0),
        N_WORDS=n_words,
        WORDS=words,
        num_warps=4,
    )

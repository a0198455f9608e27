"""Where keys and values lie: from a key's position in its sequence to its address, for every layout.

A cache is ``(n_blocks, block_tokens, n_kv_heads, head_dim)`` and a sequence's row of the block table lists its blocks.

* paged: column ``position // block_tokens``;
* contiguous: a block table of one column, whose block is the whole extent (any length, see ``extents``);
* ring: sink blocks first, then ``ring_blocks`` columns that are written round and round.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import need, need_ids, need_rows, need_tensor


@triton.jit
def load_block_ids(table_row, keys, is_key, sink_blocks, ring_blocks, BLOCK_TOKENS: tl.constexpr, RING: tl.constexpr):
    """Block of each key position, 0 where ``is_key`` is false (those entries may hold anything)."""
    column = keys // BLOCK_TOKENS
    if RING:
        column = tl.where(column < sink_blocks, column, sink_blocks + (column - sink_blocks) % ring_blocks)
    return tl.load(table_row + column, mask=is_key, other=0)


@triton.jit
def load_rows(
    cache,
    block_ids,
    keys,
    is_key,
    stride_block,
    stride_token,
    BLOCK_TOKENS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PAGED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One head's rows (n_keys, D_PAD) of some keys; zeros where ``is_key`` is false and beyond channel D."""
    channel = tl.arange(0, D_PAD)
    if PAGED:
        row = block_ids.to(tl.int64) * stride_block + (keys % BLOCK_TOKENS) * stride_token
    else:
        row = block_ids.to(tl.int64) * stride_block + keys.to(tl.int64) * stride_token
    address = cache + row[:, None] + channel[None, :]
    if MASKED:
        if D == D_PAD:
            return tl.load(address, mask=is_key[:, None], other=0.0)
        return tl.load(address, mask=is_key[:, None] & (channel[None, :] < D), other=0.0)
    if D == D_PAD:
        return tl.load(address)
    return tl.load(address, mask=channel[None, :] < D, other=0.0)


def extents(pool: Tensor, extent_tokens: int) -> Tensor:
    """View a pool of token slots as contiguous extents that may start at any slot.

    Parameters
    ----------
    pool : Tensor, shape (n_slots, n_kv_heads, head_dim)
    extent_tokens : int
        Longest extent [tokens].

    Returns
    -------
    Tensor, shape (n_slots - extent_tokens + 1, extent_tokens, n_kv_heads, head_dim)
        Overlapping view; with a block table of one column, a "block id" is the extent's first slot.
    """
    need(pool.ndim == 3, f"pool must have shape (n_slots, n_kv_heads, head_dim), got {tuple(pool.shape)}")
    need(
        1 <= extent_tokens <= pool.shape[0],
        f"extent_tokens must be in [1, {pool.shape[0]}] (pool's slots), got {extent_tokens}",
    )
    return pool.unfold(0, extent_tokens, 1).permute(0, 3, 1, 2)


def need_block_table(
    block_table: Tensor,
    kv_lens: Sequence[int],
    first_keys: Sequence[int],
    n_sinks: int,
    cache: Tensor,
    ring_blocks: int | None,
    check_ids: bool,
) -> None:
    """Refuse a block table that is too narrow for its sequences or, if asked to look, names a block out of range.

    ``first_keys`` are the first positions attended after the sinks; entries of blocks that nothing attends to may
    hold anything. Looking at the ids waits for the device.
    """
    need_tensor("block_table", block_table, (len(kv_lens), "n_columns"), (torch.int32,))
    need_rows("block_table", block_table)
    n_blocks, block_tokens = cache.shape[:2]
    n_columns = block_table.shape[1]
    sink_blocks = -(-n_sinks // block_tokens)
    stop = -(-np.asarray(kv_lens, dtype=np.int64) // block_tokens)[:, None]  # columns in use, unwrapped
    first = np.minimum(np.asarray(first_keys, dtype=np.int64)[:, None] // block_tokens, stop)
    wanted = int(stop.max(initial=1))
    if ring_blocks is not None:
        first = np.minimum(np.maximum(first, sink_blocks), stop)
        widest = max(int((stop - first).max(initial=1)), 1)
        need(ring_blocks >= widest, f"ring_blocks must be >= {widest} to hold the window, got {ring_blocks}")
        wanted = sink_blocks + ring_blocks
    need(n_columns >= wanted, f"block_table must have >= {wanted} columns for its longest sequence, got {n_columns}")
    if not check_ids:
        return
    column = np.arange(n_columns)[None, :]
    if ring_blocks is None:
        is_used = (column >= first) & (column < stop)
    else:
        is_used = (column >= sink_blocks) & (column < wanted) & ((column - first) % ring_blocks < stop - first)
    is_used |= (column < sink_blocks) & (column < stop)
    need_ids("block_table", block_table.cpu()[torch.from_numpy(is_used)], n_blocks)

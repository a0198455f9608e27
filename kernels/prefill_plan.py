"""Which tiles of queries a prefill launch computes, planned on the host: heaviest first, nothing empty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.checks import need, need_heads, need_span
from kernels.configs import PREFILL, Tiles, tiles


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPlan:
    """A batch of prompt chunks cut into tiles. A fact: one plan serves every layer of an iteration."""

    q_lens: tuple[int, ...]  # new tokens of each sequence
    kv_lens: tuple[int, ...]  # cached context plus the new tokens
    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int | None
    n_sinks: int
    tiles: Tiles
    work: Tensor  # (n_tiles, 2) int32: sequence, first query token within its chunk
    q_starts: Tensor  # (n_seqs + 1,) int32: where each chunk starts in q
    kv_lens_device: Tensor  # (n_seqs,) int32

    def first_keys(self) -> list[int]:
        """First position, after the sinks, that any query of each sequence attends to."""
        window = self.window if self.window is not None else 1 << 62
        return [max(0, kv - q - window + 1) for q, kv in zip(self.q_lens, self.kv_lens, strict=True)]

    def visible_pairs(self) -> int:
        """Query-key pairs the attention computes, of one head: the work a TFLOP/s figure counts."""
        total = 0
        for n_new, length in zip(self.q_lens, self.kv_lens, strict=True):
            last = np.arange(length - n_new, length, dtype=np.int64)
            if self.window is None:
                total += int((last + 1).sum())
            else:
                first = np.maximum(last - self.window + 1, 0)
                total += int((last + 1 - first + np.minimum(first, self.n_sinks)).sum())
        return total


def plan_prefill(
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    *,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    device: torch.device | str,
    window: int | None = None,
    n_sinks: int = 0,
    config: Tiles | None = None,
) -> PrefillPlan:
    """Cut prompt chunks into tiles of ``block_m`` rows, a row being one query token of one head of a KV group.

    Parameters
    ----------
    q_lens, kv_lens : sequences of int, length n_seqs
        New tokens of each sequence, and its context plus new tokens; ``0 <= q_len <= kv_len``.
    n_heads, n_kv_heads, head_dim : int
        Query heads, KV heads (``n_heads`` a multiple), channels of a head.
    device : device
        Where the launch will run.
    window : int, optional
        Each query attends to this many last keys, itself included; ``None`` for all [tokens].
    n_sinks : int
        And to the first so many, whatever the window (Xiao et al. 2024, "attention sinks") [tokens].
    config : Tiles, optional
        Instead of the entry in ``kernels.configs``.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_heads(n_heads, n_kv_heads, head_dim)
    need_span(window, n_sinks)
    need(len(q_lens) == len(kv_lens), f"kv_lens must have q_lens' length {len(q_lens)}, got {len(kv_lens)}")
    for n_new, length in zip(q_lens, kv_lens, strict=True):
        need(0 <= n_new <= length, f"q_lens must be in [0, kv_len], got {n_new} with kv_len {length}")
    config = config or tiles(PREFILL, device, head_dim)
    group = n_heads // n_kv_heads
    need(group <= config.block_m, f"n_heads must be <= {config.block_m} per KV head, got {group}")

    step = config.block_m // group  # query tokens of one tile
    seqs, firsts, weights = [], [], []
    for seq, (n_new, length) in enumerate(zip(q_lens, kv_lens, strict=True)):
        first = np.arange(0, n_new, step, dtype=np.int64)
        last_key = length - n_new + np.minimum(first + step, n_new)
        weight = last_key if window is None else np.minimum(last_key, window + step + n_sinks)
        seqs.append(np.full(len(first), seq, dtype=np.int64))
        firsts.append(first)
        weights.append(weight)
    work = np.zeros((0, 2), dtype=np.int32)
    if seqs:
        order = np.argsort(-np.concatenate(weights), kind="stable")
        work = np.stack([np.concatenate(seqs)[order], np.concatenate(firsts)[order]], axis=1).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.asarray(q_lens, dtype=np.int64))]).astype(np.int32)
    return PrefillPlan(
        q_lens=tuple(q_lens),
        kv_lens=tuple(kv_lens),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        window=window,
        n_sinks=n_sinks,
        tiles=config,
        work=torch.from_numpy(work).to(device),
        q_starts=torch.from_numpy(starts).to(device),
        kv_lens_device=torch.tensor(list(kv_lens), dtype=torch.int32, device=device),
    )

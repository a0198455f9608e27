"""Which pieces of which sequences' KV a decode launch reads, planned on the host: equal chunks over a fixed grid.

The keys a decoding query attends to are numbered without gaps: sinks first, then the window. A sequence is cut into
pieces of at most ``chunk`` such keys; one program per piece and KV head reads it, and where a sequence has several
pieces a second kernel adds them up. Splitting as in Flash-Decoding (Dao et al. 2023), chunk sizes as in FlashInfer
(Ye et al. 2025, arXiv:2501.01005): the smallest that needs no more pieces than the device has room for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.checks import need, need_heads, need_span
from kernels.configs import DECODE, Tiles, n_resident, tiles

Ints = npt.NDArray[np.int64]
IDLE = (-1, 0, 0, -1)  # a piece with nothing to do, where a fixed grid has more programs than pieces


@dataclass(slots=True, eq=False)
class DecodePlan:
    """A decode batch cut into pieces. ``refill`` changes lengths in place, so that a captured graph stays valid."""

    kv_lens: tuple[int, ...]
    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int | None
    n_sinks: int
    tiles: Tiles
    n_programs: int  # that run at once on the device
    is_split: bool  # some sequence may have several pieces
    work: Tensor  # (n_pieces, 4) int32: sequence (-1: idle), first and stop of its visible keys, partial (-1: whole)
    part_starts: Tensor  # (n_seqs + 1,) int32: partials of each sequence
    kv_lens_device: Tensor  # (n_seqs,) int32
    part_out: Tensor  # (n_pieces, n_heads, head_dim) float32
    part_lse: Tensor  # (n_pieces, n_heads) float32: log2 of the sum of exponentials

    def first_keys(self) -> list[int]:
        """First position, after the sinks, that each sequence attends to."""
        return [0 if self.window is None else max(0, length - self.window) for length in self.kv_lens]

    def visible_tokens(self) -> int:
        """KV entries that the batch reads, of each KV head."""
        return int(visible_tokens(self.kv_lens, self.window, self.n_sinks).sum())

    def refill(self, kv_lens: Sequence[int]) -> None:
        """Plan other lengths into the same buffers and the same grid.

        Raises
        ------
        ValueError
            If the number of sequences differs or the plan was not made with ``is_fixed_grid``.
        """
        need(len(kv_lens) == len(self.kv_lens), f"kv_lens must have length {len(self.kv_lens)}, got {len(kv_lens)}")
        need(self.is_split, "kv_lens can only be refilled into a plan made with is_fixed_grid=True")
        work, part_starts = cut(
            kv_lens, self.window, self.n_sinks, self.tiles.block_n, self.n_programs // self.n_kv_heads
        )
        need(len(work) <= len(self.work), f"kv_lens must fit {len(self.work)} pieces of the grid, got {len(work)}")
        idle = np.tile(np.array(IDLE, dtype=np.int32), (len(self.work) - len(work), 1))
        self.kv_lens = tuple(kv_lens)
        self.work.copy_(torch.from_numpy(np.concatenate([work, idle])))
        self.part_starts.copy_(torch.from_numpy(part_starts))
        self.kv_lens_device.copy_(torch.tensor(self.kv_lens, dtype=torch.int32))


def visible_tokens(kv_lens: Sequence[int], window: int | None, n_sinks: int) -> Ints:
    """KV entries each sequence's query attends to, shape (n_seqs,)."""
    lens: Ints = np.asarray(kv_lens, dtype=np.int64)
    if window is None:
        return lens
    first = np.maximum(lens - window, 0)
    visible: Ints = lens - first + np.minimum(first, n_sinks)
    return visible


def cut(
    kv_lens: Sequence[int], window: int | None, n_sinks: int, block_n: int, n_pieces: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Pieces of a batch, about ``n_pieces`` of them and never more than ``n_pieces + n_seqs``.

    Returns
    -------
    work : array, shape (n, 4), int32
    part_starts : array, shape (n_seqs + 1,), int32
        A sequence in one piece has no partials.
    """
    visible = visible_tokens(kv_lens, window, n_sinks)
    n_tiles = np.maximum(-(-visible // block_n), 1)  # a sequence without keys still writes its zeros
    chunk = max(1, -(-int(n_tiles.sum()) // max(n_pieces, 1)))  # tiles
    while len(n_tiles) <= n_pieces and int((-(-n_tiles // chunk)).sum()) > n_pieces:
        chunk += 1
    n_of = -(-n_tiles // chunk)
    chunk_of = -(-n_tiles // n_of) * block_n  # equal pieces within a sequence [keys]
    n_of = np.maximum(-(-visible // chunk_of), 1)
    seq = np.repeat(np.arange(len(visible)), n_of)
    index = np.arange(len(seq)) - np.repeat(np.cumsum(n_of) - n_of, n_of)
    first = index * chunk_of[seq]
    stop = np.minimum(first + chunk_of[seq], visible[seq])
    n_parts = np.where(n_of > 1, n_of, 0)
    part_starts = np.concatenate([[0], np.cumsum(n_parts)])
    part = np.where(n_parts[seq] > 0, part_starts[seq] + index, -1)
    work = np.stack([seq, first, stop, part], axis=1)
    work = work[np.argsort(first - stop, kind="stable")]  # longest pieces start first
    return work.astype(np.int32).reshape(-1, 4), part_starts.astype(np.int32)


def plan_decode(
    kv_lens: Sequence[int],
    *,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    device: torch.device | str,
    window: int | None = None,
    n_sinks: int = 0,
    n_programs: int | None = None,
    is_fixed_grid: bool = False,
    config: Tiles | None = None,
) -> DecodePlan:
    """Cut a decode batch into pieces.

    Parameters
    ----------
    kv_lens : sequence of int, length n_seqs
        Cached tokens of each sequence, the one being decoded included; 0 for a padding sequence, whose output is 0.
    n_heads, n_kv_heads, head_dim : int
        Query heads, KV heads (``n_heads`` a multiple), channels of a head.
    device : device
        Where the launch will run.
    window, n_sinks : int
        The query attends to the last ``window`` keys, itself included, and to the first ``n_sinks`` [tokens].
    n_programs : int, optional
        Programs that run at once, to spread the pieces over; as many as
        the device holds (`kernels.configs.n_resident`) unless told.
    is_fixed_grid : bool
        Pad to the most pieces any lengths can need, so that a CUDA graph can be captured and ``refill`` used.
    config : Tiles, optional
        Instead of the entry in ``kernels.configs``.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    need_heads(n_heads, n_kv_heads, head_dim)
    need_span(window, n_sinks)
    need(len(kv_lens) >= 1, "kv_lens must name at least one sequence, got none")
    need(min(kv_lens) >= 0, f"kv_lens must be >= 0 [tokens], got {min(kv_lens)}")
    config = config or tiles(DECODE, device, head_dim)
    n_programs = n_resident(device, head_dim) if n_programs is None else n_programs
    need(n_programs >= 1, f"n_programs must be >= 1, got {n_programs}")

    work, part_starts = cut(kv_lens, window, n_sinks, config.block_n, n_programs // n_kv_heads)
    if is_fixed_grid:
        n_idle = len(kv_lens) + max(n_programs // n_kv_heads, 1) - len(work)
        work = np.concatenate([work, np.tile(np.array(IDLE, dtype=np.int32), (n_idle, 1))])
    is_split = is_fixed_grid or int(part_starts[-1]) > 0
    n_parts = len(work) if is_split else 1
    return DecodePlan(
        kv_lens=tuple(kv_lens),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        window=window,
        n_sinks=n_sinks,
        tiles=config,
        n_programs=n_programs,
        is_split=is_split,
        work=torch.from_numpy(work).to(device),
        part_starts=torch.from_numpy(part_starts).to(device),
        kv_lens_device=torch.tensor(list(kv_lens), dtype=torch.int32, device=device),
        part_out=torch.empty(n_parts, n_heads, head_dim, dtype=torch.float32, device=device),
        part_lse=torch.empty(n_parts, n_heads, dtype=torch.float32, device=device),
    )

"""What attention costs, shown: ``python -m kernels memory | tiles | windows | generation [--device cpu]``.

On a GPU flash attention is our kernel. On a CPU, where Triton's kernels do not run, it is the same algorithm written
out in torch, tile by tile, and standard attention is what it replaces: one matrix of all scores.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kernels.configs import Tiles
from kernels.correctness import cache, error
from kernels.decode_plan import plan_decode
from kernels.operations import operations
from kernels.prefill_plan import plan_prefill
from kernels.timing import measure_us

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
TILES = ((16, 16), (32, 32), (64, 32), (64, 64), (128, 32), (128, 64), (128, 128))
WINDOWS = (256, 1024)
DYNAMIC_FRAC = 0.25  # of the context: a window that grows with it
N_REPEATS = 5
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Row = dict[str, Any]


def standard_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Causal attention by the whole matrix of scores; tensors (n_heads, n_tokens, head_dim), queries stand last."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores.masked_fill_(~seen(0, q.shape[1], 0, k.shape[1], k.shape[1] - q.shape[1], window, q.device), float("-inf"))
    return scores.softmax(-1) @ v


def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, block_m: int = 128, block_n: int = 64, window: int | None = None
) -> Tensor:
    """The same by tiles with a running maximum and sum (Dao et al. 2022): no more scores than a tile's at a time."""
    context = k.shape[1] - q.shape[1]
    out = torch.empty_like(q)
    for row in range(0, q.shape[1], block_m):
        rows = q[:, row : row + block_m] * q.shape[-1] ** -0.5
        stop = context + row + rows.shape[1]
        first = 0 if window is None else max(0, context + row - window + 1) // block_n * block_n
        highest = torch.full((*rows.shape[:2], 1), float("-inf"), device=q.device, dtype=q.dtype)
        total, acc = torch.zeros_like(highest), torch.zeros_like(rows)
        for at in range(first, stop, block_n):
            keys = slice(at, min(at + block_n, stop))
            scores = rows @ k[:, keys].transpose(-1, -2)
            if keys.stop > context + row or window is not None:
                is_seen = seen(row, row + rows.shape[1], at, keys.stop, context, window, q.device)
                scores.masked_fill_(~is_seen, float("-inf"))
            now_highest = torch.maximum(highest, scores.amax(-1, keepdim=True))
            reference = now_highest.masked_fill(now_highest == float("-inf"), 0.0)  # a row that has seen nothing yet
            shrink, weights = (highest - reference).exp(), (scores - reference).exp()
            total = total * shrink + weights.sum(-1, keepdim=True)
            acc = acc * shrink + weights @ v[:, keys]
            highest = now_highest
        out[:, row : row + block_m] = acc / total
    return out


def seen(
    row: int, row_stop: int, key: int, key_stop: int, context: int, window: int | None, device: torch.device
) -> Tensor:
    """Which keys of a tile its queries see."""
    positions = context + torch.arange(row, row_stop, device=device)[:, None]
    keys = torch.arange(key, key_stop, device=device)
    is_seen = keys <= positions
    return is_seen if window is None else is_seen & (keys > positions - window)


class Stage:
    """Random queries and keys, and attention of both kinds over them, on one device."""

    def __init__(self, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self.device, self.is_gpu = device, is_gpu
        self.heads, self.kv_heads, self.width = (32, 8, 128) if is_gpu else (1, 1, 64)
        self.dtype = torch.bfloat16 if is_gpu else torch.float32

    def flat(self, n_new: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (n_heads, n_tokens, head_dim)."""
        q, k, v = (
            torch.randn(self.heads, n, self.width, device=self.device, dtype=self.dtype)
            for n in (n_new, length, length)
        )
        return q, k, v

    def standard(self, n_new: int, length: int, window: int | None = None) -> Callable[[], Tensor]:
        """Standard attention of the last ``n_new`` tokens."""
        tensors = self.flat(n_new, length)
        return lambda: standard_attention(*tensors, window)

    def flash(
        self, n_new: int, length: int, window: int | None = None, tiles: Tiles | None = None
    ) -> Callable[[], Any]:
        """Flash attention of the last ``n_new`` tokens: our kernel, or the same algorithm written out."""
        if not self.is_gpu:
            tensors = self.flat(n_new, length)
            m, n = (tiles.block_m, tiles.block_n) if tiles else (128, 64)
            return lambda: tiled_attention(*tensors, m, n, window)
        ops = operations(self.device)
        k, v, table = cache([length], self.kv_heads, self.width, self.dtype, self.device)
        q = torch.randn(n_new, self.heads, self.width, device=self.device, dtype=self.dtype)
        shape: dict[str, Any] = {"n_heads": self.heads, "n_kv_heads": self.kv_heads, "head_dim": self.width}
        shape |= {"device": self.device, "window": window, "config": tiles}
        out = torch.empty_like(q)
        if n_new == 1:
            decode = plan_decode([length], **shape)
            return lambda: ops.decode_attention(q, k, v, table, decode, out=out, check_ids=False)
        prefill = plan_prefill([n_new], [length], **shape)
        return lambda: ops.prefill_attention(q, k, v, table, prefill, out=out, check_ids=False)

    def time_us(self, run: Callable[[], Any]) -> float:
        """Median time [us]."""
        if self.is_gpu:
            return measure_us(lambda _: run(), self.device)[0]
        times = []
        for _ in range(N_REPEATS + 1):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e6)
        return median(times[1:])

    def peak_bytes(self, run: Callable[[], Any]) -> int | str:
        """Memory that a call takes at most beyond what is there before it [B]; empty where nobody says."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = int(torch.cuda.memory_allocated(self.device))
            run()
            return int(torch.cuda.max_memory_allocated(self.device)) - before
        if not (STATUS.is_file() and CLEAR_REFS.is_file()):
            return ""
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would be taken again unseen
        try:
            CLEAR_REFS.write_text("5")  # the highest is counted from here on
        except OSError:
            return ""
        before = resident("VmRSS")
        run()
        return max(0, resident("VmHWM") - before)


def resident(name: str) -> int:
    """The process's memory as the kernel counts it [B]."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def memory(stage: Stage, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Row]:
    """Standard against flash attention of a whole prompt: bytes beyond the inputs, and time."""
    for n in lengths:
        row: Row = {"tokens": n}
        for name, make in (("flash", stage.flash), ("standard", stage.standard)):
            make(64, 64)()  # what libraries take at their first call is not attention's
            run = make(n, n)
            row[f"{name} [MB]"] = megabytes(stage.peak_bytes(run))
            row[f"{name} [ms]"] = stage.time_us(run) / 1e3
        row["scores [MB]"] = stage.heads * n * n * stage.dtype.itemsize / 1e6  # of the one matrix, by arithmetic
        yield row


def megabytes(n_bytes: int | str) -> float | str:
    """As a table shows it."""
    return n_bytes / 1e6 if isinstance(n_bytes, int) else n_bytes


def tiles(stage: Stage, lengths: tuple[int, ...] = (2048,)) -> Iterator[Row]:
    """Tile sizes: time of a prompt by rows and keys of a tile. On a GPU those that fit its memory, others say why."""
    for n in lengths:
        for block_m, block_n in TILES:
            row: Row = {"tokens": n, "rows": block_m, "keys": block_n}
            try:
                config = Tiles(block_m, block_n, 8 if block_m >= 128 else 4, 3)
                row["ms"] = stage.time_us(stage.flash(n, n, tiles=config)) / 1e3
            except Exception as failure:  # too much shared memory, say
                row["ms"] = f"{type(failure).__name__}"
            row["scores of a tile [KB]"] = block_m * block_n * 4 / 1e3
            yield row


def windows(stage: Stage, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Row]:
    """Fixed windows and one that grows with the context: time of a prompt, keys a token sees, what it changes."""
    for n in lengths:
        spans: list[tuple[str, int | None]] = [("all", None), *((str(w), w) for w in WINDOWS if w < n)]
        for name, window in (*spans, ("a quarter", max(1, int(DYNAMIC_FRAC * n)))):
            n_seen = n if window is None else min(n, window)
            pairs = n_seen * (n_seen + 1) / 2 + (n - n_seen) * n_seen
            row: Row = {"tokens": n, "window": name, "ms": stage.time_us(stage.flash(n, n, window)) / 1e3}
            row["pairs computed"] = pairs / (n * (n + 1) / 2)
            row["KV of a token that decodes"] = n_seen / n
            q, k, v = stage.flat(1, n)
            whole, part = standard_attention(q, k, v), standard_attention(q, k, v, window)
            row["output differs by"] = error(part, whole)  # of random keys, all alike important: a bound, no quality
            yield row


def generation(stage: Stage, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Row]:
    """One more token's attention: from the cache, or with everything before it computed again."""
    for n in lengths:
        cached = stage.time_us(stage.flash(1, n))
        anew = stage.time_us(stage.flash(n, n))
        cache_bytes = 2 * n * stage.kv_heads * stage.width * stage.dtype.itemsize
        yield {
            "tokens": n,
            "cached [ms]": cached / 1e3,
            "recomputed [ms]": anew / 1e3,
            "times as long": anew / cached,
            "cache of a layer [MB]": cache_bytes / 1e6,
        }


EXHIBITS: dict[str, Callable[..., Iterator[Row]]] = {
    "memory": memory,
    "tiles": tiles,
    "windows": windows,
    "generation": generation,
}

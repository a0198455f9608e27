"""The grid that a GPU is measured on: head shapes of the models, corners of batch and context, matrices, copies.

Batches of unequal sequences are written out in ``detail``: ``512@4096 64@0`` are prompt chunks of 512 new tokens after
4,096 cached ones and of 64 after none; ``+ 100 2000`` after them, or alone, are decoding sequences that read so many.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from calibration.points import Point, decode, point
from sim.step import Chunk

HEADS = tuple(
    {"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": width}
    for (heads, kv_heads), width in product(((32, 8), (32, 32), (64, 8)), (128, 64))
)
BLOCK_TOKENS = 16
MATRICES = (
    # (n, k): Llama 3.1 8B and 70B, Qwen3 32B, GPT-2 at one rank
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (10240, 8192), (8192, 8192)),
    *((57344, 8192), (8192, 28672), (10240, 5120), (5120, 8192), (51200, 5120), (5120, 25600), (2304, 768), (768, 768)),
    *((3072, 768), (768, 3072), (1024, 1024), (2048, 2048), (16384, 2048), (2048, 16384)),
)
TINY_MATRICES = ((64, 64), (192, 64), (64, 192), (128, 128), (256, 64), (64, 256))


BETWEEN = (20, 40, 50, 72, 100, 160)  # batches that fill the last round of programs badly: a staircase, not a curve
BETWEEN_TOKENS = (1024, 4096)
SERVED_FROM = {
    # operations that a profile's times stand on (sim.cost); the others say what is not simulated, or are shown
    "decode_attention", "batched_prefill_attention", "cached_prefill_attention", "ragged_decode_attention",
    "varlen_prefill_attention", "mixed_launches", "gemm", "append", "block_copy", "transfer",
}  # fmt: skip
LAUNCHED = ("decode_attention", "prefill_attention", "kv_append", "mm", "smallest")  # what a host call is timed of
GRAPH_LAUNCHES = (1, 20, 200)


class Grid(NamedTuple):
    """Sizes of a grid."""

    heads: tuple[dict[str, int], ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    cached: tuple[int, ...]
    tokens: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]
    blocks: tuple[int, ...]
    transfer_bytes: tuple[int, ...]
    most_kv_heads_tokens: int  # of a decode batch: 34 GB at head_dim 128
    most_pairs: int  # of a prefill: a few hundred milliseconds at 32 heads
    n_ragged: int  # per head shape: decode batches of unequal contexts,
    n_varlen: int  # prompt chunks of unequal lengths,
    n_mixed: int  # and both side by side
    between: tuple[tuple[int, int], ...]  # further decode batches and their contexts


GPU = Grid(
    heads=HEADS,
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    contexts=(16, 64, 256, 1024, 4096, 16384, 65536, 131072),
    prompts=(16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384),
    cached=(512, 4096, 16384, 65536),
    tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    matrices=MATRICES,
    blocks=(1, 4, 16, 64, 256, 1024, 4096),
    transfer_bytes=tuple(1 << power for power in range(12, 31, 2)),
    most_kv_heads_tokens=1 << 26,
    most_pairs=1 << 31,
    n_ragged=60,
    n_varlen=40,
    n_mixed=40,
    between=tuple(product(BETWEEN, BETWEEN_TOKENS)),
)
TINY = Grid(  # rehearses on a CPU, in seconds
    heads=({"n_heads": 4, "n_kv_heads": 2, "head_dim": 64},),
    batches=(1, 2, 4, 8),
    contexts=(16, 32, 64, 128),
    prompts=(16, 32, 64),
    cached=(16, 32, 64, 128),
    tokens=(1, 4, 16, 64),
    matrices=TINY_MATRICES,
    blocks=(1, 4, 16, 64),
    transfer_bytes=(1 << 12, 1 << 14, 1 << 16, 1 << 18),
    most_kv_heads_tokens=1 << 20,
    most_pairs=1 << 20,
    n_ragged=12,
    n_varlen=12,
    n_mixed=12,
    between=((3, 32), (5, 32)),
)


def gpu_points(grid: Grid = GPU) -> list[Point]:
    """All points, the sentinel first; pass by pass they are shuffled."""
    rng = np.random.default_rng(0)
    first = grid.heads[0]
    points = [decode(grid.batches[len(grid.batches) // 2], grid.contexts[len(grid.contexts) // 2], **first)]
    for heads in grid.heads:
        points += [
            decode(n, tokens, **heads)
            for n, tokens in (*product(grid.batches, grid.contexts), *grid.between)
            if n * tokens * heads["n_kv_heads"] <= grid.most_kv_heads_tokens
        ]
        points += [
            point("batched_prefill_attention", prefill_seqs=n, new_tokens=new, **heads)
            for n, new in product((1, 4, 16), grid.prompts)
            if n * new * new <= grid.most_pairs
        ]
        points += [
            point("cached_prefill_attention", prefill_seqs=n, new_tokens=new, context_tokens=context, **heads)
            for n, new, context in product((1, 4), grid.prompts[::2][:4], grid.cached)
            if n * new * context <= grid.most_pairs
        ]
        points += unequal(rng, heads, grid)
    for spans in (f"window {grid.contexts[2]}", f"window {grid.contexts[2]} sinks 4"):
        lens = grid.contexts[-4:]
        points += [
            point("windowed_decode_attention", detail=f"{spans}: + {' '.join([str(x)] * 8)}", **first) for x in lens
        ]
        points += [point("windowed_prefill_attention", detail=f"{spans}: {new}@0", **first) for new in grid.prompts[2:]]
    points += [point("gemm", m=m, n=n, k=k) for (n, k), m in product(grid.matrices, grid.tokens)]
    row_bytes = 2 * first["n_kv_heads"] * first["head_dim"] * 2
    points += [point("append", new_tokens=m, bytes=m * row_bytes, **first) for m in grid.tokens]
    block_bytes = BLOCK_TOKENS * first["n_kv_heads"] * first["head_dim"] * 2
    points += [point("block_copy", n=n, bytes=block_bytes * n, **first) for n in grid.blocks]
    points += [
        point("transfer", detail=f"{way} {memory}", n=1, bytes=size)
        for way, memory, size in product(("h2d", "d2h", "both"), ("pinned", "pageable"), grid.transfer_bytes)
    ]
    points += [point("host_call", detail=name) for name in LAUNCHED]
    points += [point("graph_launch", detail=side, n=n) for side, n in product(("host", "device"), GRAPH_LAUNCHES)]
    points += beside(grid, first)
    points += [
        point("block_transfer", detail=f"{way} {how}", n=n, m=joined, bytes=block_bytes * joined * n, **first)
        for way, how, n, joined in product(("h2d", "d2h"), ("each", "batched", "gathered"), grid.blocks[:-1], (1, 16))
    ]
    return list(dict.fromkeys(points))


def unequal(rng: np.random.Generator, heads: dict[str, int], grid: Grid) -> list[Point]:
    """Decode batches of unequal contexts, prompt chunks of unequal lengths, and both side by side."""
    points = []
    log_low, log_new, log_context = (np.log2(x) for x in (grid.contexts[0], grid.prompts[-1] / 4, grid.contexts[-2]))

    def lens(n: int) -> list[int]:
        found = sorted(int(2**x) for x in rng.uniform(log_low, log_context, n))
        while len(found) > 2 and len(found) * found[-1] * heads["n_kv_heads"] > grid.most_kv_heads_tokens:
            found.pop()  # a block table is as wide as the longest needs it
        return [int(x) for x in rng.permutation(found)]

    def chunks(n: int) -> list[Chunk]:
        news = [int(2**x) for x in rng.uniform(0.0, log_new, n)]
        return [
            Chunk(new, int(context) if rng.random() < 0.5 else 0) for new, context in zip(news, lens(n), strict=True)
        ]

    for _ in range(grid.n_ragged):
        points.append(batch("ragged_decode_attention", [], lens(int(rng.choice(grid.batches[1:-1]))), heads))
    for _ in range(grid.n_varlen):
        points.append(batch("varlen_prefill_attention", chunks(int(rng.integers(2, 9))), [], heads))
    for _ in range(grid.n_mixed):
        decoding = lens(int(rng.choice(grid.batches[:-1])))
        points.append(batch("mixed_launches", chunks(int(rng.integers(1, 4))), decoding, heads))
    return points


def beside(grid: Grid, heads: dict[str, int]) -> list[Point]:
    """Transfers while sequences decode, and decoding while transfers run: what the two do to one another.

    ``detail`` names the transfers, from pinned memory; decoding beside none of them is what it is compared with.
    """
    decoding = dict(decode(grid.batches[-4], grid.contexts[-3], **heads).columns)
    sizes = grid.transfer_bytes[-4:-1]
    points = [
        point("transfer_beside_decode", detail=f"{way} pinned", n=1, bytes=size, **decoding)
        for way, size in product(("h2d", "d2h", "both"), sizes)
    ]
    ways = ("none", "h2d pinned", "d2h pinned", "both pinned")
    return points + [point("decode_beside_transfer", detail=way, bytes=sizes[-1], **decoding) for way in ways]


def batch(operation: str, chunks: list[Chunk], decoding: list[int], heads: dict[str, int]) -> Point:
    """A point of unequal sequences."""
    return point(
        operation,
        detail=write_batch(chunks, decoding),
        prefill_seqs=len(chunks),
        new_tokens=sum(chunk.new_tokens for chunk in chunks),
        context_tokens=sum(chunk.context_tokens for chunk in chunks),
        decode_seqs=len(decoding),
        decode_total_tokens=sum(decoding),
        decode_longest_tokens=max(decoding, default=0),
        **heads,
    )


def write_batch(chunks: list[Chunk], decoding: list[int]) -> str:
    """A batch as text.

    Examples
    --------
    >>> write_batch([Chunk(512, 4096), Chunk(64, 0)], [100, 2000])
    '512@4096 64@0 + 100 2000'
    """
    return " ".join(
        [*(f"{new}@{context}" for new, context, _ in chunks), *(["+", *map(str, decoding)] if decoding else [])]
    )


def read_batch(text: str) -> tuple[list[Chunk], list[int]]:
    """What `write_batch` wrote: chunks, and KV entries read by each decoding sequence.

    Examples
    --------
    >>> read_batch("512@4096 + 100 2000") == ([Chunk(512, 4096)], [100, 2000])
    True
    """
    prompts, _, decoding = text.partition("+")
    pairs = (chunk.split("@") for chunk in prompts.split())
    return [Chunk(int(new), int(context)) for new, context in pairs], [int(x) for x in decoding.split()]

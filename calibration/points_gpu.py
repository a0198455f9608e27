"""The grid that a GPU is measured on: head shapes of the models, corners of batch and context, matrices, copies."""

from itertools import product

import numpy as np

from calibration.points import Point, decode, point

HEADS = tuple(
    {"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": width}
    for (heads, kv_heads), width in product(((32, 8), (32, 32), (64, 8)), (128, 64))
)
MOST_KV_TOKENS = 1 << 23  # of a batch: 34 GB at 8 KV heads of 128 [tokens]
MOST_PAIRS = 1 << 31  # of a prefill: a few hundred milliseconds at 32 heads
MATRICES = (
    # (n, k): Llama 3.1 8B and 70B, Qwen3 32B, GPT-2 at one rank
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (10240, 8192), (8192, 8192)),
    *((57344, 8192), (8192, 28672), (10240, 5120), (5120, 8192), (51200, 5120), (5120, 25600), (2304, 768), (768, 768)),
    *((3072, 768), (768, 3072), (1024, 1024), (2048, 2048), (16384, 2048), (2048, 16384)),
)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def gpu_points() -> list[Point]:
    """All points, the sentinel first; pass by pass they are shuffled."""
    rng = np.random.default_rng(0)
    points = [decode(64, 2048, **HEADS[0])]
    for heads in HEADS:
        points += [
            decode(n, tokens, **heads)
            for n, tokens in product(
                (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), (16, 64, 256, 1024, 4096, 16384, 65536, 131072)
            )
            if n * tokens * heads["n_kv_heads"] <= 8 * MOST_KV_TOKENS
        ]
        points += [
            point("batched_prefill_attention", prefill_seqs=n, new_tokens=new, **heads)
            for n, new in product((1, 4, 16), (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384))
            if n * new * new <= MOST_PAIRS
        ]
        points += [
            point("chunked_prefill_attention", prefill_seqs=n, new_tokens=new, context_tokens=context, **heads)
            for n, new, context in product((1, 4), (16, 128, 512, 2048), (512, 4096, 16384, 65536))
            if n * new * context <= MOST_PAIRS
        ]
        points += ragged(rng, heads, 10)
    points += [point("gemm", m=m, n=n, k=k) for (n, k), m in product(MATRICES, TOKENS)]
    points += [point("append", new_tokens=m, **HEADS[0]) for m in TOKENS]
    block_bytes = 16 * HEADS[0]["n_kv_heads"] * HEADS[0]["head_dim"] * 2
    points += [point("block_copy", bytes=block_bytes * n, **HEADS[0]) for n in (1, 4, 16, 64, 256, 1024, 4096)]
    points += [
        point("transfer", detail=f"{way}_{memory}", bytes=1 << power)
        for way, memory, power in product(("h2d", "d2h"), ("pinned", "pageable"), range(12, 31, 2))
    ]
    return list(dict.fromkeys(points))


def ragged(rng: np.random.Generator, heads: dict[str, int], n_points: int) -> list[Point]:
    """Decode batches of which an eighth is at a longer context than the rest."""
    points = []
    for _ in range(n_points):
        n = int(2 ** rng.integers(2, 9))
        n_long, short = max(1, n // 8), int(2 ** rng.integers(6, 12))
        longest = int(short * 2 ** rng.integers(1, 5))
        points.append(
            point(
                "skewed_attention",
                decode_seqs=n,
                decode_total_tokens=n_long * longest + (n - n_long) * short,
                decode_longest_tokens=longest,
                **heads,
            )
        )
    return points

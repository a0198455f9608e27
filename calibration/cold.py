"""Decode times measured on keys and values that lay in the L2 cache, brought to what they take from memory.

The published tables replay one graph over the same keys and values. As long as these fit into the L2 cache, no replay
reads them from memory, where an engine has read a layer's weights and all other layers since: on an H200 34 MB take
17 us, on an L40S 67 MB take 36 us and 134 MB 220. The same kernel that reads its bytes from memory takes longer by
the difference of the two rates. Both are found in the table, for each head shape and number format: from batches whose
time hangs on the bytes they read, as the slope below the size of the cache and well beyond it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.measurements import KV_BYTES

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

CACHE_BYTES = {"sm_80": 20e6, "sm_89": 96e6, "sm_90": 50e6, "sm_100": 63e6}
"""L2 that one copy of the data may take. Source: NVIDIA's white papers; A100 and B200 have 40 and 126 MB in two halves,
of which each holds its own copy, and their times leave the cache's at half of that."""

LEAST_TOKENS, MOST_SEQS = 512, 64  # of batches whose time hangs on the bytes they read
HEADS = ("n_heads", "n_kv_heads", "head_dim", "kv_dtype")


def brought_to_memory(rows: Any, architecture: str) -> tuple[Any, str]:
    """Decode rows with the times of those that fit into the cache corrected; and what was done, in words."""
    if architecture not in CACHE_BYTES or not len(rows):
        return rows, f"decode times of small KV may be warm in L2: nothing is known of {architecture or 'the device'}'s"
    cache = CACHE_BYTES[architecture]
    rows = rows.reset_index(drop=True)
    seconds: Array = rows["seconds"].to_numpy(dtype=np.float64)
    corrected = seconds.copy()
    slopes = []
    for (_, kv_heads, head_dim, kv_dtype), group in rows.groupby(list(HEADS), sort=True):
        at = group.index.to_numpy()
        total = group["decode_total_tokens"].to_numpy(dtype=np.float64)
        n = group["decode_seqs"].to_numpy(dtype=np.float64)
        read = 2.0 * KV_BYTES[kv_dtype] * kv_heads * head_dim * total
        is_judged = (total >= LEAST_TOKENS * n) & (n <= MOST_SEQS)
        cold = slope(read, seconds[at], is_judged & (read >= 2.0 * cache))
        warm = slope(read, seconds[at], is_judged & (read >= 0.1 * cache) & (read <= 0.75 * cache))
        if cold is None or warm is None or cold <= warm:
            continue
        is_warm = read <= cache
        corrected[at[is_warm]] += read[is_warm] * (cold - warm)
        slopes.append((cold, warm))
    if not slopes:
        return rows, "decode times of KV that fits into L2 are as measured, warm: no slope tells them from cold ones"
    cold, warm = np.median(slopes, axis=0)
    return rows.assign(seconds=corrected), (
        f"decode times of KV up to {cache / 1e6:.0f} MB a layer were measured warm in L2 and are corrected to memory: "
        f"{int((corrected > seconds).sum())} of {len(rows)} rows, from {1e-12 / warm:.2g} to {1e-12 / cold:.2g} TB/s "
        "(medians over head shapes)"
    )


def slope(read: Array, seconds: Array, which: Flags) -> float | None:
    """Seconds per byte of a straight line through some rows, least squares of relative errors; None of too few."""
    if which.sum() < 6:
        return None
    x, y = read[which], seconds[which]
    columns = np.stack([1.0 / y, x / y], axis=1)
    return float(np.linalg.lstsq(columns, np.ones(len(y)), rcond=None)[0][1])

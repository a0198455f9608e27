"""How much work the operations of an iteration are: what their rooflines are lines over."""

import numpy as np
import numpy.typing as npt

from sim.spec import ACTIVATION_BYTES

Array = npt.NDArray[np.float64]

TILE_ROWS = 128
"""Query rows of a thread block in prefill attention. Source: FlashAttention-2 and -3 kernels, head_dim <= 128."""


def attention_work(
    *,
    n_heads: Array | float,
    n_kv_heads: Array | float,
    head_dim: Array | float,
    kv_bytes: float = 2.0,
    prefill_seqs: Array | float = 0.0,
    new_tokens: Array | float = 0.0,
    context_tokens: Array | float = 0.0,
    decode_seqs: Array | float = 0.0,
    decode_total_tokens: Array | float = 0.0,
    decode_longest_tokens: Array | float = 0.0,
) -> dict[str, Array]:
    """Work of one layer's attention over prompt chunks and decoding sequences, launched together.

    Parameters
    ----------
    n_heads, n_kv_heads, head_dim
        Of one tensor-parallel rank.
    kv_bytes
        Per cached element [B].
    prefill_seqs, new_tokens, context_tokens
        ``prefill_seqs`` equal chunks of ``new_tokens`` each, after ``context_tokens`` already cached.
    decode_seqs, decode_total_tokens, decode_longest_tokens
        Decoding sequences, and the KV entries they read: in all, and the longest one's.

    Returns
    -------
    dict of arrays
        ``flops`` [FLOP] causal, both matrix products; ``bytes`` [B] of K, V, queries and outputs; ``blocks``: thread
        blocks; ``serial_tokens``: KV entries the busiest thread block walks through one after the other.
    """
    new, context = np.asarray(new_tokens, dtype=np.float64), np.asarray(context_tokens, dtype=np.float64)
    seen = prefill_seqs * new * (context + (new + 1.0) / 2.0) + decode_total_tokens
    read = prefill_seqs * (context + new) + decode_total_tokens
    rows = prefill_seqs * new + decode_seqs
    blocks = n_heads * (prefill_seqs * np.ceil(new / TILE_ROWS)) + np.multiply(n_kv_heads, decode_seqs)
    return {
        "flops": np.asarray(4.0 * n_heads * head_dim * seen),
        "bytes": np.asarray(
            2.0 * kv_bytes * n_kv_heads * head_dim * read + 2.0 * ACTIVATION_BYTES * n_heads * head_dim * rows
        ),
        "blocks": np.asarray(blocks, dtype=np.float64),
        "serial_tokens": np.maximum(context + new, decode_longest_tokens),
    }


def gemm_work(m: Array | float, n: Array | float, k: Array | float, element_bytes: float = 2.0) -> dict[str, Array]:
    """Work of a matrix product (m, k) x (k, n): ``flops`` [FLOP] and ``bytes`` [B] of operands and result."""
    m, n, k = (np.asarray(x, dtype=np.float64) for x in (m, n, k))
    return {
        "flops": 2.0 * m * n * k,
        "bytes": element_bytes * (m * k + k * n) + ACTIVATION_BYTES * m * n,
        "padded_flops": 2.0 * np.ceil(m / 64.0) * 64.0 * np.ceil(n / 128.0) * 128.0 * k,
    }

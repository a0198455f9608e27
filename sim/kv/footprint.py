"""What one sequence of a known length takes, without serving anything: slots by cache, eager attention's matrix, work.

The slots are asked of the parts that caches are made of (reservation, allocator, retention), so that a change there
shows here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.request import Request
from sim.spec import ACTIVATION_BYTES, HardwareSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class Footprint:
    """KV slots that a sequence holds when it has reached its length, and those of them in which tokens live."""

    held_tokens: int
    live_tokens: int
    width_frac: float = 1.0  # bytes of a slot, relative to one whose elements are as wide as the model's

    @property
    def waste_frac(self) -> float:
        """Share of what is held that is empty; nothing of nothing."""
        return 1.0 - self.live_tokens / self.held_tokens if self.held_tokens else 0.0


def reserved(length: int, reservation: Any, allocator: Callable[[int], Any], max_len: int) -> Footprint:
    """Of a contiguous cache: the extent that holds ``length`` tokens, as its allocator rounds it.

    A conversation that nothing is known of. Extents that may grow have grown as often as the length demands.
    """
    request = Request(0, 0, length, 1, 1)
    wanted = max(length, min(reservation.tokens(request, length), max_len))
    room = allocator(1 << wanted.bit_length())  # a power of two with room for it: an empty device
    return Footprint(room.size_of(room.take(wanted)), length)


def in_blocks(length: int, block_tokens: int, window: int | None = None) -> Footprint:
    """Of a cache in blocks: whole ones, of what the model's attention still sees."""
    live = length if window is None else min(length, window)
    return Footprint(-(-live // block_tokens) * block_tokens, live)


def pruned(length: int, block_tokens: int, retention: Any, model_bits: float) -> Footprint:
    """Of a cache that keeps a part: what stays of ``length`` tokens, a window when full, a share just compacted."""
    most = retention.most_tokens or retention.window_tokens
    live = min(length, most) if most is not None else retention.kept(length, length, None, 0.0).n_tokens
    bits = getattr(retention, "bits_per_element", model_bits)
    return Footprint(-(-live // block_tokens) * block_tokens, live, min(1.0, bits / model_bits))


def attention_matrix_bytes(model: ModelSpec, length: int, tensor_parallel: int = 1) -> float:
    """Scores of one layer that eager attention holds at once: every head's queries by its keys, on one rank [B].

    A prompt of ``length`` tokens in one pass, the layer with the most heads. At least that: implementations that
    take the softmax in fp32 hold a second, wider one beside it.
    """
    heads = max(int(getattr(attention, "n_heads", 0)) for _, attention in model.rank_attentions(tensor_parallel))
    return ACTIVATION_BYTES * heads * float(length) ** 2


def generation_flops(model: ModelSpec, length: int) -> Mapping[str, float]:
    """Arithmetic of making ``length`` tokens one by one [FLOP]: ``cached``, and ``recomputed`` from the start for each.

    With a cache every token passes the matrices once and attends to those before it. Without, the i-th takes a pass
    over all i. Two FLOP for each parameter that a token is multiplied with; lm_head once for each token made.
    """
    by_token, lm_head = _token_flops(model, length)
    passes, head = np.cumsum(by_token), lm_head * length
    return {"cached": float(passes[-1]) + head, "recomputed": float(passes.sum()) + head}


EAGER_PASSES = 4
"""How often eager attention moves its matrix: scores written and read by the softmax, weights written and read.

Source: Dao et al., "FlashAttention", NeurIPS 2022, algorithm 0 (standard attention).
"""


def generation_seconds(model: ModelSpec, hardware: HardwareSpec, length: int) -> Mapping[str, float]:
    """The least time that a device's data sheet allows for one sequence [s].

    ``cached`` and ``recomputed`` make ``length`` tokens one by one, ``prompt`` computes them in one pass and ``eager``
    does so with attention that writes its matrix to memory. Each step takes its arithmetic at the peak, or the reading
    of weights and KV at the full bandwidth, whichever is longer.
    """
    ranks, device = hardware.tensor_parallel, hardware.device
    peak = device.peak_flops.get(model.weight_dtype) or device.peak_flops["bf16"]
    by_token, lm_head = _token_flops(model, length)
    read_s = model.matrix_bytes(ranks) / device.bandwidth_bytes_per_s
    kv_s = model.kv_bytes_per_token(ranks) / device.bandwidth_bytes_per_s
    seen = np.arange(1, length + 1, dtype=np.float64)
    seen = seen if model.window is None else np.minimum(seen, model.window)
    passes = np.cumsum(by_token)
    prompt_s = max(float(passes[-1] + lm_head) / peak / ranks, read_s)
    matrix = sum(n * int(getattr(kind, "n_heads", 0)) for n, kind in model.rank_attentions(ranks))
    return {
        "cached": float(np.maximum((by_token + lm_head) / peak / ranks, read_s + seen * kv_s).sum()),
        "recomputed": float(np.maximum((passes + lm_head) / peak / ranks, read_s).sum()),
        "prompt": prompt_s,
        "eager": prompt_s
        + EAGER_PASSES * ACTIVATION_BYTES * matrix * float(length) ** 2 / device.bandwidth_bytes_per_s,
    }


def _token_flops(model: ModelSpec, length: int) -> "tuple[np.ndarray[Any, np.dtype[np.float64]], float]":
    """Arithmetic of the i-th token beside those before it, shape (length,), and of lm_head [FLOP]."""
    lm_head = 2.0 * model.vocab * model.d_model
    steps = np.arange(1, length + 1, dtype=np.float64)
    dense = 2.0 * model.n_active_params - lm_head
    by_token = np.full(length, dense)  # of the i-th token, once
    for n_layers, attention in model.rank_attentions():
        work = attention.work(1)
        seen = steps if attention.n_read is None else np.minimum(steps, attention.n_read)
        by_token += n_layers * (work.pair_flops * seen + work.scan_flops * steps + work.token_flops)
    return by_token, lm_head

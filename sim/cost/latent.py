"""Latent attention of one layer from a profile: what its kernels take beside its matrices.

A published table times the whole block, matrices among it. What is left without them, as the same device's matrices
are served, was fitted over sequences, tokens and heads; prompts and decoding sequences run apart, and their times add.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sim.cost.attention import error_factor, meshed, nodes
from sim.cost.roofline import TILE_ROWS, attended_pairs
from sim.cost.surface import Array, monotone, surface_from
from sim.cost.table import Plane
from sim.spec import Mla
from sim.step import Chunks

SERVED = {
    # operation: axes of its table, and nodes per octave along each
    "latent_decode": {"decode_seqs": 2, "decode_mean_tokens": 2},
    "latent_prefill": {"prefill_seqs": 2, "new_tokens": 3},
}
KINDS = {
    "latent_decode": ("flops", "bytes", "blocks", "serial_tokens"),
    "latent_prefill": ("flops", "bytes", "serial_tokens"),
}


def latent_work(attention: Mla, name: str, n_seqs: Array, n_tokens: Array, kv_bytes: float) -> dict[str, Array]:
    """Work of ``n_seqs`` equal sequences that read, or prompts that have, ``n_tokens`` each; arrays of one shape."""
    one = attention.work(TILE_ROWS)
    if name == "latent_decode":
        return {
            "flops": one.entry_flops * n_seqs * n_tokens,
            "bytes": attention.kv_bytes_per_token(kv_bytes) * n_seqs * n_tokens + one.decode_token_bytes * n_seqs,
            "blocks": attention.n_heads * n_seqs,
            "serial_tokens": n_tokens,
        }
    return {
        "flops": one.pair_flops * n_seqs * n_tokens * (n_tokens + 1.0) / 2.0,
        "bytes": one.prefill_token_bytes * n_seqs * n_tokens,
        "serial_tokens": n_tokens,
    }


def dimensions(attention: Mla) -> dict[str, int | None]:
    """What must be alike for a fit of one model's block to hold for another's: all but the heads."""
    return {name: getattr(attention, name) for name in ("q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim")}


def is_of_these(form: Mapping[str, Any], attention: Mla, d_model: int) -> bool:
    """Whether an operation was fitted to blocks like this one."""
    return attention.n_selected is None and form["of"] == {**dimensions(attention), "d_model": d_model}


def tabulated(name: str, form: Mapping[str, Any], attention: Mla, kv_bytes: float, z: float) -> Plane:
    """A fitted operation on the grid of `SERVED` for this many heads, monotone, off by ``z`` standard errors."""
    first, second = SERVED[name]
    surface = surface_from(form)
    lines = [nodes(form["range"][axis], per_octave, 0.0) for axis, per_octave in SERVED[name].items()]
    mesh = meshed((first, second), lines)
    shape = {**mesh, "n_heads": np.full(len(mesh[first]), float(attention.n_heads))}
    seconds = surface.seconds(shape, latent_work(attention, name, mesh[first], mesh[second], kv_bytes))
    seconds = monotone(seconds.reshape([len(line) for line in lines]))
    return Plane(lines, (0.0, 0.0), np.log(seconds * error_factor(surface.error, seconds, z)))


class LatentAttention:
    """Prompts and decoding sequences of latent attention, their matrices not among it.

    Chunks are taken as the batch of equal prompts with as many tokens and attended pairs. What was cached before them
    has its keys and values unpacked again (vLLM's chunked context), by the matrix that ``unpack_s`` times.
    """

    def __init__(
        self,
        operations: Mapping[str, Mapping[str, Any]],
        attention: Mla,
        kv_bytes: float,
        unpack_s: Callable[[Array], Array],
        z: Mapping[str, float],
    ) -> None:
        self._decode, self._prefill = (
            tabulated(name, operations[name], attention, kv_bytes, z.get(name, 0.0))
            for name in ("latent_decode", "latent_prefill")
        )
        self._unpack_s = unpack_s
        self._least_context = float(operations["latent_decode"]["range"]["decode_mean_tokens"][0])
        low, high = operations["latent_prefill"]["range"]["prefill_seqs"]
        self._least_seqs, self._most_seqs = float(low), float(high)

    def decode_s(self, n_seqs: int, mean_tokens: float) -> float:
        """Of ``n_seqs`` decoding sequences that read ``mean_tokens`` KV entries each [s]."""
        return self._decode(n_seqs, max(mean_tokens, self._least_context))

    def decode_skew_s(self, n_seqs: int) -> float:  # noqa: ARG002
        """Unequal contexts were not measured."""
        return 0.0

    def chunks_s(self, chunks: Chunks) -> float:
        """Of prompt chunks [s]."""
        rows = pairs = cached = 0
        for new, context, reach in chunks:
            rows += new
            pairs += attended_pairs(new, context, reach)
            cached += min(context, reach)
        length = 2.0 * pairs / rows - 1.0
        n_equal = rows / length
        if n_equal < self._least_seqs:  # after a long context: one prompt with as many pairs
            n_equal, length = self._least_seqs, (2.0 * pairs / self._least_seqs) ** 0.5
        seconds: float
        if n_equal > self._most_seqs:
            seconds = self._prefill(self._most_seqs, length) * (n_equal / self._most_seqs)
        else:
            seconds = self._prefill(n_equal, length)
        if cached:
            seconds += float(self._unpack_s(np.array([float(cached)]))[0])
        return seconds


def with_heads(attention: Mla, n_heads: int) -> Mla:
    """The same block with another number of heads."""
    return replace(attention, n_heads=n_heads)

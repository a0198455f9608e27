"""What the parts of an iteration take: the contract between an iteration's time and who knows its kernels'."""

from typing import NamedTuple, Protocol, runtime_checkable

from sim.step import Chunks
from sim.units import FAR


class DecodeCurve(NamedTuple):
    """Decode attention of the whole model at one batch size, piecewise linear in the batch's total context.

    ``knots`` ascend from at most ``batch`` (every sequence reads at least the token it computes). Past the last knot
    the last piece goes on; past ``valid_to_tokens`` that is extrapolation, and counted.
    """

    knots: tuple[int, ...]  # total KV entries read [tokens]
    seconds: tuple[float, ...]  # attention over all layers with equal contexts, KV append included [s]
    skew_s: float = 0.0  # per token of batch * longest - total: what unequal contexts cost [s]
    valid_to_tokens: int = FAR


class Operations(Protocol):
    """Times of the parts of an iteration, over the whole model on one tensor-parallel rank [s].

    All are pure functions of their arguments: results are cached. Operations whose times are those of kernels alone say
    how many kernels an iteration launches (``n_launches``); what passes between them is the host's.
    """

    def dense_s(self, n_tokens: int) -> float:
        """GEMMs, norms, activations and all-reduces of all layers, on ``n_tokens`` tokens."""
        ...

    def sequences_s(self, n_seqs: int) -> float:
        """lm_head and sampler, for one token of each of ``n_seqs`` sequences."""
        ...

    def prefill_attention_s(self, chunks: Chunks) -> float:
        """Attention of all chunks in one launch per layer, and the append of their KV."""
        ...

    def decode_attention(self, batch: int) -> DecodeCurve:
        """Attention of ``batch`` sequences with one new token each, and the append of their KV."""
        ...

    def copy_s(self, moved_bytes: float, host_bytes: float) -> float:
        """Copies on the critical path: inside device memory, and over the link to the host."""
        ...


@runtime_checkable
class FusedAttention(Protocol):
    """What `Operations` add when prompts and decoding sequences were measured in one launch: there times do not add."""

    is_fused: bool  # whether they were

    def fused_attention_s(self, chunks: Chunks, batch: int, context_tokens: int, longest_tokens: int) -> float:
        """Attention of chunks beside ``batch`` decoding sequences, all layers, KV append included [s].

        ``context_tokens`` KV entries are read by the decoding sequences in all, ``longest_tokens`` by one of them.
        """
        ...

"""What a layer of a model must say of itself: how its attention and its feed-forward part are counted and shared out.

A kind is a frozen dataclass with a file of its own. Its numbers are those of the whole layer; `shard` gives the kind
that one tensor-parallel rank holds, of which the same questions are asked.
"""

from typing import NamedTuple, Protocol, Self

from sim.spec.routing import n_touched


class Gemm(NamedTuple):
    """A matrix that every token is multiplied with; or several such, of which each token takes some (experts)."""

    name: str
    inputs: int
    outputs: int
    dtype: str | None = None  # where it differs from the model's ``weight_dtype``
    n_matrices: int = 1
    n_taken: float = 1  # by each token; on one of several ranks that experts lie on, on average
    has_bias: bool = False

    def n_touched(self, n_tokens: int, skew: float = 0.0) -> float:
        """Matrices that a step of ``n_tokens`` tokens needs, expected (`sim.spec.routing`)."""
        return n_touched(n_tokens, self.n_taken, self.n_matrices, skew)

    @property
    def n_params(self) -> int:
        """Parameters of all of them."""
        return self.n_matrices * (self.inputs + self.has_bias) * self.outputs

    @property
    def n_active_params(self) -> int:
        """Those that one token is multiplied with."""
        return round(self.n_taken * (self.inputs + self.has_bias) * self.outputs)


class AttentionWork(NamedTuple):
    """What one layer's attention computes and, beside the cached keys and values, reads."""

    pair_flops: float = 0.0  # of one (query, key) pair of a prompt, over all heads [FLOP]
    entry_flops: float = 0.0  # of one cached token that a decoding sequence reads, in whole tiles [FLOP]
    unpack_flops: float = 0.0  # of one cached token that a prompt's chunk reads, once before all pairs [FLOP]
    scan_flops: float = 0.0  # of one (query, key) pair to select what is read, over all the context [FLOP]
    scan_bytes: float = 0.0  # of one cached token to select from [B]
    token_flops: float = 0.0  # of one token, whatever it attends to [FLOP]
    prefill_token_bytes: float = 0.0  # queries, keys, values and outputs of a prompt's token, between matrices [B]
    decode_token_bytes: float = 0.0  # of a decoding sequence's token [B]


class Attention(Protocol):
    """How a token looks back: its matrices, what of it is cached, what reading that costs."""

    window: int | None  # tokens whose keys and values must be held, the newest included; None: all
    n_read: int | None  # tokens that a query attends to at most, itself included; None: all before it
    head_dim: int

    def shard(self, tensor_parallel: int) -> Self:
        """What one of the ranks holds that share the layer.

        Raises
        ------
        ConfigError
            If the heads cannot be shared evenly among the ranks.
        """
        ...

    def axes(self) -> dict[str, int]:
        """Its shape, as profiles of measured kernels name it."""
        ...

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Matrices of one layer: what a token is multiplied with."""
        ...

    def n_other_params(self) -> int:
        """Parameters that are in no matrix: norms of queries and keys, sinks."""
        ...

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes of KV cache one token occupies in one layer [B]."""
        ...

    def state_bytes_per_seq(self) -> float:
        """Bytes of one layer that a sequence occupies whatever its length [B]."""
        ...

    def n_rotated(self) -> int:
        """Numbers of a token that the rotary embedding turns in place."""
        ...

    def work(self, tile_rows: int) -> AttentionWork:
        """Arithmetic of one layer; queries that share a key are tiles of ``tile_rows`` rows when they decode."""
        ...


class FeedForward(Protocol):
    """What follows attention in a layer."""

    def shard(self, tensor_parallel: int, expert_ranks: int = 1) -> Self:
        """What one of the ranks holds that share the layer; experts by number where they lie on several ranks."""
        ...

    def axes(self) -> dict[str, int]:
        """Its shape, as profiles of measured kernels name it."""
        ...

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Matrices of one layer: what a token is multiplied with."""
        ...

    def n_other_params(self, d_model: int) -> int:
        """Parameters that are in no matrix: gates, corrections of scores."""
        ...

    def n_inner(self) -> int:
        """Numbers of a token between the matrices: before and after the activation."""
        ...

    def n_activated(self) -> int:
        """Of those, the numbers that a kernel of the activation alone reads or writes."""
        ...

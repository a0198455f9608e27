"""What a layer of a model must say of itself: how its attention and its feed-forward part are counted and shared out.

A kind is a frozen dataclass with a file of its own. Its numbers are those of the whole layer; `shard` gives the kind
that one tensor-parallel rank holds, of which the same questions are asked.
"""

from typing import NamedTuple, Protocol, Self


class Gemm(NamedTuple):
    """A matrix that every token is multiplied with."""

    name: str
    inputs: int
    outputs: int


class Attention(Protocol):
    """How a token looks back: its matrices, what of it is cached, what reading that costs."""

    window: int | None  # tokens that one attends to, itself included; None: all before it
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

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Bytes of KV cache one token occupies in one layer [B]."""
        ...

    def n_rotated(self) -> int:
        """Numbers of a token that the rotary embedding turns in place."""
        ...

    def pair_flops(self) -> float:
        """Arithmetic of one (query, key) pair of a prompt, over all heads [FLOP]."""
        ...

    def entry_flops(self, tile_rows: int) -> float:
        """Arithmetic of one cached token that a decoding sequence reads [FLOP].

        The queries that share a key are one tile of at least ``tile_rows`` rows.
        """
        ...


class FeedForward(Protocol):
    """What follows attention in a layer."""

    def shard(self, tensor_parallel: int) -> Self:
        """What one of the ranks holds that share the layer."""
        ...

    def axes(self) -> dict[str, int]:
        """Its shape, as profiles of measured kernels name it."""
        ...

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Matrices of one layer: what a token is multiplied with."""
        ...

    def n_inner(self) -> int:
        """Numbers of a token between the matrices: before and after the activation."""
        ...

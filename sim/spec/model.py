"""A model: a stack of layers, each an attention and a feed-forward kind, between embeddings and lm_head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spec.kinds import Attention, FeedForward, Gemm
from sim.spec.values import DTYPE_BYTES, known_dtype, whole


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of one kind. Where in the model they stand changes nothing that is asked here."""

    n_layers: int
    attention: Attention
    feed_forward: FeedForward

    def __post_init__(self) -> None:
        whole("model.stack", n_layers=self.n_layers)

    def shard(self, tensor_parallel: int) -> "Layers":
        """What one tensor-parallel rank holds of them."""
        return replace(
            self,
            attention=self.attention.shard(tensor_parallel),
            feed_forward=self.feed_forward.shard(tensor_parallel),
        )

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Matrices of one of them: what a token is multiplied with."""
        return self.attention.gemms(d_model) + self.feed_forward.gemms(d_model)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder-only transformer, and the number formats it is served in."""

    name: str
    d_model: int
    vocab: int
    max_len: int  # longest prompt plus output [tokens]
    stack: Sequence[Layers]
    has_tied_embeddings: bool = False  # lm_head is the embedding table
    n_position_embeddings: int = 0  # learnt absolute positions (gpt2) [rows]
    weight_dtype: str = "bf16"  # of the layers' matrices; embeddings, lm_head and norms are at least bf16
    kv_dtype: str = "bf16"
    source: str = ""

    def __post_init__(self) -> None:
        whole("model", d_model=self.d_model, vocab=self.vocab, max_len=self.max_len)
        known_dtype("model", weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype)
        if not self.stack:
            raise ConfigError("model.stack must name at least one kind of layer, got none")
        object.__setattr__(self, "stack", tuple(self.stack))

    @property
    def n_layers(self) -> int:
        """Layers of all kinds."""
        return sum(layers.n_layers for layers in self.stack)

    @property
    def window(self) -> int | None:
        """The sliding window that bounds what every layer reads; None where one reads all there is [tokens]."""
        windows = [layers.attention.window for layers in self.stack]
        widest = 0
        for window in windows:
            if window is None:
                return None
            widest = max(widest, window)
        return widest

    @property
    def weight_bytes(self) -> float:
        """Bytes of one parameter of the layers' matrices [B]."""
        return DTYPE_BYTES[self.weight_dtype]

    @property
    def kv_bytes(self) -> float:
        """Bytes of one cached element [B]."""
        return DTYPE_BYTES[self.kv_dtype]

    def rank_stack(self, tensor_parallel: int) -> tuple[Layers, ...]:
        """The stack as one tensor-parallel rank holds it.

        Raises
        ------
        ConfigError
            If a kind cannot be shared evenly among the ranks.
        """
        return tuple(layers.shard(tensor_parallel) for layers in self.stack)

    def rank_attentions(self, tensor_parallel: int = 1) -> tuple[tuple[int, Attention], ...]:
        """Attention kinds as one rank holds them, with how many layers there are of each, whatever follows in them."""
        counts: dict[Attention, int] = {}
        for layers in self.rank_stack(tensor_parallel):
            counts[layers.attention] = counts.get(layers.attention, 0) + layers.n_layers
        return tuple((n_layers, attention) for attention, n_layers in counts.items())

    def kv_bytes_per_token(self, tensor_parallel: int = 1) -> float:
        """KV cache of one token over all layers, on one rank [B]."""
        n_bytes = 0.0
        for n_layers, attention in self.rank_attentions(tensor_parallel):
            n_bytes += n_layers * attention.kv_bytes_per_token(self.kv_bytes)
        return n_bytes

    def n_matrix_params(self, tensor_parallel: int = 1) -> int:
        """Parameters of all layers' matrices on one rank, those that quantisation shrinks."""
        return sum(
            layers.n_layers * sum(inputs * outputs for _, inputs, outputs in layers.gemms(self.d_model))
            for layers in self.rank_stack(tensor_parallel)
        )

    @property
    def n_embedding_params(self) -> int:
        """Parameters of token embeddings, lm_head and learnt positions."""
        tables = (1 if self.has_tied_embeddings else 2) * self.vocab
        return (tables + self.n_position_embeddings) * self.d_model

    @property
    def n_norm_params(self) -> int:
        """Parameters of the norms: two in a layer, one at the end."""
        return (2 * self.n_layers + 1) * self.d_model

    @property
    def n_params(self) -> int:
        """Parameters: layers' matrices, embeddings, norms.

        Biases are left out (below 0.1 % of any model here).
        """
        return self.n_matrix_params() + self.n_embedding_params + self.n_norm_params

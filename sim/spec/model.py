"""A model: a stack of layers, each an attention and a feed-forward kind, between embeddings and lm_head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spec.kinds import Attention, FeedForward, Gemm
from sim.spec.values import DTYPE_BYTES, KV_DTYPES, as_given, known, whole

SKEWS = (1.0, 1.5)
"""Power laws of experts' loads: tables hold 1.01 and 1.2; past 1.5 most loads are the least one, and alike again."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of one kind. Where in the model they stand changes nothing that is asked here."""

    n_layers: int
    attention: Attention
    feed_forward: FeedForward

    def __post_init__(self) -> None:
        whole("model.stack", n_layers=self.n_layers)

    def shard(self, tensor_parallel: int, expert_ranks: int = 1) -> "Layers":
        """What one tensor-parallel rank holds of them, and of experts one of those that they lie on."""
        return replace(
            self,
            attention=self.attention.shard(tensor_parallel),
            feed_forward=self.feed_forward.shard(tensor_parallel, expert_ranks),
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
    kv_dtype: str = "bf16"  # or fp8; fp16 and fp32 beside weights in it
    routing_skew: float = 0.0  # how unlike experts are to be chosen (`sim.spec.routing`); 0: all alike
    source: str = ""

    def __post_init__(self) -> None:
        whole("model", d_model=self.d_model, vocab=self.vocab, max_len=self.max_len)
        known("model", DTYPE_BYTES, weight_dtype=self.weight_dtype)
        own = (self.weight_dtype,) if self.weight_dtype in ("fp16", "fp32") else ()
        known("model", (*KV_DTYPES, *own), kv_dtype=self.kv_dtype)
        if self.routing_skew and not SKEWS[0] <= self.routing_skew <= SKEWS[1]:
            raise ConfigError(
                f"model.routing_skew must be 0 or from {SKEWS[0]:g} to {SKEWS[1]:g}, got {as_given(self.routing_skew)}"
            )
        if not self.stack:
            raise ConfigError("model.stack must name at least one kind of layer, got none")
        object.__setattr__(self, "stack", tuple(self.stack))

    def stage(self, n_stages: int) -> "ModelSpec":
        """What the fullest of ``n_stages`` pipeline stages holds: its share of the layers of each kind, rounded up.

        Embeddings stand on the first stage and lm_head on the last: each is as if it were tied.

        Raises
        ------
        ConfigError
            If there are fewer layers than stages.
        """
        if n_stages == 1:
            return self
        if n_stages > self.n_layers:
            raise ConfigError(
                f"hardware.pipeline_parallel must be <= {self.n_layers}, the layers of {self.name}, got {n_stages}"
            )
        share = tuple(replace(layers, n_layers=-(-layers.n_layers // n_stages)) for layers in self.stack)
        return replace(self, stack=share, has_tied_embeddings=True)

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

    @property
    def has_experts(self) -> bool:
        """Whether some layer is a mixture of them."""
        return any(gemm.n_matrices > 1 for layers in self.stack for gemm in layers.feed_forward.gemms(self.d_model))

    def rank_stack(self, tensor_parallel: int, expert_ranks: int = 1) -> tuple[Layers, ...]:
        """The stack as one tensor-parallel rank holds it, and of experts one of those that they lie on.

        Raises
        ------
        ConfigError
            If a kind cannot be shared evenly among the ranks.
        """
        return tuple(layers.shard(tensor_parallel, expert_ranks) for layers in self.stack)

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

    def state_bytes_per_seq(self, tensor_parallel: int = 1) -> float:
        """What a sequence occupies over all layers whatever its length, on one rank [B]."""
        n_bytes = 0.0
        for n_layers, attention in self.rank_attentions(tensor_parallel):
            n_bytes += n_layers * attention.state_bytes_per_seq()
        return n_bytes

    def n_matrix_params(self, tensor_parallel: int = 1) -> int:
        """Parameters of all layers' matrices on one rank."""
        return sum(
            layers.n_layers * sum(gemm.n_params for gemm in layers.gemms(self.d_model))
            for layers in self.rank_stack(tensor_parallel)
        )

    def matrix_bytes(self, tensor_parallel: int = 1, expert_ranks: int = 1) -> float:
        """All layers' matrices on one rank, each in its number format [B]."""
        n_bytes = 0.0
        for layers in self.rank_stack(tensor_parallel, expert_ranks):
            for gemm in layers.gemms(self.d_model):
                n_bytes += layers.n_layers * gemm.n_params * DTYPE_BYTES[gemm.dtype or self.weight_dtype]
        return n_bytes

    @property
    def n_embedding_params(self) -> int:
        """Parameters of token embeddings, lm_head and learnt positions."""
        tables = (1 if self.has_tied_embeddings else 2) * self.vocab
        return (tables + self.n_position_embeddings) * self.d_model

    @property
    def n_other_params(self) -> int:
        """Parameters of the norms, two in a layer and one at the end, and what else the kinds have in no matrix."""
        own = sum(
            layers.n_layers * (layers.attention.n_other_params() + layers.feed_forward.n_other_params(self.d_model))
            for layers in self.stack
        )
        return own + (2 * self.n_layers + 1) * self.d_model

    @property
    def n_params(self) -> int:
        """Parameters: layers' matrices, embeddings, norms, and the biases that kinds know of."""
        return self.n_matrix_params() + self.n_embedding_params + self.n_other_params

    @property
    def n_active_params(self) -> int:
        """Parameters that one token is multiplied with: all but the experts it does not take, and the embeddings.

        A row of the embeddings is looked up; lm_head is a matrix like any other.
        """
        unused = sum(
            layers.n_layers * sum(gemm.n_params - gemm.n_active_params for gemm in layers.gemms(self.d_model))
            for layers in self.stack
        )
        looked_up = self.n_embedding_params - self.vocab * self.d_model
        return self.n_params - unused - looked_up

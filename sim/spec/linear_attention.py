"""Linear attention: a state of constant size takes the place of keys and values.

Source: Gated DeltaNet (arXiv 2412.06464), as in Qwen3-Next and Qwen3.5 (transformers, modeling_qwen3_next.py).
"""

from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spec.kinds import AttentionWork, Gemm
from sim.spec.values import DTYPE_BYTES, STATE_DTYPES, known, whole

CHUNK_TOKENS = 64
"""Tokens that prompts are computed in at a time. Source: flash-linear-attention's chunk_gated_delta_rule."""


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated delta rule: every value head keeps a matrix of ``key_dim`` x ``value_dim``, behind a short convolution."""

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    conv_tokens: int = 4
    state_dtype: str = "fp32"
    window: int | None = None  # never: nothing of a single token is held
    n_read: int | None = None

    def __post_init__(self) -> None:
        sizes = ("n_key_heads", "n_value_heads", "key_dim", "value_dim", "conv_tokens")
        whole("model.attention", **{name: getattr(self, name) for name in sizes})
        known("model.attention", STATE_DTYPES, state_dtype=self.state_dtype)
        if self.window is not None or self.n_read is not None:
            raise ConfigError("model.attention.window and n_read must be null for linear attention")

    @property
    def head_dim(self) -> int:
        """Width of a key."""
        return self.key_dim

    def shard(self, tensor_parallel: int) -> "LinearAttention":
        """A rank's heads."""
        if tensor_parallel < 1 or self.n_key_heads % tensor_parallel or self.n_value_heads % tensor_parallel:
            raise ConfigError(
                f"hardware.tensor_parallel must divide the {self.n_key_heads} key heads and {self.n_value_heads} value "
                f"heads of linear attention, got {tensor_parallel}"
            )
        return replace(
            self,
            n_key_heads=self.n_key_heads // tensor_parallel,
            n_value_heads=self.n_value_heads // tensor_parallel,
        )

    def axes(self) -> dict[str, int]:
        """Heads and widths of keys and values."""
        return {
            "n_key_heads": self.n_key_heads,
            "n_value_heads": self.n_value_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
        }

    def _n_convolved(self) -> int:
        return 2 * self.n_key_heads * self.key_dim + self.n_value_heads * self.value_dim

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Queries, keys, values and output gate; step and decay of a head; out."""
        values = self.n_value_heads * self.value_dim
        return (
            Gemm("qkvz", d_model, self._n_convolved() + values),
            Gemm("step_decay", d_model, 2 * self.n_value_heads, "bf16"),
            Gemm("attention_out", values, d_model),
        )

    def n_other_params(self) -> int:
        """Convolution, decay and bias of the step for each head, norm of the outputs."""
        return self.conv_tokens * self._n_convolved() + 2 * self.n_value_heads + self.value_dim

    def kv_bytes_per_token(self, element_bytes: float) -> float:  # noqa: ARG002
        """None."""
        return 0.0

    def state_bytes_per_seq(self) -> float:
        """The heads' matrices, and the inputs that the convolution still needs, in bf16 [B].

        Examples
        --------
        >>> LinearAttention(16, 32, 128, 128).state_bytes_per_seq() / 2**20  # a layer of Qwen3.5-35B-A3B
        2.046875
        """
        matrices = self.n_value_heads * self.key_dim * self.value_dim * DTYPE_BYTES[self.state_dtype]
        return matrices + (self.conv_tokens - 1) * self._n_convolved() * DTYPE_BYTES["bf16"]

    def n_rotated(self) -> int:
        """None are; queries, keys and values are convolved in place."""
        return self._n_convolved()

    def work(self, tile_rows: int) -> AttentionWork:  # noqa: ARG002
        """The chunked form's products of each value head: within the chunk, and with its state.

        Within: keys by keys, the solved step by keys and by values, queries by keys, weights by values. With the
        state: keys, queries, and the update.
        """
        within = 2.0 * CHUNK_TOKENS * (3 * self.key_dim + 2 * self.value_dim)
        return AttentionWork(token_flops=self.n_value_heads * (within + 6.0 * self.key_dim * self.value_dim))

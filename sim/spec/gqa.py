"""Attention with grouped queries: heads in groups that share a key and a value; one group is multi-query attention."""

from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spec.kinds import AttentionWork, Gemm
from sim.spec.values import whole


@dataclass(frozen=True, slots=True)
class Gqa:
    """Grouped-query attention, to all tokens or within a sliding window.

    ``has_sinks``: a learnt logit a head that takes attention from all keys (gpt-oss); it holds no KV and costs nothing.
    ``is_gated``: queries come with a gate of their width on the heads' outputs (Qwen3.5).
    ``are_keys_values``: no matrix of values, they are made of the keys; both are cached (gemma-4's full layers).
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int | None = None  # native sliding window [tokens]
    has_sinks: bool = False
    has_bias: bool = False  # on queries, keys and values
    has_out_bias: bool = False
    has_qk_norm: bool = False  # over each head
    is_gated: bool = False
    are_keys_values: bool = False

    def __post_init__(self) -> None:
        whole("model.attention", n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, head_dim=self.head_dim)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"model.attention.n_heads must be a multiple of n_kv_heads ({self.n_kv_heads}), got {self.n_heads}"
            )
        if self.window is not None:
            whole("model.attention", window=self.window)

    @property
    def n_read(self) -> int | None:
        """The window: what is held is read."""
        return self.window

    def shard(self, tensor_parallel: int) -> "Gqa":
        """Heads and KV heads of one rank; where there are fewer KV heads than ranks, ranks hold copies."""
        heads, kv_heads = self.n_heads, self.n_kv_heads
        is_uneven = kv_heads % max(1, tensor_parallel) and tensor_parallel % kv_heads
        if tensor_parallel < 1 or heads % tensor_parallel or is_uneven:
            raise ConfigError(
                f"hardware.tensor_parallel must divide the model's {heads} heads, and divide or be a multiple of its "
                f"{kv_heads} KV heads, got {tensor_parallel}"
            )
        return replace(self, n_heads=heads // tensor_parallel, n_kv_heads=max(1, kv_heads // tensor_parallel))

    def axes(self) -> dict[str, int]:
        """Heads, KV heads and their width."""
        return {"n_heads": self.n_heads, "n_kv_heads": self.n_kv_heads, "head_dim": self.head_dim}

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Queries, keys and values in one, and what joins the heads' outputs."""
        width = self.n_heads * self.head_dim
        queries = (2 if self.is_gated else 1) * self.n_heads
        projected = (queries + (1 if self.are_keys_values else 2) * self.n_kv_heads) * self.head_dim
        return (
            Gemm("qkv", d_model, projected, has_bias=self.has_bias),
            Gemm("attention_out", width, d_model, has_bias=self.has_out_bias),
        )

    def n_other_params(self) -> int:
        """Norms of queries and keys, sinks."""
        return (2 * self.head_dim if self.has_qk_norm else 0) + (self.n_heads if self.has_sinks else 0)

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """Keys and values of one token in one layer [B].

        Parameters
        ----------
        element_bytes : float
            Bytes per cached element, 2.0 for bf16, 0.5 for 4-bit [B].

        Examples
        --------
        >>> 32 * Gqa(n_heads=32, n_kv_heads=8, head_dim=128).kv_bytes_per_token(2.0)  # 32 layers of Llama 3.1 8B
        131072.0
        """
        return 2.0 * self.n_kv_heads * self.head_dim * element_bytes

    def state_bytes_per_seq(self) -> float:
        """None: all that is cached grows with the sequence."""
        return 0.0

    def n_rotated(self) -> int:
        """Queries and keys."""
        return (self.n_heads + self.n_kv_heads) * self.head_dim

    def work(self, tile_rows: int) -> AttentionWork:
        """Query by key, weight by value, two FLOP each; decoding, a tile for each KV head's group of queries."""
        n_tiles = -(-self.n_heads // self.n_kv_heads // tile_rows)
        return AttentionWork(
            pair_flops=4.0 * self.n_heads * self.head_dim,
            entry_flops=4.0 * self.n_kv_heads * self.head_dim * n_tiles * tile_rows,
        )

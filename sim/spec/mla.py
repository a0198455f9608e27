"""Multi-head latent attention: one compressed vector a token stands for the keys and values of all heads.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; sparse selection: DeepSeek-V3.2-Exp's report, section 2.1. As vLLM
runs it: prompts unpack the latent vectors into keys and values of every head (MLACommonImpl, forward_mha); decoding
sequences attend to the latent vectors themselves, the up-projections absorbed into queries and outputs (forward_mqa).
Both ways the up-projections are as many FLOP a token.
"""

from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spec.kinds import AttentionWork, Gemm
from sim.spec.values import ACTIVATION_BYTES, whole

INDEX_SCALE_BYTES = 4.0
"""Beside each cached fp8 key of the indexer, its scale. Source: vLLM, DeepseekV32IndexerCache: head_dim + 4 bytes."""


COMPRESSED_PASSES = 16
"""Times that a token's compressed queries and latent vector are read or written for each time that its heads' are.

They are split, normed, turned, cached and gathered by small kernels of their own. Source: fitted with the passes of
`sim.cost.roofline.Efficiency` to NVIDIA's aiconfigurator table of DeepSeek-V3's attention module on an H200.
"""


@dataclass(frozen=True, slots=True)
class Mla:
    """Latent attention; with ``n_selected`` sparse: an indexer of its own heads picks what each query reads.

    The latent vector cannot be cut by heads: every tensor-parallel rank holds it in full.
    """

    n_heads: int
    q_rank: int | None  # of compressed queries; None: not compressed
    kv_rank: int  # of the latent vector
    nope_dim: int  # of a head's query and key, without positions
    rope_dim: int  # with positions; one key for all heads
    v_dim: int
    n_selected: int | None = None  # tokens that a query reads at most
    index_heads: int = 0
    index_dim: int = 0
    window: int | None = None  # never: what is not selected now may be later

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("n_heads", "kv_rank", "nope_dim", "rope_dim", "v_dim")}
        whole("model.attention", **sizes)
        if self.q_rank is not None:
            whole("model.attention", q_rank=self.q_rank)
        if self.n_selected is not None:
            whole(
                "model.attention",
                n_selected=self.n_selected,
                index_heads=self.index_heads,
                index_dim=self.index_dim,
                q_rank=self.q_rank or 0,
            )
        if self.window is not None:
            raise ConfigError(f"model.attention.window must be null for latent attention, got {self.window}")

    @property
    def n_read(self) -> int | None:
        """What the indexer selects."""
        return self.n_selected

    @property
    def head_dim(self) -> int:
        """Width of a head's query and key."""
        return self.nope_dim + self.rope_dim

    def shard(self, tensor_parallel: int) -> "Mla":
        """A rank's heads; latent vector and indexer are copied."""
        if tensor_parallel < 1 or self.n_heads % tensor_parallel:
            raise ConfigError(
                f"hardware.tensor_parallel must divide the model's {self.n_heads} heads, got {tensor_parallel}"
            )
        return replace(self, n_heads=self.n_heads // tensor_parallel)

    def axes(self) -> dict[str, int]:
        """Heads, and what of a token is cached."""
        return {"n_heads": self.n_heads, "kv_rank": self.kv_rank, "rope_dim": self.rope_dim}

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Down to queries and latent vector, up to the heads, out; of sparse attention the indexer's."""
        heads, latent = self.n_heads, self.kv_rank + self.rope_dim
        up = Gemm("kv_up", self.kv_rank, heads * (self.nope_dim + self.v_dim))
        out = Gemm("attention_out", heads * self.v_dim, d_model)
        if self.q_rank is None:
            return Gemm("q", d_model, heads * self.head_dim), Gemm("kv_down", d_model, latent), up, out
        down = Gemm("qkv_down", d_model, self.q_rank + latent)
        gemms = down, Gemm("q_up", self.q_rank, heads * self.head_dim), up, out
        if self.n_selected is None:
            return gemms
        return (
            *gemms,
            Gemm("index_q", self.q_rank, self.index_heads * self.index_dim),
            Gemm("index_k", d_model, self.index_dim + self.index_heads),  # keys, and weights of the heads
        )

    def n_other_params(self) -> int:
        """Norms of the compressed queries and of the latent vector, of the indexer's keys (with a bias)."""
        return (self.q_rank or 0) + self.kv_rank + (2 * self.index_dim if self.n_selected else 0)

    def kv_bytes_per_token(self, element_bytes: float) -> float:
        """The latent vector and the key with positions, and of sparse attention the indexer's key in fp8 [B].

        Examples
        --------
        >>> 61 * Mla(128, 1536, 512, 128, 64, 128).kv_bytes_per_token(2.0)  # DeepSeek-V3: 68.6 KiB
        70272.0
        """
        return (self.kv_rank + self.rope_dim) * element_bytes + self._index_bytes

    def state_bytes_per_seq(self) -> float:
        """None: all that is cached grows with the sequence."""
        return 0.0

    def n_rotated(self) -> int:
        """None apart: what becomes of queries and keys between the matrices is counted as a whole (`work`)."""
        return 0

    def work(self, tile_rows: int) -> AttentionWork:
        """Prompts multiply every head's query, key and value; decoding, all heads read the one latent vector."""
        n_tiles = -(-self.n_heads // tile_rows)
        absorbed = 2 * self.kv_rank + self.rope_dim
        compressed = COMPRESSED_PASSES * ((self.q_rank or 0) + self.kv_rank + self.rope_dim)
        return AttentionWork(
            pair_flops=2.0 * self.n_heads * (self.head_dim + self.v_dim),
            entry_flops=2.0 * absorbed * n_tiles * tile_rows,
            unpack_flops=2.0 * self.kv_rank * self.n_heads * (self.nope_dim + self.v_dim),
            scan_flops=2.0 * self.index_heads * self.index_dim if self.n_selected else 0.0,
            scan_bytes=self._index_bytes,
            prefill_token_bytes=ACTIVATION_BYTES * (4 * self.n_heads * (self.head_dim + self.v_dim) + compressed),
            decode_token_bytes=ACTIVATION_BYTES
            * (2 * self.n_heads * (self.head_dim + absorbed + self.v_dim) + compressed),
        )

    @property
    def _index_bytes(self) -> float:
        """The indexer's key, fp8 with a scale."""
        return self.index_dim + INDEX_SCALE_BYTES if self.n_selected else 0.0

"""Data sheets: what a model and the hardware under it are. Facts made once from configuration."""

from dataclasses import dataclass, field

from sim.errors import ConfigError
from sim.units import GIB

DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0}
ACTIVATION_BYTES = DTYPE_BYTES["bf16"]  # hidden states, queries and outputs are bf16 whatever the weights are


def as_given(value: object) -> str:
    """A wrong setting in a message: 1.0 reads 1, for where a float may be given compiled code knows no other number."""
    return f"{value:.12g}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def positive(owner: str, **values: float) -> None:
    """Refuse values that are not positive and finite, naming ``owner.key``."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{owner}.{key} must be a finite number > 0, got {as_given(value)}")


def whole(owner: str, **values: int) -> None:
    """Refuse values that are not whole numbers >= 1, naming ``owner.key``."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{owner}.{key} must be a whole number >= 1, got {value!r}")


def known_dtype(owner: str, **values: str) -> None:
    """Refuse names of number formats that we do not know, naming ``owner.key``."""
    for key, value in values.items():
        if value not in DTYPE_BYTES:
            raise ConfigError(f"{owner}.{key} must be one of {', '.join(DTYPE_BYTES)}, got {value!r}")


def kv_bytes_per_token(n_layers: int, n_kv_heads: int, head_dim: int, element_bytes: float) -> float:
    """Bytes of KV cache one token occupies, keys and values together.

    Parameters
    ----------
    n_layers, n_kv_heads, head_dim : int
        Model dimensions, per device after tensor parallelism.
    element_bytes : float
        Bytes per cached element, 2.0 for bf16, 0.5 for 4-bit [B].

    Returns
    -------
    float
        [B/token]

    Examples
    --------
    >>> kv_bytes_per_token(32, 8, 128, 2.0)  # a 32-layer model with 8 KV heads of 128
    131072.0
    """
    return 2.0 * n_layers * n_kv_heads * head_dim * element_bytes


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder-only transformer, and the number formats it is served in."""

    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    vocab: int
    max_len: int  # longest prompt plus output [tokens]
    is_gated: bool = True  # gate and up projections (SwiGLU) rather than one
    has_tied_embeddings: bool = False  # lm_head is the embedding table
    n_position_embeddings: int = 0  # learnt absolute positions (gpt2) [rows]
    window: int | None = None  # native sliding window [tokens]
    weight_dtype: str = "bf16"  # of the layers' matrices; embeddings, lm_head and norms are at least bf16
    kv_dtype: str = "bf16"
    source: str = ""

    def __post_init__(self) -> None:
        whole(
            "model",
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            d_model=self.d_model,
            d_ff=self.d_ff,
            vocab=self.vocab,
            max_len=self.max_len,
        )
        known_dtype("model", weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"model.n_heads must be a multiple of model.n_kv_heads ({self.n_kv_heads}), got {self.n_heads}"
            )
        if self.window is not None:
            whole("model", window=self.window)

    @property
    def weight_bytes(self) -> float:
        """Bytes of one parameter of the layers' matrices [B]."""
        return DTYPE_BYTES[self.weight_dtype]

    @property
    def kv_bytes(self) -> float:
        """Bytes of one cached element [B]."""
        return DTYPE_BYTES[self.kv_dtype]

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token over all layers and heads [B]."""
        return kv_bytes_per_token(self.n_layers, self.n_kv_heads, self.head_dim, self.kv_bytes)

    @property
    def gemms(self) -> tuple[tuple[str, int, int], ...]:
        """Matrices of one layer as (name, inputs, outputs): what a token is multiplied with."""
        heads, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return (
            ("qkv", self.d_model, heads + 2 * kv),
            ("attention_out", heads, self.d_model),
            ("mlp_in", self.d_model, (2 if self.is_gated else 1) * self.d_ff),
            ("mlp_out", self.d_ff, self.d_model),
        )

    def rank_gemms(self, tensor_parallel: int) -> tuple[tuple[str, int, int], ...]:
        """The part of `gemms` that one tensor-parallel rank multiplies with: it shares out columns, then rows.

        Where there are fewer KV heads than ranks, each rank makes the keys and values of the heads it holds copies of.
        """
        heads, kv_heads = self.heads_per_rank(tensor_parallel)
        inner = -(-self.d_ff // tensor_parallel)
        return (
            ("qkv", self.d_model, (heads + 2 * kv_heads) * self.head_dim),
            ("attention_out", heads * self.head_dim, self.d_model),
            ("mlp_in", self.d_model, (2 if self.is_gated else 1) * inner),
            ("mlp_out", inner, self.d_model),
        )

    @property
    def n_matrix_params(self) -> int:
        """Parameters of all layers' matrices, those that quantisation shrinks."""
        return self.n_layers * sum(inputs * outputs for _, inputs, outputs in self.gemms)

    @property
    def n_embedding_params(self) -> int:
        """Parameters of token embeddings, lm_head and learnt positions."""
        tables = (1 if self.has_tied_embeddings else 2) * self.vocab
        return (tables + self.n_position_embeddings) * self.d_model

    @property
    def n_params(self) -> int:
        """Parameters: layers' matrices, embeddings, norms.

        Biases are left out (below 0.1 % of any model here).
        """
        return self.n_matrix_params + self.n_embedding_params + (2 * self.n_layers + 1) * self.d_model

    def heads_per_rank(self, tensor_parallel: int) -> tuple[int, int]:
        """Attention heads and KV heads of one rank; where there are fewer KV heads than ranks, ranks hold copies.

        Raises
        ------
        ConfigError
            If the heads cannot be shared evenly among the ranks.
        """
        kv_heads = self.n_kv_heads
        uneven = kv_heads % max(1, tensor_parallel) and tensor_parallel % kv_heads
        if tensor_parallel < 1 or self.n_heads % tensor_parallel or uneven:
            raise ConfigError(
                f"hardware.tensor_parallel must divide the {self.n_heads} heads of {self.name}, and divide or be a "
                f"multiple of its {kv_heads} KV heads, got {tensor_parallel}"
            )
        return self.n_heads // tensor_parallel, max(1, kv_heads // tensor_parallel)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """An accelerator's data sheet. Every number has its source in ``source`` or in the YAML beside it."""

    name: str
    memory_gib: float  # what CUDA reports as total, a little below the data sheet's figure
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float] = field(hash=False)  # dense, by dtype: bf16, and fp8 where it has it
    n_sms: int
    link_bytes_per_s: float  # between accelerators, one direction
    host_link_bytes_per_s: float  # to host memory, one direction
    host_link_latency_s: float
    interconnect: str = "nvlink"  # or pcie, which is the host's as much as the card's
    architecture: str = ""  # as sm_90: devices of one share kernels, and the shares of the data sheet these reach
    source: str = ""

    def __post_init__(self) -> None:
        positive(
            "hardware.device",
            memory_gib=self.memory_gib,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            link_bytes_per_s=self.link_bytes_per_s,
            host_link_bytes_per_s=self.host_link_bytes_per_s,
            host_link_latency_s=self.host_link_latency_s,
        )
        whole("hardware.device", n_sms=self.n_sms)
        positive("hardware.device.peak_flops", **self.peak_flops)
        if "bf16" not in self.peak_flops:
            raise ConfigError(
                f"hardware.device.peak_flops must name bf16, got {', '.join(self.peak_flops) or 'nothing'}"
            )

    @property
    def memory_bytes(self) -> float:
        """Device memory [B]."""
        return self.memory_gib * GIB

    def flops_per_s(self, dtype: str) -> float:
        """Dense peak at a number format; formats it has no units for run as bf16 [FLOP/s]."""
        return self.peak_flops.get(dtype, self.peak_flops["bf16"])


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """What one replica runs on: some accelerators of a kind, and the share of their memory that serving may take."""

    device: DeviceSpec
    tensor_parallel: int = 1  # accelerators that share every layer
    memory_utilization_frac: float = 0.9  # vLLM's gpu_memory_utilization
    kv_blocks: int | None = None  # KV capacity given instead of derived [blocks]

    def __post_init__(self) -> None:
        whole("hardware", tensor_parallel=self.tensor_parallel)
        positive("hardware", memory_utilization_frac=self.memory_utilization_frac)
        if self.memory_utilization_frac > 1.0:
            raise ConfigError(
                f"hardware.memory_utilization_frac must be > 0 and <= 1, got {as_given(self.memory_utilization_frac)}"
            )
        if self.kv_blocks is not None:
            whole("hardware", kv_blocks=self.kv_blocks)

"""Data sheets: what a model and a device are. Facts made once from configuration."""

from dataclasses import dataclass, field

from sim.errors import ConfigError


def positive(owner: str, **values: float) -> None:
    """Refuse values that are not positive and finite, naming ``owner.key``."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{owner}.{key} must be a finite number > 0, got {value!r}")


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
    """Shape of a decoder-only transformer."""

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
    has_tied_embeddings: bool = False
    n_position_embeddings: int = 0  # learnt absolute positions (gpt2) [rows]
    window: int | None = None  # native sliding window [tokens]
    weight_bytes: float = 2.0  # per parameter: 2 bf16, 1 fp8
    kv_bytes: float = 2.0  # per cached element
    source: str = ""

    def __post_init__(self) -> None:
        positive(
            "model",
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            d_model=self.d_model,
            d_ff=self.d_ff,
            vocab=self.vocab,
            max_len=self.max_len,
            weight_bytes=self.weight_bytes,
            kv_bytes=self.kv_bytes,
        )
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"model.n_heads must be a multiple of model.n_kv_heads ({self.n_kv_heads}), got {self.n_heads}"
            )
        if self.window is not None:
            positive("model", window=self.window)

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token over all layers and heads [B]."""
        return kv_bytes_per_token(self.n_layers, self.n_kv_heads, self.head_dim, self.kv_bytes)

    @property
    def n_params(self) -> int:
        """Parameters: embeddings, attention, MLP, norms.

        Biases are left out (below 0.1 % of any model here).
        """
        heads, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = self.d_model * (heads + 2 * kv) + heads * self.d_model
        mlp = (3 if self.is_gated else 2) * self.d_model * self.d_ff
        embeddings = (1 if self.has_tied_embeddings else 2) * self.vocab * self.d_model
        positions = self.n_position_embeddings * self.d_model
        return self.n_layers * (attention + mlp + 2 * self.d_model) + embeddings + positions + self.d_model


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """An accelerator's data sheet. Every number has its source in ``source`` or in the YAML beside it."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float] = field(hash=False)  # dense, by dtype: bf16, fp8
    n_sms: int
    link_bytes_per_s: float  # between accelerators, one direction
    host_link_bytes_per_s: float  # to host memory, one direction
    host_link_latency_s: float
    interconnect: str = "nvlink"
    source: str = ""

    def __post_init__(self) -> None:
        positive(
            "hardware.device",
            memory_bytes=self.memory_bytes,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            n_sms=self.n_sms,
            link_bytes_per_s=self.link_bytes_per_s,
            host_link_bytes_per_s=self.host_link_bytes_per_s,
            host_link_latency_s=self.host_link_latency_s,
        )
        for dtype, flops in self.peak_flops.items():
            positive("hardware.device.peak_flops", **{dtype: flops})

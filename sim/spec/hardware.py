"""The hardware under a model: an accelerator's data sheet, and what one replica has of them."""

from dataclasses import dataclass, field

from sim.errors import ConfigError
from sim.spec.values import COMPUTED_AS, DTYPE_BYTES, INTERCONNECTS, as_given, known, positive, whole
from sim.units import GIB


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
    power_w: float | None = None  # at most, as the data sheet has it (TDP, TBP)
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
        if self.power_w is not None:
            positive("hardware.device", power_w=self.power_w)
        whole("hardware.device", n_sms=self.n_sms)
        known("hardware.device", INTERCONNECTS, interconnect=self.interconnect)
        for dtype in self.peak_flops:
            if dtype not in DTYPE_BYTES:
                raise ConfigError(
                    f"hardware.device.peak_flops must name some of {', '.join(DTYPE_BYTES)}, got {dtype!r}"
                )
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
        return self.peak_flops.get(COMPUTED_AS.get(dtype, dtype), self.peak_flops["bf16"])


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """What one replica runs on: some accelerators of a kind, and the share of their memory that serving may take."""

    device: DeviceSpec
    tensor_parallel: int = 1  # accelerators that share every layer
    expert_parallel: bool = False  # they share experts by number instead of by width; vLLM's enable_expert_parallel
    pipeline_parallel: int = 1  # stages that have layers of their own, each on so many accelerators
    memory_utilization_frac: float = 0.9  # vLLM's gpu_memory_utilization
    kv_blocks: int | None = None  # KV capacity given instead of derived [blocks]
    peer_to_peer: bool = (
        True  # of devices on PCIe, the host's doing: they reach one another without host memory between
    )
    price_per_hour: float | None = None  # of one accelerator, in a currency of the user's: what task=recommend adds up
    counts_graphs: bool = True  # CUDA graphs come out of the KV cache's memory; in vLLM before 0.21 out of what is free

    @property
    def n_devices(self) -> int:
        """Accelerators of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def expert_ranks(self) -> int:
        """Accelerators that the experts of a layer lie on, each expert on one."""
        return self.tensor_parallel if self.expert_parallel else 1

    def __post_init__(self) -> None:
        whole("hardware", tensor_parallel=self.tensor_parallel, pipeline_parallel=self.pipeline_parallel)
        positive("hardware", memory_utilization_frac=self.memory_utilization_frac)
        if self.memory_utilization_frac > 1.0:
            raise ConfigError(
                f"hardware.memory_utilization_frac must be > 0 and <= 1, got {as_given(self.memory_utilization_frac)}"
            )
        if self.price_per_hour is not None:
            positive("hardware", price_per_hour=self.price_per_hour)
        if self.kv_blocks is not None:
            whole("hardware", kv_blocks=self.kv_blocks)

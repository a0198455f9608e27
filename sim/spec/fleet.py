"""How a fleet is divided: replicas that are all alike, or pools that each do a part of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.errors import ConfigError
from sim.spec.values import as_given, whole

POOLS = ("prefill", "decode")
OWN = ("hardware", "cost", "cache", "eviction", "preemption", "tiers", "batching", "queue", "router")
"""What a pool may have of its own: everything but the model, the engine's version and the traffic."""


class FleetSpec:
    """Which part of a request a replica does."""


@dataclass(frozen=True, slots=True)
class Aggregated(FleetSpec):
    """All of it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas that do the same part.

    Parameters
    ----------
    replicas : int
    own : dict
        The groups of the configuration that differ from the run's, each as a whole.
    """

    replicas: int = 1
    own: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("fleet pool", replicas=self.replicas)


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """What connects a replica to the others, in each direction: its network card, or its links in a node.

    Parameters
    ----------
    bytes_per_s : float
        [B/s]
    latency_s : float
        What a transfer takes beyond its bytes [s].
    is_per_accelerator : bool
        Whether each of a replica's accelerators has one of its own, and sends its part of every token over it.
    """

    bytes_per_s: float
    latency_s: float = 0.0
    is_per_accelerator: bool = True

    def __post_init__(self) -> None:
        if not 1.0 <= self.bytes_per_s < float("inf"):
            raise ConfigError(f"fleet.link.bytes_per_s must be >= 1 and finite, got {as_given(self.bytes_per_s)}")
        if not 0.0 <= self.latency_s < float("inf"):
            raise ConfigError(f"fleet.link.latency_s must be >= 0 and finite [s], got {as_given(self.latency_s)}")

    def rate_of(self, n_accelerators: int) -> float:
        """Of a replica of so many accelerators [B/s]."""
        return self.bytes_per_s * (n_accelerators if self.is_per_accelerator else 1)


@dataclass(frozen=True, slots=True)
class Disaggregated(FleetSpec):
    """Prompts are computed in one pool, and answers generated in another.

    Parameters
    ----------
    prefill, decode : Pool
    link : LinkSpec
        Of each replica.
    local_tokens : int
        Prompts of which no more is to be computed where they would be decoded are computed there; 0: none [tokens].
    """

    prefill: Pool
    decode: Pool
    link: LinkSpec
    local_tokens: int = 0

    def __post_init__(self) -> None:
        if self.local_tokens < 0:
            raise ConfigError(f"fleet.local_tokens must be >= 0 [tokens], got {self.local_tokens}")

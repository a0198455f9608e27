"""The contract of scalers, and how long a replica takes to start."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.spec import as_given


@dataclass(frozen=True, slots=True)
class StartUp:
    """From a replica's being asked for to its first request: its weights come over a link, and its engine gets ready.

    Parameters
    ----------
    weights_bytes_per_s : float
        Of the link that the weights of all its accelerators come over. Default 6.5e9: a local NVMe disk, Samsung PM9A3,
        U.2, sequential reads as announced in 2020; `.inf` where they wait in memory [B/s].
    engine_s : float
        All else: processes, compilation from its cache, profiling, graph capture, warm-up. Default 58.0: 59 s from a
        pod's start to its first answer, 0.9 of them for weights, with vLLM 0.9 and a small model
        (github.com/vllm-project/vllm/issues/20264); an image that must be pulled comes on top [s].
    """

    weights_bytes_per_s: float = 6.5e9
    engine_s: float = 58.0

    def __post_init__(self) -> None:
        if not self.weights_bytes_per_s > 0.0:
            raise ConfigError(
                f"scaler.start_up.weights_bytes_per_s must be > 0 [B/s], got {as_given(self.weights_bytes_per_s)}"
            )
        if not 0.0 <= self.engine_s < float("inf"):
            raise ConfigError(f"scaler.start_up.engine_s must be >= 0 and finite [s], got {as_given(self.engine_s)}")

    def seconds(self, weights_bytes: float) -> float:
        """For so many weights, of all accelerators of a replica [s].

        Examples
        --------
        >>> StartUp(weights_bytes_per_s=5e9, engine_s=20.0).seconds(15e9)
        23.0
        """
        return weights_bytes / self.weights_bytes_per_s + self.engine_s


@mypyc_attr(allow_interpreted_subclasses=True)
class Scaler(ABC):
    """Says how many replicas there should be, and when it wants to look again."""

    start_up: StartUp  # of each replica that it asks for

    @abstractmethod
    def decide(self, fleet: Fleet, now_ns: int) -> tuple[int, int | None]:
        """How many replicas there should be, at least one, starting ones included; and when to ask again, None: never.

        It is asked first when traffic begins, from which its times count, and no more when all are served.
        ``n_outstanding`` and ``n_waiting`` of a replica are always true; who looks at its cache or ledger has it
        ``settle(now_ns)`` before.
        """
        ...


class Fixed(Scaler):
    """As many as at the beginning."""

    def __init__(self) -> None:
        self.start_up = StartUp()

    def decide(self, fleet: Fleet, now_ns: int) -> tuple[int, int | None]:  # noqa: ARG002
        """As many as there are, for ever."""
        return len(fleet.open) + len(fleet.starting), None

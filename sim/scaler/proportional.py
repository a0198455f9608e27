"""Scalers that divide what is measured by what a replica should have of it: Kubernetes' rule."""

from abc import abstractmethod
from collections import deque
from math import ceil
from typing import Literal

from mypy_extensions import mypyc_attr

from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.scaler.contract import Scaler, StartUp
from sim.spec import as_given
from sim.units import ns_from_s

MOST = 4096  # replicas, as of a run


@mypyc_attr(allow_interpreted_subclasses=True)
class Proportional(Scaler):
    """As many replicas as divide a total into shares of ``target``, rounded up: Kubernetes' Horizontal Pod Autoscaler.

    Nothing changes within ``tolerance`` of the target. More are asked for at once; fewer only when nothing within
    ``cool_down_s`` has spoken for more (its stabilization window for scaling down).

    Parameters
    ----------
    target : float
        What a replica should have.
    least, most : int
        Bounds of the number of replicas.
    every_s : float
        Between two looks. Default 15, ``--horizontal-pod-autoscaler-sync-period`` [s].
    tolerance : float
        Default 0.1, ``--horizontal-pod-autoscaler-tolerance``.
    cool_down_s : float
        Default 300, ``--horizontal-pod-autoscaler-downscale-stabilization`` [s].
    start_up : StartUp
        Of a replica.
    """

    def __init__(
        self,
        target: float,
        least: int = 1,
        most: int = 8,
        every_s: float = 15.0,
        tolerance: float = 0.1,
        cool_down_s: float = 300.0,
        start_up: StartUp | None = None,
    ) -> None:
        if not 0.0 < target < float("inf"):
            raise ConfigError(f"scaler.target must be > 0 and finite, got {as_given(target)}")
        if not 1 <= least <= MOST:
            raise ConfigError(f"scaler.least must be from 1 to {MOST} [replicas], got {least}")
        if not least <= most <= MOST:
            raise ConfigError(f"scaler.most must be from scaler.least ({least}) to {MOST} [replicas], got {most}")
        if not 1e-9 <= every_s < float("inf"):
            raise ConfigError(f"scaler.every_s must be > 0 and finite [s], got {as_given(every_s)}")
        if not 0.0 <= tolerance < 1.0:
            raise ConfigError(f"scaler.tolerance must be in [0, 1), got {as_given(tolerance)}")
        if not 0.0 <= cool_down_s < float("inf"):
            raise ConfigError(f"scaler.cool_down_s must be >= 0 and finite [s], got {as_given(cool_down_s)}")
        self.start_up = StartUp() if start_up is None else start_up
        self._target, self._least, self._most, self._tolerance = target, least, most, tolerance
        self._every_ns, self._cool_down_ns = ns_from_s(every_s), ns_from_s(cool_down_s)
        self._spoken_for: deque[tuple[int, int]] = deque()  # (when, how many), of the cool-down, fewer and fewer

    @abstractmethod
    def total(self, fleet: Fleet, now_ns: int) -> float:
        """What is measured, over all replicas that take requests."""
        ...

    def decide(self, fleet: Fleet, now_ns: int) -> tuple[int, int | None]:
        """Kubernetes' rule."""
        n_now = len(fleet.open) + len(fleet.starting)
        ratio = self.total(fleet, now_ns) / self._target / n_now
        n_wanted = n_now if abs(ratio - 1.0) <= self._tolerance else ceil(ratio * n_now)
        n_wanted = max(self._least, min(self._most, n_wanted))
        spoken_for = self._spoken_for
        while spoken_for and spoken_for[-1][1] <= n_wanted:
            spoken_for.pop()
        spoken_for.append((now_ns, n_wanted))
        while spoken_for[0][0] < now_ns - self._cool_down_ns:
            spoken_for.popleft()
        return max(n_wanted, min(n_now, spoken_for[0][1])), now_ns + self._every_ns


class TargetUtilisation(Proportional):
    """As many replicas as keep the utilisation of each near a target.

    Parameters
    ----------
    target : float
        Default 0.7, as Knative's ``container-concurrency-target-percentage``.
    of : {"seats", "kv"}
        Sequences waiting and running over the places in a batch (``max_num_seqs``), or KV slots held over those there
        are, of replicas that take requests.
    least, most, every_s, tolerance, cool_down_s, start_up
        As of `Proportional`.
    """

    def __init__(
        self,
        target: float = 0.7,
        of: Literal["seats", "kv"] = "seats",
        least: int = 1,
        most: int = 8,
        every_s: float = 15.0,
        tolerance: float = 0.1,
        cool_down_s: float = 300.0,
        start_up: StartUp | None = None,
    ) -> None:
        super().__init__(target, least, most, every_s, tolerance, cool_down_s, start_up)
        if of not in ("seats", "kv"):
            raise ConfigError(f"scaler.of must be seats or kv, got {of!r}")
        self._of_kv = of == "kv"

    def total(self, fleet: Fleet, now_ns: int) -> float:
        """The sum of their utilisations."""
        total = 0.0
        for replica in fleet.open:
            if self._of_kv:
                replica.settle(now_ns)
                total += replica.kv.held_tokens / replica.kv.capacity_tokens
            else:
                total += replica.n_outstanding / replica.scheduler.most_seqs
        return total


class QueueLength(Proportional):
    """A replica for every so many that wait, as KEDA does on ``vllm:num_requests_waiting``.

    So it scales down to ``least`` where nobody has waited for the whole cool-down.

    Parameters
    ----------
    target : float
        Sequences that wait at a replica. Default 5.
    least, most, every_s, tolerance, cool_down_s, start_up
        As of `Proportional`.
    """

    def __init__(
        self,
        target: float = 5.0,
        least: int = 1,
        most: int = 8,
        every_s: float = 15.0,
        tolerance: float = 0.1,
        cool_down_s: float = 300.0,
        start_up: StartUp | None = None,
    ) -> None:
        super().__init__(target, least, most, every_s, tolerance, cool_down_s, start_up)

    def total(self, fleet: Fleet, now_ns: int) -> float:  # noqa: ARG002
        """All that wait."""
        n_waiting = 0
        for replica in fleet.open:
            n_waiting += replica.n_waiting
        return float(n_waiting)

"""The host's time per iteration: scheduling, input preparation, launch, output processing."""

from dataclasses import dataclass
from math import isfinite

from sim.errors import ConfigError

SCHEDULING = ("async", "sync")
TERMS = (
    "base_s", "per_seq_s", "per_finished_s", "gap_s", "gap_per_seq_s", "prefill_gap_s", "launch_s", "eager_launch_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostCost:
    """What the CPU does in one engine iteration: ``base_s + per_seq_s * n_seqs + per_finished_s * n_finished``.

    Under ``async`` scheduling the host prepares the next iteration while the device computes the present one, so an
    iteration lasts as long as the slower of the two; under ``sync`` the two add. Gaps are never hidden: the device is
    idle between one iteration's last kernel and the next one's first, and between kernels. ``prefill_gap_s`` comes on
    top where an iteration computes prompts: it does not run as one CUDA graph, as those that only decode do.
    ``launch_s`` and ``eager_launch_s`` pass between one kernel and the next, inside a CUDA graph and outside: they are
    charged where kernels were timed one by one, without that (`Operations.n_launches`). Where the numbers come from is
    written beside them in ``conf/cost``.
    """

    base_s: float
    per_seq_s: float
    per_finished_s: float = 0.0
    gap_s: float = 0.0
    gap_per_seq_s: float = 0.0
    prefill_gap_s: float = 0.0
    launch_s: float = 0.0
    eager_launch_s: float = 0.0
    scheduling: str = "async"

    def __post_init__(self) -> None:
        for key in TERMS:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
                raise ConfigError(f"cost.host.{key} must be a finite number >= 0 [s], got {value!r}")
        if self.scheduling not in SCHEDULING:
            raise ConfigError(f"cost.host.scheduling must be one of {', '.join(SCHEDULING)}, got {self.scheduling!r}")

"""A number of replicas by the clock."""

from math import isfinite

from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.scaler.contract import Scaler, StartUp
from sim.scaler.proportional import MOST
from sim.spec import as_given
from sim.units import ns_from_s


class Schedule(Scaler):
    """From each of some times on, so many replicas. Before the first of them there are as many as at the beginning.

    Parameters
    ----------
    steps : list of [float, int]
        Seconds since traffic began, ascending, and the replicas asked for from then on [s, replicas].
    period_s : float or None
        After which the steps begin again, a day; None: the last one stays [s].
    start_up : StartUp
        Of a replica: who wants it at nine asks for it before.
    """

    def __init__(
        self, steps: list[list[float]], period_s: float | None = None, start_up: StartUp | None = None
    ) -> None:
        if not steps:
            raise ConfigError("scaler.steps must hold at least one [seconds, replicas], got []")
        last_s = -1.0
        for number, step in enumerate(steps):
            is_step = len(step) == 2 and isfinite(step[0]) and step[0] >= 0.0 and step[1] in range(1, MOST + 1)
            if not is_step or step[0] <= last_s:
                raise ConfigError(
                    f"scaler.steps.{number} must be [seconds since traffic began, later than the step before; "
                    f"replicas from 1 to {MOST}], got {step!r}"
                )
            last_s = step[0]
        if period_s is not None and not last_s < period_s < float("inf"):
            raise ConfigError(f"scaler.period_s must be later than the last step [s], got {as_given(period_s)}")
        self.start_up = StartUp() if start_up is None else start_up
        self._steps = [(ns_from_s(float(at_s)), int(n)) for at_s, n in steps]
        self._period_ns = None if period_s is None else ns_from_s(period_s)
        self._origin_ns: int | None = None  # when traffic, or the present period, began
        self._next = 0  # step that is due

    def decide(self, fleet: Fleet, now_ns: int) -> tuple[int, int | None]:
        """The step that is due now, and when the next one is."""
        origin_ns = now_ns if self._origin_ns is None else self._origin_ns
        n_wanted = len(fleet.open) + len(fleet.starting)
        while self._next < len(self._steps) and origin_ns + self._steps[self._next][0] <= now_ns:
            n_wanted = self._steps[self._next][1]
            self._next += 1
        if self._next == len(self._steps) and self._period_ns is not None:
            origin_ns += self._period_ns
            self._next = 0
        self._origin_ns = origin_ns
        return n_wanted, origin_ns + self._steps[self._next][0] if self._next < len(self._steps) else None

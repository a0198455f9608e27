"""Routers that know nothing of the replicas but how many there are."""

from sim.engine import Replica
from sim.fleet import Fleet
from sim.request import Request
from sim.router.contract import Router
from sim.router.draws import Draws


class RoundRobin(Router):
    """Each replica in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The next one."""
        self._turn = (self._turn + 1) % len(fleet.open)
        return fleet.open[self._turn]


class Random(Router):
    """Any replica, each as likely.

    Parameters
    ----------
    seed : int
        Of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self._draws = Draws(seed)

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """One that is drawn."""
        return fleet.open[self._draws.below(len(fleet.open))]

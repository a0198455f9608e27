"""A fleet that grows and shrinks: who is asked how many there should be, and what becomes of the answer.

asked for    open                    drained        empty
   |----------|========================|==============|          a replica's life; it costs from the first to the last
    start-up    takes requests           serves those it has
"""

from collections.abc import Callable

import simpy
from simpy.events import NORMAL

from sim.clock import Arrival, Clock
from sim.engine import Replica
from sim.fleet import Fleet
from sim.scaler.contract import Scaler
from sim.units import ns_from_s


class Scaling:
    """Asks a scaler from time to time, and lets replicas start and drain until there are as many as it says.

    Replicas that are still starting go first when there are too many, the last asked for before the others; then those
    that have the least outstanding, of equals the newest.

    Parameters
    ----------
    env : Clock
    scaler : Scaler
    fleet : Fleet
    is_over : callable
        Whether all traffic is served: then nobody is asked any more.
    weights_bytes : float
        Of one replica, on all its accelerators [B].
    """

    def __init__(
        self, env: Clock, scaler: Scaler, fleet: Fleet, is_over: Callable[[], bool], weights_bytes: float
    ) -> None:
        self.env = env
        self.scaler = scaler
        self.fleet = fleet
        self.is_over = is_over
        self._start_up_ns = ns_from_s(scaler.start_up.seconds(weights_bytes))

    def start(self, at_ns: int) -> None:
        """Ask for the first time at some moment."""
        self.env.ring(Arrival(self.env), at_ns, NORMAL, self._look)

    def _look(self, event: simpy.Event) -> None:
        """How many should there be?"""
        if self.is_over():
            return
        now_ns = self.env.now_ns
        n_wanted, next_ns = self.scaler.decide(self.fleet, now_ns)
        fleet = self.fleet
        while len(fleet.open) + len(fleet.starting) < n_wanted:
            self.env.ring(Arrival(self.env, fleet.begin()), now_ns + self._start_up_ns, NORMAL, self._started)
        while len(fleet.open) + len(fleet.starting) > max(1, n_wanted):
            if fleet.starting:
                fleet.cancel(fleet.starting[-1].index)
            else:
                fleet.drain(least_busy(fleet.open).index)
        if next_ns is not None:
            self.env.ring(event, max(next_ns, now_ns + 1), NORMAL, self._look)

    def _started(self, event: simpy.Event) -> None:
        """A replica can take requests, unless it is wanted no more."""
        replica = event.value
        if replica in self.fleet.starting:
            self.fleet.admit(replica.index)


def least_busy(replicas: list[Replica]) -> Replica:
    """The one with the least outstanding, the newest among equals."""
    least = replicas[0]
    for replica in replicas:
        if replica.n_outstanding <= least.n_outstanding:
            least = replica
    return least

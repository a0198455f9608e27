"""The contract of routers."""

from abc import ABC, abstractmethod
from typing import Final

from mypy_extensions import mypyc_attr

from sim.engine import Replica
from sim.fleet import Fleet
from sim.request import Request

ARRIVAL: Final = "arrival"
"""The stage at which a request has nothing computed yet."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Router(ABC):
    """Chooses the replica that serves a request."""

    @abstractmethod
    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:
        """One of the fleet's open replicas, of which there is at least one.

        A router sees what a request asks for and its text, never how long the answer will be. ``n_outstanding`` and
        ``outstanding_tokens`` of a replica are always true; who looks at its cache or ledger has it
        ``settle(now_ns)`` before.
        """
        ...

"""What a router knows of the text that replicas have in their caches."""

from abc import ABC, abstractmethod

from mypy_extensions import mypyc_attr

from sim.engine import Replica
from sim.request import Request


@mypyc_attr(allow_interpreted_subclasses=True)
class Prefixes(ABC):
    """How much of a prompt each replica would find, as far as a router can tell."""

    @abstractmethod
    def found(self, request: Request, replicas: list[Replica], now_ns: int) -> list[int]:
        """Leading tokens of a prompt that each of some replicas has, in their order [tokens].

        Of one that is settled as of now; of another at most, for until its next plan decoding only takes from it. So
        it costs little to ask all of them, and the best few are settled and asked again.
        """
        ...

    @abstractmethod
    def sent(self, request: Request, replica: Replica, now_ns: int) -> None:
        """A request goes to a replica."""
        ...


class Probe(Prefixes):
    """Exact: the caches are asked at the moment of routing, which no real router can do for nothing.

    What a cache will hold once the requests that wait before it are computed is not found yet.
    """

    def found(self, request: Request, replicas: list[Replica], now_ns: int) -> list[int]:  # noqa: ARG002
        """As their caches say."""
        return [replica.kv.match(request) for replica in replicas]

    def sent(self, request: Request, replica: Replica, now_ns: int) -> None:
        """The caches know."""

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
        """Leading tokens of a prompt that each of some replicas has, in their order [tokens]."""
        ...

    @abstractmethod
    def sent(self, request: Request, replica: Replica, now_ns: int) -> None:
        """A request goes to a replica."""
        ...


class Probe(Prefixes):
    """Exact: every cache is asked at the moment of routing, which no real router can do for nothing.

    What a cache will hold once the requests that wait before it are computed is not found yet.
    """

    def found(self, request: Request, replicas: list[Replica], now_ns: int) -> list[int]:
        """As their caches say."""
        n_tokens: list[int] = []
        for replica in replicas:
            replica.settle(now_ns)
            n_tokens.append(replica.kv.match(request))
        return n_tokens

    def sent(self, request: Request, replica: Replica, now_ns: int) -> None:
        """The caches know."""

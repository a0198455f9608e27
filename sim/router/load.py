"""Routers that look at how much each replica has to do."""

from typing import Literal

from sim.engine import Replica
from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.request import Request
from sim.router.contract import Router
from sim.router.draws import Draws

By = Literal["requests", "tokens"]
"""What a replica's load is counted in: sequences waiting and running, or the tokens of their prompts."""


def counts_tokens(by: str) -> bool:
    """Whether load is counted in tokens.

    Raises
    ------
    ConfigError
        If it is counted in nothing there is.
    """
    if by not in ("requests", "tokens"):
        raise ConfigError(f"router.by must be requests or tokens, got {by!r}")
    return by == "tokens"


def load_of(replica: Replica, in_tokens: bool) -> int:
    """What is outstanding at a replica."""
    return replica.outstanding_tokens if in_tokens else replica.n_outstanding


def least_loaded(replicas: list[Replica], in_tokens: bool) -> Replica:
    """The one with the least to do; the first among equals."""
    least = replicas[0]
    least_load = load_of(least, in_tokens)
    for replica in replicas:
        load = load_of(replica, in_tokens)
        if load < least_load:
            least, least_load = replica, load
    return least


class LeastLoaded(Router):
    """The replica with the least outstanding; the first among equals.

    Parameters
    ----------
    by : {"requests", "tokens"}
        Sequences waiting and running, or the tokens of their prompts.
    """

    def __init__(self, by: By = "requests") -> None:
        self._in_tokens = counts_tokens(by)

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The least loaded one."""
        return least_loaded(fleet.open, self._in_tokens)


class PowerOfTwo(Router):
    """The less loaded of two replicas that are drawn; of equals the one drawn first.

    Parameters
    ----------
    by : {"requests", "tokens"}
        What load is counted in.
    seed : int
        Of the run.

    References
    ----------
    Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
    """

    def __init__(self, by: By = "requests", seed: int = 0) -> None:
        self._in_tokens = counts_tokens(by)
        self._draws = Draws(seed)

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The better of two different ones, where there are two."""
        n = len(fleet.open)
        first = self._draws.below(n)
        if n == 1:
            return fleet.open[0]
        other = self._draws.below(n - 1)
        one, two = fleet.open[first], fleet.open[other + (other >= first)]
        return two if load_of(two, self._in_tokens) < load_of(one, self._in_tokens) else one


class KVUsage(Router):
    """The replica whose KV cache is least full; of equals the one with the fewest sequences, then the first.

    What sequences hold counts, as in vLLM's ``vllm:kv_cache_usage_perc``; what is only kept for reuse is free.
    """

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The emptiest one: who seems so is looked at, until nobody else could be."""
        replicas = fleet.open
        usages = [usage_of(replica) for replica in replicas]  # and more, if decoding has taken some since
        while True:
            best = 0
            for i in range(1, len(replicas)):
                is_equal = usages[i] == usages[best]
                if usages[i] < usages[best] or (is_equal and replicas[i].n_outstanding < replicas[best].n_outstanding):
                    best = i
            bound = usages[best]
            replicas[best].settle(now_ns)
            usages[best] = usage_of(replicas[best])
            if usages[best] == bound:
                return replicas[best]


def usage_of(replica: Replica) -> float:
    """Share of a replica's KV slots that sequences held when it was last looked at; until it plans anew only more."""
    return replica.kv.held_tokens / replica.kv.capacity_tokens

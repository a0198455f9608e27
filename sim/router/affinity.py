"""Routers that send a request where its text is."""

from typing import Final

from sim.engine import Replica
from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.request import Request
from sim.router.contract import Router
from sim.router.load import By, counts_tokens, least_loaded, load_of
from sim.router.prefixes import Prefixes

MASK: Final = (1 << 64) - 1


class SessionAffinity(Router):
    """All turns of a conversation at one replica, whichever the session's number points to.

    Rendezvous hashing: the open replica for which the hash of session and replica is highest. When replicas come or go,
    only the sessions move that must. Requests of no session go to the least loaded replica, as in the session router of
    vLLM's production stack.

    Parameters
    ----------
    by : {"requests", "tokens"}
        What load is counted in.

    References
    ----------
    Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1), 1998.
    """

    def __init__(self, by: By = "requests") -> None:
        self._in_tokens = counts_tokens(by)

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The session's."""
        session_id = request.session_id
        if session_id is None:
            return least_loaded(fleet.open, self._in_tokens)
        best, highest = fleet.open[0], -1
        for replica in fleet.open:
            its_hash = mixed(mixed(session_id & MASK) ^ replica.index)
            if its_hash > highest:
                best, highest = replica, its_hash
        return best


def mixed(number: int) -> int:
    """A number of 64 bits in which each bit depends on all of another's: the hash of a tuple is not so.

    References
    ----------
    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014: SplitMix64's finalizer.
    """
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


class PrefixAffinity(Router):
    """The replica that has most of the prompt already, of those whose load is within ``slack`` of the least.

    Of equals the less loaded, then the first. So slack says how far reuse may go against balance: with 0 only equals in
    load are compared, and with a large one everything that begins alike ends at one replica.

    Parameters
    ----------
    prefixes : Prefixes
        How it knows what replicas have.
    slack : int
        How much more than the least loaded replica one may have to do, by ``by``. SGLang's router goes by load instead
        of text from a difference of 64 requests on (``--balance-abs-threshold``).
    by : {"requests", "tokens"}
        What load is counted in.
    """

    def __init__(self, prefixes: Prefixes, slack: int = 4, by: By = "requests") -> None:
        if slack < 0:
            raise ConfigError(f"router.slack must be >= 0 [{by}], got {slack}")
        self._prefixes = prefixes
        self._slack = slack
        self._in_tokens = counts_tokens(by)

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The one with the longest prefix that is not too busy."""
        in_tokens = self._in_tokens
        most_load = load_of(least_loaded(fleet.open, in_tokens), in_tokens) + self._slack
        candidates: list[Replica] = []
        for replica in fleet.open:
            if load_of(replica, in_tokens) <= most_load:
                candidates.append(replica)
        best = candidates[0]
        if len(candidates) > 1:
            n_tokens = self._prefixes.found(request, candidates, now_ns)
            loads = [load_of(replica, in_tokens) for replica in candidates]
            best = candidates[self._longest(request, candidates, n_tokens, loads, now_ns)]
        self._prefixes.sent(request, best, now_ns)
        return best

    def _longest(
        self, request: Request, replicas: list[Replica], n_tokens: list[int], loads: list[int], now_ns: int
    ) -> int:
        """Which of them has most: who could have is asked, until nobody else could have more."""
        while True:
            best = 0
            for i in range(1, len(replicas)):
                if n_tokens[i] > n_tokens[best] or (n_tokens[i] == n_tokens[best] and loads[i] < loads[best]):
                    best = i
            bound = n_tokens[best]
            if bound:
                replicas[best].settle(now_ns)
                n_tokens[best] = self._prefixes.found(request, [replicas[best]], now_ns)[0]
            if n_tokens[best] == bound:
                return best

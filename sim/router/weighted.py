"""A router that adds up scores, as llm-d's."""

from sim.engine import Replica
from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.request import Request
from sim.router.contract import Router
from sim.router.load import usage_of
from sim.router.prefixes import Prefixes
from sim.spec import as_given


class Weighted(Router):
    """The replica with the highest sum of scores, each from 0 to 1; of equals the one with the fewest outstanding.

    The scorers of the Gateway API inference extension and llm-d's endpoint picker: ``prefix`` is the share of the
    prompt that the replica has; ``queue`` and ``running`` are 1 for the shortest queue and the smallest batch, 0 for
    the longest and largest, and even between; ``kv`` is the share of its KV cache that is free. Of equals llm-d takes
    any.

    Parameters
    ----------
    prefixes : Prefixes
        How it knows what replicas have.
    prefix, queue, kv, running : float
        Weights. Red Hat's documentation of llm-d names 3 for prefixes and 2 for the queue as the default profile.
    """

    def __init__(
        self, prefixes: Prefixes, prefix: float = 3.0, queue: float = 2.0, kv: float = 0.0, running: float = 0.0
    ) -> None:
        for key, weight in (("prefix", prefix), ("queue", queue), ("kv", kv), ("running", running)):
            if not 0.0 <= weight < float("inf"):
                raise ConfigError(f"router.{key} must be >= 0 and finite, got {as_given(weight)}")
        if not prefix + queue + kv + running:
            raise ConfigError("router.prefix, queue, kv and running must not all be 0: nothing would be compared")
        self._prefixes = prefixes
        self._prefix, self._queue, self._kv, self._running = prefix, queue, kv, running

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:  # noqa: ARG002
        """The one with the highest score."""
        replicas = fleet.open
        best = 0
        if len(replicas) > 1:
            outside = self.outside(replicas)
            scores = [score + outside[i] for i, score in enumerate(self.inside(request, replicas, now_ns))]
            while True:
                best = 0
                for i in range(1, len(replicas)):
                    is_equal = scores[i] == scores[best]
                    if scores[i] > scores[best] or (
                        is_equal and replicas[i].n_outstanding < replicas[best].n_outstanding
                    ):
                        best = i
                bound = scores[best]
                replicas[best].settle(now_ns)
                scores[best] = self.inside(request, [replicas[best]], now_ns)[0] + outside[best]
                if scores[best] == bound:
                    break
        if self._prefix:
            self._prefixes.sent(request, replicas[best], now_ns)
        return replicas[best]

    def inside(self, request: Request, replicas: list[Replica], now_ns: int) -> list[float]:
        """The part that depends on caches; of replicas that are not settled at most so much."""
        scores = [0.0 for _ in replicas]
        if self._prefix:
            n_tokens = self._prefixes.found(request, replicas, now_ns)
            for i in range(len(replicas)):
                scores[i] += self._prefix * n_tokens[i] / request.prompt_tokens
        if self._kv:
            for i in range(len(replicas)):
                scores[i] += self._kv * (1.0 - usage_of(replicas[i]))
        return scores

    def outside(self, replicas: list[Replica]) -> list[float]:
        """The part that depends on queues and batches."""
        scores = [0.0 for _ in replicas]
        if self._queue:
            _add_fewest(scores, self._queue, [replica.n_waiting for replica in replicas])
        if self._running:
            _add_fewest(scores, self._running, [replica.batch.n_running() for replica in replicas])
        return scores


def _add_fewest(scores: list[float], weight: float, counts: list[int]) -> None:
    """Add the whole weight where a count is least, none where it is most; to all where all are equal."""
    least, most = min(counts), max(counts)
    for i in range(len(scores)):
        scores[i] += weight * (most - counts[i]) / (most - least) if most > least else weight

"""Prompts computed in one pool of replicas, answers generated in another: how KV gets from one to the other.

    prefill pool   queue | prompt ....| stays in memory ...................|
    decode pool                       | waits for memory | on the link ....| next token, next token, ...
                                      ready              admitted          come

The first token is returned by the replica that computed the prompt. A decode replica is chosen then; the sequence
joins its queue like any other and, once it has memory for all of its KV, pulls what it does not find there already. The
source frees its copy when that has come: so a decode pool that is full holds up the prefill pool. What is lost with its
source is computed anew by the decode replica, as is what that replica itself preempts.

References
----------
Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving",
OSDI 2024: decode replicas pull, prompts wait in the memory of the prefill replica (section 4.3). Patel et al.,
"Splitwise: Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024.
"""

from typing import Any

from sim.clock import Clock
from sim.engine import NextPool, Replica
from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.kv.cache import Parcel, Transit
from sim.kv.link import Link
from sim.record import Recorder
from sim.request import Request
from sim.router import Router
from sim.sequence import Sequence
from sim.spec import LinkSpec

HAND_OVER = "hand_over"
"""The stage at which a request's prompt has been computed."""


class HandOvers(NextPool):
    """The decode pool as the replicas of a prefill pool see it, and the links between them.

    A transfer takes its place on the link out of its source and on the link into its destination at the same time,
    each shared fairly by all that are on it, and has come when both have let it through: alone it takes as long as the
    slower of the two. What one link holds up leaves no gap on the other: what shares it is not the faster for that.

    Parameters
    ----------
    link : LinkSpec
        The same for every replica.
    ranks : tuple of int
        Accelerators of a replica of the prefill and of the decode pool.
    router : Router
        Chooses among the decode pool.
    pool : Fleet
        The decode pool.
    """

    def __init__(
        self, env: Clock, recorder: Recorder, link: LinkSpec, ranks: tuple[int, int], router: Router, pool: Fleet
    ) -> None:
        self.env = env
        self.recorder = recorder
        self.router = router
        self.pool = pool
        self.n_ranks = ranks[0]  # the KV that a source holds is on all of them
        self._link = link
        self._rates = link.rate_of(ranks[0]), link.rate_of(ranks[1])
        self._out: dict[int, Link] = {}  # by replica
        self._in: dict[int, Link] = {}

    def refuses(self, request: Request) -> str | None:
        """Why no replica of the pool, all of which are alike, could serve a request, or None."""
        return self.pool.open[0].refuses(request) if self.pool.open else None

    def take(self, source: Replica, sequence: Sequence) -> Transit:
        """Choose who goes on with a sequence, and hand it over."""
        replica = self.router.place(sequence.request, HAND_OVER, self.pool, self.env.now_ns)
        parcel = source.kv.export(sequence)
        if not replica.kv.accepts(sequence.request, parcel):
            raise ConfigError(
                f"fleet=pd: the prefill pool's cache gives up {parcel.dropped_tokens} of {parcel.n_tokens} tokens of a "
                "prompt, the decode pool's goes on from whole texts alone: choose both with fleet.prefill.cache and "
                "fleet.decode.cache"
            )
        onward = sequence.onward()
        onward.transit = transit = HandOver(self, source, sequence, parcel, onward)
        replica.submit(onward)
        return transit

    def send(self, source: int, replica: int, n_bytes: int) -> Any:
        """Start a transfer. Returns the event of its arrival."""
        out_rate, in_rate = self._rates
        if source not in self._out:
            self._out[source] = self._of(out_rate, "hand-over, out", source)
        if replica not in self._in:
            self._in[replica] = self._of(in_rate, "hand-over, in", replica)
        both = Both(self.env.event())
        self._out[source].send(n_bytes).callbacks.append(both)
        self._in[replica].send(n_bytes).callbacks.append(both)
        return both.event

    def _of(self, bytes_per_s: float, name: str, replica: int) -> Link:
        return Link(self.env, bytes_per_s, self._link.latency_s, 0.0, self.recorder, name, replica)


class LocalIfShort(Router):
    """A prompt of which little is left to compute goes to the decode pool as it is: a hand-over would take longer.

    Conditional disaggregation, as Dynamo's: what the replica that would decode finds in its cache does not count.

    Parameters
    ----------
    most_tokens : int
        To be computed at most [tokens].
    otherwise : Router
        Places all others.
    router : Router
        Names a replica of the decode pool.
    pool : Fleet
        The decode pool.
    """

    def __init__(self, most_tokens: int, otherwise: Router, router: Router, pool: Fleet) -> None:
        self._most_tokens = most_tokens
        self._otherwise = otherwise
        self._router = router
        self._pool = pool

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:
        """There, or where the other router says."""
        if self._pool.open:
            replica = self._router.place(request, stage, self._pool, now_ns)
            replica.settle(now_ns)
            if request.prompt_tokens - replica.kv.match(request) <= self._most_tokens:
                return replica
        return self._otherwise.place(request, stage, fleet, now_ns)


class Both:
    """Two transfers, and the event that follows the later one."""

    def __init__(self, event: Any) -> None:
        self.event = event
        self._n_left = 2

    def __call__(self, _: Any) -> None:
        """One of them has ended."""
        self._n_left -= 1
        if not self._n_left:
            self.event.succeed()


class HandOver(Transit):
    """One sequence's way from the pool that computed its prompt to the one that goes on with it."""

    def __init__(self, of: HandOvers, source: Replica, sequence: Sequence, parcel: Parcel, onward: Sequence) -> None:
        self.parcel = parcel
        self._of = of
        self._source = source
        self._held = sequence  # by the source
        self._onward = onward
        self._event: Any = None  # of the arrival that it waits for
        self._replica = -1
        self._n_tokens = self._n_bytes = 0
        self._ready_ns = of.env.now_ns
        self._admitted_ns = self._come_ns = -1

    @property
    def has_come(self) -> bool:
        """Whether all of it is where the sequence goes on."""
        return self._come_ns >= 0

    def begin(self, sequence: Sequence, replica: int) -> None:
        """Send what is not there yet."""
        of = self._of
        self._replica, self._admitted_ns = replica, of.env.now_ns
        self._n_tokens = sequence.coming_tokens
        self._n_bytes = round(self._n_tokens * self.parcel.bytes_per_token * of.n_ranks)
        if not self._n_bytes:
            self._come()
            return
        self._event = sequence.loading = came = of.env.event()
        of.send(self._source.index, replica, self._n_bytes).callbacks.append(lambda _: self._arrive(came))

    def _arrive(self, event: Any) -> None:
        """What was sent is here, if anybody still waits for it."""
        if self._onward.loading is event:
            self._onward.loading = None
            self._come()
            event.succeed()

    def _come(self) -> None:
        self._come_ns = self._of.env.now_ns
        self._source.let_go(self._held)

    def end(self, next_token_ns: int | None) -> None:
        """Write down what became of it; what has not come is computed where the sequence is."""
        onward = self._onward
        is_first = onward.n_preemptions == self._held.n_preemptions  # else its preemption says when it went on
        self._of.recorder.handovers.add(
            self._held.request.id,
            self._source.index,
            self._replica,
            self._ready_ns,
            self._admitted_ns,
            self._come_ns,
            next_token_ns if next_token_ns is not None and is_first else -1,
            self._n_tokens,
            self.parcel.n_tokens - self.parcel.dropped_tokens - self._n_tokens if self._replica >= 0 else 0,
            self._n_bytes,
        )
        if self.has_come:
            return
        if onward.transit is self:  # its source is lost
            onward.transit = None
            if onward.loading is not None:
                event, onward.loading = onward.loading, None
                onward.lose(onward.coming_tokens)
                event.succeed()
        self._source.let_go(self._held)

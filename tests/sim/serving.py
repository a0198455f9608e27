"""A small house to serve in: integer costs anybody can add up, traffic from a list, and a run to its end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

import simpy

from sim.batching import Chunked, Fcfs
from sim.clock import Arrival, Clock
from sim.engine import Replica
from sim.fleet import Fleet
from sim.handover import HandOvers, LocalIfShort
from sim.kv.paged import PagedCache
from sim.kv.tiers import Tier
from sim.record import Recorder, iteration_ends_ns
from sim.request import Finished, Request
from sim.router import RoundRobin
from sim.scaler import Scaling
from sim.spec import LinkSpec
from sim.step import CostModel, Pace, Shape
from sim.traffic import Traffic
from tests.sim.kv.sites import cache_on
from tests.sim.naive_ledger import NaiveLedger


@dataclass(frozen=True)
class LinearCost(CostModel):
    """An iteration takes a constant, and so much for each thing it does [ps]; at least ``host_ps``."""

    base_ps: int = 1_000
    per_seq_ps: int = 0
    per_context_ps: int = 0
    per_prompt_ps: int = 0
    per_prompt_context_ps: int = 0
    per_skew_ps: int = 0  # per token of sequences * longest - total
    per_ended_ps: int = 0
    per_host_byte_ps: int = 0
    host_ps: int = 0
    most_steps: int = 1 << 40  # how far one answer reaches

    def pace(self, shape: Shape) -> Pace:
        chunks, batch, context, longest, growing, _moved, hosted, ended = shape
        ps = self.base_ps + batch * self.per_seq_ps + context * self.per_context_ps + ended * self.per_ended_ps
        ps += self.per_skew_ps * (longest * batch - context) + round(hosted * self.per_host_byte_ps)
        for new, cached, _ in chunks:
            ps += new * self.per_prompt_ps + cached * self.per_prompt_context_ps
        growth = self.per_context_ps * growing
        if growing != batch:
            growth -= self.per_skew_ps * growing
        if chunks or (ended and self.per_ended_ps) or growth < 0:
            return Pace(max(ps, self.host_ps), 0, 1)
        if ps < self.host_ps:
            reach = (self.host_ps - ps) // growth + 1 if growth else self.most_steps
            return Pace(self.host_ps, 0, min(reach, self.most_steps))
        return Pace(ps, growth, self.most_steps)


KINDS = ("chat", "document", "code")


def kind_of(number: int) -> str:
    """A class that each turn of a conversation changes: turn k of request i has number i + 1000 k."""
    return KINDS[(number // 1000 + number) % len(KINDS)]


@dataclass(frozen=True)
class Listed:
    """Requests as listed, and by session the further turns that each finished one brings about."""

    listed: Sequence[Request]
    turns: Mapping[int, Sequence[tuple[int, int, int]]] = field(default_factory=dict)  # (think ns, question, answer)

    def requests(self, seed: int) -> Iterator[Request]:
        return iter(self.listed)

    def follow_up(self, finished: Finished) -> Request | None:
        request = finished.request
        turns = self.turns.get(request.session_id, ())
        if request.turn >= len(turns) or finished.is_refused:
            return None
        think_ns, question, answer = turns[request.turn]
        number = request.id + 1000
        said = (*request.content, (request.output_id, request.output_tokens), (number, question))
        return Request(
            number,
            finished.finish_ns + think_ns,
            sum(n_tokens for _, n_tokens in said),
            answer,
            answer,
            said,
            -number,
            request.session_id,
            request.turn + 1,
            priority=request.priority,
            kind=kind_of(number),
        )


def asked(number: int, at_ns: int, prompt: int, output: int, **fields: Any) -> Request:
    return Request(number, at_ns, prompt, output, output, **fields)


@dataclass
class House:
    """Everything a finished run leaves to look at."""

    env: Clock
    recorder: Recorder
    fleet: Fleet
    traffic: Traffic
    pool: Fleet  # that decodes: the same, where nothing is split

    @property
    def replicas(self) -> list[Replica]:
        """All there ever were."""
        return self.fleet.replicas

    def requests(self) -> list[dict[str, int]]:
        table = self.recorder.requests
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows().tolist()]

    def iterations(self) -> list[dict[str, int]]:
        table = self.recorder.iterations
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows().tolist()]

    def ends_ns(self, replica: int = 0) -> list[int]:
        """When each single iteration of a replica ended."""
        table = self.recorder.iterations
        rows = table.rows()
        steps = table.column("n_steps")
        ends = iteration_ends_ns(table).tolist()
        owner = [index for index, n in zip(rows[:, 0].tolist(), steps.tolist(), strict=True) for _ in range(n)]
        return [end for end, index in zip(ends, owner, strict=True) if index == replica]

    def facts(self) -> dict[str, object]:
        """What a run must say however far it jumps."""
        return {
            "requests": self.requests(),
            "ends_ns": [self.ends_ns(replica.index) for replica in self.replicas],
            "preemptions": self.recorder.preemptions.rows().tolist(),
            "refused": self.recorder.refused.rows().tolist(),
            "handovers": sorted(self.recorder.handovers.rows().tolist()),
            "transfers": sorted(self.recorder.transfers.rows().tolist()),
            "fleet": self.recorder.fleet.rows().tolist(),
            "counts": [dict(replica.kv.counts()) for replica in self.replicas],
        }


BYTE_NS = LinkSpec(1e9)
"""A byte a nanosecond."""


@dataclass(frozen=True)
class Split:
    """A pool that computes prompts, and what lies between it and the one that goes on with them."""

    replicas: int = 1
    link: LinkSpec = BYTE_NS
    local_tokens: int = 0
    ranks: tuple[int, int] = (1, 1)
    kv: Callable[..., Any] | None = None  # None: as those that decode


def built(kv: Callable[..., Any], env: Clock, recorder: Recorder, stores: dict[str, Tier]) -> Any:
    """A cache; one that takes them gets the run's clock, recorder and shared memory."""
    takes = signature(kv.func if isinstance(kv, partial) else kv).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in takes):
        return kv(env=env, recorder=recorder, stores=stores)
    return kv(env=env, recorder=recorder) if any(one.name == "env" for one in takes) else kv()


ROOMY = partial(cache_on, PagedCache, 1 << 20)


def serve(
    scenario: Listed,
    *,
    scheduler: Callable[[], Any] = Chunked,
    queue: Callable[[], Any] = Fcfs,
    kv: Callable[..., Any] = ROOMY,
    cost: Callable[[], Any] = LinearCost,
    router: Callable[[], Any] = RoundRobin,
    replicas: int = 1,
    max_steps: int | None = None,
    max_len: int = 1 << 20,
    is_naive: bool = False,
    split: Split | None = None,
    meanwhile: Mapping[int, Callable[["House"], None]] | None = None,
    scaler: Callable[[], Any] | None = None,
) -> House:
    """Serve everybody; ``meanwhile`` says what else happens, and when [ns].

    Where there is a ``split``, so many ``replicas`` decode what others have computed the prompts of.
    """
    env = Clock()
    recorder = Recorder()
    stores: dict[str, Tier] = {}

    def replica(index: int, cache_of: Callable[..., Any] = kv, next_pool: HandOvers | None = None) -> Replica:
        cache = built(cache_of, env, recorder, stores)
        parts = scheduler(), queue(), cache, cost(), recorder
        made = Replica(env, index, *parts, traffic.ended, max_len, max_steps, next_pool)
        if is_naive:
            made.ledger = NaiveLedger(cache.block_tokens, cache.window_tokens)
            made.batch = replace(made.batch, ledger=made.ledger)
        return made

    def note(index: int, event: int) -> None:
        recorder.fleet.add(env.now_ns, index, event)

    fleet = pool = Fleet(replica, note)
    placing = router()
    if split is not None:
        hand_overs = HandOvers(env, recorder, split.link, split.ranks, router(), pool)
        fleet = Fleet(lambda index: replica(index, split.kv or kv, hand_overs), note, pool)
        if split.local_tokens:
            placing = LocalIfShort(split.local_tokens, placing, router(), pool)
    traffic = Traffic(env, scenario, 0, placing, fleet)
    for _ in range(0 if split is None else split.replicas):
        fleet.add()
    for _ in range(replicas):
        pool.add()
    house = House(env, recorder, fleet, traffic, pool)
    for at_ns, what in (meanwhile or {}).items():
        env.ring(Arrival(env), at_ns, simpy.events.URGENT, lambda _, what=what: what(house))
    traffic.start()
    if scaler is not None and traffic.next_ns is not None:
        Scaling(env, scaler(), fleet, traffic.is_over, 0.0).start(traffic.next_ns)
    env.run()
    return house

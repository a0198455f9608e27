"""Random small houses: every scheduler, queue, cache, cost, and traffic made to collide with the ends of iterations."""

from dataclasses import dataclass
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from sim.batching import Chunked, Continuous, RequestLevel
from sim.cost import DecodeCurve, HostCost, IterationCost
from sim.engine import Replica
from sim.fleet import Fleet
from sim.kv.allocator import Buddy, FirstFit
from sim.kv.by_class import CacheByClass, ClassShare
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import BlankFirst, Fifo, Lfu, Lru
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.paged import PagedCache
from sim.kv.prediction import Predicted
from sim.kv.preemption import Cheaper, Recompute, Swap
from sim.kv.pruned import PrunedCache
from sim.kv.reservation import Growing, Maximum, Oracle
from sim.kv.retention import Share, Window
from sim.kv.tiers import Tiers, TierSpec
from sim.record import Recorder, Result
from sim.request import Request
from sim.router import LeastLoaded, RoundRobin, Router
from sim.step import Chunk
from tests.sim.chosen import each_of
from tests.sim.kv.sites import cache_on
from tests.sim.serving import KINDS, House, LinearCost, Listed, kind_of, serve

MAX_TOKENS = 64  # of one sequence; what has no room in the cache is refused
NS_PS = 1_000


@dataclass(frozen=True)
class Sheet:
    """Operations for the real iteration cost, with knots close together [s]."""

    def dense_s(self, n_tokens: int) -> float:
        return 3e-9 * n_tokens

    def sequences_s(self, n_seqs: int) -> float:
        return 2e-9 * n_seqs

    def prefill_attention_s(self, chunks: tuple[Chunk, ...]) -> float:
        return sum(new * (context + new) for new, context, _ in chunks) * 1e-11

    def decode_attention(self, batch: int) -> DecodeCurve:
        return DecodeCurve((1, 40, 90), (0.0, 1.7e-8, 9e-8), 3e-11)

    def copy_s(self, moved_bytes: float, host_bytes: float) -> float:
        return moved_bytes * 1e-12 + host_bytes * 1e-11


COSTS = {
    "every step 10 ns": LinearCost(10 * NS_PS),  # ends coincide with each other and with arrivals
    "every step 2.5 ns": LinearCost(2_500),
    "linear": LinearCost(5_003, 1_009, 101, 53, 7, 3, 211),
    "host bound": LinearCost(5_003, 509, 101, 53, 7, host_ps=14_001, most_steps=7),
    "real": lambda: IterationCost(Sheet(), HostCost(1e-8, 1e-9, 5e-10, 1e-9), capture_sizes=(1, 2, 4, 8)),
    "real, sync": lambda: IterationCost(
        Sheet(), HostCost(1e-8, 1e-9, 5e-10, 1e-9, scheduling="sync"), capture_sizes=(4,)
    ),
}


class LeastHeld(Router):
    """The replica whose sequences hold least of its cache now, the first among equals: it looks inside."""

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:
        for replica in fleet.open:
            replica.settle(now_ns)
        return min(fleet.open, key=lambda replica: (replica.kv.held_tokens, replica.ledger.resident_tokens))


EVICTIONS = {"lru": Lru, "lfu": partial(BlankFirst, order=Lfu), "fifo": partial(BlankFirst, order=Fifo)}
QUEUES = each_of("queue")

schedulers = st.one_of(
    st.builds(
        partial,
        st.just(Chunked),
        st.integers(4, 40),
        st.integers(1, 4),
        st.booleans(),
        st.sampled_from([0, 0, 3]),
        st.booleans(),
    ),
    st.builds(partial, st.just(Continuous), st.integers(1, 60), st.integers(1, 5)),
    st.builds(partial, st.just(RequestLevel), st.integers(1, 4), st.sampled_from([0.0, 5e-5, 3e-4])),
    # dynamic batches wait for 100 ms, an age beside iterations of nanoseconds: they are drawn above, with shorter waits
    st.sampled_from([one for name, one in each_of("batching").items() if name != "dynamic"]),
)
paged = st.builds(
    partial,
    st.just(cache_on),
    st.just(PagedCache),
    st.integers(16, 160),
    st.sampled_from(list(EVICTIONS.values())),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.sampled_from([0.0, 0.0, 0.05]),
    window_tokens=st.sampled_from([None, None, 9, 24]),
)
pruned = st.builds(
    partial,
    st.just(cache_on),
    st.just(PrunedCache),
    st.integers(16, 160),
    st.just(Lru),
    st.sampled_from(
        [
            Window(12, 3),
            Window(16, 2, overlap=6),
            Window(10, 1, overlap=3, dynamic=True),
            Share(0.5, every=4),
            Share(0.8, bits=8, every=5),
        ]
    ),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    window_tokens=st.sampled_from([None, None, 9]),
    kv_bytes_per_token=st.just(100.0),
)


def tiers(dram: float, disk: float | None, fails_at_s: float | None, store: bool | None = None) -> Tiers:
    """Of so many bytes; below them a store that all replicas share, to which all is written at once, or nothing is."""
    gib = 1 << 30
    levels = [TierSpec("dram", dram / gib, 4e9, 2e9, 3e-9, 1e-9, Lru, fails_at_s)]
    if disk is not None:
        levels.append(TierSpec("disk", disk / gib, 1e9, 5e8, 2e-8, 2e-9, partial(BlankFirst, order=Fifo)))
    if store is not None:
        shared = {"is_shared": True, "writes_through": store}
        levels.append(TierSpec("store", 2000 / gib, 1e9, 3e9, 2e-9, 0.0, Lru, fails_at_s, **shared))
    return Tiers(tuple(levels))


hierarchical = st.builds(
    partial,
    st.just(cache_on),
    st.just(HierarchicalCache),
    capacity_tokens=st.integers(16, 100),
    eviction=st.sampled_from(list(EVICTIONS.values())),
    tiers=st.builds(
        tiers,
        st.sampled_from([80, 400, 4000]),
        st.sampled_from([None, 200, 4000]),
        st.sampled_from([None, None, 3e-7]),
        st.sampled_from([None, True, False]),
    ),
    cost=st.just(LinearCost(5_003, 1_009, 101, 53)),
    kv_bytes_per_token=st.just(10.0),
    block_tokens=st.sampled_from([1, 2, 4, 8]),
    watermark=st.sampled_from([0.0, 0.05]),
    window_tokens=st.sampled_from([None, None, 24]),
    overlap=st.sampled_from([True, True, False]),
    write=st.sampled_from(["through", "back", "preempted"]),
    preemption=st.sampled_from([Recompute(), Swap(), Cheaper()]),
    load=st.sampled_from(["always", "cheaper", "never"]),
    prefetch=st.integers(0, 3),
    chunk_tokens=st.just(8),
)
growing = st.builds(
    partial,
    st.just(cache_on),
    st.just(ContiguousCache),
    capacity_tokens=st.integers(64, 300),
    allocator=st.sampled_from([Buddy, FirstFit]),
    reservation=st.sampled_from(
        [
            Growing(8, 1.5),
            Growing(4, 1.0),
            Growing(16, 2.0),
            partial(Predicted, 8, ahead=3),
            Oracle(),
            Oracle("power_of_two"),
        ]
    ),
    eviction=st.sampled_from([Lru, partial(BlankFirst, order=Lfu)]),
    session_caching=st.booleans(),
    window_tokens=st.sampled_from([None, None, 24]),
    kv_bytes_per_token=st.just(100.0),
)
contiguous = st.builds(
    partial,
    st.just(cache_on),
    st.just(ContiguousCache),
    capacity_tokens=st.integers(100, 300),
    allocator=st.sampled_from([Buddy, FirstFit]),
    reservation=st.just(Maximum(MAX_TOKENS)),
    eviction=st.just(Lru),
    session_caching=st.booleans(),
)


@st.composite
def by_class(draw: st.DrawFn) -> partial:
    """Any caches beside each other that keep all or a share."""
    kinds = {
        "paged": st.builds(partial, st.just(PagedCache), block_tokens=st.sampled_from([1, 4])),
        "pruned": st.builds(
            partial,
            st.just(PrunedCache),
            retention=st.sampled_from([Share(0.5, every=4), Share(0.8, bits=8, every=5)]),
            block_tokens=st.sampled_from([1, 2, 4]),
        ),
        "growing": st.builds(
            partial,
            st.just(ContiguousCache),
            allocator=st.sampled_from([Buddy, FirstFit]),
            reservation=st.sampled_from([Growing(8, 1.5), Growing(16, 2.0), partial(Predicted, 8, ahead=3), Oracle()]),
        ),
        "hierarchical": st.builds(
            partial,
            st.just(HierarchicalCache),
            block_tokens=st.sampled_from([2, 8]),
            overlap=st.sampled_from([True, True, False]),
            write=st.sampled_from(["through", "back"]),
            chunk_tokens=st.just(8),
        ),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=len(KINDS), max_size=len(KINDS)))
    classes = {name: ClassShare(1 / len(KINDS), draw(kinds[kind])) for name, kind in zip(KINDS, chosen, strict=True)}
    return partial(
        cache_on,
        CacheByClass,
        capacity_tokens=draw(st.integers(150, 400)),
        classes=classes,
        eviction=draw(st.sampled_from(list(EVICTIONS.values()))),
        tiers=tiers(draw(st.sampled_from([80, 400, 4000])), None, draw(st.sampled_from([None, 3e-7]))),
        cost=LinearCost(5_003, 1_009, 101, 53),
        kv_bytes_per_token=10.0,
        window_tokens=draw(st.sampled_from([None, None, 24])),
    )


@st.composite
def scenarios(draw: st.DrawFn) -> Listed:
    """A dozen requests at round times; some begin alike, some are conversations."""
    count = draw(st.integers(1, 14))
    at_ns = 0
    listed, turns = [], {}
    has_sessions = draw(st.booleans())
    for i in range(count):
        at_ns += draw(st.sampled_from([0, 0, 1, 5, 10, 20, 30, 55, 100, 400]))
        head, tail = draw(st.integers(0, 3)) * 4, draw(st.integers(1, 24))
        content = ((draw(st.integers(1, 2)), head), (100 + i, tail)) if head else ((100 + i, tail),)
        output = draw(st.integers(1, 30))
        is_private = not has_sessions and draw(st.booleans())
        listed.append(
            Request(
                i,
                at_ns,
                head + tail,
                output,
                output + draw(st.sampled_from([0, 0, 3])),  # ends by a stop token
                None if is_private else content,
                None if is_private else -i - 1,
                i if has_sessions else None,
                priority=draw(st.integers(0, 2)),
                n_samples=draw(st.sampled_from([1, 1, 1, 2, 4])),
                kind=kind_of(i),
            )
        )
        if has_sessions:
            turn = st.tuples(st.sampled_from([0, 0, 10, 35, 200]), st.integers(1, 9), st.integers(1, 12))
            turns[i] = draw(st.lists(turn, max_size=3))
    return Listed(listed, turns if has_sessions else {})


ROUTERS = each_of("router")


def fitting(house: dict) -> dict:
    """The same house; a router that is fed by events asks the caches that send none."""
    tells = hasattr(house["kv"].args[0], "publish")
    return (
        house
        if tells or house["router"] is not ROUTERS["prefix_events"]
        else house | {"router": ROUTERS["prefix_affinity"]}
    )


houses = st.fixed_dictionaries(
    {
        "scenario": scenarios(),
        "scheduler": schedulers,
        "queue": st.sampled_from(list(QUEUES.values())),
        "kv": st.one_of(paged, paged, contiguous, pruned, growing, hierarchical, by_class()),
        "cost": st.sampled_from(sorted(COSTS)).map(COSTS.__getitem__),
        "router": st.sampled_from([RoundRobin, LeastLoaded, LeastHeld, *ROUTERS.values()]),
        "replicas": st.sampled_from([1, 1, 2, 3]),
    }
).map(fitting)


def run(house: dict, **how: object) -> House:
    cost = house["cost"]
    return serve(**{**house, "cost": cost if not isinstance(cost, LinearCost) else lambda: cost}, **how)


def computes_what_it_does_not_find(facts: Recorder | Result) -> None:
    """Tokens computed in prompts are those not found at first, and those lost since and not found again.

    Who gave way while decoding has sampled a token whose KV comes with what is computed again. Who gave way with half a
    prompt may find more of it than it had, where others have computed the same text meanwhile: the term is negative.
    """
    asked = facts.requests.column("prompt_tokens") - facts.requests.column("cached_tokens")
    away = {name: facts.preemptions.column(name) for name in facts.preemptions.columns}
    again = away["lost_tokens"] + away["is_decoding"] - away["found_tokens"]
    computed = facts.iterations.column("prefill_tokens").sum()
    assert computed == asked.sum() + facts.requests.column("apart_tokens").sum() + again.sum()
    assert all((away[name] >= 0).all() for name in ("lost_tokens", "is_decoding", "found_tokens"))


slow_and_thorough = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

"""The simulator against vLLM's loop, token by token: hundreds of small runs in memory that is too small."""

from collections import defaultdict
from dataclasses import asdict
from functools import partial

import pytest

from sim.batching import Chunked, Fcfs, Ranked
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.request import Request, stream
from tests.oracle.vllm_loop import Engine, Settings
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, serve

N_RUNS = 300
PS = 1_000
BASE, PER_SEQ, PER_ENTRY, PER_TOKEN, PER_CONTEXT = 900, 70, 3, 40, 1  # [ns]


def duration_ns(pieces, n_decoding, n_entries, longest):
    """What an iteration takes, as `LinearCost` has it."""
    ns = BASE + PER_SEQ * n_decoding + PER_ENTRY * n_entries
    return ns + sum(PER_TOKEN * new + PER_CONTEXT * context for new, context in pieces)


def drawn(rng, has_stops=False, has_samples=False):
    """A dozen requests at most, at times that meet the ends of iterations; some begin alike, some are conversations."""
    listed, turns, at_ns = [], {}, 0
    has_private, has_sessions = rng.random() < 0.3, rng.random() < 0.4
    for number in range(int(rng.integers(3, 13))):
        at_ns += int(rng.choice([1, 10, 300, 1_000, 1_050, 4_000]))
        shared, own = int(rng.integers(0, 5)) * 3, int(rng.integers(1, 24))
        output = int(rng.integers(1, 24))
        most = output + int(rng.integers(0, 3)) if has_stops else output
        content = ((int(rng.integers(1, 3)), shared), (100 + number, own)) if shared else ((100 + number, own),)
        prompt, output_id, session = shared + own, -1 - number, number
        if has_private and rng.random() < 0.4:
            content = output_id = session = None
        elif has_sessions:
            n_turns = int(rng.integers(0, 3))
            turns[number] = [(number + 1 + int(rng.integers(0, 4)) * 1_000, 3, 9) for _ in range(n_turns)]
        priority = int(rng.integers(0, 3))
        n_samples = int(rng.integers(1, 4)) if has_samples else 1
        listed.append(
            Request(
                number, at_ns, prompt, output, most, content, output_id, session, priority=priority, n_samples=n_samples
            )
        )
    return Listed(listed, turns)


def longest(scenario):
    """Tokens of the longest request, its conversation's last turn included."""
    return max(
        one.prompt_tokens + one.max_output_tokens + sum(n + m for _, n, m in scenario.turns.get(one.session_id, ()))
        for one in scenario.listed
    )


def settings_of(rng, scenario, **fixed):
    """An engine with hardly more memory than its largest request takes."""
    size = int(rng.choice([1, 2, 4, 8]))
    largest = -(-longest(scenario) // size)
    max_num_seqs = int(rng.integers(1, 7))
    drawn = {
        "n_blocks": largest + int(rng.integers(0, largest + 4)),
        "block_size": size,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + int(rng.integers(0, 30)),
        "enable_prefix_caching": bool(rng.random() < 0.8),
        "scheduler_reserve_full_isl": bool(rng.random() < 0.5),
        "blank_blocks_first": bool(rng.random() < 0.5),
    }
    return Settings(**(drawn | fixed))


def simulated(scenario, settings):
    """The same by the simulator: rows and evictions."""
    cost = LinearCost(*(PS * ns for ns in (BASE, PER_SEQ, PER_ENTRY, PER_TOKEN, PER_CONTEXT)))
    house = serve(
        scenario,
        scheduler=partial(
            Chunked,
            settings.max_num_batched_tokens,
            settings.max_num_seqs,
            settings.async_scheduling,
            settings.long_prefill_token_threshold,
            forks_samples=False,
        ),
        queue=Fcfs if settings.policy == "fcfs" else partial(Ranked, "priority"),
        kv=partial(
            cache_on,
            PagedCache,
            settings.n_blocks * settings.block_size,
            partial(Lru, blank_first=settings.blank_blocks_first),
            settings.block_size,
            settings.enable_prefix_caching,
            settings.watermark,
            reserves_prompt=settings.scheduler_reserve_full_isl,
        ),
        cost=lambda: cost,
    )
    names = ("scheduled_ns", "first_token_ns", "finish_ns", "cached_tokens", "n_preemptions")
    rows = {row["id"]: tuple(row[name] for name in names) for row in house.requests()}
    return rows, evictions(scenario, house.replicas[0].kv.counts()["evicted_blocks"])


def evictions(scenario, n_blocks):
    """Where all text can be shared: of a text that nobody shares the simulator knows no content to lose."""
    return n_blocks if all(one.content is not None for one in scenario.listed) else 0


def token_by_token(scenario, settings):
    engine = Engine(settings, duration_ns)
    seqs = engine.serve(scenario)
    answers = defaultdict(list)
    for one in seqs:
        answers[one.request.id].append(one)
    rows = {
        number: (
            min(one.scheduled_ns for one in ones),
            min(one.first_token_ns for one in ones),
            max(one.finish_ns for one in ones),
            min(one.cached for one in ones),
            sum(one.n_preemptions for one in ones),
        )
        for number, ones in answers.items()
    }
    return rows, evictions(scenario, engine.pool.n_evicted)


KINDS = {
    "synchronous": {},
    "asynchronous": {"async_scheduling": True},
    "stop tokens": {},
    "stop tokens, asynchronous": {"async_scheduling": True},
    "watermark": {"watermark": 0.2},
    "long prompts in pieces": {"long_prefill_token_threshold": 3, "max_num_batched_tokens": 32},
    "priority": {"policy": "priority"},
    "priority, stop tokens, asynchronous": {"policy": "priority", "async_scheduling": True},
    "several answers": {"enable_prefix_caching": True},
    "several answers, asynchronous": {"enable_prefix_caching": True, "async_scheduling": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_served_as_by_vllms_loop(kind):
    preempted = found = evicted = 0
    for seed in range(N_RUNS):
        rng = stream(seed, kind)
        scenario = drawn(rng, "stop" in kind, "answers" in kind)
        settings = settings_of(rng, scenario, **KINDS[kind])
        expected = token_by_token(scenario, settings)
        assert simulated(scenario, settings) == expected, f"run {seed}: {asdict(settings)}"
        preempted += sum(row[4] for row in expected[0].values())
        found += sum(row[3] for row in expected[0].values())
        evicted += expected[1]
    assert min(preempted, found, evicted) > N_RUNS, "runs too roomy prove nothing"

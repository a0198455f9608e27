"""Laws no run may break: nothing is lost, nothing happens before its cause, equal seeds give equal bytes."""

import ast
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings

from sim.batching import Chunked
from sim.config import choices_of, compose
from sim.engine import Replica
from sim.errors import ConfigError
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.run import run as simulate
from tests.laws.houses import computes_what_it_does_not_find, houses, run, slow_and_thorough
from tests.sim.kv.audit import audit
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, asked, serve

ROOT = Path(__file__).parents[2]


def asked_of(house: House, given: dict) -> dict[int, int]:
    """Output tokens by request, of those in the list (further turns are the scenario's to ask)."""
    return {request.id: request.output_tokens for request in given["scenario"].listed}


@slow_and_thorough
@given(houses)
def test_every_request_is_served_or_refused_once_and_all_memory_comes_back(given):
    house = run(given)
    ids = [row["id"] for row in house.requests()] + house.recorder.refused.column("id").tolist()
    assert len(ids) == len(set(ids)) == house.traffic.n_arrived
    assert set(asked_of(house, given)) <= set(ids)
    for replica in house.replicas:
        kv = replica.kv
        assert (kv.held_tokens, len(replica.ledger), len(replica.batch.partial), len(replica.batch.waiting)) == (0,) * 4
        assert replica.n_outstanding == 0
        assert 0 <= kv.idle_tokens <= kv.capacity_tokens
        assert kv.shared_tokens == 0
        assert replica.ledger.resident_tokens == replica.ledger.n_growing == replica.ledger.n_emitting == 0


@slow_and_thorough
@given(houses)
def test_after_every_commit_each_slot_has_one_owner_or_several_who_share_it_or_is_free(given):
    commit = Replica._commit

    def audited(replica: Replica, *what: object) -> None:
        commit(replica, *what)
        audit(replica)

    with patch.object(Replica, "_commit", audited):
        run(given)


@slow_and_thorough
@given(houses)
def test_every_token_is_generated_in_an_iteration_and_none_besides(given):
    house = run(given)
    table = house.recorder.iterations
    rows = house.iterations()
    requests = house.requests()
    n_tokens = sum(row["output_tokens"] for row in requests)
    n_resumed = int((house.recorder.preemptions.column("next_token_ns") >= 0).sum())
    n_single = sum(row["n_samples"] for row in requests if row["output_tokens"] == row["n_samples"])
    decoded = sum(row["decode_seqs"] * row["n_steps"] for row in rows)
    joined = sum(row["joined_seqs"] for row in rows)
    # a prompt's last iteration gives a token; joined_seqs leaves out those that end with it
    last_by_prefill = n_tokens - decoded - joined
    assert n_single <= last_by_prefill <= n_single + n_resumed
    assert (table.column("held_tokens") <= house.replicas[0].kv.capacity_tokens).all()
    assert (table.column("held_tokens") + table.column("idle_tokens") <= house.replicas[0].kv.capacity_tokens).all()
    live = table.column("live_tokens") - table.column("shared_tokens")
    assert (live >= 0).all()
    assert (live + table.column("internal_tokens") <= table.column("held_tokens")).all()


BLOCKS = {"paged", "hierarchical", "by_class classify=true"}  # that can go down when they are preempted
CACHES = sorted(set(choices_of("cache")) - {"static", "by_class"})


@pytest.mark.parametrize("preemption", choices_of("preemption"))
@pytest.mark.parametrize("cache", [*CACHES, "static cache.max_len=8192", "by_class classify=true"])
@pytest.mark.parametrize("engine", ["vllm-0.10", "vllm-0.28"])
def test_every_cache_computes_what_it_does_not_find_however_it_preempts(cache, preemption, engine):
    answers = "scenario.n_samples=2" if engine == "vllm-0.10" else "scenario.n_samples=1"
    traffic = ["scenario=chatbot", "scenario.n_sessions=60", "scenario.rate=20", answers, "hardware.kv_blocks=1100"]
    chosen = [*f"cache={cache}".split(), f"preemption={preemption}", f"engine={engine}", "cost=roofline"]
    if cache in BLOCKS or preemption == "recompute":
        computes_what_it_does_not_find(simulate(compose([*traffic, *chosen])))
    else:
        with pytest.raises(ConfigError, match="preemption"):
            simulate(compose([*traffic, *chosen]))


def test_who_gave_way_with_half_a_prompt_may_find_more_of_it_than_it_had():
    """Two ask about one text of 24 tokens; the second has 14 when the block it needs is taken, the first goes on."""
    text = ((1, 24),)
    listed = [asked(0, 0, 8, 30), asked(1, 0, 24, 3, content=text), asked(2, 0, 33, 3, content=(*text, (2, 9)))]
    how = {"kv": partial(cache_on, PagedCache, 44, Lru, 4), "cost": lambda: LinearCost(10_000)}
    house = serve(Listed(listed), **how, scheduler=partial(Chunked, 9, 4, False, 4))
    first = house.recorder.preemptions.rows()[0].tolist()
    assert dict(zip(house.recorder.preemptions.columns, first, strict=True)) == {
        "request_id": 2,
        "replica": 0,
        "preempted_ns": 40,
        "last_token_ns": -1,
        "next_token_ns": -1,
        "is_swap": 0,
        "lost_tokens": 14,
        "is_decoding": 0,
        "found_tokens": 24,
    }
    computes_what_it_does_not_find(house.recorder)


@slow_and_thorough
@given(houses)
def test_prompt_tokens_are_computed_or_found_each_once_but_for_recomputation(given):
    house = run(given)
    requests = house.requests()
    computes_what_it_does_not_find(house.recorder)
    assert all(0 <= row["cached_tokens"] < row["prompt_tokens"] for row in requests)
    assert sum(row["n_preemptions"] for row in requests) == len(house.recorder.preemptions)
    assert sum(row["preempted_seqs"] for row in house.iterations()) == len(house.recorder.preemptions)


@slow_and_thorough
@given(houses)
def test_nothing_happens_before_its_cause(given):
    house = run(given)
    for row in house.requests():
        assert row["arrival_ns"] <= row["scheduled_ns"] <= row["first_token_ns"] <= row["finish_ns"]
        ends = house.ends_ns(row["replica"])
        assert {row["first_token_ns"], row["finish_ns"]} <= set(ends), "tokens come when an iteration ends"
    for replica in house.replicas:
        rows = [row for row in house.iterations() if row["replica"] == replica.index]
        last_ends = [row["start_ns"] + elapsed(row) // 1000 for row in rows]
        assert all(end <= row["start_ns"] for end, row in zip(last_ends, rows[1:], strict=False)), "one at a time"
        assert all(a <= b for a, b in pairwise(house.ends_ns(replica.index)))
    for row in house.recorder.preemptions.rows().tolist():
        _, _, preempted_ns, last_ns, next_ns, *_ = row
        assert last_ns <= preempted_ns
        assert next_ns == -1 or next_ns >= preempted_ns


def elapsed(row: dict[str, int]) -> int:
    n = row["n_steps"]
    return row["carry_ps"] + n * row["first_ps"] + n * (n - 1) // 2 * row["growth_ps"]


@slow_and_thorough
@given(houses)
def test_the_same_house_gives_the_same_bytes(given):
    first, second = run(given).recorder, run(given).recorder
    for name in ("requests", "iterations", "preemptions", "refused"):
        assert getattr(first, name).rows().tobytes() == getattr(second, name).rows().tobytes()
    assert first.refusals == second.refusals


@settings(max_examples=60, derandomize=True, deadline=None)
@given(houses)
def test_littles_law_is_exact_over_a_closed_window(given):
    """L = lambda W: the time integral of the number in the system is the sum of the times spent there."""
    house = run(given)
    requests = house.requests()
    if not requests:
        return
    changes = sorted([(row["arrival_ns"], 1) for row in requests] + [(row["finish_ns"], -1) for row in requests])
    times, steps = np.array(changes).T
    n_in_system = np.cumsum(steps)
    integral = int((n_in_system[:-1] * np.diff(times)).sum())
    assert n_in_system[-1] == 0
    assert integral == sum(row["finish_ns"] - row["arrival_ns"] for row in requests)


ORACLES = {"sim/kv/reservation.py": {"Oracle"}}
"""Classes that may read the true output length: published baselines that know the future."""


def oracle_readers(tree: ast.Module) -> list[str]:
    """Functions that read an attribute ``output_tokens``, as ``Class.function``."""
    found = []

    def visit(node: ast.AST, path: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                visit(child, (*path, child.name))
                continue
            if isinstance(child, ast.Attribute) and child.attr == "output_tokens":
                found.append(".".join(path))
            if isinstance(child, ast.Constant) and child.value == "output_tokens":
                found.append(".".join(path))
            visit(child, path)

    visit(tree, ())
    return found


POLICIES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("sim/batching/*.py", "sim/kv/**/*.py", "sim/router/*.py")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", POLICIES)
def test_no_policy_reads_the_true_output_length(path):
    readers = oracle_readers(ast.parse((ROOT / path).read_text()))
    allowed = ORACLES.get(path, set())
    offenders = [name for name in readers if name.split(".")[0] not in allowed and not name.endswith("refuses")]
    assert not offenders, f"{path}: {offenders} read output_tokens; a policy may know max_output_tokens"


def test_the_reader_of_sources_finds_what_it_looks_for():
    source = "class Clairvoyant:\n    def plan(self, s):\n        return s.request.output_tokens\n"
    assert oracle_readers(ast.parse(source)) == ["Clairvoyant.plan"]
    assert {"sim/batching/chunked.py", "sim/kv/paged.py", "sim/router/load.py"} <= set(POLICIES)

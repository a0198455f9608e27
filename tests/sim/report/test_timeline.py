"""Facts in bins of time."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.metrics.load import load
from sim.record import ITERATION_COLUMNS, PREEMPTION_COLUMNS, REQUEST_COLUMNS
from sim.report.figure import MAX_TABLE_ROWS
from sim.report.load_figures import over_time
from sim.report.pauses import pauses
from sim.report.timeline import timelines
from sim.request import Request
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, serve
from tests.sim.tiny_run import table, tiny_run

FROM_0 = replace(tiny_run().result, requests=table(REQUEST_COLUMNS, [{}]))
"""A run whose first request arrives at 0."""


def test_averages_are_over_time_and_extremes_are_kept():
    """Four bins of 1 us: 10 slots for 1.5 us, 30 for 0.5 us, then nothing."""
    rows = [
        {"start_ns": 0, "n_steps": 3, "first_ps": 500_000, "held_tokens": 10, "idle_tokens": 4},
        {"start_ns": 1_500, "n_steps": 1, "first_ps": 500_000, "held_tokens": 30, "idle_tokens": 8},
    ]
    result = replace(FROM_0, iterations=table(ITERATION_COLUMNS, rows), end_ns=4_000)
    found = timelines(result, n_bins=4)
    held, idle = found.levels["held_tokens"], found.levels["idle_tokens"]
    assert held.mean.tolist() == [10, 20, 0, 0]
    assert held.low.tolist() == [10, 10, 0, 0]
    assert held.high.tolist() == [10, 30, 0, 0]
    assert idle.mean.tolist() == [4, 6, 8, 8]  # an engine without work keeps what it has cached
    assert idle.high.tolist() == [4, 8, 8, 8]
    assert found.levels["used_tokens"].mean.tolist() == [14, 26, 8, 8]


def test_nothing_is_kept_for_reuse_where_nothing_is_ever_kept():
    """Prompts shorter than a block, a request every five seconds."""
    result = simulate(
        "scenario=short_chat", "scenario.rate=0.2", "scenario.n_requests=60", "cache.prefix_caching=false"
    )
    found = timelines(result).levels
    assert found["held_tokens"].mean.max() > 0
    assert not found["idle_tokens"].high.any()
    kv = next(figure for figure in over_time(result) if figure.id == "kv")
    assert "kept for reuse" not in [trace["name"] for trace in kv.traces]


def test_in_a_pause_a_conversation_keeps_what_its_next_turn_finds():
    """Alone on the device: every pause but the one before its first turn ends with a turn that takes it all up."""
    result = simulate("scenario.n_sessions=1", "scenario.dialogue.turns.single_frac=0", "seed=3")
    cached_tokens = result.requests.column("cached_tokens")
    assert len(cached_tokens) > 2
    assert pauses(result).tokens["idle_tokens"].tolist() == cached_tokens[1:].tolist()


def test_memory_is_held_in_a_pause_only_while_a_request_under_way_waits_for_its_keys_and_values():
    """An iteration, then nothing for two bins, then another. The second request began at once, or only then."""
    rows = [{"n_steps": 1, "first_ps": 10**6, "held_tokens": 40, "live_tokens": 40, "idle_tokens": 2}]
    rows.append(rows[0] | {"start_ns": 3_000, "held_tokens": 30, "live_tokens": 30})
    result = replace(tiny_run().result, iterations=table(ITERATION_COLUMNS, rows), config={}, end_ns=4_000)
    served = [{"finish_ns": 1_000}, {"scheduled_ns": 0, "finish_ns": 4_000}]
    loading = timelines(replace(result, requests=table(REQUEST_COLUMNS, served)), 4).levels
    assert loading["held_tokens"].mean.tolist() == [40, 30, 30, 30]
    served[1]["scheduled_ns"] = 3_000
    resting = timelines(replace(result, requests=table(REQUEST_COLUMNS, served)), 4).levels
    assert resting["held_tokens"].mean.tolist() == [40, 0, 0, 30]
    assert resting["idle_tokens"].mean.tolist() == [2, 2, 2, 2]


def test_memory_grows_along_a_run_of_iterations():
    """Four iterations of 1 us in four bins: ten sequences grow from 100 to 140 slots, of which 125 were reserved."""
    row = {"start_ns": 0, "n_steps": 4, "first_ps": 1_000_000, "decode_seqs": 10, "decode_context_tokens": 110}
    row |= {"held_tokens": 125, "live_tokens": 100, "idle_tokens": 7}
    result = replace(FROM_0, iterations=table(ITERATION_COLUMNS, [row]), end_ns=4_000, capacity_tokens=130)
    found = timelines(replace(result, config={}), n_bins=4).levels
    assert found["live_tokens"].mean.tolist() == pytest.approx([105, 115, 125, 135])
    assert found["live_tokens"].low.tolist() == pytest.approx([100, 110, 120, 130])
    assert found["live_tokens"].high.tolist() == pytest.approx([110, 120, 130, 140])
    assert found["held_tokens"].low[0] == 125
    assert found["held_tokens"].high.max() == 130  # no more than there is
    assert found["used_tokens"].high.max() == 130  # what was kept for reuse gave way


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 90), st.booleans())
def test_tokens_are_neither_lost_nor_made_by_binning(seed, n_replicas, n_bins, mixes):
    result = tiny_run(seed, n_replicas=n_replicas, mixes=mixes, preempts=0.0).result
    found = timelines(result, n_bins)
    width_s = result.duration_ns / n_bins / 1e9
    assert found.decoded_per_s.sum() * width_s == pytest.approx(result.requests.column("output_tokens").sum())
    assert found.prefilled_per_s.sum() * width_s == pytest.approx(result.requests.column("prompt_tokens").sum())
    assert found.prompt_tokens.sum() == result.requests.column("prompt_tokens").sum()
    assert found.cached_tokens.sum() == result.requests.column("cached_tokens").sum()


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_output_of_several_answers_and_after_preemptions_is_charted_to_the_token(preemption):
    result = simulate(
        "scenario=chatbot", "scenario.n_sessions=60", "scenario.rate=20", "scenario.n_samples=4", "replicas=2",
        "hardware.kv_blocks=500", f"preemption={preemption}",
    )  # fmt: skip
    assert len(result.preemptions) > 100
    found = timelines(result)
    n_tokens = found.decoded_per_s.sum() * result.duration_ns / 1e9 / len(found.decoded_per_s)
    assert n_tokens == pytest.approx(result.requests.column("output_tokens").sum(), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 90))
def test_averages_lie_between_the_extremes_and_sum_up_to_the_whole(seed, n_replicas, n_bins):
    result = tiny_run(seed, n_replicas=n_replicas).result
    found = timelines(result, n_bins)
    rows = result.iterations.frame()
    length_ns = (rows.n_steps * rows.first_ps + rows.n_steps * (rows.n_steps - 1) // 2 * rows.growth_ps) / 1e3
    for name in ("held_tokens", "decode_seqs"):
        level = found.levels[name]
        assert np.all(level.low <= level.mean * (1 + 1e-6))
        assert np.all(level.mean <= level.high * (1 + 1e-6))
        assert level.high.max() == rows[name].max()
        expected = float((rows[name] * length_ns).sum()) / (result.duration_ns * n_replicas)
        assert level.mean.mean() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("max_steps", [None, 1])
def test_the_queue_adds_up_to_all_waiting_however_the_rows_are_cut(max_steps):
    """Twenty requests and memory for a few of them, so that some are preempted: by the rows, and by the bins."""
    house = {
        "scenario": Listed([Request(i, 10_000 * i, 12, 30, 30) for i in range(20)]),
        "kv": partial(cache_on, PagedCache, 96, Lru, 4),
        "cost": lambda: LinearCost(10_000_000),
        "max_steps": max_steps,
    }
    facts = serve(**house).recorder
    requests, preempted = facts.requests.frame(), facts.preemptions.frame()
    waited_ns = (requests.scheduled_ns - requests.arrival_ns).sum()
    away_ns = (preempted.next_token_ns - preempted.preempted_ns).sum()
    assert away_ns > 0
    assert (preempted.next_token_ns > 0).all()
    end_ns = int(requests.finish_ns.max())
    result = replace(
        tiny_run().result,
        requests=facts.requests, iterations=facts.iterations, preemptions=facts.preemptions, end_ns=end_ns,
    )  # fmt: skip
    found = timelines(result, 7)
    assert found.waiting.mean.sum() * end_ns / 7 == pytest.approx(waited_ns + away_ns)
    assert found.waiting.high.max() == load(result).peak_waiting_seqs > 10


def test_who_is_preempted_twice_before_a_token_waits_all_along():
    """Four bins of 1 us. Preempted at 0, and again at 1.5 us; the next token comes at 3 us. Another waits until 0.5."""
    spells = [
        {"request_id": 1, "preempted_ns": 0, "next_token_ns": -1},
        {"request_id": 2, "preempted_ns": 0, "next_token_ns": 500},
        {"request_id": 1, "preempted_ns": 1_500, "next_token_ns": 3_000},
    ]
    preempted, nobody = table(PREEMPTION_COLUMNS, spells), table(REQUEST_COLUMNS, [])
    found = timelines(replace(tiny_run().result, requests=nobody, preemptions=preempted, end_ns=4_000), 4).waiting
    assert found.mean.tolist() == [1.5, 1, 1, 0]
    assert found.low.tolist() == [1, 1, 1, 0]
    assert found.high.tolist() == [2, 1, 1, 0]


def test_preemptions_are_counted_when_they_happen():
    result = tiny_run(seed=1, preempts=0.3).result
    found = timelines(result, 50)
    n_swapped = int(result.preemptions.column("is_swap").sum())
    assert found.swapped.sum() == n_swapped > 0
    assert found.recomputed.sum() == len(result.preemptions) - n_swapped > 0


def test_a_charts_table_joins_bins_and_leaves_no_event_and_no_peak_out():
    """A hundred seconds: a queue, a preemption and the memory held lie in one bin of four hundred."""
    rows = [{"start_ns": 0, "n_steps": 1, "first_ps": 10**9, "decode_seqs": 3, "held_tokens": 90}]
    requests = [{"id": i, "scheduled_ns": 10**6, "first_token_ns": 10**6, "finish_ns": 10**6} for i in range(7)]
    preempted = [{"preempted_ns": 10**6, "last_token_ns": -1, "next_token_ns": -1}]
    result = tiny_run().result
    result = replace(
        result,
        requests=table(REQUEST_COLUMNS, requests),
        iterations=table(ITERATION_COLUMNS, rows),
        preemptions=table(PREEMPTION_COLUMNS, preempted),
        end_ns=100 * 10**9,
        capacity_tokens=100,
    )
    tables = {figure.id: figure for figure in over_time(result)}
    assert sum(int(row[1]) for row in tables["preemptions"].rows) == 1
    assert max(float(row[3]) for row in tables["queue"].rows) == 7
    assert max(float(row[3]) for row in tables["batch"].rows) == 3
    assert tables["kv"].rows[0][4] == "90.0 %"
    assert all(len(figure.rows) == MAX_TABLE_ROWS for figure in tables.values())


def test_an_empty_run_has_empty_timelines():
    found = timelines(tiny_run(n_requests=0).result, 10)
    assert not found.decoded_per_s.any()
    assert not found.levels["idle_tokens"].mean.any()

"""Metrics against the same numbers computed from every single token."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.errors import ConfigError, InvariantError
from sim.metrics import Slo, measure, summary, to_json
from sim.metrics.gaps import token_gaps
from sim.metrics.load import load, most_in_flight
from sim.metrics.population import Population, Series
from sim.metrics.seconds import Seconds
from sim.metrics.summary import total_counts
from sim.record import ITERATION_COLUMNS, PREEMPTION_COLUMNS, REQUEST_COLUMNS, Result
from sim.report.timeline import timelines
from tests.sim.tiny_run import later, table, tiny_run

SLO = Slo(ttft_ms=40, tpot_ms=6, classes={"code": {"ttft_ms": 20, "e2el_ms": 150}})
VLLM_KEYS = {
    "duration completed failed total_input_tokens total_output_tokens request_throughput request_goodput "
    "output_throughput total_token_throughput max_output_tokens_per_s max_concurrent_requests",
    *(
        f"{kind}_{name}_ms"
        for kind in ("mean", "median", "std", "p90", "p95", "p99")
        for name in ("ttft", "tpot", "itl", "e2el")
    ),
}
SERIES = st.tuples(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(1, 60), st.integers(1, 50))


def population(rows: list[tuple[int, int, int, int]], n_parts: int = 1) -> Population:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Population(
        tuple(Series(*(c.copy() for c in np.array_split(columns, n_parts, axis=1)[i])) for i in range(n_parts))
    )


def written_down(rows: list[tuple[int, int, int, int]]) -> np.ndarray:
    return np.array(
        [first + k * growth for first, growth, n, w in rows for k in range(n) for _ in range(w)], dtype=float
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(SERIES, min_size=1, max_size=20), st.lists(st.floats(0, 100), min_size=1, max_size=5), st.integers(1, 4)
)
def test_percentiles_of_series_equal_numpys_of_all_members(rows, q, n_parts):
    assert population(rows, n_parts).percentiles(q) == pytest.approx(np.percentile(written_down(rows), q), rel=1e-15)


@settings(max_examples=25, deadline=None)
@given(st.lists(SERIES, min_size=1, max_size=5))
def test_order_statistics_of_series_are_the_sorted_members(rows):
    members = np.sort(written_down(rows))
    assert population(rows).order_statistics(np.arange(len(members))).tolist() == members.tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(SERIES, min_size=1, max_size=20))
def test_mean_and_deviation_of_series_equal_numpys(rows):
    members, series = written_down(rows), population(rows)
    assert series.size == len(members)
    mean, std = series.mean_std()
    assert mean == pytest.approx(members.mean(), rel=1e-12)
    assert std == pytest.approx(members.std(), rel=1e-6, abs=1e-6 * (members.max() - members.min() + 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(SERIES, min_size=1, max_size=12))
def test_the_points_of_the_distribution_are_exact(rows):
    members = np.sort(written_down(rows))
    values, fractions = population(rows).cdf()
    assert np.searchsorted(members, values).tolist() == np.rint(fractions * len(members)).tolist()
    assert fractions[[0, -1]].tolist() == [0, 1]


def test_shrinking_and_far_apart_series_keep_their_order():
    rows = [(10**12, -(10**9), 900, 3), (1, 0, 10**6, 1), (0, 1, 50, 1), (3 * 10**15, 0, 1, 1)]
    ranks = np.array([0, 1, 51, 10**6 + 49, 10**6 + 50, 10**6 + 2750])
    expected = [0, 1, 1, 49, 10**12 - 899 * 10**9, 3 * 10**15]
    assert population(rows).order_statistics(ranks).tolist() == expected


def test_an_empty_population_has_no_statistics():
    empty = Population(())
    assert np.isnan([*empty.mean_std(), *empty.percentiles([50])]).all()


RUNS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "n_requests": st.integers(1, 25),
        "n_replicas": st.integers(1, 3),
        "rate_per_s": st.sampled_from([2.0, 20.0, 200.0]),
        "mixes": st.booleans(),
        "preempts": st.sampled_from([0.0, 0.2, 0.6]),
    }
)


@settings(max_examples=60, deadline=None)
@given(RUNS, st.integers(1, 30))
def test_gaps_from_iterations_are_the_gaps_between_all_tokens(options, chunk_rows):
    run = tiny_run(**options)
    gaps = token_gaps(run.result, chunk_rows)
    expected = np.sort(run.gaps_ps())
    assert gaps.size == len(expected)
    absences = {1000 * (row[4] - row[3]) for row in run.result.preemptions.rows()}  # known to the tick only
    found = gaps.order_statistics(np.arange(gaps.size)) if gaps.size else np.zeros(0)
    assert np.abs(found - expected).max(initial=0) <= (1000 if absences else 0)


LATE_NS = 200 * 24 * 3600 * 10**9  # 200 days: 64 bits hold 106 of them in picoseconds


@pytest.mark.parametrize("preempts", [0.0, 0.6])
def test_gaps_are_the_same_after_more_than_100_days(preempts):
    run = tiny_run(n_requests=20, rate_per_s=200.0, preempts=preempts).result
    late = later(run, LATE_NS)
    assert token_gaps(late).mean_std() == token_gaps(run).mean_std()
    assert token_gaps(late).size == token_gaps(run).size


def test_a_second_after_more_than_100_days_has_its_tokens():
    run = tiny_run(n_requests=1).result
    n_tokens = load(run).output_tokens_in_second.total()
    first = {name: run.requests.column(name)[0] - LATE_NS * (name == "arrival_ns") for name in run.requests.columns}
    early = replace(run, requests=table(run.requests.columns, [first]))
    found = load(early).output_tokens_in_second
    assert found.total() == n_tokens > 0
    assert not found.first(LATE_NS // 10**9).any()


@pytest.mark.parametrize("batching", ["chunked", "continuous"])
@pytest.mark.parametrize("kv_blocks", [600, 20_000])
def test_the_engines_gaps_add_up_to_what_its_clients_waited(batching, kv_blocks):
    result = simulate(
        "scenario=synthetic", "scenario.n_requests=200", "scenario.rate=30", "replicas=2",
        f"batching={batching}", f"hardware.kv_blocks={kv_blocks}",
    )  # fmt: skip
    assert (len(result.preemptions) > 0) == (kv_blocks == 600)
    requests, gaps = result.requests, token_gaps(result)
    assert gaps.size == (requests.column("output_tokens") - 1).sum()
    waited_ns = (requests.column("finish_ns") - requests.column("first_token_ns")).sum()
    assert gaps.mean_std()[0] * gaps.size / 1000 == pytest.approx(waited_ns, abs=2 * len(requests))


def test_the_batches_that_return_together_pool_the_gaps_of_all_answers():
    result = simulate("scenario=synthetic", "scenario.n_requests=100", "batching=static")
    assert token_gaps(result).size == (result.requests.column("output_tokens") - 1).sum()


def test_gaps_are_spread_as_told_by_hand():
    """A's three tokens at 5, 7 and 19 us (B's prefill between), B's two at 15 and 19 us."""
    rows = [
        {"start_ns": 0, "n_steps": 1, "first_ps": 5_000_000, "joined_seqs": 1},
        {"start_ns": 5_000, "n_steps": 1, "first_ps": 2_000_000, "decode_seqs": 1},
        {"start_ns": 7_000, "n_steps": 1, "first_ps": 8_000_000, "joined_seqs": 1},
        {"start_ns": 15_000, "n_steps": 1, "first_ps": 4_000_000, "decode_seqs": 2},
    ]
    result = replace(tiny_run().result, iterations=table(ITERATION_COLUMNS, rows))
    assert token_gaps(result).order_statistics(np.arange(3)).tolist() == [2_000_000, 4_000_000, 12_000_000]


def test_a_sequence_preempted_right_after_its_prefill_has_one_long_gap():
    """C joins at 5 us and is taken out at once; it is recomputed by 20 us while A waits, and both decode at 24."""
    rows = [
        {"start_ns": 0, "n_steps": 1, "first_ps": 5_000_000, "joined_seqs": 2},
        {"start_ns": 5_000, "n_steps": 1, "first_ps": 2_000_000, "decode_seqs": 1, "preempted_seqs": 1},
        {"start_ns": 7_000, "n_steps": 1, "first_ps": 13_000_000, "joined_seqs": 1},
        {"start_ns": 20_000, "n_steps": 1, "first_ps": 4_000_000, "decode_seqs": 2},
    ]
    absent = [{"request_id": 1, "preempted_ns": 5_000, "last_token_ns": 5_000, "next_token_ns": 20_000}]
    result = replace(
        tiny_run().result, iterations=table(ITERATION_COLUMNS, rows), preemptions=table(PREEMPTION_COLUMNS, absent)
    )
    gaps = token_gaps(result).order_statistics(np.arange(4)).tolist()
    assert gaps == [2_000_000, 4_000_000, 15_000_000, 17_000_000]


def test_decoding_sequences_that_never_joined_break_a_law():
    rows = [{"start_ns": 0, "n_steps": 1, "first_ps": 5_000_000, "decode_seqs": 1}]
    with pytest.raises(InvariantError, match="no iteration has started"):
        token_gaps(replace(tiny_run().result, iterations=table(ITERATION_COLUMNS, rows)))


def per_request(result: Result) -> dict[str, list[float]]:
    """The latencies one by one, in plain Python."""
    found: dict[str, list[float]] = {"ttft_ms": [], "tpot_ms": [], "e2el_ms": []}
    for row in result.requests.frame().to_dict("records"):
        found["ttft_ms"].append((row["first_token_ns"] - row["arrival_ns"]) / 1e6)
        found["e2el_ms"].append((row["finish_ns"] - row["arrival_ns"]) / 1e6)
        gaps = row["output_tokens"] - 1
        found["tpot_ms"].append((row["finish_ns"] - row["first_token_ns"]) / 1e6 / gaps if gaps else float("nan"))
    return found


def test_summary_has_exactly_the_keys_of_vllm_and_one_of_its_own():
    run = tiny_run(seed=3)
    assert set(summary(run.result, SLO)) == {key for keys in VLLM_KEYS for key in keys.split()} | {"kvtwin"}


def test_latency_statistics_are_numpys_of_the_single_requests():
    run = tiny_run(seed=3, n_requests=60)
    numbers = summary(run.result, SLO)
    for name, values in (*per_request(run.result).items(), ("itl_ms", run.gaps_ps() / 1e9)):
        kept = [v for v in values if not np.isnan(v)]
        expected = [np.mean(kept), np.std(kept), *np.percentile(kept, [50, 90, 95, 99])]
        kinds = ("mean", "std", "median", "p90", "p95", "p99")
        assert [numbers[f"{kind}_{name}"] for kind in kinds] == pytest.approx(expected, rel=1e-9), name


def test_goodput_counts_requests_within_every_limit_of_their_class():
    run = tiny_run(seed=5, n_requests=60)
    found = per_request(run.result)
    n_good = 0
    for i, slo_class in enumerate(run.result.requests.column("slo_class")):
        limits = {"ttft_ms": 20, "tpot_ms": 6, "e2el_ms": 150} if slo_class else {"ttft_ms": 40, "tpot_ms": 6}
        n_good += not any(found[name][i] > limit for name, limit in limits.items())
    numbers = summary(run.result, SLO)
    assert 0 < n_good < 60
    assert numbers["request_goodput"] * numbers["duration"] == pytest.approx(n_good)
    assert numbers["kvtwin"]["slo_attainment_frac"] == n_good / 60


def test_refused_requests_lower_the_attainment_and_are_told():
    numbers = summary(tiny_run(seed=5, n_requests=60, n_refused=20).result, Slo(ttft_ms=1e9))
    assert numbers["failed"] == 20
    assert numbers["kvtwin"]["slo_attainment_frac"] == 0.75
    assert any("20 requests" in warning for warning in numbers["kvtwin"]["warnings"])


def test_refused_requests_lower_the_attainment_of_their_class():
    """30 requests of each of two classes are served, and 20 of the second refused."""
    classes = summary(tiny_run(seed=5, n_requests=60, n_refused=20).result, Slo(ttft_ms=1e9))["kvtwin"]["classes"]
    told = {name: (facts["completed"], facts["failed"], facts["attainment_frac"]) for name, facts in classes.items()}
    assert told == {"default": (30, 0, 1.0), "code": (30, 20, 0.6)}


def test_steps_outside_the_measured_range_are_told():
    warned = summary(tiny_run(provenance={"extrapolated_runs": 7}, counts=()).result, SLO)["kvtwin"]["warnings"]
    assert any(warning.startswith("7 extrapolated runs") for warning in warned)


def test_without_objectives_there_is_no_goodput():
    assert summary(tiny_run().result, Slo())["request_goodput"] is None


@settings(max_examples=60, deadline=None)
@given(RUNS)
def test_tokens_of_each_second_are_those_that_came_in_it(options):
    run = tiny_run(**options)
    origin_ps = 1000 * int(run.result.requests.column("arrival_ns").min())
    times = np.concatenate([np.array(t) for t in run.tokens_ps.values()])
    expected = np.bincount((times - origin_ps) // 10**12)
    found = load(run.result).output_tokens_in_second
    assert found.first(len(expected)).tolist() == expected.tolist()
    assert (found.most(), found.total()) == (expected.max(), expected.sum())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 99)), max_size=40), st.integers(1, 40))
def test_seconds_far_apart_keep_their_numbers(rows, n_at_once):
    kept = Seconds()
    for i in range(0, len(rows), n_at_once):
        kept.add(*np.array(rows[i : i + n_at_once], dtype=np.int64).T)
    expected = np.zeros(60_001, dtype=np.int64)
    for second, value in rows:
        expected[second] += value
    assert kept.first(60_001).tolist() == expected.tolist()
    assert (kept.most(), kept.total()) == (expected.max(), expected.sum())


def test_memory_does_not_grow_with_the_time_between_two_requests():
    """Now, and beside 0 in Unix time: a number for every second between them would take 14 GB."""
    requests = [
        {"arrival_ns": at, "scheduled_ns": at, "first_token_ns": at + 9, "finish_ns": at + 9, "output_tokens": 1}
        | {"prompt_tokens": 5, "n_samples": 1}
        for at in (0, 1_764_331_200 * 10**9)
    ]
    iterations = [{"start_ns": row["arrival_ns"], "n_steps": 1, "first_ps": 9_000} for row in requests]
    facts = {"requests": table(REQUEST_COLUMNS, requests), "iterations": table(ITERATION_COLUMNS, iterations)}
    result = replace(tiny_run().result, **facts, end_ns=requests[1]["finish_ns"])
    tracemalloc.start()
    numbers = summary(result, SLO)
    timelines(result)
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers["completed"] == 2
    assert most_bytes < 10e6


def test_concurrency_is_that_of_any_one_time():
    run = tiny_run(seed=2, rate_per_s=4.0, n_requests=30).result
    arrival, finish = (run.requests.column(name) for name in ("arrival_ns", "finish_ns"))
    assert most_in_flight(run) == max(((arrival <= at) & (finish > at)).sum() for at in arrival) > 1


def test_answers_that_follow_one_another_within_a_second_are_never_in_flight_together():
    """Three of 6 ms, 300 ms apart, and one that arrives when the third ends."""
    rows = [{"arrival_ns": at * 10**6, "finish_ns": (at + 6) * 10**6} for at in (0, 300, 600, 606)]
    assert most_in_flight(replace(tiny_run().result, requests=table(REQUEST_COLUMNS, rows))) == 1


def test_a_peak_is_never_below_the_mean():
    """A run of a few milliseconds: its tokens a second are more than all its tokens."""
    numbers = summary(tiny_run(seed=1, n_requests=1, max_output=3).result, SLO)
    assert numbers["duration"] < 1
    assert numbers["max_output_tokens_per_s"] == numbers["output_throughput"] > numbers["total_output_tokens"]


def test_load_averages_over_engine_time():
    rows = [
        {
            "start_ns": 0,
            "n_steps": 2,
            "first_ps": 1_000_000,
            "growth_ps": 1_000_000,
            "held_tokens": 10,
            "live_tokens": 4,
        },
        {
            "start_ns": 9_000,
            "n_steps": 1,
            "first_ps": 1_000_000,
            "held_tokens": 50,
            "idle_tokens": 8,
        },
    ]
    queued = table(REQUEST_COLUMNS, [{"scheduled_ns": 1_000}, {"arrival_ns": 999, "scheduled_ns": 1_001}])
    found = load(replace(tiny_run().result, iterations=table(ITERATION_COLUMNS, rows), requests=queued))
    assert (found.busy_s, found.mean_held_tokens, found.mean_live_tokens) == (4e-6, 20.0, 3.0)
    assert (found.peak_held_tokens, found.peak_used_tokens, found.peak_waiting_seqs) == (50, 58, 2)


def test_counts_that_are_averages_are_averaged_over_the_replicas():
    one = {"evicted_blocks": 3, "attended_frac": 0.5, "seen_tokens": 300, "bits_per_element": 5.0, "kv_blocks": 10}
    two = {"evicted_blocks": 4, "attended_frac": 0.9, "seen_tokens": 100, "bits_per_element": 5.0, "kv_blocks": 10}
    of_class = {"code_attended_frac": 0.25, "code_seen_tokens": 0}
    found = total_counts(tiny_run(counts=(one | of_class, two | of_class)).result)
    assert found["evicted_blocks"] == 7
    assert found["attended_frac"] == pytest.approx((0.5 * 300 + 0.9 * 100) / 400)
    assert found["bits_per_element"] == 5.0
    assert found["code_attended_frac"] == 0.25


def test_a_slot_of_narrow_elements_takes_fewer_bytes():
    """Four bits and 32 more for every 32 elements are five: the cache has 3.2 times the slots in the same memory."""
    wide, narrow = (
        summary(simulate("scenario=chatbot", "scenario.n_sessions=4", *more), SLO)["kvtwin"]["kv"]
        for more in ([], ["cache=compressed", "cache.retention.bits=4"])
    )
    assert narrow["capacity_tokens"] == pytest.approx(3.2 * wide["capacity_tokens"], rel=1e-4)
    assert narrow["bytes_per_token"] == wide["bytes_per_token"] * 5 / 16
    held = narrow["held_frac"] * narrow["capacity_tokens"] * narrow["bytes_per_token"]
    assert narrow["held_bytes"] == pytest.approx(held)


def test_the_same_run_gives_the_same_bytes_and_another_seed_does_not():
    texts = [to_json(summary(tiny_run(seed=s, preempts=0.2).result, SLO)) for s in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_a_run_without_requests_has_a_summary_without_latencies():
    result = tiny_run(n_requests=0).result
    numbers = json.loads(to_json(summary(result, SLO)))
    assert numbers["completed"] == 0
    assert numbers["p99_ttft_ms"] is None
    assert "No request completed." in numbers["kvtwin"]["warnings"]


def test_measuring_twice_is_not_needed():
    run = tiny_run(seed=1)
    assert summary(run.result, SLO) == summary(run.result, SLO, measure(run.result, SLO))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttft_ms": -1}, r"slo.ttft_ms must be a finite number > 0 \[ms\] or null, got -1"),
        ({"tpot_ms": float("nan")}, "slo.tpot_ms"),
        ({"classes": {"code": {"tfft_ms": 3}}}, "slo.classes.code.tfft_ms is not an objective, did you mean .*ttft_ms"),
    ],
)
def test_impossible_objectives_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        Slo(**options)

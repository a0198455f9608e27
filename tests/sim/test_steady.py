"""Where a run's work is, what was offered and served there, and what held requests up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import simulate
from sim.metrics import Slo, measure, summary
from sim.metrics.steady import busiest
from sim.report.verdict import overload, verdict

FEW = ("scenario=chatbot", "scenario.n_sessions=300", "scenario.dialogue.turns.single_frac=1.0")


def steady_of(*overrides):
    result = simulate(*overrides)
    return measure(result, Slo(ttft_ms=2_000)).steady


def told(*overrides):
    return summary(simulate(*overrides), Slo(ttft_ms=2_000))


@pytest.mark.parametrize("after_s", [0.0, 3_000.0])
def test_a_tail_an_hour_later_does_not_move_where_the_work_is(after_s):
    begin_s = np.concatenate([np.arange(0.0, 60.0, 0.1), [60.0 + after_s, 61.0 + after_s]])
    found = busiest(begin_s, begin_s + 0.5, np.ones(len(begin_s)))
    assert found[0] < 3.0
    assert 55.0 < found[1] < 66.0


@pytest.mark.parametrize("at_s", [0.0, 1.0, 1e9])
@pytest.mark.parametrize("lasts_s", [0.0, 1e-9])
@pytest.mark.parametrize("n", [1, 2, 20, 1_000])
def test_what_happens_all_at_once_is_where_the_work_is(at_s, lasts_s, n):
    begin_s = np.full(n, at_s)
    assert busiest(begin_s, begin_s + lasts_s, np.ones(n)) == (at_s, at_s + lasts_s)


@given(st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 1.0 + 1e-15, 3.0, 1e9]), min_size=1, max_size=80))
def test_the_search_ends_however_arrivals_lie(times):
    begin_s = np.array(times)
    low, high = busiest(begin_s, begin_s, np.ones(len(begin_s)))
    assert begin_s.min() <= low <= high <= begin_s.max()


def test_rates_are_those_of_the_stretch_and_not_of_the_whole_run():
    steady = steady_of("scenario=synthetic", "scenario.rate=8", "scenario.n_requests=1000")
    assert steady.offered_per_s == pytest.approx(8.0, rel=0.1)
    assert steady.served_per_s == pytest.approx(8.0, rel=0.1)
    assert not steady.is_saturated


@pytest.mark.parametrize(
    ("settings", "bound", "word"),
    [
        (("batching.max_num_seqs=16",), "places", "all 16 places of the batch were taken"),
        (("batching.max_num_batched_tokens=64", "batching.max_num_seqs=64"), "tokens", "all the 64 tokens"),
        (("cache=static",), "memory", "the KV cache had no room for the next prompt"),
    ],
)
def test_an_overload_is_named_with_what_binds(settings, bound, word):
    numbers = told(*FEW, "scenario.rate=1000", *settings)
    steady = numbers["kvtwin"]["steady"]
    assert steady["is_saturated"]
    assert max(steady["held_up_frac"], key=steady["held_up_frac"].get) == bound
    assert steady["offered_per_s"] > 500.0 > 2.0 * steady["served_per_s"]
    assert verdict(numbers)[0] == overload(numbers)
    assert word in overload(numbers)


def test_who_keeps_up_is_not_called_overloaded():
    numbers = told(*FEW, "scenario.rate=2")
    assert overload(numbers) is None
    assert verdict(numbers)[0].startswith("It kept up: ")


def test_what_decoding_reads_is_every_tokens_context():
    result = simulate("scenario=synthetic", "scenario.n_requests=1", "scenario.lengths.output.low=50")
    (prompt,), (output,) = (result.requests.column(name).tolist() for name in ("prompt_tokens", "output_tokens"))
    n_read = sum(prompt + k for k in range(1, output))  # a token's own key is read with the others
    hbm = summary(result, Slo())["kvtwin"]["hbm"]
    assert hbm["kv_bytes"] == n_read * result.kv_bytes_per_token
    assert 0.0 < hbm["bandwidth_frac"] < 1.0

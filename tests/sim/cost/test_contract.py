"""One suite for all costs: every file of conf/cost/, for the default model and device."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.build import Builder
from sim.config import choices_of, compose
from sim.units import FAR

COSTS = {name: Builder(compose([f"cost={name}"])).cost for name in choices_of("cost")}
batches = st.tuples(st.integers(1, 300), st.integers(20, 8_000), st.integers(0, 2_000))  # sequences, tokens each, skew


def decoding(n_seqs: int, context: int, skew: int, n_grown: int = 0) -> tuple:
    """A batch that decodes, all of it growing, after so many iterations."""
    total = n_seqs * (context + n_grown)
    return ((), n_seqs, total, min(context + skew * (n_seqs > 1) + n_grown, total), n_seqs, 0.0, 0.0, 0)


@pytest.mark.parametrize("name", COSTS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(batches, st.integers(0, 200))
def test_what_is_said_of_a_run_is_what_each_iteration_of_it_would_be_told(name, batch, n_grown):
    cost = COSTS[name]
    first_ps, growth_ps, reach = cost.pace(decoding(*batch))
    assert first_ps >= 1
    assert reach >= 1
    n_grown %= reach
    assert cost.pace(decoding(*batch, n_grown))[0] == first_ps + n_grown * growth_ps


@pytest.mark.parametrize("name", COSTS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 2_000), st.integers(0, 4_000)), min_size=1, max_size=4), st.integers(0, 64))
def test_prompts_take_time(name, chunks, n_seqs):
    cost = COSTS[name]
    beside = (n_seqs, 500 * n_seqs, 500 if n_seqs else 0, n_seqs, 0.0, 0.0, 0)
    first_ps, _, reach = cost.pace((tuple((new, cached, FAR) for new, cached in chunks), *beside))
    assert first_ps >= 1
    assert reach >= 1


@pytest.mark.parametrize("name", COSTS)
def test_copies_take_time(name):
    cost, gib = COSTS[name], float(1 << 30)
    still = cost.pace(decoding(8, 500, 0))[0]
    for moved, hosted in ((gib, 0.0), (0.0, gib)):
        shape = (*decoding(8, 500, 0)[:5], moved, hosted, 0)
        assert cost.pace(shape)[0] > still

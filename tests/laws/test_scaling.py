"""Fleets that grow and shrink: with any scaler nobody is lost, and jumps equal single steps."""

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.fleet import DRAINED, OPENED
from sim.scaler import QueueLength, Schedule, StartUp, TargetUtilisation
from tests.laws.houses import houses, run, slow_and_thorough

NS = 1e-9
start_ups = st.builds(StartUp, st.just(float("inf")), st.sampled_from([0.0, 3 * NS, 50 * NS]))
proportional = {
    "least": st.sampled_from([1, 2]),
    "most": st.sampled_from([2, 4]),
    "every_s": st.sampled_from([5 * NS, 20 * NS, 37 * NS]),
    "cool_down_s": st.sampled_from([0.0, 40 * NS]),
    "start_up": start_ups,
}
scalers = st.one_of(
    st.builds(partial, st.just(QueueLength), st.sampled_from([0.5, 1.0, 3.0]), **proportional),
    st.builds(
        partial,
        st.just(TargetUtilisation),
        st.sampled_from([0.1, 0.6]),
        st.sampled_from(["seats", "kv"]),
        **proportional,
    ),
    st.builds(
        lambda counts, period, start_up: partial(
            Schedule,
            [[17 * i * NS, n] for i, n in enumerate(counts)],
            17 * len(counts) * NS if period else None,
            start_up,
        ),
        st.lists(st.integers(1, 4), min_size=1, max_size=5),
        st.booleans(),
        start_ups,
    ),
)


@slow_and_thorough
@given(houses, scalers)
def test_everybody_is_served_once_and_jumps_equal_single_steps(house, scaler):
    house = house | {"scaler": scaler}
    fast = run(house)
    ids = [row["id"] for row in fast.requests()] + fast.recorder.refused.column("id").tolist()
    assert len(ids) == len(set(ids)) == fast.traffic.n_arrived
    assert all(replica.n_outstanding == replica.kv.held_tokens == 0 for replica in fast.replicas)
    assert fast.facts() == run(house, max_steps=1).facts()


@settings(max_examples=40, deadline=None)
@given(houses, scalers)
def test_a_replica_takes_requests_from_its_opening_to_its_draining_and_there_is_always_one(house, scaler):
    house = run(house | {"scaler": scaler})
    events = house.recorder.fleet.rows().tolist()
    assert all(a[0] <= b[0] for a, b in pairwise(events))
    opened = {replica: at_ns for at_ns, replica, event in events if event == OPENED}
    drained = {replica: at_ns for at_ns, replica, event in events if event == DRAINED}
    for row in house.requests():
        assert opened[row["replica"]] <= row["arrival_ns"] <= drained.get(row["replica"], row["arrival_ns"])
    assert len(house.fleet.open) >= 1


@pytest.mark.parametrize("replicas", [1, 3])
@settings(max_examples=30, deadline=None)
@given(houses)
def test_a_scaler_that_asks_for_what_is_there_changes_nothing(replicas, house):
    house = house | {"replicas": replicas}
    steady = partial(Schedule, [[0.0, replicas]])
    assert run(house | {"scaler": steady}).facts() == run(house).facts()

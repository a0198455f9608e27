"""The loop itself: its arithmetic, its refusals, its clock, and how few events it needs."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.batching import Chunked, Fcfs
from sim.batching.plan import Plan
from sim.clock import Clock
from sim.engine import Replica, elapsed_ps, steps_until
from sim.errors import InvariantError
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.record import Recorder
from sim.request import Request, stream
from sim.sequence import Sequence
from sim.step import Pace, Shape
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, asked, serve


@given(st.integers(1, 500), st.integers(0, 50), st.integers(0, 60))
def test_elapsed_is_the_sum_of_the_series(first, growth, n_steps):
    assert elapsed_ps(first, growth, n_steps) == sum(first + k * growth for k in range(n_steps))


@given(st.integers(1, 500), st.integers(-50, 50), st.integers(-10, 200_000), st.integers(1, 60))
def test_steps_until_is_the_fewest_that_take_so_long(first, growth, target, most):
    first += max(0, -60 * growth)  # however many, none is shorter than nothing
    n_steps = 1
    while n_steps < most and elapsed_ps(first, growth, n_steps) < target:
        n_steps += 1
    assert steps_until(first, growth, target, most) == n_steps


@given(st.integers(10**9, 10**12), st.integers(0, 10**7), st.integers(0, 10**16))
def test_steps_until_holds_for_durations_of_real_iterations(first, growth, target):
    n_steps = steps_until(first, growth, target, 1 << 40)
    assert elapsed_ps(first, growth, n_steps) >= target
    assert n_steps == 1 or elapsed_ps(first, growth, n_steps - 1) < target


def test_parts_of_a_nanosecond_are_carried_into_the_next_iteration():
    house = serve(Listed([asked(0, 0, 4, 6)]), cost=lambda: LinearCost(2_700), max_steps=1)
    assert house.ends_ns() == [2, 5, 8, 10, 13, 16]  # 2.7, 5.4, 8.1, 10.8, 13.5, 16.2
    assert [row["carry_ps"] for row in house.iterations()] == [0, 700, 400, 100, 800, 500]


def test_the_cost_of_an_end_falls_on_the_iteration_after_it():
    """Flat 1000 ns; the host takes 100 ns more for the request that ended with the iteration before."""
    house = serve(Listed([asked(0, 0, 4, 2), asked(1, 0, 4, 4)]), cost=lambda: LinearCost(10**6, per_ended_ps=10**5))
    assert house.ends_ns() == [1000, 2000, 3100, 4100]


def test_an_arrival_in_the_nanosecond_an_iteration_ends_is_in_the_next():
    house = serve(Listed([asked(0, 0, 4, 9), asked(1, 5, 4, 1)]))
    assert [row["scheduled_ns"] for row in house.requests() if row["id"] == 1] == [5]


def test_an_idle_replica_starts_when_something_arrives():
    house = serve(Listed([asked(0, 7, 4, 1), asked(1, 100, 4, 1)]))
    assert house.ends_ns() == [8, 101]


def test_a_full_batch_decodes_in_one_timeout_whatever_arrives():
    listed = [asked(0, 0, 4, 100), *(asked(i, i, 4, 1) for i in range(1, 50))]
    house = serve(Listed(listed), scheduler=partial(Chunked, 100, 1))
    assert [row["n_steps"] for row in house.iterations()[:2]] == [1, 99]


def test_answers_of_one_token_end_with_their_prompt():
    house = serve(Listed([asked(0, 0, 4, 1)]))
    assert [(row["first_token_ns"], row["finish_ns"]) for row in house.requests()] == [(1, 1)]
    assert [row["joined_seqs"] for row in house.iterations()] == [0]


def test_requests_beyond_the_models_maximum_are_refused_with_the_arithmetic():
    house = serve(Listed([asked(0, 0, 90, 11), asked(1, 0, 90, 10)]), max_len=100)
    assert [row["id"] for row in house.requests()] == [1]
    assert house.recorder.refusals == {0: "prompt and output of 101 tokens exceed the model's maximum of 100"}
    assert house.recorder.refused.rows().tolist() == [[0, 0, 90, 11, -1, 0]]


def test_requests_that_no_empty_device_could_hold_are_refused():
    """8 + 9 tokens, of which the last needs no KV: 4 blocks of 4 are enough, 3 are not."""
    listed = [asked(0, 0, 8, 9)]
    assert len(serve(Listed(listed), kv=partial(cache_on, PagedCache, 16, Lru, 4)).requests()) == 1
    house = serve(Listed(listed), kv=partial(cache_on, PagedCache, 12, Lru, 4))
    assert house.recorder.refusals == {0: "4 KV blocks needed, the device has 3"}


def test_a_closed_loop_hears_of_refusals():
    """Its question is too long; nothing follows, and nobody waits for ever."""
    listed = [asked(0, 0, 90, 20, content=((1, 90),), output_id=-1, session_id=0)]
    house = serve(Listed(listed, {0: [(0, 1, 1)]}), max_len=100)
    assert (len(house.requests()), house.traffic.n_arrived) == (0, 1)


class Refuser(Chunked):
    """A scheduler with a bug: it never admits."""

    def plan(self, batch, now_ns):
        return None


class Forgetter(Chunked):
    """A scheduler with a bug: it takes from the queue without admitting."""

    def plan(self, batch, now_ns):
        if not batch.waiting:
            return None
        sequence = batch.waiting.take()
        batch.kv.admit(sequence, sequence.target_tokens, batch.ledger)
        batch.partial.append(sequence)
        return Plan([(sequence, sequence.target_tokens)])


def test_requests_that_wait_for_nothing_are_a_broken_law():
    with pytest.raises(InvariantError, match="replica 0: requests wait, nothing runs, and none is admitted"):
        serve(Listed([asked(0, 0, 4, 1)]), scheduler=Refuser)


def test_an_answer_to_a_request_never_scheduled_is_a_broken_law():
    with pytest.raises(InvariantError, match="request 3 ended without having been scheduled"):
        serve(Listed([asked(3, 0, 4, 1)]), scheduler=Forgetter)


@dataclass(frozen=True)
class Knotty:
    """A cost model whose answers reach 3 iterations."""

    def pace(self, shape: Shape) -> Pace:
        return Pace(1_000, 0, 1 if shape[0] else 3)


def test_a_run_ends_at_the_cost_models_next_knot():
    house = serve(Listed([asked(0, 0, 4, 9)]), cost=Knotty)
    assert [row["n_steps"] for row in house.iterations()] == [1, 3, 3, 2]


def test_two_simulations_run_side_by_side():
    listed = [asked(i, 3 * i, 8, 5) for i in range(6)]
    alone = serve(Listed(listed)).facts()
    env, recorder = Clock(), Recorder()
    half = Replica(env, 0, Chunked(), Fcfs(), cache_on(PagedCache, 1 << 10, Lru), LinearCost(), recorder, None, 99)
    half.submit(Sequence(asked(0, 0, 8, 5)))
    env.run(until=2)
    assert serve(Listed(listed)).facts() == alone
    env.run()
    assert len(recorder.requests) == 1


def bench_traffic(n_requests: int, rate: float) -> list[Request]:
    """The field's common comparison: Poisson 8/s, prompts U(512, 1024), outputs U(128, 256)."""
    rng = stream(0, "bench")
    at_ns = np.cumsum(rng.exponential(1e9 / rate, n_requests)).astype(int).tolist()
    prompts, outputs = rng.integers(512, 1025, n_requests).tolist(), rng.integers(128, 257, n_requests).tolist()
    return [asked(i, at_ns[i], prompts[i], outputs[i]) for i in range(n_requests)]


H200_LIKE = LinearCost(5_000_000_000, 20_000_000, 33_000, 20_000_000)
"""5 ms an iteration and a little for all it does: what an 8B model takes on such a device."""


def events(house: House) -> int:
    """SimPy events of a run so far: each takes a ticket."""
    return next(house.env._eid)


def test_an_iteration_costs_less_than_half_an_event():
    house = serve(Listed(bench_traffic(1_000, 8.0)), cost=lambda: H200_LIKE)
    assert len(house.requests()) == 1_000
    assert events(house) < 0.5 * len(house.ends_ns())


def test_an_overloaded_replica_needs_two_events_a_request_at_most():
    house = serve(Listed(bench_traffic(1_000, 100.0)), cost=lambda: H200_LIKE)
    assert max(row["waiting_seqs"] for row in house.iterations()) > 200
    assert events(house) < 2 * 1_000


def test_events_per_request_do_not_grow_with_the_run():
    short, long = (serve(Listed(bench_traffic(n, 8.0)), cost=lambda: H200_LIKE) for n in (500, 4_000))
    assert events(long) / 4_000 < 1.1 * events(short) / 500

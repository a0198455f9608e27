"""One suite for all queues: every file of conf/queue/, pushed to and taken from at random."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.sequence import Sequence
from tests.sim.chosen import each_of
from tests.sim.serving import asked

QUEUES = each_of("queue")
arrivals = st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, 2), st.sampled_from("ab"))
"""Gap, prompt, priority, tenant."""
steps = st.lists(st.one_of(st.just("take"), st.just("put back"), arrivals), max_size=40)


def sequence(number: int, at_ns: int, prompt: int, priority: int, tenant: str = "a") -> Sequence:
    return Sequence(asked(number, at_ns, prompt, 9, priority=priority, tenant=tenant))


@pytest.mark.parametrize("name", QUEUES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps)
def test_all_that_waits_comes_out_once_and_in_the_order_foretold(name, steps):
    queue = QUEUES[name]()
    waiting: set[Sequence] = set()
    taken: list[Sequence] = []
    number = at_ns = 0
    for step in steps:
        if step == "take" and waiting:
            assert queue.head() is queue.first(1)[0]
            one = queue.take()
            waiting.remove(one)
            taken.append(one)
        elif step == "put back" and taken:
            one = taken.pop()
            queue.push_back(one)
            waiting.add(one)
        elif isinstance(step, tuple):
            gap, *facts = step
            at_ns += gap
            number += 1
            head = queue.head() if waiting else None
            one = sequence(number, at_ns, *facts)
            queue.push(one)
            waiting.add(one)
            assert head is None or not queue.keeps_head or queue.head() is head
        assert len(queue) == len(waiting)
        assert len(queue.first(99)) == len(waiting)
        assert set(queue.first(99)) == waiting, "looking takes nobody"
    foretold = queue.first(99)
    assert [queue.take() for _ in range(len(queue))] == foretold


@pytest.mark.parametrize("name", QUEUES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(arrivals, max_size=8), st.lists(arrivals, max_size=4))
def test_who_is_on_the_way_is_foretold_as_if_it_waited(name, waiting, arriving):
    queue = QUEUES[name]()
    ones = [sequence(i, i, *facts) for i, (_, *facts) in enumerate(waiting + arriving)]
    for one in ones[: len(waiting)]:
        queue.push(one)
    foretold = queue.first(99, ones[len(waiting) :])
    for one in ones[len(waiting) :]:
        queue.push(one)
    assert queue.first(99) == foretold


@pytest.mark.parametrize("name", QUEUES)
def test_who_gives_way_is_one_of_those_that_run(name):
    running = [sequence(i, i, 9 - i, i % 3) for i in range(6)]
    victim = QUEUES[name]().victim(iter(reversed(running)))
    assert victim in running

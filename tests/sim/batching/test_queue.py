"""Orders of admission."""

import pytest

from sim.batching import Fcfs, Ranked
from sim.errors import ConfigError
from sim.sequence import Sequence
from tests.sim.serving import asked


def waiting(*requests: tuple[int, int, int]) -> list[Sequence]:
    """Sequences of (arrival, prompt, priority), in that order."""
    return [Sequence(asked(i, at, prompt, 9, priority=rank)) for i, (at, prompt, rank) in enumerate(requests)]


def drained(queue: Fcfs | Ranked) -> list[int]:
    served = []
    while len(queue):
        head = queue.head()
        assert queue.take() is head
        served.append(head.request.id)
    return served


def test_first_come_first_served_and_the_preempted_before_all():
    queue = Fcfs()
    a, b, c = waiting((0, 5, 0), (1, 5, 0), (2, 5, 0))
    queue.push(b)
    queue.push(c)
    queue.push_back(a)
    assert drained(queue) == [0, 1, 2]


@pytest.mark.parametrize(("by", "served"), [("prompt", [1, 2, 0, 3]), ("priority", [3, 0, 1, 2])])
def test_ranked_serves_the_lowest_rank_and_among_equals_the_earlier_arrival(by, served):
    queue = Ranked(by)
    for sequence in reversed(waiting((0, 30, 1), (1, 10, 1), (2, 20, 1), (3, 40, 0))):
        queue.push(sequence)
    assert drained(queue) == served


def test_a_preempted_sequence_returns_to_its_rank():
    queue = Ranked("priority")
    a, b = waiting((0, 5, 1), (1, 5, 0))
    queue.push(b)
    queue.push_back(a)
    assert drained(queue) == [1, 0]


def test_an_unknown_rank_is_refused():
    with pytest.raises(ConfigError, match=r"queue.by must be one of prompt, priority, got 'size'"):
        Ranked("size")

"""Orders of admission."""

import pytest

from sim.batching import Fcfs, Ranked
from sim.batching.queue import LookAhead
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


@pytest.mark.parametrize(
    ("sequences", "victim"),
    [
        (((0, 5, 0), (1, 5, 2), (2, 5, 1)), 1),  # (arrival, prompt, priority): the last in priority goes
        (((3, 5, 1), (7, 5, 1), (5, 5, 1)), 1),  # of one priority the one that arrived last
        (((4, 5, 1), (4, 5, 1), (4, 5, 1)), 2),  # of one priority and arrival the one admitted last
        (((9, 5, 0), (1, 5, 1), (1, 5, 1)), 2),
    ],
)
def test_by_priority_the_last_in_order_is_preempted(sequences, victim):
    running = waiting(*sequences)
    assert Ranked("priority").victim(reversed(running)) is running[victim]
    queue = Ranked("priority")
    for sequence in running:
        queue.push(sequence)
    assert drained(queue)[-1] == victim, "who is preempted is who would be admitted last"


def test_by_prompt_and_first_come_the_one_admitted_last_is_preempted():
    running = waiting((0, 50, 0), (1, 5, 9), (2, 20, 0))
    for queue in (Ranked("prompt"), Fcfs()):
        assert queue.victim(reversed(running)) is running[2]


def test_an_unknown_rank_is_refused():
    with pytest.raises(ConfigError, match=r"queue.by must be one of prompt, priority, got 'size'"):
        Ranked("size")


@pytest.mark.parametrize("queue", [Fcfs(), Ranked("priority")])
def test_the_first_are_those_taken_next_and_stay(queue):
    for sequence in waiting((0, 5, 2), (1, 5, 2), (2, 5, 1), (3, 5, 2)):
        queue.push(sequence)
    ids = [sequence.request.id for sequence in queue.first(3)]
    assert ids == drained(queue)[:3]
    assert queue.first(3) == []


class Told:
    """A cache with memory below."""

    prefetch_requests = 2

    def __init__(self):
        self.ids = []

    def prefetch(self, sequence):
        self.ids.append(sequence.request.id)


def test_who_moves_up_is_announced_to_the_cache():
    cache = Told()
    queue = LookAhead(Fcfs(), cache, [])
    for sequence in waiting(*((i, 5, 0) for i in range(4))):
        queue.push(sequence)
    assert (len(queue), queue.keeps_head, queue.head().request.id) == (4, True, 0)
    queue.take()
    assert cache.ids == [1, 2]
    queue.take()
    assert cache.ids == [1, 2, 2, 3]


@pytest.mark.parametrize(("order", "told"), [(Fcfs(), [0, 1]), (Ranked("priority"), [0, 1, 2, 4])])
@pytest.mark.parametrize("is_unseen", [False, True])
def test_an_arrival_is_announced_if_its_place_is_among_the_first(order, told, is_unseen):
    """Of priorities 5, 5, 2, 9 and 3, in the queue or on its way there."""
    cache, unseen = Told(), []
    queue = LookAhead(order, cache, unseen)
    for sequence in waiting(*((i, 5, rank) for i, rank in enumerate((5, 5, 2, 9, 3)))):
        queue.announce(sequence)
        unseen.append(sequence) if is_unseen else queue.push(sequence)
    assert cache.ids == told
    assert len(queue) + len(unseen) == 5
    while len(queue):
        queue.take()


def test_the_unseen_move_up_with_those_who_wait():
    cache = Told()
    first, *unseen = waiting(*((i, 5, 0) for i in range(4)))
    queue = LookAhead(Fcfs(), cache, unseen)
    queue.push(first)
    queue.take()
    assert cache.ids == [1, 2]

"""Traffic."""

import pytest

from sim.errors import InvariantError
from sim.request import Finished, Request
from sim.router import LeastLoaded
from tests.sim.serving import House, Listed, asked, serve


def served_by(house: House) -> dict[int, int]:
    return {row["id"]: row["replica"] for row in house.requests()}


def test_refused_requests_load_nobody():
    listed = [asked(0, 0, 999, 1), asked(1, 0, 4, 3)]
    assert served_by(serve(Listed(listed), replicas=2, router=LeastLoaded, max_len=100)) == {1: 0}


def test_requests_of_one_nanosecond_are_handed_over_in_order_before_anybody_plans():
    house = serve(Listed([asked(i, 10, 4, 1) for i in range(4)]))
    assert [row["prefill_tokens"] for row in house.iterations()] == [16]
    assert [row["id"] for row in house.requests()] == [0, 1, 2, 3]


def test_a_stream_out_of_order_is_a_broken_law():
    with pytest.raises(InvariantError, match="request 1 arrives before the one ahead of it"):
        serve(Listed([asked(0, 10, 4, 1), asked(1, 9, 4, 1)]))


class Hasty(Listed):
    """A client that asks before it has its answer."""

    def follow_up(self, finished: Finished) -> Request | None:
        return asked(1, finished.finish_ns - 1, 4, 1) if finished.request.id == 0 else None


def test_a_follow_up_before_its_cause_is_a_broken_law():
    with pytest.raises(InvariantError, match="request 1 would arrive before the one it follows has ended"):
        serve(Hasty([asked(0, 0, 4, 1)], {0: [(0, 1, 1)]}))


def test_a_further_turn_arrives_after_the_answer_and_the_thinking():
    """Answered at 3, thought for 20; the next prompt holds what was said: 4 + 3 tokens, and 5 new ones."""
    listed = [asked(0, 0, 4, 3, content=((1, 4),), output_id=-1, session_id=7)]
    rows = serve(Listed(listed, {7: [(20, 5, 2)]})).requests()
    assert [(row["turn"], row["arrival_ns"], row["prompt_tokens"], row["finish_ns"]) for row in rows] == [
        (0, 0, 4, 3),
        (1, 23, 12, 25),
    ]

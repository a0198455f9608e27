"""Fair shares between tenants, and priorities that age."""

from collections import Counter
from functools import partial

import pytest

from sim.batching import Aged, Chunked, FairShare, Fcfs
from sim.errors import ConfigError
from sim.sequence import Sequence
from tests.sim.serving import House, LinearCost, Listed, asked, serve


def waiting(number: int, tenant: str = "", at_ns: int = 0, prompt: int = 10, priority: int = 0) -> Sequence:
    return Sequence(asked(number, at_ns, prompt, 9, tenant=tenant, priority=priority))


def taken(queue: Aged | FairShare, n: int | None = None) -> list[int]:
    return [queue.take().request.id for _ in range(len(queue) if n is None else n)]


def test_a_step_of_priority_is_worth_so_much_waiting():
    """10 ns a step. Due: 0 at 20, 1 at 10 + 5, 2 at 12, 3 at 10 + 10: the last two of these as the first arrived."""
    queue = Aged(10e-9)
    for sequence in (
        waiting(0, at_ns=0, priority=2),
        waiting(1, at_ns=5, priority=1),
        waiting(2, at_ns=12, priority=0),
        waiting(3, at_ns=10, priority=1),
    ):
        queue.push(sequence)
    assert taken(queue) == [2, 1, 0, 3]


def test_under_a_stream_of_better_ones_nobody_waits_longer_than_the_steps_between():
    """One place, 10 ns a request, better ones always there: by priority the poor one is last, aged it is in by 200."""
    listed = [asked(0, 1, 4, 1, priority=2), *(asked(i, 10 * (i - 1), 4, 1) for i in range(1, 60))]
    listed.sort(key=lambda request: request.arrival_ns)
    how = {"scheduler": partial(Chunked, 64, 1), "cost": partial(LinearCost, 10_000)}
    scheduled = {}
    for name, queue in (("aged", partial(Aged, 100e-9)), ("fcfs", Fcfs)):
        rows = serve(Listed(listed), queue=queue, **how).requests()
        scheduled[name] = next(row["scheduled_ns"] for row in rows if row["id"] == 0)
    assert scheduled["fcfs"] == 10
    assert 190 <= scheduled["aged"] <= 220, "201 is when two steps of 100 ns have passed since it came"


def test_the_last_in_order_is_preempted():
    running = [waiting(0, at_ns=0, priority=2), waiting(1, at_ns=15, priority=0), waiting(2, at_ns=5, priority=1)]
    assert Aged(10e-9).victim(iter(reversed(running))) is running[0]
    assert Aged(1e-9).victim(iter(reversed(running))) is running[1]


def test_tenants_take_turns_by_what_they_got():
    """Prompts of 10 (a) and 20 tokens (b): a is charged 10 each, b 20, so a gets two for one of b's."""
    queue = FairShare()
    for i in range(6):
        queue.push(waiting(i, "a", i, 10))
        queue.push(waiting(10 + i, "b", i, 20))
    assert taken(queue, 8) == [0, 10, 1, 11, 2, 3, 12, 4]
    assert len(queue) == 4


def test_weights_are_shares():
    queue = FairShare({"b": 3.0})
    for i in range(12):
        queue.push(waiting(i, "a", i))
        queue.push(waiting(100 + i, "b", i))
    assert Counter(number >= 100 for number in taken(queue, 12)) == {True: 9, False: 3}


def test_who_comes_back_has_saved_nothing():
    """a alone is served six times; then b comes and is lifted to a's counter: they take turns at once."""
    queue = FairShare()
    for i in range(8):
        queue.push(waiting(i, "a", i))
    taken(queue, 6)
    for i in range(4):
        queue.push(waiting(100 + i, "b", 50 + i))
    assert taken(queue, 4) == [6, 100, 7, 101]


def test_answers_are_charged_as_guessed_and_made_good():
    """b's answers were 50 tokens: its next request is charged 10 + 100, and a gets eleven before b's second."""
    queue = FairShare()
    first = waiting(99, "b", 0)
    queue.push(first)
    assert queue.take() is first
    queue.ended(first, 50)
    for i in range(3):
        queue.push(waiting(100 + i, "b", 1))
    for i in range(30):
        queue.push(waiting(i, "a", 2))
    assert taken(queue, 14).count(100) == 1
    sequence = queue.first(1)[0]
    queue.take()
    guessed = queue._served["a"], queue._served["b"]
    queue.ended(sequence, 1)
    assert (queue._served["a"], queue._served["b"]) != guessed, "what was guessed wrong is made good"


def test_preempted_ones_come_before_their_tenants_others_and_are_not_charged_twice():
    queue = FairShare()
    for i in range(3):
        queue.push(waiting(i, "a", i))
    one = queue.take()
    served = dict(queue._served)
    queue.push_back(one)
    assert queue.take() is one
    assert queue._served == served


def greedy(queue: object) -> House:
    """One place, 10 ns a token. a sends 60 requests at once, b one every 200 ns; each takes 40 ns."""
    listed = [asked(i, 0, 4, 4, tenant="a") for i in range(60)]
    listed += [asked(100 + i, 200 * i + 1, 4, 4, tenant="b") for i in range(10)]
    listed.sort(key=lambda request: request.arrival_ns)
    return serve(Listed(listed), queue=queue, scheduler=partial(Chunked, 64, 1), cost=partial(LinearCost, 10_000))


def test_a_tenant_that_sends_little_is_not_starved_by_one_that_sends_much():
    def longest_wait_ns(house: House) -> int:
        return max(row["scheduled_ns"] - row["arrival_ns"] for row in house.requests() if row["id"] >= 100)

    assert longest_wait_ns(greedy(FairShare)) <= 80, "the one under way, and one more of a's"
    assert longest_wait_ns(greedy(Fcfs)) > 500


def test_while_both_wait_their_service_stays_within_a_few_requests():
    """Sheng et al., theorem 4.4: twice what a batch of two may be owed, each a prompt of 4 and an answer of 30."""
    listed = [asked(i, 0, 4, 30 if i % 2 else 6, tenant="a" if i % 2 else "b") for i in range(200)]
    house = serve(Listed(listed), queue=FairShare, scheduler=partial(Chunked, 64, 2), cost=partial(LinearCost, 10_000))
    rows = sorted(house.requests(), key=lambda row: row["finish_ns"])
    got = {"a": 0, "b": 0}
    gaps = []
    left = {"a": 100, "b": 100}
    for row in rows:
        tenant = "a" if row["id"] % 2 else "b"
        got[tenant] += 4 + 2 * row["output_tokens"]
        left[tenant] -= 1
        if min(left.values()) > 2:
            gaps.append(abs(got["a"] - got["b"]))
    assert len(gaps) > 50
    assert max(gaps) <= 2 * (2 * (4 + 2 * 30))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Aged(0.0), r"queue\.age_s must be > 0"),
        (lambda: FairShare({"a": 0.0}), r"queue\.weights\.a must be > 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, expected):
    with pytest.raises(ConfigError, match=expected):
        make()

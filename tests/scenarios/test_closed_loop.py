"""Closed loops: never more requests under way than users, and the same work whatever the server does."""

from collections import Counter

import pytest

from scenarios.closed_loop import ClosedLoop
from scenarios.dialogue import Dialogue
from scenarios.distributions import Constant, UniformInteger
from scenarios.lengths import Nominal
from scenarios.walk import Ending, walk
from sim.config import compose, make
from sim.errors import ConfigError
from sim.request import Finished
from sim.units import NS_PER_S


def loop(users=4, sessions_per_user=5, turns=None, **settings):
    dialogue = Dialogue(turns or UniformInteger(1, 3), Nominal(100, 50), Constant(0.5))
    return ClosedLoop(users, sessions_per_user, dialogue, **settings)


def serve(scenario, answer_s):
    """Requests and, for each arrival, how many were under way; request k takes k thousandths longer."""

    def server(request):
        return Ending(Finished(request, request.arrival_ns + int((answer_s + request.id / 1000) * NS_PER_S)))

    under_way, busy = [], []
    for request in walk(scenario, 0, server):
        busy = [end for end in busy if end > request.arrival_ns]
        busy.append(server(request).finished.finish_ns)
        under_way.append((request, len(busy)))
    return under_way


@pytest.mark.parametrize("answer_s", [0.01, 1.0, 30.0])
def test_no_user_has_two_requests_under_way(answer_s):
    served = serve(loop(), answer_s)

    assert max(n for _, n in served) <= 4
    assert len({r.session_id for r, _ in served}) == 20


def test_the_work_does_not_depend_on_the_server():
    fast = {r.id: r._replace(arrival_ns=0) for r, _ in serve(loop(), 0.01)}
    slow = {r.id: r._replace(arrival_ns=0) for r, _ in serve(loop(), 30.0)}

    assert fast == slow


def test_a_load_generator_keeps_its_concurrency_and_sends_ten_requests_per_slot():
    scenario = make(compose(["scenario=benchmark", "scenario.users=8"])["scenario"], "scenario")

    served = serve(scenario, 2.0)

    assert len(served) == 80
    assert Counter(n for _, n in served) == dict.fromkeys(range(1, 8), 1) | {8: 73}
    assert all(820 <= r.prompt_tokens <= 1024 and r.content is None for r, _ in served)
    assert {r.arrival_ns for r, _ in served[:8]} == {0}


def test_users_start_spread_over_the_ramp():
    first = list(loop(ramp_s=8.0).requests(0))

    assert [r.arrival_ns / NS_PER_S for r in first] == [0.0, 2.0, 4.0, 6.0]


def test_after_a_refusal_the_user_begins_the_next_session():
    scenario = loop(turns=Constant(3), rest=Constant(7.0))
    first = next(scenario.requests(0))
    list(scenario.requests(0))

    following = scenario.follow_up(Finished(first, 100, is_refused=True))

    assert (following.session_id, following.turn) == (4, 0)
    assert following.arrival_ns == 100 + 7 * NS_PER_S


@pytest.mark.parametrize(("key", "value"), [("users", 0), ("sessions_per_user", 1.5), ("ramp_s", -1.0)])
def test_a_loop_without_sense_is_refused_by_key(key, value):
    with pytest.raises(ConfigError, match=rf"^scenario\.{key} must be"):
        loop(**{key: value})

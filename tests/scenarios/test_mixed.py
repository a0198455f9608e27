"""Blends: shares as weighted, names that never collide, classes that tell the parts apart."""

from collections import Counter
from itertools import islice
from math import sqrt

import pytest

from scenarios.arrivals import Poisson
from scenarios.classify import Classifier
from scenarios.distributions import Constant
from scenarios.lengths import Nominal
from scenarios.mixed import Mixed
from scenarios.synthetic import Synthetic
from scenarios.walk import Ending, idle_server, walk
from sim.config import compose, make
from sim.errors import ConfigError
from sim.request import Finished, Request


def blend(**changed):
    return make(compose(["scenario=mixed", *(f"scenario.{k}={v}" for k, v in changed.items())])["scenario"], "scenario")


def one(n=5000, tokens=10):
    return Synthetic(1.0, Poisson(), Nominal(tokens, tokens, 1.0), n_requests=n)


def test_parts_arrive_in_proportion_to_their_weights_and_carry_their_class():
    scenario = Mixed(8.0, {"a": one(), "b": one()}, {"a": 3, "b": 1}, n_requests=4000)

    classes = Counter(r.slo_class for r in scenario.requests(0))

    assert sum(classes.values()) == 4000
    assert abs(classes["a"] / 4000 - 0.75) < 2.576 * sqrt(0.75 * 0.25 / 4000)


def test_equal_parts_have_random_numbers_of_their_own():
    scenario = Mixed(8.0, {"a": one(), "b": one()}, {"a": 1, "b": 1}, n_requests=2000)

    requests = list(scenario.requests(0))
    arrivals = {name: {r.arrival_ns for r in requests if r.slo_class == name} for name in ("a", "b")}

    assert not arrivals["a"] & arrivals["b"]


def test_no_two_parts_share_an_id_a_session_or_a_text():
    requests = list(walk(blend(), 0, idle_server(0.1, 0.01)))

    assert len({r.id for r in requests}) == len(requests)
    owners = {}
    for request in requests:
        names = [("text", identity) for identity, _ in request.content or ()]
        names += [("session", request.session_id)] if request.session_id is not None else []
        for name in names:
            owners.setdefault(name, set()).add(request.slo_class)
    assert all(len(found) == 1 for found in owners.values())


def test_a_blend_says_the_same_to_a_slow_server_and_to_a_fast_one():
    def slow(request):
        return Ending(Finished(request, request.arrival_ns + (request.id * 7919) % 10**12), -request.id)

    for scenario in (blend(), blend(classify="true")):
        fast = {r.id: r._replace(arrival_ns=0) for r in walk(scenario, 0, idle_server(0.1, 0.01))}
        assert fast == {r.id: r._replace(arrival_ns=0) for r in walk(scenario, 0, slow)}


def test_classifying_leaves_everything_else_as_it_is():
    tagged = list(walk(blend(classify="true"), 0, idle_server(0.1, 0.01)))

    assert [r._replace(kind="") for r in tagged] == list(walk(blend(), 0, idle_server(0.1, 0.01)))
    assert {r.slo_class for r in tagged} == {"short_chat", "long_document", "code", "creative"}
    assert all(r.kind for r in tagged)


@pytest.mark.parametrize("name", ["chatbot", "short_chat", "benchmark", "mixed", "mixed_sessions"])
def test_one_switch_classifies_whatever_the_scenario(name):
    scenario = make(compose([f"scenario={name}", "classify=true"])["scenario"], "scenario")

    assert all(r.kind for r in islice(scenario.requests(0), 50))


def test_weights_that_name_no_part_are_refused():
    with pytest.raises(ConfigError, match=r"scenario\.weights must be one for each of \['a'\]"):
        Mixed(8.0, {"a": one()}, {"a": 1, "c": 1}, n_requests=10)
    with pytest.raises(ConfigError, match=r"scenario\.parts\.a must be Synthetic or Sessions"):
        Mixed(8.0, {"a": Constant(1)}, {"a": 1}, n_requests=10)


def request(prompt, output, turn=0, session=1):
    return Request(turn, turn, prompt, output, 4096, session_id=session, turn=turn)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([(100, 50), (250, 60)], "short_chat"),
        ([(20_000, 300), (20_000, 300)], "long_document"),
        ([(1500, 13), (1500, 12)], "code"),
        ([(300, 1100), (1500, 1200)], "creative"),
    ],
)
def test_a_session_is_classified_by_its_prompts_and_the_answers_it_has_had(turns, expected):
    classifier = Classifier()

    tags = [classifier.classify(request(prompt, output, k)) for k, (prompt, output) in enumerate(turns)]

    assert tags[-1] == expected


def test_the_answer_to_come_never_decides():
    for k, turns in enumerate(([(300, 50)], [(300, 50), (500, 40)])):
        tags = set()
        for output in (1, 13, 300, 5000):
            classifier = Classifier()
            for turn, (prompt, earlier) in enumerate(turns[:-1]):
                classifier.classify(request(prompt, earlier, turn))
            tags.add(classifier.classify(request(turns[-1][0], output, k)))
        assert len(tags) == 1


def test_a_session_whose_traffic_changes_changes_its_class():
    classifier = Classifier()

    tags = [classifier.classify(request(prompt, 100, k)) for k, prompt in enumerate((500, 4000, 9000))]

    assert tags == ["short_chat", "short_chat", "long_document"]


def test_classified_parts_of_the_blend_are_mostly_told_apart():
    tagged = {r.id: r.kind for r in walk(blend(classify="true"), 0, idle_server(0.1, 0.01))}
    truth = list(walk(blend(), 0, idle_server(0.1, 0.01)))
    documents = [tagged[r.id] for r in truth if r.slo_class == "long_document"]
    chats = [tagged[r.id] for r in truth if r.slo_class == "short_chat"]

    assert Counter(documents).most_common(1)[0][0] == "long_document"
    assert Counter(chats)["short_chat"] > 0.95 * len(chats)


def test_in_sessions_that_last_all_four_classes_are_told_apart_from_the_second_turn_on():
    scenario = make(compose(["scenario=mixed_sessions", "classify=true"])["scenario"], "scenario")
    later = [r for r in walk(scenario, 0, idle_server(0.1, 0.01)) if r.turn]

    for kind in ("short_chat", "long_document", "code", "creative"):
        seen = Counter(r.kind for r in later if r.slo_class == kind)
        assert seen.most_common(1)[0][0] == kind
        assert seen[kind] > 0.7 * seen.total(), kind

"""Sessions: the chatbot has the statistics it states, and nothing an engine does changes what anybody says."""

import itertools
from collections import Counter
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from scenarios.arrivals import Poisson
from scenarios.dialogue import Dialogue
from scenarios.distributions import Constant, LogNormal, Turns, UniformInteger
from scenarios.growth import Bursts, Periodic, Random, Steady
from scenarios.lengths import Independent, Nominal, token_moments
from scenarios.prefixes import PrefixTree, Retrieved
from scenarios.sessions import Sessions
from scenarios.statistics import ks_distance
from scenarios.walk import Ending, idle_server, walk
from sim.config import compose, make
from sim.errors import ConfigError
from sim.request import Finished, block_keys
from sim.units import NS_PER_S

Z99, KS99 = 2.576, 1.628
CONF = Path(__file__).parents[2] / "conf"


def talk(**changed):
    settings = {
        "turns": UniformInteger(1, 6),
        "lengths": Nominal(100, 50),
        "think": Constant(2.0),
        "prefixes": PrefixTree([64]),
    }
    return Dialogue(**(settings | changed))


def sessions(n=100, **changed):
    return Sessions(5.0, Poisson(), talk(**changed), n_sessions=n)


def by_session(requests):
    found = {}
    for request in requests:
        found.setdefault(request.session_id, []).append(request)
    return found


@pytest.fixture(scope="module")
def chatbot():
    config = compose(["scenario=chatbot", "scenario.n_sessions=12000"])
    scenario = make(config["scenario"], "scenario")
    return scenario, list(walk(scenario, 0, idle_server(0.1, 0.01)))


def test_the_chatbot_has_its_stated_share_of_single_turns_and_mean_of_turns(chatbot):
    _, requests = chatbot
    turns = np.array(list(Counter(r.session_id for r in requests).values()))

    assert len(turns) == 12_000
    assert abs((turns == 1).mean() - 0.69) < Z99 * sqrt(0.69 * 0.31 / 12_000)
    stated = Turns(0.69, 3.03)
    assert abs(turns.mean() - stated.mean) < Z99 * turns.std() / sqrt(12_000)
    assert ks_distance(turns, stated, step=1.0) < KS99 / sqrt(12_000)


def test_the_chatbot_thinks_as_long_as_stated_after_the_answer(chatbot):
    _, requests = chatbot
    gaps = np.array(
        [
            (b.arrival_ns - a.arrival_ns) / NS_PER_S - 0.1 - 0.01 * (a.output_tokens - 1)
            for turns in by_session(requests).values()
            for a, b in itertools.pairwise(turns)
        ]
    )

    n = len(gaps)
    assert n > 5000
    assert ks_distance(gaps, LogNormal(123.0, 483.0)) < KS99 / sqrt(n)
    assert abs((gaps < 123).mean() - 0.5) < Z99 * sqrt(0.25 / n)
    assert abs((gaps < 483).mean() - 0.9) < Z99 * sqrt(0.09 / n)


def test_the_chatbot_has_the_lengths_of_its_distributions(chatbot):
    scenario, requests = chatbot
    lengths = scenario.dialogue.lengths
    new = np.array([r.content[-1][1] for r in requests if r.content], dtype=float)
    answers = np.array([r.output_tokens for r in requests], dtype=float)

    for found, of, most in ((new, lengths.prompt, 4096), (answers, lengths.output, 1024)):
        mean, _ = token_moments(of, most)
        assert abs(found.mean() - mean) < Z99 * found.std() / sqrt(len(found))
        inside = found[found < most]
        assert ks_distance(inside, of, step=1.0) < KS99 / sqrt(len(found)) + (found == most).mean()


def test_every_prompt_of_the_chatbot_begins_with_the_same_512_tokens(chatbot):
    _, requests = chatbot

    assert {r.content[0] for r in requests} == {requests[0].content[0]}
    assert requests[0].content[0][1] == 512


def test_a_turn_continues_the_text_of_the_turn_before_and_its_answer():
    for turns in by_session(walk(sessions(), 0, idle_server(0.1, 0.01))).values():
        for a, b in itertools.pairwise(turns):
            said = (*a.content, (a.output_id, a.output_tokens))
            assert b.content[: len(said)] == said
            assert b.prompt_tokens == a.prompt_tokens + a.output_tokens + b.content[-1][1]
            n_shared = a.prompt_tokens + a.output_tokens
            assert block_keys(said, n_shared, 16) == block_keys(b.content, n_shared // 16 * 16, 16)


def test_sessions_share_their_head_and_nothing_else():
    requests = list(walk(sessions(), 0, idle_server(0.1, 0.01)))
    owners = {}
    for request in requests:
        for identity, _ in request.content[1:]:
            owners.setdefault(identity, set()).add(request.session_id)

    assert all(len(found) == 1 for found in owners.values())


def test_a_slow_server_and_a_fast_one_see_the_same_words():
    def slow_and_unfair(request):
        delay = (request.id * 7919) % 101
        return Ending(Finished(request, request.arrival_ns + delay * NS_PER_S), -request.id)

    fast = {r.id: r._replace(arrival_ns=0) for r in walk(sessions(), 0, idle_server(0.0, 0.0))}
    slow = {r.id: r._replace(arrival_ns=0) for r in walk(sessions(), 0, slow_and_unfair)}

    assert fast == slow


def test_a_client_answers_one_tick_after_the_answer_at_the_earliest():
    requests = by_session(walk(sessions(think=Constant(0.0)), 0, idle_server(0.1, 0.0)))

    gaps = {b.arrival_ns - a.arrival_ns for turns in requests.values() for a, b in itertools.pairwise(turns)}
    assert gaps == {100_000_001}


def test_a_refused_client_leaves():
    scenario = sessions(n=50, turns=Constant(3))

    first = list(scenario.requests(0))

    assert len(first) == 50
    assert scenario.follow_up(Finished(first[0], 10**12, is_refused=True)) is None
    assert scenario.follow_up(Finished(first[0], 10**12)) is None, "it does not come back"
    assert scenario.follow_up(Finished(first[1], 10**12)).turn == 1


def test_a_longer_run_begins_with_the_sessions_of_a_shorter_one():
    short = list(sessions(n=300).requests(0))
    long = list(sessions(n=1000).requests(0))

    assert long[:300] == short


def test_sessions_begin_until_the_duration_is_over():
    first = list(Sessions(5.0, Poisson(), talk(), duration_s=60.0).requests(0))

    assert 0 < first[-1].arrival_ns < 60 * NS_PER_S
    assert abs(len(first) - 300) < Z99 * sqrt(300)


def test_a_history_that_grows_too_long_is_halved_and_then_grows_again():
    scenario = sessions(n=5, turns=Constant(40), max_prompt_tokens=2000)
    for turns in by_session(walk(scenario, 0, idle_server(0.1, 0.0))).values():
        lengths = [r.prompt_tokens for r in turns]
        kept = [b.content[1] == a.content[1] for a, b in itertools.pairwise(turns)]

        assert max(lengths) <= 2000
        assert all(sum(n for _, n in r.content) == r.prompt_tokens for r in turns)
        assert 2 <= kept.count(False) <= 6, "beginnings change rarely, so that caches find them"
        assert all(r.content[0] == turns[0].content[0] for r in turns), "the head stays"


def test_branches_continue_from_an_earlier_turn():
    scenario = sessions(n=200, turns=Constant(8), branch_frac=0.5)
    n_branches = n_turns = 0
    for turns in by_session(walk(scenario, 0, idle_server(0.1, 0.0))).values():
        for k in range(2, 8):
            before = (*turns[k - 1].content, (turns[k - 1].output_id, turns[k - 1].output_tokens))
            n_turns += 1
            n_branches += turns[k].content[:-1] != before
            starts = [turns[0].content[:1]] + [(*t.content, (t.output_id, t.output_tokens)) for t in turns[:k]]
            assert turns[k].content[:-1] in starts

    assert abs(n_branches / n_turns - 0.5) < Z99 * sqrt(0.25 / n_turns)


def test_a_document_is_asked_about_again_without_the_questions_before():
    scenario = sessions(document=UniformInteger(5000, 6000), prefixes=None, keeps_history=False, turns=Constant(4))
    for turns in by_session(walk(scenario, 0, idle_server(0.1, 0.0))).values():
        assert {r.content[0] for r in turns} == {turns[0].content[0]}
        assert all(len(r.content) == 2 for r in turns)
        assert 5000 <= turns[0].content[0][1] <= 6000


@pytest.mark.parametrize("growth", [Steady(), Bursts(), Periodic(), Random()], ids=repr)
def test_growth_patterns_have_the_same_mean(growth):
    turn = np.tile(np.arange(40), 2000)  # whole periods of 5 and of 8

    factors = growth.factors(turn, np.random.default_rng(0))

    assert abs(factors.mean() - 1) < Z99 * factors.std() / sqrt(len(turn)) + 1e-12
    assert (factors >= 0).all()


def test_growth_patterns_differ_in_their_spread():
    turn = np.tile(np.arange(40), 500)
    spread = [g.factors(turn, np.random.default_rng(0)).std() for g in (Steady(), Periodic(), Random(), Bursts())]

    assert spread == sorted(spread)
    assert spread[0] == 0


def test_heads_of_a_tree_share_their_upper_levels():
    heads = PrefixTree([100, 50, 25], fanout=3, zipf=1.0).heads(np.random.default_rng(0), 4000)

    roots, seconds, thirds = ({head[:k] for head in heads} for k in (1, 2, 3))
    assert (len(roots), len(seconds), len(thirds)) == (3, 9, 27)
    share = Counter(head[0] for head in heads).most_common(1)[0][1] / 4000
    assert abs(share - 6 / 11) < Z99 * sqrt(0.25 / 4000), "1 / (1 + 1/2 + 1/3)"


def test_retrieved_documents_follow_one_system_prompt():
    heads = Retrieved(512, 100, 3, 256, zipf=1.0).heads(np.random.default_rng(0), 1000)

    assert len({head[0] for head in heads}) == 1
    assert all(len(head) == 4 and sum(n for _, n in head) == 512 + 3 * 256 for head in heads)
    assert len({piece for head in heads for piece in head[1:]}) == 100


def test_a_stream_without_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"scenario\.n_sessions must be .*, got None"):
        Sessions(5.0, Poisson(), talk())
    with pytest.raises(ConfigError, match=r"scenario\.rate must be a finite number > 0, got 0"):
        Sessions(0, Poisson(), talk(), n_sessions=1)


def test_max_output_tokens_is_what_the_client_allows_and_never_less_than_the_answer():
    scenario = sessions(lengths=Independent(Constant(10), UniformInteger(1, 100)), max_output_tokens=60)

    for request in scenario.requests(0):
        assert request.max_output_tokens == max(60, request.output_tokens)

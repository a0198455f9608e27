"""Every scenario composes from its YAML, builds, and gives the same traffic for the same seed."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from scenarios.statistics import dispersion_of
from sim.request import Finished, follow_up_of

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "scenario").glob("*.yaml") if path.stem != "replay")


def build(name, *overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=[f"+scenario={name}", *overrides])
    return instantiate(config.scenario, _convert_="all")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_requests_and_another_seed_does_not(name):
    first, again, other = build(name), build(name), build(name)

    requests = list(islice(first.requests(3), 200))

    assert requests == list(islice(again.requests(3), 200))
    assert requests == list(islice(first.requests(3), 200)), "a second call must start the same stream anew"
    assert requests != list(islice(other.requests(4), 200))


@pytest.mark.parametrize("name", NAMES)
def test_requests_come_in_order_of_arrival_with_ids_of_their_own(name):
    requests = list(islice(build(name).requests(0), 500))

    arrivals = [request.arrival_ns for request in requests]
    assert arrivals == sorted(arrivals)
    assert len({request.id for request in requests}) == len(requests)
    assert all(sum(n for _, n in r.content) == r.prompt_tokens for r in requests if r.content is not None)


@pytest.mark.parametrize("name", NAMES)
def test_who_listens_to_answers_has_something_to_say(name):
    """An open stream has no `follow_up`, so that nobody asks it in vain."""
    scenario = build(name)
    follow_up = follow_up_of(scenario)
    if follow_up is not None:
        assert any(follow_up(Finished(r, r.arrival_ns + 1)) for r in islice(scenario.requests(0), 500))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("growth_")])
def test_growth_patterns_add_as_much_text_in_a_session(name):
    dialogue = build(name).dialogue
    turns = np.arange(dialogue.turns.value)
    factors = np.array([dialogue.growth.factors(turns, np.random.default_rng(seed)) for seed in range(4_000)])
    assert factors.mean() == pytest.approx(1, abs=0.015)  # four standard errors of the random one


def test_code_completion_comes_in_bursts_as_its_file_says():
    scenario = build("code_completion")
    spells = islice(scenario.arrivals.times_ns(scenario.rate, np.random.default_rng(1)), 40_000)
    at_s = np.concatenate(list(spells)) / 1e9
    found = {window_s: dispersion_of(at_s, window_s) for window_s in (1, 10, 60)}
    assert found == pytest.approx({1: 13, 10: 71, 60: 107}, rel=0.03)

"""Documents asked for in a pattern."""

from itertools import islice

import numpy as np
import pytest

from scenarios.access import PATTERNS
from sim.config import compose, make
from sim.errors import ConfigError
from sim.request import stream
from tests.scenarios.test_scenario_configs import build


def asked(pattern, n=2_000, **settings):
    scenario = make({**compose(["scenario=access_pattern"])["scenario"], "pattern": pattern, **settings}, "scenario")
    return np.array(list(islice(scenario.documents(stream(0, "accesses")), n)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_asks_for_every_document_and_for_no_other(pattern):
    assert set(asked(pattern).tolist()) == set(range(64))


def test_each_pattern_goes_its_way():
    assert asked("sequential", 5, n_documents=3).tolist() == [0, 1, 2, 0, 1]
    assert asked("reverse", 5, n_documents=3).tolist() == [2, 1, 0, 2, 1]
    assert asked("strided", 8, n_documents=8, stride=4).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    local = asked("local", 100, spread=1.0, dwell=1000)
    assert np.minimum(local, 64 - local).max() <= 5
    scan = asked("scan", 60, n_documents=16, hot_frac=0.125, scan_every=10)
    assert scan[10:24].tolist() == list(range(2, 16))
    assert set(scan[:10].tolist()) == {0, 1}


def test_the_document_is_the_same_text_for_all_who_ask_and_the_rest_is_ones_own():
    one, other = islice(build("access_pattern", "scenario.n_documents=1").requests(0), 2)
    assert one.content[0] == other.content[0]
    assert one.content[1] != other.content[1]
    assert one.prompt_tokens == 1024 + one.content[1][1]


@pytest.mark.parametrize("settings", [{"pattern": "spiral"}, {"hot_frac": 1.5}, {"stride": 0}, {"spread": -1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"scenario.{next(iter(settings))} must be"):
        asked(**{"pattern": "random", "n": 1, **settings})

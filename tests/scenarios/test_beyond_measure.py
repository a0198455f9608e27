"""Numbers beyond all measure end in one line, before memory or time is gone."""

import numpy as np
import pytest

from scenarios.arrivals import LEAST_PER_CYCLE, OnOff, Regular, ticks_ns
from scenarios.distributions import LogNormalMixture
from sim import simulate
from sim.errors import ConfigError
from sim.units import LAST_NS

FEW = ["scenario=chatbot", "scenario.n_sessions=20"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*FEW, "scenario.dialogue.think.median=1e12", "scenario.dialogue.think.p90=1e13"], "dialogue.think must be waits"),  # noqa: E501  # noqa: E501
        ([*FEW, "scenario.dialogue.turns.mean_if_more=1e12"], "turns of one session, .*; scenario.dialogue.max_turns="),
        ([*FEW, "scenario.dialogue.prefixes.fanout=2147483648"], "2,147,483,648 children, .*; scenario.prefixes.max_items="),  # noqa: E501  # noqa: E501
        ([*FEW, "scenario.arrivals.cv=1e-200"], "scenario.arrivals.cv must be from 1e-6 to 1e6, got 1e-200"),
        ([*FEW, "scenario.arrivals.cv=1e200"], "scenario.arrivals.cv must be from 1e-6 to 1e6"),
        (["scenario=rag", "scenario.prefixes.n_documents=2147483648"], "2,147,483,648 documents"),
        (["scenario=rag", "scenario.prefixes.documents_per_prompt=1000000000"], "4,096,000,000,000 draws"),
        (["scenario=benchmark", "scenario.users=100000000"], "sessions, .*; scenario.max_sessions=1000000000 allows it"),  # noqa: E501  # noqa: E501
        (["scenario=code_completion", "scenario.rate=1e-12"], "must bring at least 1e-06 arrivals"),
        (["scenario=code_completion", "scenario.rate=1e12"], "must bring at most 1e.07 arrivals"),
        (["scenario=mixed", "scenario.weights.short_chat=1e15"], "scenario.weights.* at least 1e-06 arrivals"),
        (["scenario=replay", f"scenario.path={'x' * 9}", f"scenario.time_unit={'y' * 100_000}"], "time_unit must be null or"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_would_take_all_memory_or_time_is_refused(overrides, said):
    with pytest.raises(ConfigError, match=said) as raised:
        simulate(*overrides)
    assert len(str(raised.value)) < 400


def test_ticks_never_overflow():
    assert ticks_ns(np.array([0.0, 1.5, 1e12, 1e300, np.inf])).tolist() == [0, 1_500_000_000, LAST_NS, LAST_NS, LAST_NS]
    assert next(Regular().times_ns(1e-300, np.random.default_rng(0)))[0] == LAST_NS


def test_large_lognormals_warn_of_nothing_and_are_bounded():
    assert np.isinf(LogNormalMixture([1.0], [800.0], [1.0]).draw(np.random.default_rng(0), 9)).all()
    result = simulate(*FEW, "scenario.dialogue.lengths.prompt.mus=[800.0]")
    assert result.requests.column("prompt_tokens").min() >= 4096


def test_a_burst_that_is_rare_but_comes_is_drawn():
    assert next(OnOff(5.0, 60.0, 60.0).times_ns(LEAST_PER_CYCLE * 1e5, np.random.default_rng(0))).size

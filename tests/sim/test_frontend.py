"""What clients see beyond the engine: on top of its latencies, and before the next turn of a conversation."""

import json
from io import StringIO

import pytest

import sim
from sim.config import choices_of
from sim.errors import ConfigError
from sim.metrics import Slo, summary
from sim.report import write
from sim.report.terminal import table_of
from sim.spec import FrontendSpec

CHAT = ("scenario=chatbot", "scenario.n_sessions=5", "hardware=h200")
TIMES = ("frontend.before_s=0.5", "frontend.after_s=0.25")


@pytest.fixture(scope="module")
def bare():
    return sim.simulate(*CHAT, "frontend=none")


@pytest.fixture(scope="module")
def slow():
    return sim.simulate(*CHAT, *TIMES)


def test_a_client_sees_the_engines_latencies_and_the_front_end(slow):
    numbers = summary(slow, Slo())
    ours = numbers["kvtwin"]
    for kind in ("mean", "median", "p90", "p95", "p99"):
        assert ours[f"{kind}_client_ttft_ms"] == pytest.approx(numbers[f"{kind}_ttft_ms"] + 750.0)
        assert ours[f"{kind}_client_e2el_ms"] == pytest.approx(numbers[f"{kind}_e2el_ms"] + 750.0)


def test_the_next_turn_comes_later_by_the_way_there_and_back(bare, slow):
    """Turns without company: the engine takes as long for each, so only the front end lies between."""
    first, last = (one.requests.frame().sort_values("id").reset_index(drop=True) for one in (bare, slow))
    turns = first.groupby("session_id").cumcount()
    later = (last.arrival_ns - first.arrival_ns) / 1e9
    assert (turns > 0).sum() > 2
    assert (later[turns == 0] == 0.0).all(), "who begins a conversation waits for nobody"
    assert later[turns > 0].to_numpy() == pytest.approx(0.75 * turns[turns > 0].to_numpy(), abs=0.05)


def test_without_a_front_end_a_client_sees_the_engines_times(bare):
    numbers = summary(bare, Slo())
    assert numbers["kvtwin"]["mean_client_ttft_ms"] == numbers["mean_ttft_ms"]


def test_both_times_are_named_where_the_time_to_first_token_is_shown(slow, tmp_path):
    from rich.console import Console

    out = write(slow, Slo(), tmp_path)
    page = (out / "report.html").read_text()
    for words in ("TTFT: first token, engine", "client TTFT: first token, client", "750 ms more for a client"):
        assert words in page
    text = StringIO()
    Console(width=120, file=text).print(table_of(json.loads((out / "summary.json").read_text())))
    assert "first token, engine" in text.getvalue()
    assert "client TTFT" in text.getvalue()


def test_every_front_end_is_built_and_adds_what_its_file_says():
    assert set(choices_of("frontend")) >= {"none", "vllm"}
    added = {name: sim.simulate(*CHAT, f"frontend={name}").config["frontend"] for name in choices_of("frontend")}
    assert added["none"]["before_s"] == added["none"]["after_s"] == 0.0
    assert added["vllm"]["before_s"] + added["vllm"]["after_s"] == pytest.approx(8.5e-3)


@pytest.mark.parametrize("before", [-1.0, float("nan"), float("inf"), True, "soon"])
def test_a_time_that_is_none_is_refused(before):
    with pytest.raises(ConfigError, match=r"frontend.before_s must be a finite number >= 0 \[s\]"):
        FrontendSpec(before, 0.0)

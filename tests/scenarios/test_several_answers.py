"""Requests for several answers at once: asked for by a setting, read from a trace, written to one."""

from itertools import islice

import pytest

from scenarios.export import export
from scenarios.replay import Replay
from scenarios.walk import idle_server, walk
from sim.config import compose, make
from sim.errors import ConfigError, TraceError
from sim.request import Finished, follow_up_of
from sim.run import run

SCENARIOS = ["synthetic", "chatbot", "benchmark", "rag", "agentic"]
TRACES = {
    "csv": "arrival_s,prompt_tokens,output_tokens,n_samples\n0.0,9,5,{}\n1.0,9,5,\n",
    "jsonl": '{{"timestamp": 0, "input_length": 9, "output_length": 5, "hash_ids": [0], "n_samples": {}}}\n'
    '{{"timestamp": 1, "input_length": 9, "output_length": 5, "hash_ids": [0]}}\n',
}


def scenario_of(*overrides):
    return make(compose(list(overrides))["scenario"], "scenario")


def trace(tmp_path, kind, n_samples):
    path = tmp_path / f"trace.{kind}"
    path.write_text(TRACES[kind].format(n_samples))
    return str(path)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_request_and_every_turn_after_it_asks_for_so_many(name):
    scenario = scenario_of(f"scenario={name}", "scenario.n_samples=3")
    requests = list(islice(scenario.requests(0), 50))
    follow_up = follow_up_of(scenario) or (lambda _: None)
    turns = [follow_up(Finished(request, request.arrival_ns + 1)) for request in requests]
    assert {request.n_samples for request in (*requests, *filter(None, turns))} == {3}


@pytest.mark.parametrize("name", SCENARIOS)
def test_more_answers_change_nothing_else(name):
    one, three = (
        list(islice(scenario_of(f"scenario={name}", f"scenario.n_samples={n}").requests(0), 50)) for n in (1, 3)
    )
    assert [request._replace(n_samples=1) for request in three] == one


@pytest.mark.parametrize("name", ["synthetic", "chatbot", "benchmark"])
@pytest.mark.parametrize("n_samples", ["0", "-1"])
def test_no_answer_is_refused(name, n_samples):
    with pytest.raises(ConfigError, match=rf"scenario.n_samples must be a whole number >= 1, got {n_samples}"):
        scenario_of(f"scenario={name}", f"scenario.n_samples={n_samples}")


@pytest.mark.parametrize("kind", TRACES)
def test_a_trace_says_so_row_by_row_and_a_setting_for_all_of_them(kind, tmp_path):
    path = trace(tmp_path, kind, 4)
    assert [request.n_samples for request in Replay(path).requests(0)] == [4, 1]
    assert [request.n_samples for request in Replay(path, n_samples=2).requests(0)] == [2, 2]


@pytest.mark.parametrize("kind", TRACES)
def test_a_row_for_no_answer_is_an_error_of_the_trace(kind, tmp_path):
    with pytest.raises(TraceError, match=r"trace\..*: n_samples must be a whole number"):
        list(Replay(trace(tmp_path, kind, 0)).requests(0))


@pytest.mark.parametrize("file_format", ["csv", "mooncake"])
def test_what_was_asked_for_survives_a_file(file_format, tmp_path):
    scenario = scenario_of("scenario=synthetic", "scenario.n_samples=3", "scenario.n_requests=20")
    path = tmp_path / "traffic"
    export(scenario, path, 0, file_format, idle_server(0.1, 0.01))
    assert list(Replay(str(path)).requests(0)) == list(walk(scenario, 0, idle_server(0.1, 0.01)))


@pytest.mark.parametrize(("forks", "n_served"), [(True, 0), (False, 2)])
def test_answers_that_are_requests_of_their_own_need_room_one_by_one(tmp_path, forks, n_served):
    given = ["scenario=replay", f"scenario.path={trace(tmp_path, 'csv', 30)}", "scenario.n_samples=30"]
    result = run(compose([*given, "hardware.kv_blocks=8", f"batching.forks_samples={forks}".lower()]))
    assert (len(result.requests), len(result.refused)) == (n_served, 2 - n_served)

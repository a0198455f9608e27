"""Traffic written to a file is the same traffic when it is read again, to the byte."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from scenarios.export import export, export_task
from scenarios.replay import Replay
from scenarios.walk import idle_server, recorded_server, walk
from sim.config import compose, make
from sim.errors import ConfigError
from sim.record import iteration_ends_ns
from sim.run import run

NAMES = ["chatbot", "mixed", "benchmark", "rag", "long_document", "growth_random"]
FILES = {"csv": "traffic.csv", "mooncake": "traffic.jsonl.gz"}
TABLES = ("requests", "iterations", "preemptions", "refused")


def scenario_of(*overrides):
    return make(compose(list(overrides))["scenario"], "scenario")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file_format", FILES)
def test_every_field_of_every_request_survives(name, file_format, tmp_path):
    scenario = scenario_of(f"scenario={name}", "classify=true")
    path = tmp_path / FILES[file_format]

    n = export(scenario, path, 5, file_format, idle_server(0.1, 0.01))

    sent = list(walk(scenario, 5, idle_server(0.1, 0.01)))
    assert n == len(sent)
    assert list(Replay(str(path)).requests(0)) == sent


@pytest.mark.parametrize(
    "overrides",
    [
        ("scenario=chatbot", "scenario.n_sessions=80"),
        ("scenario=benchmark", "scenario.users=8"),
        ("scenario=growth_burst", "scenario.n_sessions=10"),
        ("scenario=mixed", "scenario.n_requests=60"),
        ("scenario=benchmark", "scenario.users=24", "hardware.kv_blocks=600"),
        (
            "scenario=agentic",
            "scenario.users=2",
            "scenario.sessions_per_user=1",
            "scenario.dialogue.max_prompt_tokens=20000",
        ),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_the_replay_of_an_export_equals_the_run_it_came_from(overrides, tmp_path):
    config = compose([*overrides, "frontend=none"])
    first = run(config)
    scheduled, finish = (
        dict(zip(first.requests.column("id").tolist(), first.requests.column(name).tolist(), strict=True))
        for name in ("scheduled_ns", "finish_ns")
    )
    server = recorded_server(scheduled, finish)

    assert len(first.requests) > 50
    for file_format, name in FILES.items():
        export(scenario_of(*overrides), tmp_path / name, config["seed"], file_format, server)
        again = run(config, scenario=Replay(str(tmp_path / name)))
        for table in TABLES:
            assert getattr(again, table).rows().tobytes() == getattr(first, table).rows().tobytes(), (name, table)


def test_the_replay_of_classified_traffic_moves_the_same_conversations(tmp_path):
    overrides = ("scenario=mixed_sessions", "scenario.n_requests=40", "classify=true", "cache=by_class")
    config = compose([*overrides, "frontend=none"])
    first = run(config)
    columns = ("id", "scheduled_ns", "finish_ns")
    rows = list(zip(*(first.requests.column(name).tolist() for name in columns), strict=True))
    server = recorded_server({row[0]: row[1] for row in rows}, {row[0]: row[2] for row in rows})

    export(scenario_of(*overrides), tmp_path / "traffic.csv", config["seed"], "csv", server)
    again = run(config, scenario=Replay(str(tmp_path / "traffic.csv")))

    assert first.counts[0]["class_moves"] > 5
    assert again.counts == first.counts
    assert again.requests.rows().tobytes() == first.requests.rows().tobytes()
    assert (iteration_ends_ns(again.iterations) == iteration_ends_ns(first.iterations)).all()


def test_mooncake_files_number_shared_blocks_alike(tmp_path):
    path = tmp_path / "traffic.jsonl"
    export(scenario_of("scenario=chatbot", "scenario.n_sessions=20"), path, 0, "mooncake", idle_server(0.1, 0.01))

    records = [json.loads(line) for line in path.read_text().splitlines()]

    assert {record["hash_ids"][0] for record in records} == {0}, "the system prompt fills the first block of 512"
    assert all(len(r["hash_ids"]) == -(-r["input_length"] // 512) for r in records)
    last = [r["hash_ids"][-1] for r in records if r["input_length"] % 512]
    assert len(set(last)) == len(last), "a partial block is nobody else's"


def test_the_same_traffic_gives_the_same_bytes(tmp_path):
    for k in (1, 2):
        path = tmp_path / f"{k}.csv.gz"
        export(scenario_of("scenario=chatbot", "scenario.n_sessions=20"), path, 0, "csv", idle_server(0.1, 0.01))

    assert (tmp_path / "1.csv.gz").read_bytes() == (tmp_path / "2.csv.gz").read_bytes()


def test_the_task_takes_answers_from_the_folder_of_a_run(tmp_path):
    from sim.metrics import Slo
    from sim.report import write

    overrides = ["scenario=benchmark", "scenario.users=4"]
    first = run(compose(overrides))
    write(first, Slo(), tmp_path / "run")

    task = {"scenario": scenario_of(*overrides), "seed": 0, "out": tmp_path, "console": Console(quiet=True)}
    export_task(**task, run=str(tmp_path / "run"))

    again = run(compose(overrides), scenario=Replay(str(tmp_path / "traffic.csv")))
    assert again.requests.rows().tobytes() == first.requests.rows().tobytes()


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    scenario = scenario_of("scenario=chatbot", "scenario.n_sessions=5", "scenario.slo_class='a,b'")

    with pytest.raises(ConfigError, match="slo_class must not hold commas"):
        export(scenario, tmp_path / "traffic.csv", 0, "csv", idle_server(0.1, 0.01))

    assert list(tmp_path.iterdir()) == []


def test_an_export_says_what_it_wrote_and_replaces_what_a_link_leads_to(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "old.csv")
    console = Console(record=True, width=300, file=StringIO())

    scenario = scenario_of("scenario=synthetic", "scenario.n_requests=7")
    export_task(scenario=scenario, seed=0, out=tmp_path, console=console, path=str(tmp_path / "link.csv"))

    assert f"7 requests written to {tmp_path / 'link.csv'}" in console.export_text()
    assert (tmp_path / "link.csv").is_symlink()
    assert len((tmp_path / "old.csv").read_text().splitlines()) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"old.csv", "link.csv"}


def test_no_requests_are_not_written(tmp_path):
    scenario = scenario_of("scenario=synthetic", "scenario.duration_s=0.000001")

    with pytest.raises(ConfigError, match="scenario: no requests to write"):
        export_task(scenario=scenario, seed=0, out=tmp_path, console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "xml"}, r"task\.format must be one of csv, mooncake, got 'xml'"),
        ({"run": "no/such/run"}, r"task\.run must be the folder of a run or its requests\.parquet, got no/such/run"),
        ({"path": "/dev/null/x.csv"}, r"task\.path must be in a folder that is there, got /dev/null/x\.csv"),
        (
            {"path": "no/such/folder/x.csv"},
            r"task\.path must be in a folder that is there, got .*/no/such/folder/x\.csv",
        ),
        ({"path": "/dev"}, r"task\.path must be the path of a file, got /dev"),
        ({"path": "/dev/null"}, r"task\.path must be the path of a file, got /dev/null"),
    ],
)
def test_options_without_sense_are_refused_by_key(options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        export_task(
            scenario=scenario_of("scenario=synthetic"),
            seed=0,
            out=Path(tmp_path),
            console=Console(quiet=True),
            **options,
        )

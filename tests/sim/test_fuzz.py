"""Whatever is set: a run whose files keep the laws, or one line and exit code 2. Seeded, within a budget of time."""

import contextlib
import io
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sim.command import main
from sim.config import choices_of, compose
from sim.errors import SimError
from sim.run import run

SMALL = ["scenario=synthetic", "scenario.n_requests=4", "cost=roofline", "hardware.kv_blocks=2000"]
VALUES = [
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1e9",
    "1e-9",
    "-0.5",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "null",
    "true",
    "false",
    "text",
    "''",
    "[]",
    "{}",
    "[1,2]",
    "[nan]",
    "{a:1}",
    "{_target_:os.system}",
    "{_target_:sim.router.RoundRobin}",
    "9223372036854775808",
    "1" * 400,
    "${seed}",
    "${nothing}",
    "a b",
    "ü",
    "x=y",
    "#",
    "~",
    "(",
    "'",
    '"',
    "\\",
    "${",
    "???",
    ",",
    "1,2",
    "=",
]
LARGE = {"1e9", "1e-9", "inf", "9223372036854775808", "1" * 400}
WOULD_RUN_LONG = (
    "n_requests",
    "rate",
    "duration_s",
    "replicas",
    "n_samples",
    "lengths",
    "low",
    "high",
    "max_",
    "capacity_gib",
)
CHOSEN = ("cache", "eviction", "batching", "queue", "router", "preemption")
GROUPS = ("cache", "eviction", "tiers", "batching", "queue", "router", "slo", "preemption", "model", "hardware")


def dotted(node: Any, path: str = "") -> Iterator[str]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, item in items:
        here = f"{path}.{key}" if path else str(key)
        if key != "choices":
            yield here
            yield from dotted(item, here)


def ends_in_a_line(arguments: list[str], folder: Path) -> str | None:
    """What is wrong with how a command ended; None if it ended well, or in one line and exit code 2."""
    printed, before, code = io.StringIO(), sys.argv, 0
    sys.argv = ["sim", *arguments, f"hydra.run.dir={folder}"]
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException as error:  # the very thing that is looked for
        return f"{arguments}: {type(error).__name__}: {error}"
    finally:
        sys.argv = before
    lines = printed.getvalue().count("\n")
    is_well = (code == 0 and lines == 0) or (code == 2 and lines == 1 and len(printed.getvalue()) < 2000)
    return None if is_well else f"{arguments}: exit code {code}, {printed.getvalue()[:300]!r}"


def settings(seed: int) -> Iterator[list[str]]:
    draw = random.Random(seed)
    keys = sorted(dotted(compose(SMALL)))
    while True:
        key, value = draw.choice(keys), draw.choice(VALUES)
        if value in LARGE and any(word in key for word in WOULD_RUN_LONG):
            continue
        yield [*SMALL, "task.write=summary", f"{draw.choice(['', '+', '++'])}{key}={value}"]


def command_lines(seed: int) -> Iterator[list[str]]:
    draw = random.Random(seed)
    words = [
        "-m",
        "--cfg",
        "job",
        "--resolve",
        "--help",
        "--nope",
        "-x",
        "=",
        "~",
        "~seed",
        "+",
        "a",
        "cache=",
        "=paged",
        "cache",
        "seed=1,2",
        "cache=paged,static",
        "cache=1",
        "queue=[nan]",
        "hydra.verbose=null",
        "hydra/launcher=nope",
        "--config-dir",
        "--config-dir=nope",
        "hydra.searchpath=[nope]",
        "hydra.sweep.dir=",
        "cost.host=3",
        "scenario=replay",
        "experiment=nope",
        "task=nope",
        "trusted_packages=3",
        "~cache",
        "~hydra",
        "hydra=3",
        "cache@x=paged",
        "-",
        "--",
        "é=1",
    ]
    while True:
        yield ["scenario=synthetic", "scenario.n_requests=3", *draw.sample(words, draw.randint(1, 4))]


@pytest.mark.parametrize(
    "group", [*GROUPS, "cost", "scenario", "task", "seed", "replicas", "classify", "experiment", "choices"]
)
def test_a_whole_group_replaced_by_a_value_is_one_line(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = [ends_in_a_line([*SMALL, f"{group}={value}"], tmp_path / "run") for value in VALUES if value not in LARGE]

    assert list(filter(None, wrong)) == []


@pytest.mark.parametrize(
    ("kind", "n", "budget_s"),
    [
        (settings, 150, 25.0),
        (command_lines, 40, 15.0),
        pytest.param(settings, 3000, 60.0, marks=pytest.mark.slow),
        pytest.param(command_lines, 200, 20.0, marks=pytest.mark.slow),
    ],
)
def test_no_command_ends_in_a_traceback(
    kind: Any, n: int, budget_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ends = time.monotonic() + budget_s
    wrong = []
    for i, arguments in zip(range(n), kind(1), strict=False):
        if time.monotonic() > ends:
            break
        wrong.append(ends_in_a_line(arguments, tmp_path / f"run{i}"))

    assert len(wrong) >= 10
    assert list(filter(None, wrong)) == []


@pytest.mark.parametrize(("n", "budget_s"), [(25, 30.0), pytest.param(1000, 60.0, marks=pytest.mark.slow)])
def test_combinations_keep_the_laws_in_their_files(n: int, budget_s: float, tmp_path: Path) -> None:
    draw, ends, n_run = random.Random(2), time.monotonic() + budget_s, 0
    for i in range(n):
        if time.monotonic() > ends:
            break
        blocks, answers = draw.choice([60, 120, 400, 3000]), draw.choice([1, 1, 3])
        chosen = {
            group: draw.choice(choices_of(group))
            for group in ("cache", "eviction", "batching", "queue", "router", "preemption")
        }
        overrides = [f"{group}={name}" for group, name in chosen.items()]
        traffic = [
            "scenario=synthetic",
            "scenario.n_requests=25",
            f"scenario.rate={draw.choice([1, 20, 200])}",
            "cost=roofline",
        ]
        sizes = [f"hardware.kv_blocks={blocks}", f"replicas={draw.choice([1, 2])}", f"scenario.n_samples={answers}"]
        tags = ["classify=true"] if chosen["cache"] == "by_class" else []
        try:
            config = compose([*traffic, *sizes, *overrides, *tags, "task.write=tables"])
            result = run(config)
        except SimError:
            continue
        from sim.metrics import Slo
        from sim.report import write

        n_run += 1
        keep_the_laws(write(result, Slo(), tmp_path / str(i), which="tables"), 25, result.capacity_tokens)
    assert n_run


def keep_the_laws(folder: Path, n_arrived: int, capacity_tokens: int) -> None:
    numbers = json.loads((folder / "summary.json").read_text())
    requests = pq.read_table(folder / "requests.parquet").to_pandas()
    iterations = pq.read_table(folder / "iterations.parquet").to_pandas()
    assert numbers["completed"] + numbers["failed"] == n_arrived
    assert len(requests) == numbers["completed"]
    assert requests.prompt_tokens.sum() == numbers["total_input_tokens"]
    assert requests.output_tokens.sum() == numbers["total_output_tokens"]
    assert (requests.arrival_ns <= requests.scheduled_ns).all()
    assert (requests.scheduled_ns <= requests.first_token_ns).all()
    assert (requests.first_token_ns <= requests.finish_ns).all()
    assert (requests.cached_tokens <= requests.prompt_tokens).all()
    assert (
        iterations.held_tokens + iterations.idle_tokens <= capacity_tokens * max(1, iterations.replica.nunique())
    ).all()
    assert (iterations.held_tokens <= capacity_tokens).all()
    assert (iterations.select_dtypes("number") >= 0).drop(columns=["growth_ps"], errors="ignore").all().all()
    assert (requests.select_dtypes("number").drop(columns=["session_id"]).fillna(0) >= 0).all().all()

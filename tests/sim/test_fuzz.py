"""Whatever is set: a run whose files keep the laws, or one line and exit code 2. Seeded, within a budget of time.

All happens in this process, and most of it with files that Hydra has put together before: 3,000 settings, 1,000
combinations and 200 command lines take some five minutes of one core. CI takes them in shares, on all cores; every
time, a first share is taken. A budget is of the process's own time, so that a busy machine reaches as many.
"""

import contextlib
import io
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sim.command import main
from sim.config import choices_of, compose
from sim.errors import SimError
from sim.metrics import Slo
from sim.report import write
from sim.run import run
from tests.laws.houses import computes_what_it_does_not_find

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


class Budget:
    """So many cases in so much of this process's time."""

    def __init__(self, n_cases: int, seconds: float) -> None:
        self.n_cases, self.seconds = n_cases, seconds

    def of(self, cases: Iterator[Any]) -> Iterator[Any]:
        """So many of the cases."""
        start_s = time.process_time()
        for n_done, case in enumerate(islice(cases, self.n_cases)):
            assert time.process_time() - start_s < self.seconds, f"{n_done} of {self.n_cases} cases in {self.seconds} s"
            yield case


BEYOND = [
    "hardware.device.memory_gib=1e300",
    "hardware.kv_blocks=1000000000000000000",
    "hardware.device.bandwidth_bytes_per_s=1e-300",
    "hardware.device.peak_flops.bf16=1e-300",
    "cost.operations.efficiency.gemm_floor_s=1e300",
    "cost.operations.efficiency.prefill_flops_frac=1e-15",
    f"queue={'x' * 100_000}",
]


@pytest.mark.parametrize("setting", BEYOND)
def test_a_number_beyond_all_measure_is_one_line(setting: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert ends_in_a_line([*SMALL[:-1], setting], folder) is None
    assert not folder.exists()


@pytest.mark.parametrize(
    ("kind", "seed", "budget"),
    [
        (settings, 1, Budget(100, 30.0)),
        (command_lines, 1, Budget(20, 15.0)),
        *(pytest.param(settings, seed, Budget(725, 120.0), marks=pytest.mark.slow) for seed in range(2, 6)),
        pytest.param(command_lines, 2, Budget(180, 60.0), marks=pytest.mark.slow),
    ],
)
def test_no_command_ends_in_a_traceback(
    kind: Any, seed: int, budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = [ends_in_a_line(arguments, tmp_path / "run") for arguments in budget.of(kind(seed))]

    assert list(filter(None, wrong)) == []


def combinations(seed: int) -> Iterator[list[str]]:
    """Every five of the same files and other sizes: putting files together takes most of the time."""
    draw = random.Random(seed)
    while True:
        chosen = {group: draw.choice(choices_of(group)) for group in CHOSEN}
        tags = ["classify=true"] if chosen["cache"] == "by_class" else []
        for _ in range(5):
            sizes = [
                f"hardware.kv_blocks={draw.choice([60, 120, 400, 3000])}",
                f"replicas={draw.choice([1, 2])}",
                f"scenario.n_samples={draw.choice([1, 1, 3])}",
                f"scenario.rate={draw.choice([1, 20, 200])}",
            ]
            traffic = ["scenario=synthetic", "scenario.n_requests=25", "cost=roofline", "task.write=tables"]
            yield [*traffic, *sizes, *(f"{group}={name}" for group, name in chosen.items()), *tags]


@pytest.mark.parametrize(
    ("seed", "budget"),
    [(2, Budget(25, 30.0)), *(pytest.param(s, Budget(245, 150.0), marks=pytest.mark.slow) for s in range(3, 7))],
)
def test_combinations_keep_the_laws_in_their_files(seed: int, budget: Budget, tmp_path: Path) -> None:
    n_run = 0
    for overrides in budget.of(combinations(seed)):
        try:
            result = run(compose(overrides))
        except SimError:
            continue
        n_run += 1
        keep_the_laws(write(result, Slo(), tmp_path, which="tables"), 25, result.capacity_tokens)
        computes_what_it_does_not_find(result)
    assert n_run > budget.n_cases // 4


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

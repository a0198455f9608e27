"""Replications: intervals that hold the truth as often as they say, the warm-up, and configurations in pairs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sim.command import main
from sim.config import compose
from sim.errors import ConfigError
from sim.metrics import Slo, measure
from sim.metrics.replications import Course, course, doubts, estimate, numbers_in, paired, steady, warm_up
from sim.replications import replication_seed
from sim.report.replications import Replications, against_first, read_replications
from sim.run import run
from tests.sim.tiny_run import tiny_run

REPETITIONS, COVERED = 400, (0.92, 0.98)
SMALL = ["scenario=synthetic", "scenario.n_requests=60", "task.write=summary"]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sim", *SMALL, *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def waits(rng: np.random.Generator, load: float, n_runs: int, n: int) -> np.ndarray:
    """Waiting times of M/M/1 from an empty start, a run a row: the new maximum of a random walk (Lindley)."""
    steps = rng.exponential(load, (n_runs, n)) - rng.exponential(1.0, (n_runs, n))
    walk = np.concatenate([np.zeros((n_runs, 1)), np.cumsum(steps, axis=1)], axis=1)
    return walk - np.minimum.accumulate(walk, axis=1)


def drifting(rng: np.random.Generator, n_runs: int, n: int) -> np.ndarray:
    """A first-order autoregression about zero that begins far above it."""
    series = np.empty((n_runs, n))
    at = np.full(n_runs, 20.0)
    for i in range(n):
        at = 0.8 * at + rng.normal(size=n_runs)
        series[:, i] = at
    return series


def as_course(series: np.ndarray) -> Course:
    nothing = np.full(len(series), np.nan)
    return Course(
        {"ttft_ms": series, "tpot_ms": nothing, "e2el_ms": nothing},
        np.ones(len(series), dtype=np.int64),
        np.zeros(len(series), dtype=np.int64),
        np.ones(len(series), dtype=bool),
    )


def after_warm_up(series: np.ndarray) -> list[float]:
    return [one["mean_ttft_ms"] for one in steady([as_course(row) for row in series]).numbers]


CASES: dict[str, tuple[float, Callable[[np.random.Generator], list[float]]]] = {
    "a mean of skewed values": (1.0, lambda rng: list(rng.exponential(1.0, (10, 500)).mean(axis=1))),
    "a p99 of 4,000": (
        float(np.log(100.0)),
        lambda rng: list(np.percentile(rng.exponential(1.0, (10, 4_000)), 99, axis=1)),
    ),
    "two replications": (0.0, lambda rng: list(rng.normal(size=2))),
    "waiting in M/M/1, after the warm-up": (0.5, lambda rng: after_warm_up(waits(rng, 0.5, 10, 2_000))),
    "a start far off, after the warm-up": (0.0, lambda rng: after_warm_up(drifting(rng, 10, 400))),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interval_holds_the_truth_in_95_of_100(case: str) -> None:
    truth, draw = CASES[case]
    rng = np.random.default_rng([20, len(case)])
    found = [estimate(draw(rng)) for _ in range(REPETITIONS)]

    covered = sum(one.low <= truth <= one.high for one in found) / REPETITIONS

    assert COVERED[0] <= covered <= COVERED[1]


def test_without_the_cut_a_start_far_off_is_missed() -> None:
    rng = np.random.default_rng(3)
    found = [estimate(drifting(rng, 10, 400).mean(axis=1)) for _ in range(50)]

    assert sum(one.low <= 0.0 <= one.high for one in found) < 25


def test_a_difference_in_pairs_holds_the_truth_and_is_narrower_than_the_numbers_are() -> None:
    rng = np.random.default_rng(8)
    n_held, widths = 0, []
    for _ in range(REPETITIONS):
        traffic = rng.normal(0.0, 5.0, 10)  # what chance does to both alike
        one, other = traffic + rng.normal(2.0, 1.0, 10), traffic + rng.normal(0.0, 1.0, 10)
        found = paired(one, other)
        n_held += found.low <= 2.0 <= found.high
        widths.append(found.half_width / estimate(one).half_width)

    assert COVERED[0] <= n_held / REPETITIONS <= COVERED[1]
    assert np.mean(widths) < 0.5


@pytest.mark.parametrize("n_late", [0, 50, 100])
def test_the_warm_up_ends_where_the_series_changes(n_late: int) -> None:
    noise = np.random.default_rng(1).normal(size=1_000)
    series = noise + np.where(np.arange(1_000) < n_late, 30.0, 0.0)

    n_cut, is_settled = warm_up(series)

    assert n_late <= n_cut <= n_late + 60
    assert is_settled


def test_what_grows_without_end_does_not_settle() -> None:
    assert warm_up(np.arange(1_000.0)) == (500, False)


def test_a_handful_of_requests_has_no_warm_up() -> None:
    assert warm_up([9.0, 1.0, 1.0]) == (0, True)


def test_a_request_without_a_pace_is_left_out_of_it() -> None:
    one = tiny_run(n_requests=60, max_output=3).result
    measures = measure(one, Slo(ttft_ms=500))

    found = steady([course(one, measures)] * 2)

    in_order = np.argsort(one.requests.column("arrival_ns"), kind="stable")
    known = measures.latency_ms["tpot_ms"][in_order][found.n_cut :]
    assert np.isnan(known).any()
    assert found.numbers[0]["mean_tpot_ms"] == pytest.approx(known[~np.isnan(known)].mean())


def test_every_number_of_a_summary_is_found() -> None:
    assert numbers_in({"a": 1, "b": {"c": 2.5, "d": None, "e": "x", "f": True, "g": float("nan")}}) == {
        "a": 1.0,
        "b.c": 2.5,
    }


@pytest.mark.parametrize(
    ("n", "words"),
    [(5, "from p50 on"), (150, "from p95 on"), (999, "It takes 1,000 for p99."), (1_000, "")],
)
def test_percentiles_of_too_few_are_named(n: int, words: str) -> None:
    said = " ".join(doubts([{"completed": n, "x": 1.0}, {"completed": 5_000, "x": 2.0}], True))

    assert words in said
    assert bool(said) == bool(words)


def test_seeds_of_different_runs_never_meet() -> None:
    seeds = [replication_seed(seed, i) for seed in range(20) for i in range(20)]

    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert replication_seed(7, 0) == 7


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replications")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(patch, "-m", "cache=paged,static", "replications=4", "hydra.sweep.dir=swept") == 0
    return folder / "swept"


def runs_of(folder: Path) -> dict[str, Replications]:
    found = {}
    for path in folder.glob("*/manifest.json"):
        one = read_replications(path.parent)
        assert one is not None
        found[json.loads(path.read_text())["config"]["choices"]["cache"]] = one
    return found


def test_replications_are_what_runs_with_these_seeds_give(swept: Path) -> None:
    paged = runs_of(swept)["paged"]

    assert len(paged.seeds) == 4
    for i, seed in enumerate(paged.seeds):
        alone = run(compose([*SMALL, f"seed={seed}"]))
        assert paged.values["mean_ttft_ms"][i] == measure(alone, Slo()).latency_ms["ttft_ms"].mean()


def test_configurations_see_the_same_random_numbers(swept: Path) -> None:
    found = runs_of(swept)

    assert found["paged"].seeds == found["static"].seeds
    assert found["paged"].values["total_input_tokens"] == found["static"].values["total_input_tokens"]
    assert len(set(found["paged"].values["total_input_tokens"])) == 4


def test_a_comparison_shows_means_and_differences_in_pairs(swept: Path) -> None:
    row = next(one for one in json.loads((swept / "compare.json").read_text()) if "paged" in one["label"])

    assert row["TTFT p50 [ms]"] == runs_of(swept)["paged"].mean("median_ttft_ms")
    assert "Replication by replication" in (swept / "compare.html").read_text()


def test_runs_of_other_seeds_are_not_paired() -> None:
    one = Replications([1, 2], {"mean_ttft_ms": [1.0, 2.0]}, 0, True, [])
    other = Replications([1, 3], {"mean_ttft_ms": [2.0, 3.0]}, 0, True, [])

    assert against_first([one, other], ["a", "b"]) is None
    assert against_first([one, None], ["a", "b"]) is None


def test_a_difference_that_may_be_chance_is_no_difference() -> None:
    base = Replications([1, 2, 3], {"mean_ttft_ms": [10.0, 11.0, 12.0], "kvtwin.preemptions": [0.0] * 3}, 0, True, [])
    higher = Replications([1, 2, 3], {"mean_ttft_ms": [20.0, 21.1, 22.0]}, 0, True, [])
    wild = Replications([1, 2, 3], {"mean_ttft_ms": [1.0, 12.0, 23.0]}, 0, True, [])

    found = against_first([base, higher, wild], ["a", "b", "c"])

    assert found == (
        ["against a", "a", "b", "c"],
        [["TTFT mean [ms]", "11", "+91.2 % ± 1.3", "none found (± 225.8 %)"]],
    )


def test_an_objective_is_the_mean_over_replications(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        command(monkeypatch, "-m", "seed=1,2", "replications=2", "task.objective=p99_ttft_ms", "hydra.sweep.dir=x") == 0
    )
    for point in json.loads(Path("x/points.json").read_text()):
        found = read_replications(Path("x") / point["folder"])
        assert found is not None
        assert point["objective"] == pytest.approx(np.mean(found.values["p99_ttft_ms"]))


def test_the_same_seed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        assert command(monkeypatch, "replications=2", f"hydra.run.dir={name}") == 0
    for file in ("replications.json", "replications.html"):
        assert Path("a", file).read_bytes() == Path("b", file).read_bytes()


def test_traffic_without_random_numbers_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,100,10\n" * 20)
    monkeypatch.setattr(
        sys,
        "argv",
        ["sim", "scenario=replay", "scenario.path=a.csv", SMALL[-1], "replications=3", "hydra.run.dir=x"],
    )
    main()
    found = read_replications(Path("x"))
    assert found is not None
    assert "All replications are the same: this traffic has no random numbers." in found.warnings


def test_another_task_takes_no_replications(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rich.console import Console

    from sim.task import do_task

    with pytest.raises(ConfigError, match="replications=3 goes with task=simulate, and not with task=memory"):
        do_task(compose(["task=memory", "replications=3"]), tmp_path, Console())


@pytest.mark.parametrize("value", ["0", "1001", "2.5"])
def test_replications_out_of_range_are_refused(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, f"replications={value}") == 2
    assert "replications must be a whole number from 1 to 1000" in capsys.readouterr().err

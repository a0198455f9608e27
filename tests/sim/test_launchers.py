"""Every launcher gives the table of a serial sweep to the byte; a lost worker costs a retry; sweepers that optimise."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.command import main
from sim.config import compose
from sim.remote import OnRay

pytest.importorskip("ray", reason="the development tools have it")

SMALL = ["scenario=synthetic", "scenario.n_requests=30", "task.write=summary"]
POINTS = ["seed=1,2", "cache.block_tokens=16,12"]
"""Of which two fail."""
TABLES = ("compare.json", "compare.html", "points.json")
DIES = """
import os, signal
from pathlib import Path

from sim.replications import run_and_report


class Dies:
    def __init__(self, times: int = 1):
        self.times = times

    def __call__(self, *, config, out, console):
        marks = Path("marks")
        marks.mkdir(exist_ok=True)
        if len(list(marks.glob(f"{config['seed']}-*"))) < self.times:
            (marks / f"{config['seed']}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run_and_report(config=config, out=out, console=console, write="summary")
"""


def sweep(monkeypatch: pytest.MonkeyPatch, *arguments: str, folder: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sim", "-m", f"hydra.sweep.dir={folder}", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real cluster of this machine for all tests of this file, whose workers find a task of one's own."""
    import ray

    own = tmp_path_factory.mktemp("own")
    (own / "dies.py").write_text(DIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(own))
        patch.syspath_prepend(str(own))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", address="local")
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert sweep(patch, *SMALL, *POINTS, folder="out") == 2
    return folder / "out"


@pytest.mark.parametrize(
    "how",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"],
    ],
    ids=["joblib", "submitit"],
)
def test_a_launcher_gives_what_serial_points_give(
    how: list[str], serial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(monkeypatch, *SMALL, *POINTS, *how, folder="out") == 2, "two points failed"

    for name in TABLES:
        assert Path("out", name).read_bytes() == (serial / name).read_bytes()


def test_ray_gives_what_serial_points_give(serial: Path, monkeypatch: pytest.MonkeyPatch, ray_head: Any) -> None:
    assert sweep(monkeypatch, *SMALL, *POINTS, "hydra/launcher=ray", folder="out") == 2

    for name in TABLES:
        assert Path("out", name).read_bytes() == (serial / name).read_bytes()
    assert ray_head.is_initialized(), "a cluster that others began is left to them"


def test_a_lost_worker_costs_a_retry(monkeypatch: pytest.MonkeyPatch, ray_head: Any) -> None:
    Path("mine/task").mkdir(parents=True)
    Path("mine/task/dies.yaml").write_text("_target_: dies.Dies\ntimes: 1\n")
    own = [*SMALL[:2], "seed=1,2,3", "trusted_packages=[dies]", "--config-dir=mine", "task=dies"]
    Path("marks").mkdir()
    for seed in (1, 2, 3):
        Path(f"marks/{seed}-before").touch()
    assert sweep(monkeypatch, *own, folder="whole") == 0
    for mark in Path("marks").iterdir():
        mark.unlink()

    assert sweep(monkeypatch, *own, "hydra/launcher=ray", folder="cut") == 0

    assert len(list(Path("marks").iterdir())) == 3, "each lost its worker once"
    for name in TABLES:
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


def test_rays_settings_are_seen_and_set() -> None:
    file = yaml.safe_load((Path(__file__).parents[2] / "conf/hydra/launcher/ray.yaml").read_text())
    target = file.pop("_target_")
    assert target == "hydra_plugins.kvtwin_ray.launcher.RayLauncher"
    made = OnRay(**file)
    assert (made.address, made.max_retries, made.runtime_env) == (None, 3, {})


def test_a_cluster_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    how = ["hydra/launcher=ray", "hydra.launcher.address=10.0.0.1:6379"]

    assert sweep(monkeypatch, *SMALL, "seed=1,2", *how, folder="out") == 2

    refused = "Failed to connect to Ray cluster at 10.0.0.1:6379"
    said = capsys.readouterr().err
    assert said == f"kvtwin: hydra.launcher.address=10.0.0.1:6379 is not reached: {refused}\n"


def test_optuna_gets_both_objectives_of_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*SMALL[:2], "experiment=pareto", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3"]

    assert sweep(monkeypatch, *arguments, folder="out") == 0

    points = json.loads(Path("out/points.json").read_text())
    found = yaml.safe_load(Path("out/optimization_results.yaml").read_text())
    assert len(points) == 6
    for point in points:
        numbers = json.loads((Path("out") / point["folder"] / "summary.json").read_text())
        assert point["objective"] == [numbers["p99_ttft_ms"], numbers["output_throughput"]]
    front = [
        one["objective"]
        for one in points
        if not any(
            other["objective"][0] <= one["objective"][0]
            and other["objective"][1] >= one["objective"][1]
            and other["objective"] != one["objective"]
            for other in points
        )
    ]
    assert sorted(map(tuple, front)) == sorted(tuple(one["values"]) for one in found["solutions"])


def test_the_same_seed_of_optuna_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*SMALL[:2], "experiment=pareto", "hydra.sweeper.n_trials=3"]
    for folder in ("a", "b"):
        sweep(monkeypatch, *arguments, folder=folder)
    assert Path("a/points.json").read_bytes() == Path("b/points.json").read_bytes()


def test_what_a_sweeper_needs_is_not_in_a_points_configuration() -> None:
    assert "hydra" not in compose(["experiment=pareto"])

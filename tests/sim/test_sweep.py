"""Sweeps: kept by configuration, gone on with, the same under every launcher, and a failure where a point failed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from joblib import Parallel, delayed

from sim.command import main
from sim.config import hydra_settings
from sim.errors import ConfigError
from sim.sweep import check_plugins

SMALL = ["scenario=synthetic", "scenario.n_requests=30", "task.write=summary"]


def sweep(monkeypatch: pytest.MonkeyPatch, *arguments: str, folder: str = "same") -> int:
    monkeypatch.setattr(sys, "argv", ["sim", "-m", *SMALL, f"hydra.sweep.dir={folder}", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def points(folder: str = "same") -> list[dict[str, Any]]:
    return list(json.loads((Path(folder) / "points.json").read_text()))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sweep_compares_its_own_points_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, "seed=3,4,5") == 0
    assert sweep(monkeypatch, "seed=8,9") == 0

    assert [row["label"] for row in json.loads(Path("same/compare.json").read_text())] == ["seed 8", "seed 9"]
    assert len(list(Path("same").glob("*/manifest.json"))) == 5, "what others left is still there"


def test_what_is_done_is_not_done_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(monkeypatch, "seed=3,4", "cache=paged,static")
    before = {path: path.stat().st_mtime_ns for path in Path("same").glob("*/*")}
    table = Path("same/compare.json").read_bytes(), Path("same/compare.html").read_bytes()
    capsys.readouterr()

    sweep(monkeypatch, "seed=3,4", "cache=paged,static")

    assert {path: path.stat().st_mtime_ns for path in Path("same").glob("*/*")} == before
    assert (Path("same/compare.json").read_bytes(), Path("same/compare.html").read_bytes()) == table
    assert "4 points, 4 done before" in capsys.readouterr().out


def test_another_file_under_the_same_name_is_another_point(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = ["scenario=replay", "scenario.path=a.csv", "task.write=summary", "~scenario.n_requests", "seed=1,2"]
    served = []
    for n in (1, 3):
        Path("a.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,100,10\n" * n)
        monkeypatch.setattr(sys, "argv", ["sim", "-m", *replay[:3], replay[4], "hydra.sweep.dir=same"])
        main()
        folder = Path("same") / points()[0]["folder"]
        served.append(json.loads((folder / "summary.json").read_text())["completed"])

    assert served == [1, 3]


def test_killed_anywhere_and_started_again_gives_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["seed=1,2,3", "cache=paged,dynamic"]
    sweep(monkeypatch, *arguments, folder="whole")
    command = [sys.executable, "-m", "sim", "-m", *SMALL, *arguments, "hydra.sweep.dir=cut"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(Path("cut").glob("*/point.json"))) < 2 and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    n_done = len(list(Path("cut").glob("*/point.json")))

    assert sweep(monkeypatch, *arguments, folder="cut") == 0

    assert 2 <= n_done <= 6
    for name in ("compare.json", "compare.html", "points.json"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


def test_half_written_results_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(monkeypatch, "seed=1,2")
    whole = Path("same/compare.json").read_bytes()
    first, second = (Path("same") / point["folder"] for point in points())
    (first / "point.json").unlink()
    (first / "summary.json").write_text("{")
    (first / ".summary.json.4711").write_text("half")
    (second / "point.json").write_text('{"key": ')

    assert sweep(monkeypatch, "seed=1,2") == 0

    assert Path("same/compare.json").read_bytes() == whole
    assert not (first / ".summary.json.4711").exists()


class InProcesses(Launcher):
    """Runs each point in a process of joblib's, as the plugin for it does."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = enumerate(job_overrides, initial_job_idx)
        run = (delayed(in_process)(i, list(one), self.context, self.function, self.config) for i, one in jobs)
        return list(Parallel(n_jobs=2)(run))


def in_process(number: int, overrides: list[str], context: Any, function: Any, config: Any) -> JobReturn:
    setup_globals()
    point = context.config_loader.load_sweep_config(config, overrides)
    point.hydra.job.id, point.hydra.job.num = str(number), number
    return run_job(
        task_function=function,
        config=point,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting that names it: a plugin of a package beside Hydra's own."""
    name = "hydra_plugins.in_processes.InProcesses"
    monkeypatch.setattr(InProcesses, "__module__", "hydra_plugins.in_processes")
    Path("hydra_plugins").mkdir()
    Path("hydra_plugins/in_processes.py").write_text("from tests.sim.test_sweep import InProcesses")
    module = ModuleType("hydra_plugins.in_processes")
    module.InProcesses = InProcesses  # type: ignore[attr-defined]
    package = ModuleType("hydra_plugins")
    package.__path__ = [str(Path("hydra_plugins").absolute())]
    monkeypatch.setitem(sys.modules, "hydra_plugins", package)
    monkeypatch.setitem(sys.modules, "hydra_plugins.in_processes", module)
    module.__spec__ = ModuleSpec(module.__name__, None)
    monkeypatch.setitem(Plugins.instance().class_name_to_class, name, InProcesses)
    return f"hydra.launcher._target_={name}"


def test_points_in_other_processes_give_what_serial_ones_give(
    monkeypatch: pytest.MonkeyPatch, in_processes: str
) -> None:
    arguments = ["seed=1,2", "cache.block_tokens=16,12"]
    codes = [sweep(monkeypatch, *arguments, folder="serial")]
    codes.append(sweep(monkeypatch, *arguments, in_processes, folder="other"))
    for name in ("compare.json", "compare.html", "points.json"):
        assert Path("other", name).read_bytes() == Path("serial", name).read_bytes()

    assert set(codes) == {2}, "two points failed"


def test_a_sweep_whose_points_serve_nobody_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("long.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,200000,10\n")
    monkeypatch.setattr(
        sys, "argv", ["sim", "-m", "scenario=replay", "scenario.path=long.csv", "seed=1,2", "hydra.sweep.dir=same"]
    )

    with pytest.raises(SystemExit) as stopped:
        main()

    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("kvtwin: all jobs: no request was served: ")
    assert printed.count("\n") == 1
    assert [point["error"] is None for point in points()] == [False, False]


def test_a_run_that_serves_nobody_is_a_failure_with_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("long.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,200000,10\n")
    monkeypatch.setattr(sys, "argv", ["sim", "scenario=replay", "scenario.path=long.csv", "hydra.run.dir=out"])

    with pytest.raises(SystemExit) as stopped:
        main()

    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("kvtwin: no request was served: ")
    assert Path("out/report.html").exists()


def test_a_job_returns_its_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(monkeypatch, "seed=1,2", "task.objective=[p99_ttft_ms,kvtwin.prefix_hit_frac]")

    for point in points():
        numbers = json.loads((Path("same") / point["folder"] / "summary.json").read_text())
        assert point["objective"] == [numbers["p99_ttft_ms"], numbers["kvtwin"]["prefix_hit_frac"]]


def test_an_objective_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, "seed=1,2", "task.objective=p99_tft_ms") == 2
    assert "task.objective=p99_tft_ms is not in summary.json; did you mean p99_ttft_ms?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write", "files"),
    [("summary", {"summary.json"}), ("tables", {"requests.parquet", "summary.json", "iterations.parquet"})],
)
def test_less_may_be_written(write: str, files: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, "seed=1,2", f"task.write={write}") == 0

    for point in points():
        left = {path.name for path in (Path("same") / point["folder"]).iterdir()}
        assert left == files | {"manifest.json", "point.json"}


def test_a_folder_of_ones_own_naming_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, "seed=1,2", "hydra.sweep.subdir=${hydra.job.num}") == 0

    assert [point["folder"] for point in points()] == ["0", "1"]


def test_paths_and_texts_are_swept_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my trace (1).csv", "epoch=3.csv", "a,b.csv"):
        Path(name).write_text("arrival_s,prompt_tokens,output_tokens\n0,100,10\n")
    for value, n in (("my trace (1).csv,epoch=3.csv", 2), ("a,b.csv", 1)):
        monkeypatch.setattr(
            sys,
            "argv",
            ["sim", "-m", "scenario=replay", f"scenario.path={value}", SMALL[-1], "seed=1,2", "hydra.sweep.dir=x"],
        )
        main()
        assert len(points("x")) == 2 * n


def test_ctrl_c_is_one_line_and_what_is_done_stays() -> None:
    command = [sys.executable, "-m", "sim", "-m", *SMALL, "scenario.n_requests=20000", "seed=1,2,3,4,5,6"]
    running = subprocess.Popen([*command, "hydra.sweep.dir=cut"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(Path("cut").glob("*/point.json")) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    printed = running.communicate()[1].decode()

    assert running.returncode == 130
    assert printed == "kvtwin: stopped\n"
    assert list(Path("cut").glob("*/point.json"))
    assert not Path("cut/.points").exists()


def test_a_sweep_on_a_full_disk_leaves_no_empty_folder() -> None:
    script = (
        "import resource, sys; from sim.command import main; import sim.sweep, sim.run;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600));"
        "sys.argv = ['sim', '-m', 'scenario=synthetic', 'scenario.n_requests=30', 'seed=1,2', 'hydra.sweep.dir=full'];"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.count("\n") <= 2, done.stderr
    assert all("Traceback" not in line for line in done.stderr.splitlines())
    assert not Path("full").exists()


@pytest.mark.parametrize("plugin", ["hydra/launcher=nope", "hydra/sweeper=nope"])
def test_a_plugin_that_is_not_there_is_named(
    plugin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, "seed=1,2", plugin) == 2
    assert capsys.readouterr().err.startswith(f"kvtwin: {plugin} is not installed")


def test_a_launcher_of_another_kind_is_refused() -> None:
    settings = hydra_settings(["hydra.launcher._target_=hydra._internal.core_plugins.basic_sweeper.BasicSweeper"])
    with pytest.raises(ConfigError, match="must be a launcher of Hydra's"):
        check_plugins(settings.hydra)

"""Only what is named may run: no way of giving a ``_target_`` reaches code outside the packages that are allowed."""

import importlib
import pkgutil
import sys
import types
from pathlib import Path

import pytest

import sim
from calibration.__main__ import main as calibration
from sim.check import PACKAGES, check, find
from sim.command import main
from sim.config import compose, make
from sim.errors import ConfigError
from sim.sweep import check_plugins
from sim.task import is_task

SMALL = ["scenario=synthetic", "scenario.n_requests=5"]


def our_modules() -> list[types.ModuleType]:
    found = []
    for package in ("sim", "scenarios", "calibration"):
        top = importlib.import_module(package)
        names = [package, *(one.name for one in pkgutil.walk_packages(top.__path__, f"{package}."))]
        found += [importlib.import_module(name) for name in names]
    return found


def borrowed() -> list[str]:
    """Dotted names of all that our modules import from elsewhere, and of what hangs below imported modules."""
    names = []
    for module in our_modules():
        for name, value in vars(module).items():
            here = f"{module.__name__}.{name}"
            if isinstance(value, types.ModuleType):
                if value.__name__ != here:
                    names += [here, *(f"{here}.{below}" for below, item in vars(value).items() if callable(item))]
            elif callable(value) and str(getattr(value, "__module__", "")).split(".")[0] not in PACKAGES:
                names.append(here)
    return names


def test_nothing_that_a_module_of_ours_imports_can_be_named() -> None:
    names = borrowed()

    reached = [name for name in names if is_found(name)]

    assert "sim.command.os.system" in names
    assert len(names) > 3000
    assert reached == []


def is_found(name: str) -> bool:
    try:
        find(name, "x")
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "sim.command.os.system",
        "sim.os.system",
        "builtins.exec",
        "sim.check.import_module",
        "sim",
        "sim.command",
        "sim.config.make.__globals__",
        "sim.run.simulate.__class__",
        "sim.check.find.__wrapped__.__globals__",
        "",
        ".",
        "sim.",
        "sim..run",
        "kernels.nothing",
        "sim.spec.ModelSpec.__init__.__globals__",
        "sim.spec.ModelSpec.__subclasses__",
        "sim.errors.ConfigError.with_traceback",
    ],
)
def test_steps_of_a_name_stay_inside(target: str) -> None:
    assert not is_found(target)


def test_what_runs_other_code_is_of_no_contract() -> None:
    """Functions of ours that build or call whatever they are given stand for no part of a run."""
    for group in ("model", "hardware", "cost", "scenario", "cache", "eviction", "batching", "queue", "router"):
        for target in (
            "sim.config.make",
            "sim.config._built",
            "sim.check.find",
            "sim.command.main",
            "sim.run.simulate",
        ):
            config = compose(SMALL)
            config[group] = {"_target_": target, "_partial_": True}
            with pytest.raises(ConfigError, match=r"_target_|must be given"):
                sim.run.run(config)


def test_only_tasks_are_tasks() -> None:
    tasks = {
        f"{module.__name__}.{name}"
        for module in our_modules()
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and isinstance(value, type | types.FunctionType)
        if is_task(value)
    }
    named = {
        compose([f"task={path.stem}", "dir=x"] if path.stem == "compare" else [f"task={path.stem}"])["task"]["_target_"]
        for path in (sim.config.conf_dir() / "task").glob("*.yaml")
    }

    assert tasks == named


def test_a_part_where_no_part_belongs_is_refused() -> None:
    evil = {"_target_": "sim.router.RoundRobin"}
    for node in (
        {"_target_": "sim.metrics.Slo", "source": evil},
        {"_target_": "sim.metrics.Slo", "classes": {"a": evil}},
    ):
        with pytest.raises(ConfigError, match="must"):
            check(node, "slo")


def test_settings_that_a_maker_is_called_with_are_none() -> None:
    with pytest.raises(ConfigError, match=r"^eviction\.capacity.* is not a setting"):
        sim.simulate(*SMALL, "eviction.capacity_blocks=3")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out_of_reach.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\ndef touch(**_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "ran"


EVIL = "{_target_: os.mkdir, path: ran}"
FILES = {
    "experiment/evil.yaml": "# @package _global_\ntask: {_target_: os.mkdir, path: ran}\n",
    "experiment/reached.yaml": "# @package _global_\ntask: {_target_: sim.command.os.mkdir, path: ran}\n",
    "experiment/trusts.yaml": "# @package _global_\ntrusted_packages: [os, posix]\n"
    "task: {_target_: os.mkdir, path: ran}\n",
    "experiment/imports.yaml": "# @package _global_\nrouter: {_target_: out_of_reach.touch}\n",
    "experiment/callback.yaml": "# @package _global_\nhydra: {callbacks: {x: {_target_: os.mkdir, path: ran}}}\n",
    "experiment/logging.yaml": "# @package _global_\n"
    "hydra: {job_logging: {handlers: {x: {'()': os.mkdir, path: ran}}}}\n",
    "experiment/hlogging.yaml": "# @package _global_\n"
    "hydra: {hydra_logging: {handlers: {x: {'()': os.mkdir, path: ran}}}}\n",
    "experiment/launcher.yaml": "# @package _global_\nhydra: {launcher: {_target_: os.mkdir, path: ran}}\n",
    "experiment/sweeper.yaml": "# @package _global_\nhydra: {sweeper: {_target_: os.mkdir, path: ran}}\n",
    "router/evil.yaml": "_target_: os.mkdir\npath: ran\n",
    "router/inner.yaml": f"_target_: sim.router.RoundRobin\nx: {EVIL}\n",
}


@pytest.mark.parametrize("how", ["--config-dir", "hydra.searchpath", "-m"])
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_was_handed_over_runs_nothing_else(
    file: str, how: str, marker: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path("handed") / file
    path.parent.mkdir(parents=True)
    path.write_text(FILES[file])
    choice = f"{path.parent.name}={path.stem}"
    where = ["--config-dir=handed"] if how == "--config-dir" else [f"hydra.searchpath=[{Path('handed').absolute()}]"]

    code = command(monkeypatch, *SMALL, choice, *where, *(["-m", "seed=1,2"] if how == "-m" else []))

    printed = capfd.readouterr().err
    assert not marker.exists()
    assert "Traceback" not in printed
    if "callback" in file or "logging" in file or (("launcher" in file or "sweeper" in file) and how != "-m"):
        assert code in (0, 2), "not used, or refused"
    else:
        assert code == 2
        assert 1 <= printed.count("\n") <= 2, printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["task._target_=os.mkdir", "+task.path=ran"],
        ["task._target_=sim.command.os.mkdir", "~task._partial_", "+task.path=ran"],
        ["router={_target_: os.mkdir, path: ran}"],
        ["scenario.arrivals={_target_: sim.command.os.mkdir, path: ran}"],
        ["router=evil.yaml"],
        ["cache.block_tokens={_target_: os.mkdir, path: ran}"],
        ["seed={_target_: os.mkdir, path: ran}"],
        ["classify={_target_: os.mkdir, path: ran}"],
        ["experiment={_target_: os.mkdir, path: ran}"],
        ["+x={_target_: os.mkdir, path: ran}"],
        ["hydra.callbacks.x={_target_: os.mkdir, path: ran}"],
        ["+hydra.callbacks.x._target_=os.mkdir"],
        ["-m", "seed=1,2", "hydra.launcher={_target_: os.mkdir, path: ran}"],
        ["-m", "seed=1,2", "hydra.launcher._target_=hydra.utils.call"],
        ["-m", "seed=1,2", "hydra.sweeper._target_=os.mkdir"],
        ["-m", "seed=1,2", "+hydra.sweeper.sampler={_target_: os.mkdir, path: ran}"],
        ["-m", "seed=1,2", "hydra.sweeper._target_=hydra._internal.core_plugins.basic_launcher.BasicLauncher"],
        ["hydra.job_logging.handlers.x.()=os.mkdir"],
        ["--config-path=handed"],
        ["--experimental-rerun=x.pickle"],
    ],
    ids=lambda value: " ".join(value),
)
def test_no_argument_runs_anything_else(
    arguments: list[str], marker: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("evil.yaml").write_text("_target_: os.mkdir\npath: ran\n")

    code = command(monkeypatch, *SMALL, *arguments)

    printed = capfd.readouterr().err
    assert code == 2
    assert not marker.exists()
    assert "Traceback" not in printed
    assert printed.count("\n") == 1, printed


@pytest.mark.parametrize(
    "argument", ["_target_=os.mkdir", "step=../../evil", "calibration/step=evil", "+_target_=os.mkdir"]
)
def test_calibration_calls_its_steps_alone(argument: str, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibration([argument, "path=ran"]) == 2
    assert not marker.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_packages_that_the_user_trusts_are_trusted_with_what_they_define(marker: Path) -> None:
    Path("mine.py").write_text(
        "import os\nfrom os import mkdir\n\nclass Mine:\n    def __init__(self, x: int) -> None:\n        self.x = x\n"
    )

    assert make({"_target_": "mine.Mine", "x": 3}, "x", ("mine",)).x == 3
    for target in ("mine.mkdir", "mine.os.mkdir"):
        with pytest.raises(ConfigError):
            make({"_target_": target, "path": "ran"}, "x", ("mine",))
    assert not marker.exists()


def test_the_plugins_that_come_with_hydra_are_taken() -> None:
    check_plugins(sim.config.hydra_settings([]).hydra)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sim", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0

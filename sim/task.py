"""What a run does, ``task=``, and the folder it does it in."""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.build import check_run
from sim.check import PACKAGES, as_written, find
from sim.config import make, trusted_packages
from sim.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def do_task(config: Mapping[str, Any], out: Path, console: "Console", overrides: Sequence[str] = ()) -> Any:
    """Carry out ``task=``: whatever it names is called with those of the run's parts that it asks for.

    ``overrides`` are what the user set, so that a task can compose a configuration beside this one.

    Returns what it returns: a number, or several, that a sweep may optimise; None where there is none.

    Raises
    ------
    ConfigError
    """
    check_run(config)
    trusted = trusted_packages(config)
    node = config["task"]
    target = node.get("_target_")
    if not isinstance(target, str) or not is_task(find(target, "task._target_", (*PACKAGES, *trusted))):
        raise ConfigError(
            f"task._target_ must name a task, which is called with out and console by name, got {as_written(target)}"
        )
    task = make({**node, "_partial_": node.get("_partial_", False)}, "task", trusted)
    takes = inspect.signature(task).parameters
    if config.get("replications", 1) > 1 and "replications" not in node:
        name = config.get("choices", {}).get("task", target)
        raise ConfigError(f"replications={config['replications']} goes with task=simulate, and not with task={name}")
    offered = {"config": config, "seed": config["seed"], "out": out, "console": console, "overrides": overrides}
    if "scenario" in takes:
        from sim.build import contracts

        offered["scenario"] = make(config["scenario"], "scenario", trusted, contracts()["scenario"])
    return task(**{key: value for key, value in offered.items() if key in takes})


def is_task(found: Any) -> bool:
    """Whether something is a function that is called with ``out`` and ``console``, or makes what is."""
    if isinstance(found, type):
        found = next((vars(one)["__call__"] for one in found.__mro__ if "__call__" in vars(one)), None)
    if found is None:
        return False
    takes = inspect.signature(found).parameters
    return all(name in takes and takes[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("out", "console"))


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """Made before anything runs, so that a place nobody can write to is found at once; unmade if nothing is written."""
    with unmade_if_empty(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"hydra.run.dir must be a folder to write to, got {str(out)!r}: {error.strerror}"
            ) from error
        if not os.access(out, os.W_OK):
            raise ConfigError(f"hydra.run.dir must be a folder to write to, got {str(out)!r}: no permission")
        yield out


@contextmanager
def unmade_if_empty(folder: Path) -> Iterator[None]:
    """Take away a folder, and those above it, that were made meanwhile and hold nothing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def shown(path: Path) -> Path:
    """A path from where one stands, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

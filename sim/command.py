"""The command line: arguments become one run or a sweep, and whatever the user got wrong becomes one line.

Imports of Hydra and rich stand in the functions that use them, so that ``--help`` answers at once.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.build import check_run
from sim.config import RUN_ID, choices_of, compose_run, conf_dir, explain, make, plain
from sim.errors import ConfigError, InvariantError, SimError
from sim.run import frozen_heap

if TYPE_CHECKING:
    from rich.console import Console

HELP = """\
kvtwin: which KV cache, which policy, which hardware and how many, for my traffic and my objectives?

Usage: python -m sim [choice=name ...] [setting=value ...]        (or: kvtwin ...)

Choices (folders of conf/)
{choices}

Examples
  python -m sim scenario=chatbot                             simulate, print a table, write a report
  python -m sim scenario=replay scenario.path=trace.csv      replay a trace
  python -m sim -m scenario=chatbot cache=static,paged       compare: a sweep over all combinations
  python -m sim scenario.rate=3 replicas=2 slo.ttft_ms=500   change any setting
  python -m sim scenario=chatbot --cfg job                   show every setting, and simulate nothing
  python -m sim --hydra-help                                 what else the command line can do
"""


def help_text() -> str:
    """Usage, and every choice there is. Read from the folders: Hydra's own help parses all files, for a second."""
    lines = []
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        if names := choices_of(folder.name):
            lines.append(f"  {folder.name:<12} {', '.join(names)}")
    return HELP.format(choices="\n".join(lines))


def main() -> None:
    """The command line: Hydra's overrides and multirun; whatever the user got wrong is one line and exit code 2."""
    if "--help" in sys.argv or "-h" in sys.argv:
        try:
            print(help_text(), flush=True)
        except BrokenPipeError:  # `| head` has seen enough; what is left to flush goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    arguments = sys.argv[1:]
    failed = False
    try:
        if any(map(is_hydras, arguments)):
            failed = run_sweep(arguments)
        else:
            run_once(arguments)
    except Exception as error:
        if isinstance(error, InvariantError) or not _is_users(error):
            raise
        overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
        print(f"kvtwin: {explain(error, overrides)}", file=sys.stderr)
        failed = True
    if failed:
        sys.exit(2)


def is_hydras(argument: str) -> bool:
    """Whether an argument asks for what Hydra's own command line does: sweeps, showing the configuration, plugins."""
    return argument.startswith(("-", "hydra", "+hydra", "~hydra")) and not argument.startswith("hydra.run.dir=")


def run_once(overrides: list[str]) -> None:
    """One run. Composing it here takes half as long as Hydra's own command line, which does so twice."""
    from rich.console import Console

    with frozen_heap():
        config, out = compose_run(overrides)
        with output_folder(shown(out)) as folder:
            do_task(config, folder, Console())


def do_task(config: Mapping[str, Any], out: Path, console: "Console") -> None:
    """Carry out ``task=``: whatever it names is called with those of the run's parts that it asks for."""
    import inspect

    check_run(config)
    trusted = tuple(config["trusted_packages"])
    task = make(config["task"], "task", trusted)
    takes = inspect.signature(task).parameters
    offered = {"config": config, "seed": config["seed"], "out": out, "console": console}
    if "scenario" in takes:
        offered["scenario"] = make(config["scenario"], "scenario", trusted)
    task(**{key: value for key, value in offered.items() if key in takes})


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


def run_sweep(arguments: list[str]) -> bool:
    """Hydra's own command line; whether a job failed, and none is left half-done."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us instead of being printed with a traceback
    import hydra
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_id", lambda: RUN_ID, replace=True)
    jobs: list[bool] = []

    def job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from rich.console import Console

        hydra_config = HydraConfig.get()
        out = shown(Path(hydra_config.runtime.output_dir))
        jobs.append(False)
        try:
            do_task(plain(cfg, hydra_config), out, Console())
            jobs[-1] = True
        except InvariantError:
            raise  # a bug of ours: the traceback is wanted
        except SimError as error:  # not raised: Hydra would add a line of its own, and end a sweep
            which = f"job {hydra_config.job.num}: " if hydra_config.mode is RunMode.MULTIRUN else ""
            print(f"kvtwin: {which}{error}", file=sys.stderr)
            if out.is_dir() and not any(out.iterdir()):
                out.rmdir()

    version = {} if hydra.__version__ >= "1.4" else {"version_base": "1.3"}
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    with swept_folder(arguments) if is_sweep else nullcontext() as sweep:
        if is_sweep:  # wherever it stood: Hydra's parser wants all settings in a row
            sys.argv[1:] = ["-m", *(one for one in arguments if one not in ("-m", "--multirun"))]
        hydra.main(config_path=str(conf_dir()), config_name="config", **version)(job)()
        if sweep and not jobs and not any(path.is_dir() for path in sweep.iterdir()):  # nor in processes of their own
            asked = " ".join(one for one in arguments if not one.startswith("hydra."))
            raise ConfigError(f"nothing to sweep over in {asked}: give values separated by commas")
    return not all(jobs)


@contextmanager
def swept_folder(arguments: list[str]) -> Iterator[Path]:
    """Names the folder of a sweep; one none of whose points left anything is unmade."""
    given = [argument for argument in arguments if argument.startswith("hydra.sweep.dir=")]
    if not given:
        run_dir = compose_run([])[1]
        given = [f"hydra.sweep.dir={run_dir}-sweep"]
        arguments.append(given[0])
    sweep = Path(given[-1].partition("=")[2])
    with unmade_if_empty(sweep):
        try:
            yield sweep
        finally:
            if sweep.is_dir() and {path.name for path in sweep.iterdir()} <= {"multirun.yaml"}:
                (sweep / "multirun.yaml").unlink(missing_ok=True)


def _is_users(error: BaseException) -> bool:
    """Whether an exception says something about the user's input: ours, Hydra's, or the file system's."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    is_about_choices = isinstance(error, ValueError) and str(error).startswith("Config group override")
    return is_about_choices or isinstance(error, SimError | HydraException | OmegaConfBaseException | OSError)

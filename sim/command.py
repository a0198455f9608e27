"""The command line: arguments become one run or a sweep, and whatever the user got wrong becomes one line.

Imports of Hydra and rich stand in the functions that use them, so that ``--help`` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Any

from sim.config import choices_of, compose, conf_dir, grid_of, hydra_settings
from sim.engine_args import told
from sim.errors import ConfigError, InvariantError, SimError
from sim.override import argument

STOPPED = 128 + 2  # what a shell reports of a program that Ctrl-C ended
HYDRAS = ("--hydra-help", "--version", "--info", "--shell-completion", "-sc")
"""What Hydra's own command line answers. Nothing of these builds anything that a configuration names."""
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
  python -m sim model=mine.yaml --config-dir=my_conf         files of one's own: a choice, a folder like conf/
  python -m sim scenario=chatbot --cfg job                   show every setting, and simulate nothing
  python -m sim hydra.run.dir=FOLDER                         where results go (a sweep's: hydra.sweep.dir)
"""


def help_text() -> str:
    """Usage, and every choice there is. Read from the folders: Hydra's own help parses all files, for a second."""
    lines = []
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        if names := choices_of(folder.name):
            lines.append(f"  {folder.name:<12} {', '.join(names)}")
    return HELP.format(choices="\n".join(lines))


def main() -> None:
    """The command line. Whatever the user got wrong is one line and exit code 2, Ctrl-C one line and 130."""
    code = 0
    try:
        code = 2 if run_command(sys.argv[1:]) else 0
    except KeyboardInterrupt:
        code = STOPPED
        print("kvtwin: stopped", file=sys.stderr)
    except BrokenPipeError:  # `| head` has seen enough; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InvariantError:
        raise  # a bug of ours: the traceback is wanted
    except SimError as error:
        code = 2
        print(f"kvtwin: {error}", file=sys.stderr)
    except OSError as error:
        code = 2
        print(f"kvtwin: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
    if code:
        sys.exit(code)


def run_command(arguments: list[str]) -> bool:
    """Do what the arguments ask for; whether something failed that was said already."""
    flags, overrides = read_flags(arguments)
    if "help" in flags:
        print(help_text(), flush=True)
        return False
    if "hydra" in flags:
        return hydras_own(arguments)
    if "resolve" in flags and "cfg" not in flags:
        raise ConfigError("--resolve goes with --cfg job")
    if "cfg" in flags:
        show(flags["cfg"], overrides)
        return False
    if "sweep" in flags or any(one.lower() == "hydra.mode=multirun" for one in overrides):
        from sim.sweep import run_sweep

        return run_sweep(overrides)
    run_once(overrides)
    return False


def read_flags(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options among the arguments, and the settings.

    Raises
    ------
    ConfigError
        If there is no such option.
    """
    flags: dict[str, str] = {}
    overrides, rest = [], list(arguments)
    while rest:
        one = rest.pop(0)
        name, equals, value = one.partition("=")
        if not one.startswith("-"):
            overrides.append(one)
        elif name in ("-h", "--help"):
            flags["help"] = ""
        elif name in ("-m", "--multirun"):
            flags["sweep"] = ""
        elif name == "--resolve":
            flags["resolve"] = ""
        elif name in HYDRAS:
            flags["hydra"] = name
        elif name in ("-c", "--cfg", "-cd", "--config-dir"):
            value = value if equals else rest.pop(0) if rest else ""
            if name in ("-c", "--cfg"):
                flags["cfg"] = value
            elif not Path(value).is_dir():
                raise ConfigError(f"--config-dir must be a folder like conf/, got {value!r}")
            else:
                overrides.append(f"hydra.searchpath=[{str(Path(value).absolute())!r}]")
        elif name not in ("-r", "--run"):
            raise ConfigError(f"{name} is not an option; there are -h, -m, --cfg job, --config-dir, --hydra-help")
    return flags, overrides


def run_once(overrides: list[str]) -> None:
    """One run."""
    from rich.console import Console

    from sim.run import frozen_heap
    from sim.task import do_task, output_folder, shown

    with frozen_heap():
        config = compose(overrides)
        for one in overrides:
            if argument(one).key == "experiment" and grid_of(overrides) is not None:
                raise ConfigError(f"{one} compares several points: python -m sim -m {one}")
        for flag in told(config["engine"].get("args") or ""):
            print(f"engine.args: {flag.words()}", flush=True)
        out = Path(str(hydra_settings(overrides).hydra.run.dir))
        with output_folder(shown(out)) as folder:
            do_task(config, folder, Console(), overrides)


def show(which: str, overrides: list[str]) -> None:
    """Print the configuration: every setting with its value."""
    import yaml  # type: ignore[import-untyped]

    if which not in ("job", "hydra", "all"):
        raise ConfigError(f"--cfg must be job, hydra or all, got {which!r}")
    tree: dict[str, Any] = {}
    if which != "hydra":
        tree |= {key: value for key, value in compose(overrides).items() if key != "choices"}
    if which != "job":
        from omegaconf import OmegaConf

        tree["hydra"] = OmegaConf.to_container(hydra_settings(overrides).hydra)
    print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), end="", flush=True)


def hydras_own(arguments: list[str]) -> bool:
    """What Hydra's command line says of itself."""
    import hydra

    if any(one.startswith(("hydra", "+", "~", "-cd", "--config")) for one in arguments):
        raise ConfigError(f"{arguments[0]} takes no settings")
    sys.argv[1:] = arguments
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(lambda _: None)()
    return False

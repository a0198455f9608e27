"""The command line of calibration: ``python -m calibration step=fit measurements=outputs/calibration/h200``."""

import os
import sys
from pathlib import Path

from sim.errors import ConfigError, InvariantError, SimError

STOPPED = 128 + 2  # what a shell reports of a program that Ctrl-C ended

EXTRAS = {"torch": "gpu", "triton": "gpu", "starlette": "serve", "uvicorn": "serve"}
"""Packages that a step may need and the core does not install, by the extra that has them."""


def main(arguments: list[str]) -> int:
    """Compose the configuration, call the step it names; the exit code, 2 for whatever the user got wrong.

    A step is a function with a YAML in ``conf/calibration/step`` that names it and its options.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small: threads would only wait for one another
    steps = [a.partition("=")[2] for a in arguments if a.startswith("step=")]
    try:
        if {"-h", "--help"} & set(arguments):
            print(step_help(steps[-1]) if steps else help_text())
            return 0
        run_step(arguments)
    except InvariantError:
        raise  # a bug of ours: the traceback is wanted
    except SimError as error:
        print(f"calibration: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(
            f"calibration: {error.name} is not installed: pip install 'kvtwin[{EXTRAS[error.name]}]'", file=sys.stderr
        )
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"calibration: {error.filename2 or error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("calibration: stopped; what step=measure timed is kept, the same command goes on there", file=sys.stderr)
        return STOPPED
    return 0


def run_step(arguments: list[str]) -> None:
    """Call the step that the arguments name, and no other function."""
    from sim.check import check_call, find
    from sim.config import compose
    from sim.override import argument

    overrides = []
    for one in map(argument, arguments):
        if one.key == "hardware" and one.text in ("", "null"):
            overrides.append(one._replace(value=None, text="null"))
        elif one.key == "_target_":
            raise ConfigError("_target_ is not a setting: step= names what is done")
        else:
            overrides.append(one._replace(key="calibration/step") if one.key == "step" else one)
    config = compose(overrides, "calibration", groups=("calibration/step",))
    target = str(config.pop("_target_"))
    check_call(config, target)
    find(target, "step")(**config)


def step_yaml(step: str) -> Path:
    """The file of a step.

    Raises
    ------
    ConfigError
        If there is none.
    """
    from sim.config import choices_of, conf_dir

    if step not in choices_of("calibration/step"):
        raise ConfigError(f"step={step} is not a choice (there are {', '.join(choices_of('calibration/step'))})")
    return conf_dir() / "calibration" / "step" / f"{step}.yaml"


def about(path: Path) -> str:
    """The first line of a step's YAML."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @")), "")


def step_help(step: str) -> str:
    """What a step does, and its settings with their defaults."""
    path = step_yaml(step)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1].isalpha()]
    settings = [f"  {key}={value.strip()}" for key, _, value in (line.partition(":") for line in lines)]
    return "\n".join([f"python -m calibration step={step} [option=value ...]", f"  {about(path)}", "", *settings])


def help_text() -> str:
    """Steps with the first line of their YAML."""
    from sim.config import choices_of

    lines = ["python -m calibration step=<step> [option=value ...]   (step=<step> --help: its options)", ""]
    lines += [f"  step={step:<10} {about(step_yaml(step))}" for step in choices_of("calibration/step")]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

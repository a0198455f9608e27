"""The command line of calibration: ``python -m calibration step=fit measurements=outputs/calibration/h200``."""

import os
import sys

from sim.errors import ConfigError, InvariantError, SimError

STOPPED = 128 + 2  # what a shell reports of a program that Ctrl-C ended


def main(arguments: list[str]) -> int:
    """Compose the configuration, call the step it names; the exit code, 2 for whatever the user got wrong.

    A step is a function with a YAML in ``conf/calibration/step`` that names it and its options.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small: threads would only wait for one another
    from hydra.utils import get_method

    from sim.check import unknown
    from sim.config import compose

    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    devices = [a for a in arguments if a.startswith("hardware=")]  # a name to a step, a folder of choices to Hydra
    overrides = [f"calibration/{a}" if a.startswith("step=") else a for a in arguments if a not in devices]
    try:
        config = compose(overrides, "calibration")
        config.pop("choices", None)
        if devices and "hardware" not in config:
            raise ConfigError(unknown("hardware", [key for key in config if key != "_target_"]))
        for device in devices:
            name = device.partition("=")[2]
            config["hardware"] = None if name in ("", "null") else name
        step = get_method(config.pop("_target_"))
        if missing := [key for key, value in config.items() if value == "???"]:
            print(f"calibration: {missing[0]} must be given", file=sys.stderr)
            return 2
        step(**config)
    except InvariantError:
        raise  # a bug of ours: the traceback is wanted
    except SimError as error:
        print(f"calibration: {error}", file=sys.stderr)
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


def help_text() -> str:
    """Steps with the first line of their YAML."""
    from sim.config import conf_dir

    lines = ["python -m calibration step=<step> [option=value ...]", ""]
    for path in sorted((conf_dir() / "calibration" / "step").glob("*.yaml")):
        about = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        said = next((line[2:] for line in about if not line.startswith("# @")), "")
        lines.append(f"  step={path.stem:<10} {said}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One visit to a GPU, of ten minutes: ``python -m calibration.gpu_slot --out folder``.

Compiles all kernels in several processes, times what profiles need, proves and times the kernels themselves, and makes
tables and a profile of whatever rows there are. Each part is a process of its own with a time limit: one that is killed
or hangs is started again and goes on behind what ended it, and what it had measured is on the disk. The same command
goes on in a folder where it was cut off; ``--finish`` makes tables and profile later, where there is no GPU.

    folder/calibration/   timings.jsonl, and of them measurements.csv, measurements.json, profile.json
    folder/kernels/       correctness.csv, speed.csv, and of them RESULTS.md
    folder/*.log          what each part said
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

MINUTES = 10.0  # of a slot
COMPILING_FRAC, TIMING_FRAC, KERNELS_FRAC = 0.1, 0.55, 0.19  # of it, from its start; the rest makes tables
GRACE_S = 5.0  # between asking a process to end and ending it
LEAST_S = 3.0  # a process is not worth starting again for less
MOST_PROCESSES = 8  # that compile, for each of the two parts


class Stage(NamedTuple):
    """A part of the visit: processes side by side, and when it must be over."""

    name: str
    commands: Callable[[float], list[list[str]]]  # of the seconds that are left to it
    until_frac: float  # of the slot
    folder: Path | None = None  # where a process that ended in the midst of something has left its name


def stages(out: Path, device: str) -> list[Stage]:
    """The parts in order."""
    python = [sys.executable, "-m"]
    timing, kernels = out / "calibration", out / "kernels"

    def compiling(_: float) -> list[list[str]]:
        n = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) // 2))
        options = ["--out", str(out / "calibration"), "--device", device]
        modules = ("calibration.gpu", "kernels")
        return [[*python, module, *options, "--warm", f"{i}/{n}"] for i in range(n) for module in modules]

    def calibrate(seconds: float) -> list[list[str]]:
        options = ["--out", str(timing), "--device", device, "--minutes", f"{seconds / 60.0:.3f}"]
        return [[*python, "calibration.gpu", *options]]

    def prove(seconds: float) -> list[list[str]]:
        options = ["--out", str(kernels), "--device", device, "--budget-s", f"{seconds:.0f}", "--continue"]
        return [[*python, "kernels", *options]]

    def finishing(_: float) -> list[list[str]]:
        return [[*python, "calibration.gpu_slot", "--out", str(out), "--finish"]]

    until = COMPILING_FRAC + TIMING_FRAC
    return [
        Stage("compiling", compiling, COMPILING_FRAC),
        Stage("calibration", calibrate, until, timing),
        Stage("kernels", prove, until + KERNELS_FRAC, kernels),
        Stage("finish", finishing, 1.0),
    ]


def run_stage(stage: Stage, out: Path, stop_s: float) -> str:
    """Run a part until it is done or its time is over; how it ended, in words."""
    said = ""
    while (left_s := stop_s - time.monotonic()) > LEAST_S or not said:
        codes = [end(process, stop_s) for process in start(stage, out, max(left_s, LEAST_S))]
        said = ", ".join("out of time" if code is None else f"exit {code}" for code in codes)
        has_died = stage.folder is not None and any(stage.folder.glob("*.begun"))
        if not has_died or None in codes:
            break
        print(f"{stage.name}: ended in the midst of something ({said}); goes on after it", flush=True)
    return said


def start(stage: Stage, out: Path, left_s: float) -> list[subprocess.Popen[bytes]]:
    """The part's processes, each with its own process group, which all say what they say into one file."""
    with (out / f"{stage.name}.log").open("ab") as log:
        return [
            subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: S603 our own programs
            for command in stage.commands(left_s)
        ]


def end(process: subprocess.Popen[bytes], stop_s: float) -> int | None:
    """Wait for a process, or end it when its time is over; its exit status, or None."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(max(0.0, stop_s - time.monotonic()))
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            break
    return None


def finish(out: Path) -> list[str]:
    """Tables and a profile of the rows there are; what could not be made, and why."""
    from calibration.bench import gather
    from calibration.fit import fit_profile, write_profile
    from calibration.measurements import read_measurements, write_measurements
    from kernels.results import write_results

    timing = out / "calibration"

    def profile() -> None:
        write_measurements(gather(timing), timing)
        write_profile(fit_profile(read_measurements(timing), compare=False), timing / "profile.json")

    makers: list[tuple[str, Callable[[], Any]]] = [
        ("profile", profile),
        ("RESULTS.md", partial(write_results, out / "kernels")),
    ]
    problems = []
    for name, make in makers:
        try:
            make()
        except Exception as error:  # the other is still wanted, and both can be made again
            problems.append(f"no {name}: {type(error).__name__}: {error}")
    return problems


def main(arguments: list[str]) -> int:
    """Make the visit; 0 if everything was made, 1 if something is missing, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m calibration.gpu_slot", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder; a visit that was cut off goes on there")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu rehearses")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the slot")
    parser.add_argument("--finish", action="store_true", help="make tables and profile of the rows there are, no more")
    options = parser.parse_args(arguments)
    if options.finish:
        problems = finish(options.out)
        print("\n".join(problems) or f"{options.out}: tables and profile are made", flush=True)
        return 1 if problems else 0
    if find_spec("torch") is None:
        print("calibration.gpu_slot: torch is not installed: pip install 'kvtwin[gpu]'", file=sys.stderr)
        return 2
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("calibration.gpu_slot: torch sees no GPU here; --device cpu rehearses", file=sys.stderr)
            return 2
    options.out.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    said = ""
    for stage in stages(options.out, options.device):
        said = run_stage(stage, options.out, start_s + 60.0 * options.minutes * stage.until_frac)
        print(f"{stage.name}: {said}, after {time.monotonic() - start_s:.0f} s", flush=True)
    if said != "exit 0":
        print(f"later, also without a GPU: python -m calibration.gpu_slot --out {options.out} --finish", flush=True)
    return 0 if said == "exit 0" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

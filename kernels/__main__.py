"""Prove the kernels right on this GPU, then time them: ``python -m kernels [--device cpu] [--out folder]``.

Correctness comes first, then the table; every row is written as soon as it is known. On a CPU the references stand in
for the kernels at tiny sizes: a rehearsal of the very same code, whose timings mean nothing and are written nowhere as
results. ``RESULTS.md`` is written by runs on a GPU alone. A kernel that takes the device from the process, by a bad
address say, is written down as failed, and a new process goes on after it, as ``--continue`` does after a run cut off.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError:
    print("kernels: torch is not installed: pip install 'kvtwin[gpu]'", file=sys.stderr)
    sys.exit(2)

from kernels.correctness import checks
from kernels.exhibits import EXHIBITS, Stage
from kernels.operations import operations
from kernels.results import CHECK_COLUMNS, REHEARSAL, SPEED_COLUMNS, markdown, write_results
from kernels.rows import Rows
from kernels.speed import Speed, jobs
from kernels.timing import DeviceLostError, is_lost
from kernels.warm import compile_all, launching_only, share_of
from kernels.watch import Watch, end_in_order

HERE = Path(__file__).with_name("RESULTS.md")
ENDED = "the process was ended in it"


def machine(device: torch.device) -> dict[str, str]:
    """Device, driver, clocks and versions; queries only, changes no setting."""
    facts = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type != "cuda":
        return {"device": REHEARSAL, **facts}
    import triton

    facts |= {"triton": triton.__version__, "cuda": str(torch.version.cuda)}
    query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    try:
        line = subprocess.run(  # noqa: S603
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={device.index or 0}"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()
        facts |= dict(zip(query.split(","), (x.strip() for x in line.split(",")), strict=False))
    except (OSError, subprocess.SubprocessError):
        facts["name"] = torch.cuda.get_device_name(device)
    return {"device": torch.cuda.get_device_name(device), **facts}


def prove(ops: Any, device: torch.device, rows: Rows, deadline_s: float, watch: Watch) -> None:
    """Run every check after those there are rows of; one that raises is a failed one, one out of time is skipped.

    Raises
    ------
    DeviceLostError
        After a check that took the device from this process, and its row.
    """
    left = watch.left()
    for number, check in enumerate(checks(ops, device, is_tiny=device.type != "cuda")):
        if number < len(rows.rows):
            continue
        name = f"{number} {check.kernel} {check.case}"
        row: dict[str, Any] = {"kernel": check.kernel, "case": check.case}
        if left is not None and left[0] == name:
            rows.add(**row, passed="NO", remark=left[1] or ENDED)
            left = None
            continue
        if time.monotonic() > deadline_s:
            rows.add(**row, passed="skipped", remark="out of time")
            continue
        torch.manual_seed(0)
        start_s = time.monotonic()
        with watch.over(name):
            try:
                found, gate = check.run()
                row |= {"error": found, "gate": gate, "passed": "yes" if found <= gate else "NO"}
            except Exception as failure:  # one kernel that fails must not hide the others
                row |= {"passed": "NO", "remark": said_by(failure)}
        rows.add(**row, seconds=round(time.monotonic() - start_s, 2))
        if row["passed"] == "NO" and is_lost(device):
            raise DeviceLostError(f"{check.kernel} {check.case}")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def said_by(failure: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0][:200]}"


def judge(speed: Speed, ceilings: dict[str, float]) -> dict[str, Any]:
    """A row of the table: the rate as a share of its ceiling, and whether the bar was met."""
    share = speed.rate / ceilings[speed.unit] if speed.unit in ceilings else None
    return {
        "kernel": speed.kernel,
        "case": speed.case,
        "time_us": speed.time_us,
        "rate": speed.rate,
        "unit": speed.unit,
        "of_ceiling_frac": share if share is not None else "",
        "must": speed.must if speed.must is not None else "",
        "verdict": speed.verdict(share),
        "convention": speed.convention,
        "remark": speed.remark,
    }


def beside(speed: Speed) -> dict[str, Any]:
    """What torch's attention took on the same inputs; whatever goes wrong there, our own time stands."""
    if speed.rivals is None:
        return {}
    try:
        times = speed.rivals()
    except Exception as failure:
        return {"remark": "; ".join(filter(None, (speed.remark, f"rivals: {said_by(failure)}")))}
    return {f"{name}_us": times.get(name, "") for name in ("flash", "cudnn")}


def tabulate(ops: Any, device: torch.device, rows: Rows, deadline_s: float, watch: Watch) -> None:
    """Time everything after what there are rows of, ceilings first; what fails or does not fit the time is written.

    Raises
    ------
    DeviceLostError
        After a timing that took the device from this process, and its row.
    """
    ceilings = {row["unit"]: row["rate"] for row in rows.rows if row["kernel"] == "ceiling"}
    n_left, left = 0, watch.left()
    for number, job in enumerate(jobs(ops, device, is_tiny=device.type != "cuda")):
        if number < len(rows.rows):
            continue
        if left is not None and left[0] == str(number):
            rows.add(kernel="failed", case=f"timing {number}: {left[1] or ENDED}", verdict="failed")
            left = None
            continue
        if time.monotonic() > deadline_s:
            n_left += 1
            continue
        torch.manual_seed(0)
        row: dict[str, Any] = {}
        with watch.over(str(number)):
            try:
                speed = job()
                if speed.kernel == "ceiling":
                    ceilings[speed.unit] = speed.rate
                row = judge(speed, ceilings)
                row |= beside(speed)
            except Exception as failure:  # one kernel that fails must not hide the others
                row = {"kernel": "failed", "case": said_by(failure), "verdict": "failed"}
        rows.add(**row)
        if ("rivals" in row.get("remark", "") or row["verdict"] == "failed") and is_lost(device):
            raise DeviceLostError(row["case"])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if n_left:
        rows.add(kernel="skipped", case=f"{n_left} timings, out of time")


def show(exhibit: str, device: torch.device) -> int:
    """Print an exhibit, a row as soon as it is known."""
    if device.type == "cpu":
        torch.set_num_threads(1)  # steady times, whatever else the machine does
    print(f"# {(EXHIBITS[exhibit].__doc__ or '').strip()}\n")
    print("; ".join(f"{k} {v}" for k, v in machine(device).items()) + "\n")
    for i, row in enumerate(EXHIBITS[exhibit](Stage(device))):
        lines = markdown(row, [row]).splitlines()
        print("\n".join(lines if i == 0 else lines[2:]), flush=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if every check passed, 1 if any failed or was skipped, 2 if there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "exhibit", nargs="?", choices=list(EXHIBITS), help="show what attention costs, and nothing else"
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse with the references")
    parser.add_argument("--out", type=Path, default=Path("outputs/kernels"), help="folder for the rows as they come")
    parser.add_argument("--budget-s", type=float, default=440.0, help="start nothing after this many seconds [s]")
    parser.add_argument("--continue", action="store_true", dest="is_continued", help="after the rows in the folder")
    parser.add_argument("--warm", type=share_of, metavar="I/N", help="compile the I-th of N shares, and nothing else")
    parser.add_argument("--results", action="store_true", help="write RESULTS.md from the rows in the folder; no GPU")
    options = parser.parse_args(arguments)
    if options.results:
        written = write_results(options.out, HERE)
        print(written or f"kernels: {options.out} holds no rows of a GPU")
        return 0 if written else 2
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("kernels: no CUDA device here; `--device cpu` rehearses with the references", file=sys.stderr)
        return 2
    if options.exhibit:
        return show(options.exhibit, device)
    ops = operations(device)
    if options.warm:
        index, number = options.warm
        share = islice(checks(launching_only(ops), device, is_tiny=device.type != "cuda"), index, None, number)
        print(f"{compile_all(check.run for check in share)} launches")
        return 0

    start_s = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    facts = machine(device)
    print("; ".join(f"{k} {v}" for k, v in facts.items()), flush=True)
    proven, timed = (
        Rows(options.out / name, columns, facts, is_continued=options.is_continued)
        for name, columns in (("correctness.csv", CHECK_COLUMNS), ("speed.csv", SPEED_COLUMNS))
    )
    try:
        prove(ops, device, proven, start_s + 0.6 * options.budget_s, Watch(options.out / "check.begun"))
        tabulate(ops, device, timed, start_s + options.budget_s, Watch(options.out / "timing.begun"))
    except DeviceLostError as lost:
        print(f"the device is lost to this process after {lost}; a new one goes on", flush=True)
        left_s = max(0.0, start_s + options.budget_s - time.monotonic())
        rest = ["--device", options.device, "--out", str(options.out), "--budget-s", f"{left_s:.0f}", "--continue"]
        os.execv(sys.executable, [sys.executable, "-m", "kernels", *rest])  # noqa: S606 our own program
    except OSError as error:
        print(f"kernels: {error.filename or options.out}: {error.strerror}; the rows before it are kept", flush=True)
        return 3
    finally:
        proven.close()
        timed.close()
    write_results(options.out, HERE)
    n_bad = sum(row["passed"] != "yes" for row in proven.rows)
    n_failed = sum(row["verdict"] == "failed" for row in timed.rows)
    print(
        f"{len(proven.rows) - n_bad} of {len(proven.rows)} checks passed, {n_failed} of {len(timed.rows)} timings "
        f"failed, {time.monotonic() - start_s:.0f} s" + ("" if device.type == "cuda" else "; a rehearsal, no results"),
        flush=True,
    )
    return 1 if n_bad or n_failed else 0


if __name__ == "__main__":
    end_in_order()  # here alone: a process that calls main has its own ways
    sys.exit(main())

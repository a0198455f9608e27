"""Prove the kernels right on this GPU, then time them: ``python -m kernels [--device cpu] [--out folder]``.

Correctness comes first, then the table; every row is written as soon as it is known. On a CPU the references stand in
for the kernels at tiny sizes: a rehearsal of the very same code, whose timings mean nothing and are written nowhere as
results. ``RESULTS.md`` is written by runs on a GPU alone. A kernel that takes the device from the process, by a bad
address say, is written down as failed, and a new process goes on after it, as ``--continue`` does after a run cut off.
"""

import argparse
import csv
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kernels.correctness import checks
from kernels.operations import operations
from kernels.speed import Speed, jobs
from kernels.timing import DeviceLostError, is_lost

CHECK_COLUMNS = ("kernel", "case", "error", "gate", "passed", "seconds", "remark")
SPEED_COLUMNS = (
    "kernel", "case", "time_us", "rate", "unit", "of_ceiling_frac", "must", "verdict", "flash_us", "cudnn_us",
    "convention", "remark",
)  # fmt: skip
SHARE_OF_COPY = ("kv_append", "kv_copy")  # their bars are shares of the copy ceiling, not rates


def machine(device: torch.device) -> dict[str, str]:
    """Device, driver, clocks and versions; queries only, changes no setting."""
    facts = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type != "cuda":
        return {"device": "CPU rehearsal", **facts}
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


class Rows:
    """A CSV file that holds every row as soon as it is added, under the machine it was measured on.

    With ``is_continued`` the rows that are in the file already stay, but for those of skipped work.
    """

    def __init__(
        self, path: Path, columns: tuple[str, ...], facts: dict[str, str], *, is_continued: bool = False
    ) -> None:
        self.columns = columns
        found = read_rows(path) if is_continued and path.is_file() else []
        self.rows = [row for row in found if "skipped" not in (row["kernel"], row.get("passed"))]
        self._file = path.open("w", newline="")
        self._file.write("# " + "; ".join(f"{k} {v}" for k, v in facts.items()) + "\n")
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()
        self._writer.writerows(self.rows)
        self._file.flush()

    def add(self, **row: Any) -> None:
        """Write one row and show it."""
        self.rows.append({column: row.get(column, "") for column in self.columns})
        self._writer.writerow(self.rows[-1])
        self._file.flush()
        os.fsync(self._file.fileno())
        print(
            "  ".join(
                (f"{c} " if c not in ("kernel", "case", "remark") else "")
                + (f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]))
                for c in self.columns
                if row.get(c) not in ("", None)
            ),
            flush=True,
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that `Rows` wrote, numbers as numbers; a last line that was cut off is dropped."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    rows: list[dict[str, Any]] = list(csv.DictReader(lines[1:]))
    for row in rows:
        for column, value in row.items():
            with suppress(ValueError):
                row[column] = float(value)
    return rows


def prove(ops: Any, device: torch.device, rows: Rows, deadline_s: float) -> None:
    """Run every check after those there are rows of; one that raises is a failed one, one out of time is skipped.

    Raises
    ------
    DeviceLostError
        After a check that took the device from this process, and its row.
    """
    for check in islice(checks(ops, device, is_tiny=device.type != "cuda"), len(rows.rows), None):
        row: dict[str, Any] = {"kernel": check.kernel, "case": check.case}
        if time.monotonic() > deadline_s:
            rows.add(**row, passed="skipped", remark="out of time")
            continue
        torch.manual_seed(0)
        start_s = time.monotonic()
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
    verdict = speed.verdict()
    if speed.kernel in SHARE_OF_COPY and speed.must is not None and speed.convention != "rehearsal":
        verdict = "" if share is None else "met" if share >= speed.must else "missed"
    return {
        "kernel": speed.kernel,
        "case": speed.case,
        "time_us": speed.time_us,
        "rate": speed.rate,
        "unit": speed.unit,
        "of_ceiling_frac": share if share is not None else "",
        "must": speed.must if speed.must is not None else "",
        "verdict": verdict,
        "flash_us": speed.rivals.get("flash", ""),
        "cudnn_us": speed.rivals.get("cudnn", ""),
        "convention": speed.convention,
        "remark": speed.remark,
    }


def tabulate(ops: Any, device: torch.device, rows: Rows, deadline_s: float) -> None:
    """Time everything after what there are rows of, ceilings first; what fails or does not fit the time is written.

    Raises
    ------
    DeviceLostError
        After a timing that took the device from this process, and its row.
    """
    ceilings = {row["unit"]: row["rate"] for row in rows.rows if row["kernel"] == "ceiling"}
    n_left = 0
    for job in islice(jobs(ops, device, is_tiny=device.type != "cuda"), len(rows.rows), None):
        if time.monotonic() > deadline_s:
            n_left += 1
            continue
        torch.manual_seed(0)
        try:
            speed = job()
            if speed.kernel == "ceiling":
                ceilings[speed.unit] = speed.rate
            rows.add(**judge(speed, ceilings))
        except Exception as failure:  # one kernel that fails must not hide the others
            rows.add(kernel="failed", case=said_by(failure), verdict="failed")
            if is_lost(device):
                raise DeviceLostError(said_by(failure)) from None
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if n_left:
        rows.add(kernel="skipped", case=f"{n_left} timings, out of time")


def cell(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def markdown(columns: Iterable[str], rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    names = list(columns)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def report(facts: dict[str, str], proven: list[dict[str, Any]], timed: list[dict[str, Any]]) -> str:
    """The text of RESULTS.md."""
    n_passed = sum(row["passed"] == "yes" for row in proven)
    return "\n".join(
        [
            "# What the kernels did on a GPU",
            "",
            "Written by `python -m kernels`; every number was measured in that one run. Times below 100 us come from a",
            "CUDA graph of 20 launches over different blocks (`graph`), others from Triton's `do_bench`; medians.",
            "Bars of `kv_append` and `kv_copy` are shares of the copy ceiling, the floor's is in us, others are rates.",
            "Causal attention counts the visible pairs only; decode counts the keys and values read.",
            "",
            *(f"* {key}: {value}" for key, value in facts.items()),
            "",
            "## Speed",
            "",
            markdown(SPEED_COLUMNS, timed),
            "",
            f"## Correctness: {n_passed} of {len(proven)} passed",
            "",
            "Error: relative, Frobenius norm, against float64; 0 means bit for bit.",
            "",
            markdown(CHECK_COLUMNS, proven),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if every check passed, 1 if any failed or was skipped, 2 if there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse with the references")
    parser.add_argument("--out", type=Path, default=Path("outputs/kernels"), help="folder for the rows as they come")
    parser.add_argument("--budget-s", type=float, default=440.0, help="start nothing after this many seconds [s]")
    parser.add_argument("--continue", action="store_true", dest="is_continued", help="after the rows in the folder")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("kernels: no CUDA device here; `--device cpu` rehearses with the references", file=sys.stderr)
        return 2

    start_s = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    facts = machine(device)
    print("; ".join(f"{k} {v}" for k, v in facts.items()), flush=True)
    ops = operations(device)
    proven, timed = (
        Rows(options.out / name, columns, facts, is_continued=options.is_continued)
        for name, columns in (("correctness.csv", CHECK_COLUMNS), ("speed.csv", SPEED_COLUMNS))
    )
    try:
        prove(ops, device, proven, start_s + 0.6 * options.budget_s)
        tabulate(ops, device, timed, start_s + options.budget_s)
    except DeviceLostError as lost:
        proven.close()
        timed.close()
        print(f"the device is lost to this process after {lost}; a new one goes on", flush=True)
        left_s = max(0.0, start_s + options.budget_s - time.monotonic())
        rest = ["--device", options.device, "--out", str(options.out), "--budget-s", f"{left_s:.0f}", "--continue"]
        os.execv(sys.executable, [sys.executable, "-m", "kernels", *rest])  # noqa: S606 our own program
    proven.close()
    timed.close()
    if device.type == "cuda":
        text = report(facts, proven.rows, timed.rows)
        for path in (options.out / "RESULTS.md", Path(__file__).with_name("RESULTS.md")):
            path.write_text(text)
    n_bad = sum(row["passed"] != "yes" for row in proven.rows)
    n_failed = sum(row["verdict"] == "failed" for row in timed.rows)
    print(
        f"{len(proven.rows) - n_bad} of {len(proven.rows)} checks passed, {n_failed} of {len(timed.rows)} timings "
        f"failed, {time.monotonic() - start_s:.0f} s" + ("" if device.type == "cuda" else "; a rehearsal, no results"),
        flush=True,
    )
    return 1 if n_bad or n_failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Time all points of a machine: two passes in different random order, what is done kept on disk, failures recorded."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from errno import ENOSPC
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calibration.measurements import Measurements, frame
from calibration.points import Point
from kernels.watch import Watch
from sim.errors import ProfileError

N_PASSES = 2
SENTINEL = -1  # in place of the pass
SENTINEL_S = 60.0  # a known point is timed again this often
MOST_FATAL = 2  # points of an operation that took the device: no other of it is tried
ENDED = "the process was ended in it"
DRIFT_FRAC = 0.03  # more than this between sentinels is reported


class LostError(ProfileError):
    """The device refuses this process everything from now on; another process may go on in the same folder."""


class Bench(Protocol):
    """A machine that times points."""

    device: str
    convention: str
    subject: dict[str, Any]
    versions: dict[str, str]

    def points(self) -> list[Point]:
        """What there is to time, the sentinel first."""
        ...

    def comes_first(self, at: Point) -> bool:
        """Whether a profile needs the point: all of them are timed once before any of the others."""
        ...

    def seconds(self, at: Point) -> float:
        """Time of one point [s]; `LostError` if nothing can be timed after it."""
        ...


def run_bench(
    bench: Bench, folder: Path, minutes: float, seed: int, clock: Callable[[], float] = time.monotonic
) -> Measurements:
    """Time the bench's points into a folder, and make the measurement table of them: `time_points`, then `gather`."""
    time_points(bench, folder, minutes, seed, clock)
    return gather(folder)


def time_points(
    bench: Bench, folder: Path, minutes: float, seed: int, clock: Callable[[], float] = time.monotonic
) -> int:
    """Time every point twice, or as often as the minutes allow; go on where a run in the same folder was cut off.

    A line a timing goes to ``timings.jsonl`` at once. A point that fails is recorded there, and the rest goes on; so is
    one in which the process before this one was ended, and after a point that hung no more of its kind than one are
    tried. Returns how many timings the folder now has.

    Raises
    ------
    ProfileError
        If the folder's timings are of another device.
    LostError
        After a point that took the device from this process; it is recorded, and a run that goes on leaves it out.
    """
    points = bench.points()
    log = folder / "timings.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    about, rows = read_timings(log) if log.is_file() else ({}, [])
    watch = Watch(folder / "timings.begun")
    left = watch.left()
    if left is not None:
        n_pass, key = json.loads(left[0])
        rows.append({"pass": n_pass, "key": key, "error": left[1] or ENDED, "fatal": bool(left[1])})
    if about and about["device"] != bench.device:
        raise ProfileError(
            f"{log}: timings of {about['device']!r}, this machine is {bench.device!r}; take another out="
        )
    done = {(row["pass"], row["key"]) for row in rows}
    fatal = {row["key"] for row in rows if row.get("fatal")}
    kinds = Counter(json.loads(key)[0] for key in fatal)
    hopeless = {kind for kind, n in kinds.items() if n >= MOST_FATAL}
    rng = np.random.default_rng(seed)
    order = [(n_pass, points[i]) for n_pass in range(N_PASSES) for i in rng.permutation(len(points))]
    order.sort(key=lambda one: (one[0], not bench.comes_first(one[1])))
    todo = [
        (n_pass, at)
        for n_pass, at in order
        if (n_pass, at.key) not in done and at.key not in fatal and at.operation not in hopeless
    ]
    stop = clock() + 60.0 * minutes
    next_sentinel = -np.inf
    with log.open("ab", buffering=0) as file:
        file.truncate(whole_bytes(log))  # a line that was cut off would join the next one

        def write(row: dict[str, Any]) -> None:
            content = (json.dumps(row) + "\n").encode()
            if file.write(content) < len(content):
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(log))

        def time_at(n_pass: int, at: Point) -> None:
            with watch.over(json.dumps([n_pass, at.key])):
                row = {"pass": n_pass, "key": at.key, **timed(bench, at)}
            write(row)
            if row.get("fatal"):
                raise LostError(f"{row['key']}: {row['error']}; the same command goes on after it")

        if not about:
            write(
                {
                    "device": bench.device,
                    "source": "kvtwin",
                    "convention": bench.convention,
                    "subject": bench.subject,
                    "versions": bench.versions,
                    "date": date.today().isoformat(),
                    "n_points": len(points),
                }
            )
        if left is not None:
            write(rows[-1])
        for n_pass, at in progress(todo):
            if clock() >= stop:
                break
            if clock() >= next_sentinel and points[0].key not in fatal:
                time_at(SENTINEL, points[0])
                next_sentinel = clock() + SENTINEL_S
            time_at(n_pass, at)
            done.add((n_pass, at.key))
    return len(done)


def timed(bench: Bench, at: Point) -> dict[str, Any]:
    """The time of a point, or why there is none: out of memory, say, or a kernel that does not launch."""
    try:
        return {"seconds": bench.seconds(at)}
    except LostError as error:
        return {"error": str(error), "fatal": True}
    except Exception as error:  # the others are still wanted
        return {"error": said_by(error)}


def said_by(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def read_timings(log: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a log's first line says of the bench, and its timings; a last line that was cut off is dropped.

    Raises
    ------
    ProfileError
        If there is no such log, or a line of it is damaged.
    """
    if not log.is_file():
        raise ProfileError(f"{log}: missing; run step=measure first")
    lines = log.read_bytes()[: whole_bytes(log)].decode().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ProfileError(f"{log}: line {number} is no JSON; remove the file to measure anew") from None
    if rows and "device" not in rows[0]:
        raise ProfileError(f"{log}: line 1 names no device; remove the file to measure anew")
    return (rows[0], rows[1:]) if rows else ({}, [])


def whole_bytes(log: Path) -> int:
    """Bytes of a log up to the end of its last whole line."""
    return log.read_bytes().rfind(b"\n") + 1


def gather(folder: Path) -> Measurements:
    """The measurement table of a folder's timings: the mean of a point's passes; how far they differ, per operation.

    Raises
    ------
    ProfileError
        If the log is missing or damaged, or nothing in it could be timed.
    """
    import pandas as pd

    about, rows = read_timings(folder / "timings.jsonl")
    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    sentinels: list[float] = []
    for row in rows:
        if "error" in row:
            failed.setdefault(row["key"], row["error"])
        elif row["pass"] == SENTINEL:
            sentinels.append(row["seconds"])
        else:
            times.setdefault(row["key"], []).append(row["seconds"])
    if not times:
        why = next(iter(failed.values()), "no time was left")
        raise ProfileError(f"nothing was timed on {about.get('device', 'any device')}: {why}")
    parts = []
    differ: dict[str, list[float]] = {}
    for key in sorted(times):
        operation, columns = json.loads(key)
        parts.append(frame(operation, seconds=float(np.mean(times[key])), **columns))
        if len(times[key]) == N_PASSES:
            differ.setdefault(operation, []).append(abs(times[key][1] / times[key][0] - 1.0))
    drift = max(sentinels) / min(sentinels) - 1.0 if sentinels else 0.0
    notes = [f"failed: {key}: {error}" for key, error in sorted(failed.items()) if key not in times]
    if drift > DRIFT_FRAC:
        notes.append(f"the sentinel drifted by {drift:.1%}")
    return Measurements(
        device=about["device"],
        source=about["source"],
        convention=about["convention"],
        provenance={
            **about["versions"],
            "date": about["date"],
            "repeats_differ_by": {name: round(float(np.mean(x)), 5) for name, x in differ.items()},
            "n_points_timed": len(parts),
            "n_points": about["n_points"],
        },
        subject=about["subject"],
        notes=tuple(notes),
        rows=pd.concat(parts, ignore_index=True),
    )


def progress(todo: list[tuple[int, Point]]) -> Any:
    """The points with a progress bar, where there is a terminal."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:  # a machine with torch alone
        return todo

    console = Console(stderr=True)
    return track(todo, "timing", console=console) if console.is_terminal else todo

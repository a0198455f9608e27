"""Time all points of a machine: two passes in different random order, what is done kept on disk, failures recorded."""

import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calibration.measurements import Measurements, frame
from calibration.points import Point
from sim.errors import ProfileError

N_PASSES = 2
SENTINEL_S = 60.0  # a known point is timed again this often
DRIFT_FRAC = 0.03  # more than this between sentinels is reported


class Bench(Protocol):
    """A machine that times points."""

    device: str
    convention: str
    subject: dict[str, Any]
    versions: dict[str, str]

    def points(self) -> list[Point]:
        """What there is to time, the sentinel first."""
        ...

    def seconds(self, at: Point) -> float:
        """Time of one point [s]."""
        ...


def run_bench(
    bench: Bench, folder: Path, minutes: float, seed: int, clock: Callable[[], float] = time.monotonic
) -> Measurements:
    """Time every point twice, or as often as the minutes allow; go on where a run in the same folder was cut off.

    A line a timing goes to ``timings.jsonl`` at once. A point that fails is recorded there, and the rest goes on.

    Raises
    ------
    ProfileError
        If the folder's timings are of another device, or nothing could be timed.
    """
    points = bench.points()
    log = folder / "timings.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    done = read_timings(log, bench)
    rng = np.random.default_rng(seed)
    order = [(n_pass, points[i]) for n_pass in range(N_PASSES) for i in rng.permutation(len(points))]
    todo = [(n_pass, at) for n_pass, at in order if (n_pass, at.key) not in done]
    sentinels: list[float] = []
    stop = clock() + 60.0 * minutes
    next_sentinel = -np.inf
    with log.open("a", encoding="utf-8") as file:
        if not done:
            file.write(json.dumps({"device": bench.device, "versions": bench.versions}) + "\n")
        for n_pass, at in progress(todo):
            if clock() >= stop:
                break
            if clock() >= next_sentinel:
                sentinels.append(bench.seconds(points[0]))
                next_sentinel = clock() + SENTINEL_S
            row: dict[str, Any] = {"pass": n_pass, "key": at.key}
            try:
                row["seconds"] = bench.seconds(at)
            except Exception as error:  # out of memory, a kernel that does not launch: the others are still wanted
                row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            done[n_pass, at.key] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    return gather(bench, points, done, sentinels)


def read_timings(log: Path, bench: Bench) -> dict[tuple[int, str], dict[str, Any]]:
    """Timings of an earlier run by (pass, point); a last line that was cut off is dropped."""
    if not log.is_file():
        return {}
    done = {}
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        log.write_text("".join(lines), encoding="utf-8")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise ProfileError(f"{log}: line {number} is no JSON; remove the file to measure anew") from None
        if "device" in row:
            if row["device"] != bench.device:
                raise ProfileError(
                    f"{log}: timings of {row['device']!r}, this machine is {bench.device!r}; take another out="
                )
            continue
        done[row["pass"], row["key"]] = row
    return done


def gather(
    bench: Bench, points: list[Point], done: dict[tuple[int, str], dict[str, Any]], sentinels: list[float]
) -> Measurements:
    """The measurement table: the mean of a point's passes; how far the passes differ, per operation."""
    import pandas as pd

    parts, failed = [], []
    differ: dict[str, list[float]] = {}
    for at in points:
        rows = [done[n_pass, at.key] for n_pass in range(N_PASSES) if (n_pass, at.key) in done]
        times = [row["seconds"] for row in rows if "seconds" in row]
        failed += [f"{at.operation} {dict(at.columns)}: {row['error']}" for row in rows[:1] if "error" in row]
        if times:
            parts.append(frame(at.operation, seconds=float(np.mean(times)), **dict(at.columns)))
        if len(times) == N_PASSES:
            differ.setdefault(at.operation, []).append(abs(times[1] / times[0] - 1.0))
    if not parts:
        raise ProfileError(f"nothing was timed on {bench.device}: {failed[0] if failed else 'no time was left'}")
    drift = max(sentinels) / min(sentinels) - 1.0 if sentinels else 0.0
    notes = [f"failed: {text}" for text in failed]
    if drift > DRIFT_FRAC:
        notes.append(f"the sentinel drifted by {drift:.1%}")
    return Measurements(
        device=bench.device,
        source="kvtwin",
        convention=bench.convention,
        provenance={
            **bench.versions,
            "date": date.today().isoformat(),
            "repeats_differ_by": {name: round(float(np.mean(x)), 5) for name, x in differ.items()},
            "n_points_timed": len(parts),
            "n_points": len(points),
        },
        subject=bench.subject,
        notes=tuple(notes),
        rows=pd.concat(parts, ignore_index=True),
    )


def progress(todo: list[tuple[int, Point]]) -> Any:
    """The points with a progress bar, where there is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(todo, "timing", console=console) if console.is_terminal else todo

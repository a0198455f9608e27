"""A recorded run of a production engine, read from its folder: what it was, what it was asked, and when it answered.

    meta.json         the engine's arguments, and where newer recorders wrote them its resolved configuration
    requests.jsonl    per request: lengths, when it arrived, was queued, scheduled, got its first and its last token
    timeseries.csv    once a second: tokens, running, waiting (optional)
    prompt_blocks.jsonl  per request: which text its prompt is, block by block (optional; else nothing is shared)
    workload.csv      what the client meant to send (optional; the engine's own times are what is used)
    profile/          kernel times of the same device (optional)

The layout is that of LLMServingSim's ``bench`` (github.com/casys-kaist/LLMServingSim, bench/core/recorder.py).
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.engine_settings import EngineSettings, engine_settings
from calibration.prompt_blocks import Text, read_prompt_blocks, shared_tokens
from sim.errors import TraceError
from sim.record import Ints
from sim.request import Request
from sim.units import NS_PER_S, ns_from_s

LENGTHS = ("input_toks", "output_toks")
TIMES = ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
NEEDED = ("queued_ts", "first_token_ts", "last_token_ts")
ONE_CLOCK_S = 60.0  # where nobody was queued within a minute of arriving, arrivals are of another clock
MAX_REQUESTS = 1_000_000
MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One recorded run, as its engine or as its clients saw it.

    Times are integer nanoseconds since the first request arrived, in order of arrival.

    ``arrival_ns`` is when the engine's front end took a request. Its clock is not the engine core's: their offset is
    taken as the least delay between arrival and queue that any request saw, so that delay (about a millisecond) is
    missing from all. ``queued_ns`` is when the engine's loop took it into its queue: between two iterations.
    """

    path: Path
    settings: EngineSettings
    arrival_ns: Ints  # all of shape (n_requests,)
    queued_ns: Ints
    first_token_ns: Ints
    last_token_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    prompts: tuple[Text | None, ...]  # what text each prompt is; None where it is not known
    timeseries: Mapping[str, list[float]]  # column -> values; empty without the file
    notes: tuple[str, ...]
    is_clients: bool = False  # times are a client's, with the front end's before the queue and after each token

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def profile_path(self) -> Path:
        """Folder of the kernel times recorded beside the run."""
        return self.path / "profile"


@dataclass(frozen=True, slots=True)
class Recorded:
    """The recorded requests as a `Scenario`: an open stream, sharing what their prompts were recorded to share."""

    run: EngineRun

    def requests(self, seed: int) -> Iterator[Request]:  # noqa: ARG002 nothing is drawn
        """Requests in order of arrival."""
        run = self.run
        columns = (run.arrival_ns.tolist(), run.prompt_tokens.tolist(), run.output_tokens.tolist(), run.prompts)
        for i, (arrival_ns, prompt, output, text) in enumerate(zip(*columns, strict=True)):
            yield Request(i, arrival_ns, prompt, output, output, text)


def read_engine_run(path: Path) -> EngineRun:
    """Read a run's folder.

    Raises
    ------
    TraceError
        If ``meta.json`` or ``requests.jsonl`` is missing or malformed: file, line, field and value.
    ConfigError
        If the engine was something that is not simulated.
    """
    if not path.is_dir():
        raise TraceError(f"{path}: no such folder; run must be one with meta.json and requests.jsonl")
    meta = _object(path / "meta.json")
    settings = engine_settings(meta, path / "meta.json")
    rows, n_incomplete = _requests(path / "requests.jsonl")
    notes = [*settings.assumed]
    prompts = _prompts(path / "prompt_blocks.jsonl", rows, settings.has_prefix_caching, notes)
    if n_incomplete:
        notes.append(f"{n_incomplete} requests have no times (they failed, or were cut off) and are left out")
    said = meta.get("num_requests")
    if isinstance(said, int) and said != len(rows) + n_incomplete:
        raise TraceError(
            f"{path / 'requests.jsonl'}: {len(rows) + n_incomplete} requests, but meta.json says num_requests {said}"
        )
    times = {name: np.array([row.get(name) for row in rows], dtype=np.float64) for name in TIMES}  # None: NaN
    queued, arrival = times["queued_ts"], times["arrival_time"]
    if n_unknown := int(np.isnan(arrival).sum()):
        notes.append(
            f"{n_unknown} of {len(rows)} requests have no arrival_time: all are taken to arrive when they were queued"
        )
        arrival = queued
    elif not 0.0 <= (least := (queued - arrival).min()) <= ONE_CLOCK_S:
        arrival = arrival + least
    order = np.argsort(arrival, kind="stable")
    origin_s = float(arrival.min())
    ticks = {
        name: np.array([ns_from_s(t - origin_s) for t in values[order]], dtype=np.int64)
        for name, values in (times | {"arrival_time": arrival}).items()
        if not np.isnan(values).any()
    }
    lengths = {name: np.array([row[name] for row in rows], dtype=np.int64)[order] for name in LENGTHS}
    first, last = ticks["first_token_ts"], ticks["last_token_ts"]
    are_together = (first == last) & (lengths["output_toks"] > 1)
    if (wrong := np.flatnonzero((ticks["queued_ts"] >= first) | (first > last) | are_together)).size:
        row = rows[int(order[wrong[0]])]
        raise TraceError(
            f"{path / 'requests.jsonl'}: request {row.get('request_id')!r}: queued_ts, first_token_ts, last_token_ts "
            f"must ascend, got {row['queued_ts']}, {row['first_token_ts']}, {row['last_token_ts']}"
        )
    return EngineRun(
        path,
        settings,
        ticks["arrival_time"],
        ticks["queued_ts"],
        first,
        last,
        lengths["input_toks"],
        lengths["output_toks"],
        tuple(prompts[i] for i in order),
        _timeseries(path / "timeseries.csv", notes),
        tuple(notes),
    )


def _prompts(path: Path, rows: list[dict[str, Any]], is_shared: bool, notes: list[str]) -> list[Text | None]:
    """What text each prompt is, where that was recorded; told in the notes where the engine looked for it."""
    prompts: list[Text | None] = read_prompt_blocks(path, rows) if path.is_file() else [None for _ in rows]
    known = sum(text is not None for text in prompts)
    if is_shared and not known:
        notes.append("prefix caching was on, but no text was recorded: nothing is shared between requests")
    elif is_shared:
        total = sum(row["input_toks"] for row in rows)
        notes.append(
            f"{shared_tokens(prompts):,} of {total:,} prompt tokens begin another prompt too ({path.name}"
            f"{'' if known == len(rows) else f', which names {known} of {len(rows)} requests'})"
        )
    return prompts


def _object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    if not path.is_file():
        raise TraceError(f"{path}: missing; a recorded run has meta.json and requests.jsonl")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise TraceError(f"{path}: must hold an object, got {type(content).__name__}")
    return content


def _requests(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows with all the times that are needed, and the number of those without."""
    if not path.is_file():
        raise TraceError(f"{path}: missing; a recorded run has meta.json and requests.jsonl")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise TraceError(f"{path}: at most {MAX_BYTES} [B], got {size}")
    rows: list[dict[str, Any]] = []
    n_incomplete = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            if len(rows) == MAX_REQUESTS:
                raise TraceError(f"{path}: line {number}: more than {MAX_REQUESTS} requests")
            row = _row(text, f"{path}: line {number}")
            if row is None:
                n_incomplete += 1
            else:
                rows.append(row)
    if not rows:
        raise TraceError(f"{path}: no request with {', '.join(NEEDED)}")
    return rows, n_incomplete


def _row(text: bytes, where: str) -> dict[str, Any] | None:
    """One request, its lengths and times checked; None if it got no tokens: times null, NaN or vLLM's unset 0."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise TraceError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise TraceError(f"{where}: must be an object, got {str(row)[:40]!r}")
    if missing := [name for name in (*LENGTHS, *NEEDED) if name not in row]:
        raise TraceError(f"{where}: no {', '.join(missing)}; it has {', '.join(row)}")
    row |= {name: None for name in TIMES if row.get(name) != row.get(name)}  # NaN
    if any(row[name] is None for name in NEEDED) or 0.0 in (row["first_token_ts"], row["last_token_ts"]):
        return None
    for name in LENGTHS:
        if type(row[name]) is not int or row[name] < 1:
            raise TraceError(f"{where}, {name}: must be a whole number >= 1 [tokens], got {row[name]!r}")
    for name in TIMES:
        value = row.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and np.isfinite(value) and value >= 0):
            raise TraceError(f"{where}, {name}: must be a time >= 0 [s], got {value!r}")
    return row


def _timeseries(path: Path, notes: list[str]) -> dict[str, list[float]]:
    """Columns of the time series, whichever there are; ``t`` is the end of each interval [s]."""
    if not path.is_file():
        notes.append("no timeseries.csv: nothing to lay the simulation's course over")
        return {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        columns: dict[str, list[float]] = {name: [] for name in reader.fieldnames or ()}
        if "t" not in columns:
            raise TraceError(f"{path}: no column t, it has {', '.join(columns) or 'no header'}")
        for row in reader:
            for name, values in columns.items():
                try:
                    values.append(float(row[name]))
                except (TypeError, ValueError):
                    raise TraceError(
                        f"{path}: line {reader.line_num}, column {name}: must be a number, got {row[name]!r}"
                    ) from None
    if not columns["t"]:
        raise TraceError(f"{path}: no rows")
    return columns


def seconds(ticks: Ints) -> Any:
    """Clock ticks as seconds, shape of the input."""
    return ticks / NS_PER_S

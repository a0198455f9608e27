"""Traffic written to a file: what a scenario sends, so that anybody can send it again.

An open stream is known beforehand. When clients wait for answers, arrival times depend on the engine: they are taken
from a run's request rows, so that the replay of the file equals that run, or from a server that is never busy.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from scenarios.traces.mooncake import BLOCK_TOKENS
from scenarios.traces.plain import COLUMNS
from scenarios.walk import Server, idle_server, recorded_server, walk
from sim.errors import ConfigError
from sim.request import Request, Scenario, block_keys, follow_up_of
from sim.units import MS_PER_S, NS_PER_S, ns_from_s

FORMATS = ("csv", "mooncake")


def export_csv(requests: Iterable[Request], file: IO[str]) -> int:
    """Write our own CSV; returns the number of requests. Nothing about a request is lost."""
    file.write(",".join(COLUMNS) + "\n")
    n = 0
    for request in requests:
        n += 1
        whole, rest = divmod(request.arrival_ns, NS_PER_S)
        for key, word in (("slo_class", request.slo_class), ("kind", request.kind), ("tenant", request.tenant)):
            if any(mark in word for mark in ',"\n\r'):
                raise ConfigError(f"{key} must not hold commas, quotes or line ends, got {word!r}")
        cells = (
            f"{whole}.{rest:09d}",
            request.prompt_tokens,
            request.output_tokens,
            _cell(request.session_id),
            request.turn,
            request.id,
            request.max_output_tokens,
            _cell(request.output_id),
            request.slo_class,
            request.priority,
            request.n_samples,
            request.kind,
            request.tenant,
            "|".join(f"{identity}:{n_tokens}" for identity, n_tokens in request.content or ()),
        )
        file.write(",".join(map(str, cells)) + "\n")
    return n


def _cell(value: int | None) -> str:
    return "" if value is None else str(value)


def export_mooncake(requests: Iterable[Request], file: IO[str]) -> int:
    """Write Mooncake JSON lines; returns the number of requests.

    The four keys of the format say what the format can: blocks of 512 tokens, numbered as they first appear. The
    further keys hold what it cannot, and other readers ignore them.
    """
    numbers: dict[int, int] = {}
    n = 0
    for request in requests:
        n += 1
        record: dict[str, Any] = {
            "timestamp": None,
            "input_length": request.prompt_tokens,
            "output_length": request.output_tokens,
            "hash_ids": _hash_ids(request, numbers),
            "id": request.id,
            "turn": request.turn,
            "max_output_tokens": request.max_output_tokens,
            "priority": request.priority,
            "n_samples": request.n_samples,
            "slo_class": request.slo_class,
            "kind": request.kind,
            "tenant": request.tenant,
        }
        if request.session_id is not None:
            record["session_id"] = request.session_id
        if request.output_id is not None:
            record["output_id"] = request.output_id
        record["segments"] = None if request.content is None else [list(piece) for piece in request.content]
        timestamp = Decimal(request.arrival_ns) / (NS_PER_S // MS_PER_S)
        file.write(json.dumps(record).replace("null", f"{timestamp.normalize():f}", 1) + "\n")
    return n


def _hash_ids(request: Request, numbers: dict[int, int]) -> list[int]:
    """Numbers of the prompt's blocks of 512 tokens, the last one partial; equal numbers mean equal prefixes."""
    n_blocks = -(-request.prompt_tokens // BLOCK_TOKENS)
    keys = [] if request.content is None else block_keys(request.content, request.prompt_tokens, BLOCK_TOKENS)
    ids = [numbers.setdefault(key, len(numbers)) for key in keys]
    while len(ids) < n_blocks:  # a partial block, or text that nobody shares
        unshared = -1 - len(numbers)
        ids.append(numbers.setdefault(unshared, len(numbers)))
    return ids


def export(scenario: Scenario, path: Path, seed: int, file_format: str, server: Server) -> int:
    """Write a scenario's traffic, completely or not at all; gzipped where the path ends in ``.gz``.

    Returns
    -------
    int
        Requests written.

    Raises
    ------
    ConfigError
        If there are none, or the path is not that of a file, there or not yet, in a folder that is there.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ConfigError(f"task.path must be the path of a file, got {path}")
    if not path.parent.is_dir():
        raise ConfigError(f"task.path must be in a folder that is there, got {path}")
    if file_format not in FORMATS:
        raise ConfigError(f"task.format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    write = export_csv if file_format == "csv" else export_mooncake
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as raw:
            if path.suffix == ".gz":  # no name and no time inside: the same traffic gives the same bytes
                with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                    n = _written(write, walk(scenario, seed, server), packed)
            else:
                n = _written(write, walk(scenario, seed, server), raw)
        if not n:
            raise ConfigError("scenario: no requests to write")
        os.replace(partial, path)
    except OSError as problem:
        raise ConfigError(f"task.path cannot be written: {problem}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return n


def _written(write: Callable[[Iterable[Request], IO[str]], int], requests: Iterable[Request], file: Any) -> int:
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    n = write(requests, text)
    text.flush()
    text.detach()
    return n


def export_task(
    *,
    scenario: Scenario,
    seed: int,
    out: Path,
    console: Any,
    path: str | None = None,
    format: str = "csv",  # noqa: A002
    run: str | None = None,
    first_token_s: float = 0.1,
    per_token_s: float = 0.01,
) -> None:
    """Write the scenario's traffic to a file.

    Parameters
    ----------
    path : str or None
        Where to; None is ``traffic.csv`` or ``traffic.jsonl`` in the output folder.
    format : str
        ``csv`` or ``mooncake``.
    run : str or None
        Folder of a run of this very scenario and seed, or its ``requests.parquet``: clients that wait for answers get
        them when they got them there.
    first_token_s, per_token_s : float
        Without a run: an idle server's time to the first token, and from one token to the next [s].
    """
    name = "traffic.csv" if format == "csv" else "traffic.jsonl"
    if path is None:
        out.mkdir(parents=True, exist_ok=True)
    to = out / name if path is None else Path(path)
    server = idle_server(first_token_s, per_token_s) if run is None else recorded(Path(run))
    n = export(scenario, to, seed, format, server)
    if run is None and follow_up_of(scenario) is not None:
        console.print(
            f"Clients wait for answers here: they came after {first_token_s:g} s + {per_token_s:g} s a token; "
            "task.run=FOLDER takes them from a run."
        )
    console.print(f"{n:,} requests written to {to}", soft_wrap=True)


def recorded(run: Path) -> Server:
    """Answers at the times of a run that was written to a folder.

    Raises
    ------
    ConfigError
        If there is no such run.
    """
    import pyarrow.parquet as pq

    path = run / "requests.parquet" if run.is_dir() else run
    try:
        table = pq.read_table(path, columns=["id", "scheduled_ns", "finish_ns"])
    except (OSError, ValueError, KeyError) as problem:
        said = str(problem).splitlines()[0]
        raise ConfigError(f"task.run must be the folder of a run or its requests.parquet, got {run}: {said}") from None
    ids, scheduled, finished = (table.column(name).to_pylist() for name in table.column_names)
    manifest = path.parent / "manifest.json"
    told = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    frontend = told.get("config", {}).get("frontend") or {}
    added_ns = ns_from_s(float(frontend.get("before_s", 0.0)) + float(frontend.get("after_s", 0.0)))
    seen = [finish_ns + added_ns for finish_ns in finished]  # a next turn waits for what its client sees
    return recorded_server(dict(zip(ids, scheduled, strict=True)), dict(zip(ids, seen, strict=True)))

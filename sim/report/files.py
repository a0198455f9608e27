"""The folder a run leaves behind, written so that it is whole or absent."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.metrics import Measures, Slo, measure, summary, to_json
from sim.record import Result, Table

SCHEMA_VERSION = 2  # raised when a file's columns or keys change meaning
ROWS_PER_GROUP = 1 << 17
ROWS_PER_TURN = 1 << 10  # turned into columns at a time: they stay in the cache


def write(
    result: Result,
    slo: Slo,
    out_dir: str | os.PathLike[str],
    measures: Measures | None = None,
    which: str = "all",
    numbers: dict[str, Any] | None = None,
    scrape_s: float | None = None,
) -> Path:
    """Write a run's results into a folder, made if need be.

    ===================== ==============================================================================
    report.html           everything at a glance, opens offline
    summary.json          the numbers, keys as ``vllm bench serve``'s
    requests.parquet      a row per request, in order of id
    iterations.parquet    a row per run of engine iterations
    trace.json.gz         a timeline for https://ui.perfetto.dev or chrome://tracing
    manifest.json         configuration, seed, versions and the hashes of the others; written last
    ===================== ==============================================================================

    ``which="tables"`` leaves out report and timeline, ``"summary"`` the tables too. With ``scrape_s`` there are also
    ``metrics.om.txt`` and ``metrics.parquet``: gauges and counters under vLLM's Prometheus names, sampled so often [s],
    as OpenMetrics text and as a table.

    Every file appears under its name only when complete, and all go again if one cannot be written. The same run gives
    the same bytes, except that the report and the manifest name the versions that made them.

    Returns
    -------
    Path
        The folder.
    """
    from sim.metrics.watch import scrapes
    from sim.report.page import report_page
    from sim.report.prometheus import write_openmetrics, write_scrapes
    from sim.report.trace import trace_json

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # a folder without it is unfinished
    measures = measures or measure(result, slo)
    numbers = summary(result, slo, measures) if numbers is None else numbers
    writers: dict[str, Callable[[Path], None]] = {
        "summary.json": lambda path: _text(path, to_json(numbers)),
        "requests.parquet": lambda path: write_requests(result, measures, path),
        "iterations.parquet": lambda path: write_table(result.iterations, path),
        "trace.json.gz": lambda path: _bytes(path, trace_json(result)),
        "report.html": lambda path: _text(path, report_page(result, slo, measures, numbers)),
    }
    kept = {"all": 5, "tables": 3, "summary": 1}[which]
    writers = dict([*writers.items()][:kept])
    if scrape_s is not None:
        seen = scrapes(result, scrape_s)
        writers["metrics.om.txt"] = lambda path: write_openmetrics(result, seen, path)
        writers["metrics.parquet"] = lambda path: write_scrapes(seen, path)
    written: list[Path] = []
    try:
        for name, writer in writers.items():
            with replacing(out / name) as path:
                writer(path)
            written.append(out / name)
        hashes = {path.name: sha256(path.read_bytes()).hexdigest() for path in written}
        with replacing(out / "manifest.json") as path:
            _text(path, json.dumps(manifest(result, hashes), sort_keys=True, indent=2, default=str) + "\n")
    except BaseException:  # a full disk, an interrupt: what is left of a run must not look like one
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return out


def manifest(result: Result, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What a run was and what made it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "config": result.config,
        "config_sha256": config_hash(result.config),
        "seed": result.seed,
        "provenance": result.provenance,
        "versions": {
            "python": python_version(),
            **{name: version(name) for name in ("kvtwin", "numpy", "pyarrow", "plotly", "simpy")},
        },
        "files": dict(hashes),
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """Names a configuration: equal for equal settings, whatever their order."""
    return sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block has ended well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_requests(result: Result, measures: Measures, path: Path) -> None:
    """The requests table as Parquet: its columns, the latencies, and whether the objectives were met."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    requests = result.requests
    order = np.argsort(requests.column("id"), kind="stable")
    arrays = {name: _arrow(requests.column(name)[order]) for name in requests.columns}
    session = requests.column("session_id")[order]
    arrays["session_id"] = _arrow(session, session >= 0)
    names = [name.encode() for name in result.slo_classes] or [b""]
    ends = np.cumsum([0, *(len(name) for name in names)], dtype=np.int32)
    classes = pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), pa.py_buffer(b"".join(names)))
    arrays["slo_class"] = pa.DictionaryArray.from_arrays(
        _arrow(requests.column("slo_class")[order].astype(np.int32)), classes
    )
    for name, values in measures.latency_ms.items():
        arrays[name] = _arrow(values[order], ~np.isnan(values[order]))
    arrays["is_good"] = pa.Array.from_buffers(pa.bool_(), len(order), [None, _bits(measures.is_good[order])])
    table = pa.Table.from_arrays(list(arrays.values()), names=list(arrays))
    pq.write_table(table, path, compression="zstd", use_dictionary=["slo_class"], write_statistics=False)


def write_table(table: Table, path: Path) -> None:
    """A table of integers as Parquet, a bounded number of rows in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.int64()) for name in table.columns])
    rows = table.rows()
    settings = {"compression": "zstd", "use_dictionary": False, "column_encoding": "DELTA_BINARY_PACKED"}
    with pq.ParquetWriter(path, schema, write_statistics=False, **settings) as writer:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            group = rows[start : start + ROWS_PER_GROUP]
            columns = np.empty(group.shape[::-1], dtype=np.int64)
            for i in range(0, len(group), ROWS_PER_TURN):
                columns[:, i : i + ROWS_PER_TURN] = group[i : i + ROWS_PER_TURN].T
            writer.write_table(pa.Table.from_arrays([_arrow(column) for column in columns], schema=schema))


def _arrow(values: npt.NDArray[Any], is_known: npt.NDArray[np.bool_] | None = None) -> Any:
    """An Arrow array over numpy's memory. `pyarrow.array` would do, but imports pandas first, for 0.35 s."""
    import pyarrow as pa

    known = None if is_known is None else _bits(is_known)
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [known, data])


def _bits(flags: npt.NDArray[np.bool_]) -> Any:
    """An Arrow buffer of booleans. Casting numpy's bytes would import all of Arrow's functions first, for 0.05 s."""
    import pyarrow as pa

    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)

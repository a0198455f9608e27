"""Measured kernel times, ours and published ones, in one schema: a CSV of rows and a JSON that says what they are.

A row is one shape of one operation, timed. Columns an operation does not use are 0 or empty. The JSON beside the CSV
holds device, convention, versions and the CSV's hash, so that an altered or cut-off table is refused.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.errors import ProfileError

SCHEMA = 1
COLUMNS = {
    "operation": "",  # decode_attention, prefill_attention, mixed_attention, gemm, layer, ...
    "detail": "",  # name of the layer, of the collective's implementation, direction of a copy
    "dtype": "bf16",
    "kv_dtype": "bf16",
    "prefill_seqs": 0,  # prompt chunks in the batch, all alike
    "new_tokens": 0,  # of each chunk; for layers, tokens of the batch
    "context_tokens": 0,  # cached before each chunk
    "decode_seqs": 0,  # sequences with one new token; for layers per sequence, sequences
    "decode_total_tokens": 0,  # KV entries they read, the ones they compute included
    "decode_longest_tokens": 0,
    "n_heads": 0,
    "n_kv_heads": 0,
    "head_dim": 0,
    "m": 0,  # matrix product (m, k) x (k, n)
    "n": 0,
    "k": 0,
    "bytes": 0,  # of a message or copy
    "devices": 0,
    "seconds": 0.0,
    "uniform_s": 0.0,  # of a skewed batch: the same batch with equal contexts, measured beside it
}
KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp32": 4.0}
TEXT = ("operation", "detail", "dtype", "kv_dtype")


@dataclass(frozen=True, slots=True)
class Measurements:
    """A table of timed shapes and where it comes from. ``rows`` is a pandas DataFrame with `COLUMNS`."""

    device: str
    source: str
    convention: str  # what a time includes, warm or cold, how it was taken
    provenance: Mapping[str, Any]
    subject: Mapping[str, Any] = field(default_factory=dict)  # model and tensor-parallel degree, if not general
    notes: tuple[str, ...] = ()
    rows: Any = None
    sha256: str = ""

    def of(self, operation: str) -> Any:
        """The rows of one operation, index reset."""
        return self.rows[self.rows["operation"] == operation].reset_index(drop=True)


def frame(operation: str, **columns: Any) -> Any:
    """Rows of one operation as a DataFrame in the schema; scalars are repeated."""
    import pandas as pd

    if unknown := set(columns) - set(COLUMNS):
        raise ValueError(f"no such columns: {', '.join(sorted(unknown))}")
    length = max((len(c) for c in columns.values() if hasattr(c, "__len__") and not isinstance(c, str)), default=1)
    filled = {"operation": operation, **columns}
    return pd.DataFrame({name: filled.get(name, empty) for name, empty in COLUMNS.items()}, index=range(length))


def formats(measured: Measurements, operation: str, column: str) -> Iterator[tuple[str, Any]]:
    """Rows of an operation by number format: bf16, or a single one, under its plain name, others with theirs added."""
    rows = measured.of(operation)
    dtypes = sorted(rows[column].unique())
    for dtype in dtypes:
        name = operation if dtype == "bf16" or len(dtypes) == 1 else f"{operation}_{dtype}"
        yield name, rows[rows[column] == dtype].reset_index(drop=True)


def csv_bytes(rows: Any) -> bytes:
    """The rows as the bytes of their CSV: nanosecond resolution to the picosecond, so that equal data hash equally."""
    text: str = rows[list(COLUMNS)].to_csv(index=False, float_format="%.6e", lineterminator="\n")
    return text.encode()


def sha256_of(content: bytes) -> str:
    """Hash of a CSV's bytes, as the JSON beside it and a profile fitted to it say."""
    return hashlib.sha256(content).hexdigest()


def write_measurements(measured: Measurements, folder: Path) -> Path:
    """Write ``measurements.csv`` and ``measurements.json`` into a folder, each at once; returns the CSV's path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = csv_bytes(measured.rows)
    about = {
        "schema": SCHEMA,
        "device": measured.device,
        "source": measured.source,
        "convention": measured.convention,
        "provenance": dict(measured.provenance),
        "subject": dict(measured.subject),
        "notes": list(measured.notes),
        "units": {"seconds": "s", "uniform_s": "s", "bytes": "B", "*_tokens": "tokens"},
        "n_rows": len(measured.rows),
        "sha256": sha256_of(content),
    }
    path = folder / "measurements.csv"
    replace(path, content)
    replace(folder / "measurements.json", (json.dumps(about, indent=1) + "\n").encode())
    return path


def read_measurements(folder: Path) -> Measurements:
    """Read what `write_measurements` wrote.

    Raises
    ------
    ProfileError
        If a file is missing, cut off, altered, or of another schema.
    """
    import pandas as pd

    csv, about_path = folder / "measurements.csv", folder / "measurements.json"
    for path in (csv, about_path):
        if not path.is_file():
            raise ProfileError(f"{path}: missing; run step=measure or step=import first")
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProfileError(f"{about_path}: not a complete JSON file ({error}); measure or import again") from None
    if about.get("schema") != SCHEMA:
        raise ProfileError(f"{about_path}: measurements.schema must be {SCHEMA}, got {about.get('schema')!r}")
    found = sha256_of(csv.read_bytes())
    if found != about.get("sha256"):
        raise ProfileError(
            f"{csv}: altered or cut off: {about_path.name} says sha256 {about.get('sha256')}, got {found}"
        )
    rows = pd.read_csv(csv, dtype=dict.fromkeys(TEXT, str), keep_default_na=False)
    return Measurements(
        device=about["device"],
        source=about["source"],
        convention=about["convention"],
        provenance=about["provenance"],
        subject=about["subject"],
        notes=tuple(about["notes"]),
        rows=rows,
        sha256=found,
    )


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

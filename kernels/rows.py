"""Rows of a run as they come: a CSV file that holds each as soon as it is known, whatever happens after it."""

import csv
import os
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any


class Rows:
    """A CSV file that holds every row as soon as it is added, under the machine it was measured on.

    With ``is_continued`` the rows that are in the file already stay, but for those of skipped work. A file is replaced
    as a whole and then only added to, so that a process that ends anywhere, or a disk that is full, takes no row away.
    """

    def __init__(
        self, path: Path, columns: tuple[str, ...], facts: dict[str, str], *, is_continued: bool = False
    ) -> None:
        self.columns = columns
        found = read_rows(path)[1] if is_continued and path.is_file() else []
        self.rows = [row for row in found if "skipped" not in (row["kernel"], row.get("passed"))]
        text = StringIO()
        text.write("# " + "; ".join(f"{k} {v}" for k, v in facts.items()) + "\n")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(text.getvalue(), newline="")
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns)

    def add(self, **row: Any) -> None:
        """Write one row and show it."""
        kept = {column: row.get(column, "") for column in self.columns}
        self._writer.writerow(kept)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(kept)
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
        """Close the file; a row that did not get onto the disk has been told of when it was added."""
        with suppress(OSError):
            self._file.close()


def read_rows(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The machine and the rows of a file that `Rows` wrote, numbers as numbers; a last line cut off is dropped."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    facts = dict(
        (*fact.partition(" ")[::2],) for fact in (lines[0].removeprefix("# ").strip().split("; ") if lines else [])
    )
    rows: list[dict[str, Any]] = list(csv.DictReader(lines[1:]))
    for row in rows:
        for column, value in row.items():
            with suppress(ValueError):
                row[column] = float(value)
    return facts, rows

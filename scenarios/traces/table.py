"""CSV files: a header that names the columns, then one row a line."""

import csv
from collections.abc import Iterator

from scenarios.traces.text import Caps, Place, lines

Cells = list[str]


def split(line: str, place: Place) -> Cells:
    """The cells of a line; quotes are honoured within it."""
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as problem:
        raise place.error(f"not CSV: {problem}") from None


class Table:
    """The rows of a CSV file in order, and which of its columns are where.

    Parameters
    ----------
    needed : tuple of str
        Columns that must be there, in the order in which `rows` returns them.
    optional : tuple of str
        Columns that may be there, returned after the needed ones, None where absent.
    """

    def __init__(self, path: str, caps: Caps, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        self.place = Place(path)
        self.caps = caps
        self.needed = needed
        self.optional = optional

    def rows(self) -> Iterator[list[str]]:
        """Cells of the needed columns, then of the optional ones that the file has (see `has`); `place` follows."""
        place, header = self.place, None
        n_rows = 0
        for block in lines(place.path, self.caps):
            for line in block:
                place.line += 1
                if header is None:
                    header = split(line, place)
                    where = self._columns(header)
                    is_identity = where == list(range(len(header)))
                    n_cells = len(header)
                    continue
                if not line:
                    continue
                cells = line.split(",") if '"' not in line else split(line, place)
                if len(cells) != n_cells:
                    raise place.error(f"must have {n_cells} cells ({','.join(header)}), got {len(cells)}")
                n_rows += 1
                if n_rows > self.caps.rows:
                    raise place.error(f"more than {self.caps.rows} rows: refused")
                yield cells if is_identity else [cells[i] for i in where]
        if n_rows == 0:
            raise place.error("has no rows")

    def _columns(self, header: Cells) -> list[int]:
        for name in header:
            if header.count(name) > 1:
                raise self.place.error(f"column {name!r} is there twice")
        for name in self.needed:
            if name not in header:
                raise self.place.error(f"must have a column {name!r}, got {','.join(header)[:200]!r}")
        self.optional = tuple(name for name in self.optional if name in header)
        return [header.index(name) for name in (*self.needed, *self.optional)]

"""CSV files: a header that names the columns, then one row a line."""

import csv
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from scenarios.traces.text import Place, Reading, lines


class Kind(NamedTuple):
    """How the cells of a column are read.

    ``one`` reads a cell or raises an error that says where it stands. ``many`` reads a block of cells at once, several
    times as fast, and gives up (None) when any of them is in doubt; then ``one`` looks at each.
    """

    one: Callable[[str, str, Place], int]
    many: Callable[[Sequence[str]], list[int] | None]


def split(line: str, place: Place) -> list[str]:
    """The cells of a line; quotes are honoured within it."""
    if '"' not in line:
        return line.split(",")
    if line.count('"') % 2:
        raise place.error("not CSV: a quote is never closed")
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
        Columns that may be there, returned after the needed ones; the attribute names those that are there once
        reading has begun.
    """

    def __init__(self, path: str, reading: Reading, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        self.place = Place(path)
        self.reading = reading
        self.needed = needed
        self.optional = optional
        self._header: list[str] = []
        self._where: list[int] = []
        self._n_rows = 0

    def rows(self) -> Iterator[list[str]]:
        """Cells of the needed columns, then of the optional ones that the file has; `place` follows."""
        for block in self._blocks():
            yield from self._cells(block)

    def values(self, *kinds: Kind) -> Iterator[tuple[int, ...]]:
        """The needed columns as numbers, and the line at the end of each tuple.

        Parameters
        ----------
        kinds : Kind
            One for each needed column.
        """
        for block in self._blocks():
            first = self.place.line + 1
            columns = self._columns(block, kinds)
            if columns is None:
                for cells in self._cells(block):
                    read = [
                        kind.one(cell, name, self.place)
                        for kind, cell, name in zip(kinds, cells, self.needed, strict=False)
                    ]
                    yield (*read, self.place.line)
            else:
                self._n_rows += len(block)
                self.place.line += len(block)
                yield from zip(*columns, range(first, first + len(block)), strict=True)

    def _columns(self, block: list[str], kinds: tuple[Kind, ...]) -> list[list[int]] | None:
        """A whole block read at once, or None where any line needs a closer look."""
        if self._n_rows + len(block) > self.reading.rows:
            return None
        n_cells = len(self._header)
        joined = ",".join(block)
        if {line.count(",") for line in block} != {n_cells - 1} or '"' in joined or "" in block:
            return None
        cells = joined.split(",")
        read = [kind.many(cells[i::n_cells]) for kind, i in zip(kinds, self._where, strict=False)]
        return None if None in read else read  # type: ignore[return-value]

    def _cells(self, block: list[str]) -> Iterator[list[str]]:
        place, n_cells, where = self.place, len(self._header), self._where
        for line in block:
            place.line += 1
            if not line:
                continue
            cells = split(line, place)
            if len(cells) != n_cells:
                raise place.error(f"must have {n_cells} cells ({','.join(self._header)}), got {len(cells)}")
            self._n_rows += 1
            if self._n_rows > self.reading.rows:
                raise place.error(f"more than {self.reading.rows} rows: refused")
            yield [cells[i] for i in where]

    def _blocks(self) -> Iterator[list[str]]:
        """Blocks of lines below the header."""
        place = self.place
        for block in lines(place.path, self.reading):
            if not self._header:
                place.line += 1
                self._read_header(split(block[0], place))
                block = block[1:]
            if block:
                yield block
        if not self._n_rows:
            raise place.error("has no rows")

    def _read_header(self, header: list[str]) -> None:
        for name in header:
            if header.count(name) > 1:
                raise self.place.error(f"column {name!r} is there twice")
        for name in self.needed:
            if name not in header:
                raise self.place.error(f"must have a column {name!r}, got {','.join(header)[:200]!r}")
        self.optional = tuple(name for name in self.optional if name in header)
        self._header = header
        self._where = [header.index(name) for name in (*self.needed, *self.optional)]

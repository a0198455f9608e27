"""One column of numbers out of a CSV file."""

import numpy as np

from scenarios.distributions import Floats
from scenarios.traces.table import Table
from scenarios.traces.text import Reading


def column(path: str, name: str) -> Floats:
    """A column's values in file order, shape (n_rows,).

    Raises
    ------
    TraceError
        If the file, the column or a value cannot be read.
    """
    table = Table(path, Reading(), (name,))
    values = []
    for (cell,) in table.rows():
        try:
            value = float(cell) if cell.isascii() and "_" not in cell else float("nan")
        except ValueError:
            value = float("nan")
        if not 0 <= value < float("inf"):
            raise table.place.error(f"must be a finite number >= 0, got {cell[:80]!r}", name)
        values.append(value)
    return np.array(values)

"""Which format a trace file has, seen from its first line."""

import json
from collections.abc import Callable, Iterator

from scenarios.traces import azure, mooncake, plain
from scenarios.traces.row import Row
from scenarios.traces.text import Caps, Place, lines
from sim.errors import ConfigError

Reader = Callable[[str, Caps], Iterator[Row]]

READERS: dict[str, Reader] = {
    "azure": azure.rows,
    "mooncake": mooncake.rows,
    "csv": plain.rows,
}
HEADERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("azure", frozenset(azure.HEADER)),
    ("csv", frozenset(plain.HEADER)),
)
KEYS: tuple[tuple[str, frozenset[str]], ...] = (
    ("mooncake", frozenset({"timestamp", "input_length", "output_length"})),
)


def detect(path: str, caps: Caps) -> str:
    """Name of a file's format: the first whose columns or keys are all in the first line.

    Raises
    ------
    TraceError
        If no format has such a first line.
    """
    place = Place(path, 1)
    first = next((line for block in lines(path, caps) for line in block), "")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        record = None
    names = set(record) if isinstance(record, dict) else {cell.strip('"') for cell in first.split(",")}
    for name, needed in KEYS if isinstance(record, dict) else HEADERS:
        if needed <= names:
            return name
    raise place.error(f"of no known format ({', '.join(READERS)}), got {first[:120]!r}")


def rows(path: str, format: str | None = None, caps: Caps | None = None) -> Iterator[Row]:  # noqa: A002
    """Requests of a trace file in file order.

    Parameters
    ----------
    format : str or None
        Name of the format; None looks at the first line.
    """
    caps = Caps() if caps is None else caps
    if format is not None and format not in READERS:
        raise ConfigError(f"scenario.format must be one of {', '.join(READERS)}, got {format!r}")
    return READERS[format or detect(path, caps)](path, caps)

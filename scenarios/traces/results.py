"""What the readers of load generators' results share: those note requests as they end."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from scenarios.traces.row import MAX_TOKENS, Row, json_whole
from scenarios.traces.text import Place


def by_arrival(rows: Iterator[Row]) -> Iterator[Row]:
    """Requests noted in order of their ends, in order of arrival, from the first; all are held in memory."""
    held = sorted(rows, key=lambda row: row.arrival_ns)
    for row in held:
        yield row._replace(arrival_ns=row.arrival_ns - held[0].arrival_ns)


def within(record: Any, path: str) -> Any:
    """A value by its dotted name, None where any part of it is missing."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def count(record: Any, names: tuple[str, ...], place: Place) -> int:
    """Tokens under the first of some dotted names that holds any; 0 where none does, as of failed requests."""
    for name in names:
        value = within(record, name)
        if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
            value = int(value)  # 550.0
        if value is not None:
            return json_whole({name: value}, name, place, 0, MAX_TOKENS)
    return 0


class Names:
    """Numbers for names, in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: object) -> int | None:
        """The number of a name; None of none."""
        return None if name is None else self._numbers.setdefault(str(name), len(self._numbers))

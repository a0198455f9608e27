"""JSON lines: one object a line."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from scenarios.traces.text import Caps, Place, lines


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def parse(text: str, place: Place) -> Any:
    """One JSON value; decimals stay exact, NaN and infinities are refused."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    except RecursionError:
        raise place.error("not JSON: nested too deeply") from None
    except ValueError as problem:
        raise place.error(f"not JSON: {problem}") from None


def records(place: Place, caps: Caps) -> Iterator[dict[str, Any]]:
    """The objects of a file in order; ``place`` follows."""
    n_rows = 0
    for block in lines(place.path, caps):
        for line in block:
            place.line += 1
            if not line.strip():
                continue
            record = parse(line, place)
            if not isinstance(record, dict):
                raise place.error(f"must be a JSON object, got {line[:80]!r}")
            n_rows += 1
            if n_rows > caps.rows:
                raise place.error(f"more than {caps.rows} rows: refused")
            yield record
    if n_rows == 0:
        raise place.error("has no rows")

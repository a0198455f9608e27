"""One request of a trace, whatever the format, and the strict reading of its values.

Nothing is repaired: a value that is not plainly right is an error that says where it stands.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from scenarios.traces.table import Kind
from scenarios.traces.text import Place
from sim.errors import TraceError
from sim.request import Segment
from sim.units import NS_PER_S

MAX_TOKENS = 1 << 31  # no context is longer; a larger number is a damaged one
MAX_NS = 1 << 62  # 146 years: the clock is a 64-bit integer
MAX_ID = 1 << 63  # facts are 64-bit integers
MAX_IDENTITY = 1 << 64  # of text: hashes have 64 bits
PLAIN_IDENTITY = (1 << 61) - 1  # Python tells whole numbers below it apart by their hash
LEAST = {"priority": -MAX_ID, "n_samples": 1}  # of whole numbers; of others 0
MOST = {"n_samples": MAX_TOKENS, "max_output_tokens": MAX_TOKENS}  # below it; others below MAX_ID
TEXT_IDS = ("output_id",)  # whole numbers that name text
UNITS = {"s": NS_PER_S, "ms": NS_PER_S // 1_000, "us": NS_PER_S // 1_000_000, "ns": 1}
"""Units of time [ns]."""
MAX_SHOWN = 80


class Row(NamedTuple):
    """What a trace says of one request. ``None``: the format does not say."""

    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    line: int  # of the file, for error messages
    content: tuple[Segment, ...] | None = None
    session_id: int | None = None
    turn: int = 0
    id: int | None = None
    max_output_tokens: int | None = None
    output_id: int | None = None
    slo_class: str = ""
    priority: int = 0
    n_samples: int = 1
    kind: str = ""
    tenant: str = ""


def tokens(text: str, column: str, place: Place) -> int:
    """A number of tokens, 0 or more; the replay decides what becomes of a zero."""
    if text.isdigit() and text.isascii() and len(text) < 11:
        value = int(text)
        if value < MAX_TOKENS:
            return value
    raise place.error(f"must be a whole number from 0 to {MAX_TOKENS - 1} [tokens], got {text[:80]!r}", column)


def whole(text: str, column: str, place: Place, low: int = 0, high: int = MAX_ID) -> int:
    """A whole number; hexadecimal digits follow 0x."""
    digits = text.removeprefix("-") if low < 0 else text
    if HEXADECIMAL.fullmatch(text) and text[:2] == "0x":
        value = int(text, 16)
    elif digits.isdigit() and digits.isascii() and len(digits) < 21:
        value = int(text)
    else:
        value = low - 1
    if low <= value < high:
        return value
    raise place.error(f"must be a whole number from {low} to {high - 1}, got {text[:80]!r}", column)


HEXADECIMAL = re.compile("(0x)?[0-9a-fA-F]{1,16}")


def identity(value: Any) -> int | None:
    """The identity of a text, of up to 64 bits: a whole number, or its hexadecimal digits in JSON text; else None.

    Beyond 61 bits it is hashed, for Python takes numbers that differ by 2**61 - 1 for equal where it hashes them.

    Examples
    --------
    >>> identity(7), identity("0x1f"), identity("ff"), identity(-1), identity("conv-1")
    (7, 31, 255, None, None)
    """
    if isinstance(value, str) and HEXADECIMAL.fullmatch(value):
        value = int(value, 16)
    if type(value) is not int or not 0 <= value < MAX_IDENTITY:
        return None
    return value if value < PLAIN_IDENTITY else hash((value >> 32, value)) & PLAIN_IDENTITY


def shown(value: Any) -> str:
    """A wrong value in a message, in full where it is short."""
    text = repr(str(value) if isinstance(value, Decimal) else value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def seconds(text: str, column: str, place: Place) -> int:
    """A time in seconds, to the nanosecond [ns]."""
    before, _, after = text.partition(".")
    if text.isascii() and before.isdigit() and len(before) < 10 and len(after) <= 9 and (after.isdigit() or not after):
        return int(before) * NS_PER_S + int(after.ljust(9, "0"))
    return scaled(text, NS_PER_S, "s", column, place)


def scaled(text: str, ns_per_unit: int, unit: str, column: str, place: Place) -> int:
    """A time in some unit, exact in decimal and then rounded to the nanosecond [ns]."""
    problem = f"must be a time from 0 to {(MAX_NS - 1) / ns_per_unit:.15g} [{unit}], got {text[:80]!r}"
    try:
        value = Decimal(text) if text.isascii() and "_" not in text and len(text) < 64 else None
    except InvalidOperation:
        value = None
    if value is None or not value.is_finite() or value < 0 or value * ns_per_unit >= MAX_NS:
        raise place.error(problem, column)
    return round(value * ns_per_unit)


def _many_tokens(cells: Sequence[str]) -> list[int] | None:
    return _many_whole(cells, 10, MAX_TOKENS)


def _many_whole(cells: Sequence[str], most_digits: int = 18, high: int = MAX_ID) -> list[int] | None:
    joined = "".join(cells)
    if not (joined.isdigit() and joined.isascii()) or "" in cells or max(map(len, cells)) > most_digits:
        return None
    values = list(map(int, cells))
    return values if max(values) < high else None


def _many_seconds(cells: Sequence[str]) -> list[int] | None:
    """Digits before the point, and nine behind it, are nanoseconds when written together."""
    if {cell.count(".") for cell in cells} != {1}:
        return _many_whole_seconds(cells)
    digits = ".".join(cells).split(".")
    before, after = digits[::2], digits[1::2]
    joined = "".join(digits)
    n_decimals = set(map(len, after))
    if not (joined.isdigit() and joined.isascii()) or "" in before or max(map(len, before)) > 9 or max(n_decimals) > 9:
        return None
    if len(n_decimals) > 1:
        after = [fraction.ljust(9, "0") for fraction in after]
        n_decimals = {9}
    scale = 10 ** (9 - n_decimals.pop())
    return [int(whole + fraction) * scale for whole, fraction in zip(before, after, strict=True)]


def _many_whole_seconds(cells: Sequence[str]) -> list[int] | None:
    values = _many_whole(cells, 9)
    return None if values is None else [value * NS_PER_S for value in values]


def each(one: Callable[[str, str, Place], int]) -> Callable[[Sequence[str]], list[int] | None]:
    """Reads a block of cells one by one."""
    nowhere = Place("")

    def many(cells: Sequence[str]) -> list[int] | None:
        try:
            return [one(cell, "", nowhere) for cell in cells]
        except TraceError:
            return None

    return many


TOKENS = Kind(tokens, _many_tokens)
SECONDS = Kind(seconds, _many_seconds)


def times(unit: str) -> Kind:
    """How a column of times in some unit is read."""
    if unit == "s":
        return SECONDS

    def one(text: str, column: str, place: Place) -> int:
        return scaled(text, UNITS[unit], unit, column, place)

    return Kind(one, _many_whole if unit == "ns" else each(one))


def json_whole(record: dict[str, Any], column: str, place: Place, low: int = 0, high: int = MAX_ID) -> int:
    """A whole number of a JSON object."""
    value = record.get(column)
    if type(value) is not int or not low <= value < high:
        got = shown(value) if column in record else "nothing"
        raise place.error(f"must be a whole number from {low} to {high - 1}, got {got}", column)
    return value


def json_id(record: dict[str, Any], column: str, place: Place, low: int = 0, high: int = MAX_ID) -> int:
    """A whole number of a JSON object, or a text that can only be one in hexadecimal: 0x before it, or 16 digits."""
    value = record.get(column)
    if isinstance(value, str) and HEXADECIMAL.fullmatch(value) and (value[:2] == "0x" or len(value) == 16):
        record = {column: int(value, 16)}
    return json_whole(record, column, place, low, high)


def json_time(record: dict[str, Any], column: str, unit: str, place: Place) -> int:
    """A time of a JSON object, whole or decimal, in some unit [ns]."""
    value, ns_per_unit = record.get(column), UNITS[unit]
    if type(value) is int and 0 <= value < MAX_NS // ns_per_unit:
        return value * ns_per_unit
    if isinstance(value, float | Decimal) and not isinstance(value, bool):
        return scaled(str(value), ns_per_unit, unit, column, place)
    got = shown(value) if column in record else "nothing"
    raise place.error(f"must be a time from 0 to {(MAX_NS - 1) / ns_per_unit:.15g} [{unit}], got {got}", column)

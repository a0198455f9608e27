"""JSON: one object a line, a list of objects, or one object that is the whole file.

What nobody reads may be anything that programs write: NaN and infinities are no numbers of JSON, but stop nothing in a
key that is not used.
"""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from scenarios.traces.text import BLOCK_BYTES, BYTE_ORDER_MARK, Place, Reading, head, lines, opened

MAX_BYTES = 1 << 28  # of an object that is the whole file, and held in memory
MAX_DIGITS = 4_000  # Python refuses to read longer numbers
SPACE = " \t\r\n"
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"\s*:?|[{}\[\]]|"', re.DOTALL)
"""A text (a key, where a colon follows), a bracket, or a quote that is never closed."""


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all measure: no value, and none that is used may be so
        return Decimal("NaN")


def _whole(text: str) -> int | Decimal:
    return int(text) if len(text) < MAX_DIGITS else Decimal("NaN")


DECODER = json.JSONDecoder(parse_float=_decimal, parse_int=_whole, parse_constant=Decimal)


def parse(text: str, place: Place) -> Any:
    """One JSON value; decimals stay exact, NaN and infinities are decimals that no reader takes for a number."""
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise place.error("not JSON: nested too deeply") from None
    except ValueError as problem:
        raise place.error(f"not JSON: {problem}") from None


def records(place: Place, reading: Reading) -> Iterator[dict[str, Any]]:
    """The objects of a file in order, a line or an element of a list each; ``place`` follows."""
    n_rows = 0
    found = _elements(place, reading) if head(place.path).lstrip()[:1] == "[" else _lines(place, reading)
    for record in found:
        if not isinstance(record, dict):
            raise place.error(f"must be a JSON object, got {json.dumps(record, default=str)[:80]}")
        n_rows += 1
        if n_rows > reading.rows:
            raise place.error(f"more than {reading.rows} rows: refused")
        yield record
    if n_rows == 0:
        raise place.error("has no rows")


def _lines(place: Place, reading: Reading) -> Iterator[Any]:
    for block in lines(place.path, reading):
        for line in block:
            place.line += 1
            if line.strip():
                yield parse(line, place)


def _elements(place: Place, reading: Reading) -> Iterator[Any]:
    """The elements of a JSON list, one at a time; ``place`` counts them as lines."""
    text, at, n_bytes, is_whole, is_open = "", 0, 0, False, False
    utf_8 = getincrementaldecoder("utf-8")()
    with opened(place.path) as file:
        while True:
            while at < len(text) and text[at] in SPACE:
                at += 1
            if at < len(text):
                if not is_open or text[at] == ",":  # as lax about commas as the elements are strict
                    is_open, at = True, at + 1
                    continue
                if text[at] == "]":
                    return
                try:
                    element, at = DECODER.raw_decode(text, at)
                except RecursionError:
                    raise place.error("not JSON: nested too deeply") from None
                except ValueError as problem:
                    if is_whole:
                        place.line += 1
                        raise place.error(f"not JSON: {problem}") from None
                else:
                    place.line += 1
                    yield element
                    continue
            if is_whole:
                raise place.error("not JSON: the list is never closed")
            if len(text) - at > reading.line_bytes:
                raise place.error(f"element longer than {reading.line_bytes} bytes: refused")
            block = file.read(BLOCK_BYTES)
            block = block if n_bytes else block.removeprefix(BYTE_ORDER_MARK)
            n_bytes, is_whole = n_bytes + len(block), not block
            if n_bytes > reading.text_bytes:
                raise place.error(f"more than {reading.text_bytes} bytes of text: refused")
            try:
                text, at = text[at:] + utf_8.decode(block, is_whole), 0
            except UnicodeDecodeError as problem:
                raise place.error(f"not UTF-8 text: {problem.reason}") from None


def document(place: Place, reading: Reading) -> Any:
    """A file that is one JSON value."""
    most = min(reading.text_bytes, MAX_BYTES)
    with opened(place.path) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise place.error(f"more than {most} bytes of text: refused")
    try:
        return parse(text.removeprefix(BYTE_ORDER_MARK).decode(), place)
    except UnicodeDecodeError as problem:
        raise place.error(f"not UTF-8 text: {problem.reason}") from None


def first_keys(path: str) -> tuple[set[str], bool]:
    """Keys of a file's first object, and whether it is on a line (or in a list) of its own, others after it.

    Looked for as far as it reaches, whatever its texts hold; of a damaged one those before the damage.
    """
    for n_bytes in (1 << 16, MAX_BYTES):
        with opened(path) as file:
            begin = file.read(n_bytes).removeprefix(BYTE_ORDER_MARK).lstrip()
        keys, end = _keys(begin, 1 if begin.startswith(b"[") else 0)
        if end is not None or len(begin) < n_bytes - len(BYTE_ORDER_MARK):
            break
    first_line = begin.partition(b"\n")[0]
    return keys, begin.startswith(b"[") or (end is not None and end <= len(first_line))


def _keys(begin: bytes, base: int) -> tuple[set[str], int | None]:
    """Keys of the first object that lies ``base`` brackets deep, and where it ends, if it does."""
    keys: set[str] = set()
    depth = 0
    for token in TOKEN.finditer(begin):
        text = token.group()
        if text in (b"{", b"["):
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
            if depth <= base:
                return keys, token.end()
        elif text == b'"':
            break
        elif depth == base + 1 and text.endswith(b":"):
            try:
                keys.add(json.loads(text[:-1]))
            except ValueError:
                keys.add(text[:-1].strip(b'" \t\r\n').decode(errors="replace"))
    return keys, None

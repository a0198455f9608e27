"""Azure LLM inference traces of 2023 and 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``.

References
----------
https://github.com/Azure/AzurePublicDataset (Splitwise, ISCA 2024; DynamoLLM, HPCA 2025)
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from scenarios.traces.row import TOKENS, Row, each
from scenarios.traces.table import Kind, Table
from scenarios.traces.text import Place, Reading
from sim.units import NS_PER_S

HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order; time starts with the first."""
    stamp = _Stamp()
    first_ns = None
    table = Table(path, reading, HEADER)
    for at_ns, prompt, output, line in table.values(Kind(stamp.read, each(stamp.read)), TOKENS, TOKENS):
        if first_ns is None:
            first_ns = at_ns
        yield Row(at_ns - first_ns, prompt, output, line)


class _Stamp:
    """Reads times like ``2023-11-16 18:17:03.9799600``; neighbours mostly share their minute, which is read once."""

    def __init__(self) -> None:
        self._minute = ""
        self._minute_ns = 0

    def read(self, stamp: str, column: str, place: Place) -> int:  # noqa: ARG002  (a column's reader)
        """A time [ns since 1970]."""
        if stamp[:17] != self._minute:
            self._minute_ns = _minute_ns(stamp, place)
            self._minute = stamp[:17]
        return self._minute_ns + _within_minute_ns(stamp, place)


def _minute_ns(stamp: str, place: Place) -> int:
    """Start of the minute of ``2023-11-16 18:17:03.9799600`` [ns since 1970]."""
    try:
        at = datetime.strptime(stamp[:17], "%Y-%m-%d %H:%M:").replace(tzinfo=UTC)
    except ValueError:
        raise _wrong(stamp, place) from None
    return int(at.timestamp()) * NS_PER_S


def _within_minute_ns(stamp: str, place: Place) -> int:
    second, dot, fraction = stamp[17:].removesuffix("+00:00").partition(".")
    is_fraction = fraction.isdigit() and len(fraction) <= 9 if dot else not fraction
    if not (stamp.isascii() and len(second) == 2 and second.isdigit() and int(second) < 60 and is_fraction):
        raise _wrong(stamp, place)
    return int(second) * NS_PER_S + int(fraction.ljust(9, "0") or 0)


def _wrong(stamp: str, place: Place) -> Exception:
    return place.error(f"must be a time like 2023-11-16 18:17:03.9799600, got {stamp[:80]!r}", "TIMESTAMP")

"""APEX's CSV ``StartTimeOffset_ns,ContextTokens,GeneratedTokens``.

References
----------
https://github.com/microsoft/apex_plus
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.row import TOKENS, Row, times
from scenarios.traces.table import Table
from scenarios.traces.text import Reading

UNIT = "ns"
HEADER = ("StartTimeOffset_ns", "ContextTokens", "GeneratedTokens")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order."""
    return starmap(Row, Table(path, reading, HEADER).values(times(reading.time_unit or UNIT), TOKENS, TOKENS))

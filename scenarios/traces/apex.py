"""APEX's CSV ``StartTimeOffset_ns,ContextTokens,GeneratedTokens``.

References
----------
https://github.com/microsoft/apex_plus
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.row import TOKENS, WHOLE, Row
from scenarios.traces.table import Table
from scenarios.traces.text import Caps

HEADER = ("StartTimeOffset_ns", "ContextTokens", "GeneratedTokens")


def rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests in file order."""
    return starmap(Row, Table(path, caps, HEADER).values(WHOLE, TOKENS, TOKENS))

"""APEX's CSV ``StartTimeOffset_ns,ContextTokens,GeneratedTokens``.

References
----------
https://github.com/microsoft/apex_plus
"""

from collections.abc import Iterator

from scenarios.traces.row import Row, tokens, whole
from scenarios.traces.table import Table
from scenarios.traces.text import Caps

HEADER = ("StartTimeOffset_ns", "ContextTokens", "GeneratedTokens")


def rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests in file order."""
    table = Table(path, caps, HEADER)
    place = table.place
    for offset, prompt, output in table.rows():
        yield Row(
            whole(offset, "StartTimeOffset_ns", place),
            tokens(prompt, "ContextTokens", place),
            tokens(output, "GeneratedTokens", place),
            place.line,
        )

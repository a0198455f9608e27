"""Vidur's CSV ``arrived_at,num_prefill_tokens,num_decode_tokens``, and its length files without arrivals.

References
----------
https://github.com/microsoft/vidur (MLSys 2024)
"""

from collections.abc import Iterator

from scenarios.traces.row import Row, seconds, tokens
from scenarios.traces.table import Table
from scenarios.traces.text import Caps

LENGTHS = ("num_prefill_tokens", "num_decode_tokens")
HEADER = ("arrived_at", *LENGTHS)


def rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests in file order."""
    table = Table(path, caps, HEADER)
    place = table.place
    for arrived, prompt, output in table.rows():
        yield Row(
            seconds(arrived, "arrived_at", place),
            tokens(prompt, "num_prefill_tokens", place),
            tokens(output, "num_decode_tokens", place),
            place.line,
        )


def length_rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests of a file that tells only lengths: all arrive at time zero."""
    table = Table(path, caps, LENGTHS)
    place = table.place
    for prompt, output in table.rows():
        yield Row(
            0, tokens(prompt, "num_prefill_tokens", place), tokens(output, "num_decode_tokens", place), place.line
        )

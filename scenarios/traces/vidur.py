"""Vidur's CSV ``arrived_at,num_prefill_tokens,num_decode_tokens``, and its length files without arrivals.

References
----------
https://github.com/microsoft/vidur (MLSys 2024)
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.row import TOKENS, Row, times
from scenarios.traces.table import Table
from scenarios.traces.text import Reading

UNIT = "s"
LENGTHS = ("num_prefill_tokens", "num_decode_tokens")
HEADER = ("arrived_at", *LENGTHS)


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order."""
    return starmap(Row, Table(path, reading, HEADER).values(times(reading.time_unit or UNIT), TOKENS, TOKENS))


def length_rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests of a file that tells only lengths: all arrive at time zero."""
    for prompt, output, line in Table(path, reading, LENGTHS).values(TOKENS, TOKENS):
        yield Row(0, prompt, output, line)

"""Vidur's CSV ``arrived_at,num_prefill_tokens,num_decode_tokens``, and its length files without arrivals.

References
----------
https://github.com/microsoft/vidur (MLSys 2024)
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.row import SECONDS, TOKENS, Row
from scenarios.traces.table import Table
from scenarios.traces.text import Caps

LENGTHS = ("num_prefill_tokens", "num_decode_tokens")
HEADER = ("arrived_at", *LENGTHS)


def rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests in file order."""
    return starmap(Row, Table(path, caps, HEADER).values(SECONDS, TOKENS, TOKENS))


def length_rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests of a file that tells only lengths: all arrive at time zero."""
    for prompt, output, line in Table(path, caps, LENGTHS).values(TOKENS, TOKENS):
        yield Row(0, prompt, output, line)

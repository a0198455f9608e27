"""BurstGPT's CSV: ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``; version 3 adds sessions.

Failed requests have 0 response tokens: ``scenario.skip_empty=true`` leaves them out.

References
----------
https://github.com/HPMLL/BurstGPT (KDD 2025)
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.row import TOKENS, Row, times, tokens
from scenarios.traces.table import Table
from scenarios.traces.text import Reading, head

UNIT = "s"
HEADER = ("Timestamp", "Request tokens", "Response tokens")
SESSION = ("Session ID", "SessionID")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order, on the file's clock [s since its first midnight]."""
    kind = times(reading.time_unit or UNIT)
    if not any(name in head(path).partition("\n")[0] for name in SESSION):
        yield from starmap(Row, Table(path, reading, HEADER).values(kind, TOKENS, TOKENS))
        return
    table = Table(path, reading, HEADER, SESSION)
    place = table.place
    sessions: dict[str, list[int]] = {}  # name -> number, turns so far
    for cells in table.rows():
        session = None
        turn = 0
        if len(cells) > 3 and cells[3]:
            known = sessions.setdefault(cells[3], [len(sessions), 0])
            session, turn = known
            known[1] += 1
        yield Row(
            kind.one(cells[0], "Timestamp", place),
            tokens(cells[1], "Request tokens", place),
            tokens(cells[2], "Response tokens", place),
            place.line,
            None,
            session,
            turn,
        )

"""Our own CSV: ``arrival_s,prompt_tokens,output_tokens`` and, where known, what a replay needs to be exact.

Further columns: ``session_id,turn,id,max_output_tokens,output_id,slo_class,priority,n_samples,kind,tenant,content``. An
empty cell is unknown. ``content`` names the prompt piece by piece: ``identity:tokens`` joined by ``|``.
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.row import (
    LEAST,
    MAX_ID,
    MAX_IDENTITY,
    MOST,
    TEXT_IDS,
    TOKENS,
    Row,
    identity,
    times,
    tokens,
    whole,
)
from scenarios.traces.table import Table, split
from scenarios.traces.text import Place, Reading, head
from sim.request import Segment

UNIT = "s"
HEADER = ("arrival_s", "prompt_tokens", "output_tokens")
OWN_COLUMNS = (
    "session_id",
    "turn",
    "id",
    "max_output_tokens",
    "output_id",
    "slo_class",
    "priority",
    "n_samples",
    "kind",
    "tenant",
    "content",
)
COLUMNS = (*HEADER, *OWN_COLUMNS)


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order."""
    kind = times(reading.time_unit or UNIT)
    if set(split(head(path).partition("\n")[0].rstrip("\r"), Place(path, 1))) <= set(HEADER):
        yield from starmap(Row, Table(path, reading, HEADER).values(kind, TOKENS, TOKENS))
        return
    table = Table(path, reading, HEADER, OWN_COLUMNS)
    place = table.place
    for arrival, prompt, output, *own in table.rows():
        row = Row(
            kind.one(arrival, "arrival_s", place),
            tokens(prompt, "prompt_tokens", place),
            tokens(output, "output_tokens", place),
            place.line,
        )
        yield _with_own_columns(row, table.optional, own, place)


def _with_own_columns(row: Row, columns: tuple[str, ...], cells: list[str], place: Place) -> Row:
    given: dict[str, int | str | tuple[Segment, ...]] = {}
    for column, cell in zip(columns, cells, strict=True):
        if not cell:
            continue
        if column in ("slo_class", "kind", "tenant"):
            given[column] = cell
        elif column in TEXT_IDS:
            given[column] = _identity(cell, column, place)
        elif column == "content":
            given[column] = _content(cell, row.prompt_tokens, place)
        else:
            given[column] = whole(cell, column, place, LEAST.get(column, 0), MOST.get(column, MAX_ID))
    return row._replace(**given)  # type: ignore[arg-type]


def _content(text: str, prompt_tokens: int, place: Place) -> tuple[Segment, ...]:
    segments = []
    for piece in text.split("|"):
        name, _, n_tokens = piece.partition(":")
        segments.append((_identity(name, "content", place), whole(n_tokens, "content", place, 1)))
    total = sum(n_tokens for _, n_tokens in segments)
    if total != prompt_tokens:
        raise place.error(f"must have the prompt's {prompt_tokens} tokens, got {total}", "content")
    return tuple(segments)


def _identity(text: str, column: str, place: Place) -> int:
    found = identity(whole(text, column, place, 0, MAX_IDENTITY))
    assert found is not None, "in the range of identities"
    return found

"""Mooncake's JSON lines: ``{"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}``.

A hash id names 512 tokens and everything before them; the last one may name fewer. Files that kvtwin writes carry
further keys, with which their replay equals the run they came from: ``id``, ``session_id``, ``turn``,
``max_output_tokens``, ``output_id``, ``slo_class``, ``kind``, ``tenant``, ``priority``, ``n_samples`` and ``segments``
(identity and length of each piece of the prompt, where blocks of 512 cannot say it).

References
----------
https://github.com/kvcache-ai/Mooncake (FAST 2025)
"""

from collections.abc import Iterator
from typing import Any

from scenarios.traces.blocks import Blocks
from scenarios.traces.records import records
from scenarios.traces.row import (
    LEAST,
    MAX_ID,
    MAX_IDENTITY,
    MAX_TOKENS,
    MOST,
    TEXT_IDS,
    Row,
    identity,
    json_id,
    json_time,
    json_whole,
    shown,
)
from scenarios.traces.text import Place, Reading
from sim.request import Segment

UNIT = "ms"
BLOCK_TOKENS = 512
OWN_WORDS = ("slo_class", "kind", "tenant")
KNOWN = {"id", "session_id", "turn", "max_output_tokens", "output_id", "priority", "n_samples", *OWN_WORDS}
"""Keys that mean the same whatever else a row holds; null says nothing."""


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order."""
    place, unit = Place(path), reading.time_unit or UNIT
    blocks = Blocks(BLOCK_TOKENS, reading)
    for record in records(place, reading):
        arrival_ns = json_time(record, "timestamp", unit, place)
        prompt = json_whole(record, "input_length", place, 0, MAX_TOKENS)
        output = json_whole(record, "output_length", place, 0, MAX_TOKENS)
        content = blocks.text(record.get("hash_ids"), prompt, place)
        if "segments" in record:
            content = pieces(record["segments"], prompt, place)
        row = Row(arrival_ns, prompt, output, place.line, content)
        own = {key: record[key] for key in KNOWN.intersection(record) if record[key] is not None}
        yield _with_own_keys(row, own, place) if own else row


def pieces(segments: Any, prompt_tokens: int, place: Place) -> tuple[Segment, ...] | None:
    """A prompt given as [[identity, n_tokens], ...], or null where nobody shares it."""
    if segments is None:
        return None
    is_list = isinstance(segments, list) and all(
        isinstance(s, list) and len(s) == 2 and type(s[1]) is int and s[1] > 0 for s in segments
    )
    if not is_list or sum(s[1] for s in segments) != prompt_tokens or any(identity(s[0]) is None for s in segments):
        problem = f"must be [identity, tokens] pairs of {prompt_tokens} tokens in all, got {shown(segments)}"
        raise place.error(problem, "segments")
    return tuple((identity(s[0]), s[1]) for s in segments)  # type: ignore[misc]  # none of them is None


def _with_own_keys(row: Row, own: dict[str, Any], place: Place) -> Row:
    given: dict[str, Any] = {}
    for key, value in own.items():
        if key in TEXT_IDS:
            given[key] = identity(value)
            if given[key] is None:
                raise place.error(f"must be a whole number from 0 to {MAX_IDENTITY - 1}, got {shown(value)}", key)
        elif key in OWN_WORDS:
            given[key] = word(value, key, place)
        else:
            given[key] = json_id(own, key, place, LEAST.get(key, 0), MOST.get(key, MAX_ID))
    return row._replace(**given)


def word(value: Any, key: str, place: Place) -> str:
    """A name: text that can be written to a file."""
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise place.error(f"must be text, got {shown(value)}", key)
    return value

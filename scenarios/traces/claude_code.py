"""Agents at work: one JSON object a session, its requests a tree of prompts that share blocks with their parents.

Each entry of ``req`` is ``[time s, input, output, duration s, think s, parent, shared blocks, blocks, branch]``.
Times count from the session's own beginning, which the file does not place: sessions overlap in file order, so a
replay wants ``scenario.sort=true``. Sessions that are copies (``dup_of``) are left out, as are their statistics.
"""

from collections.abc import Iterator
from typing import Any

from scenarios.traces.records import records
from scenarios.traces.row import MAX_TOKENS, Row, json_time, json_whole
from scenarios.traces.text import Place, Reading
from sim.request import Segment
from sim.units import NS_PER_S

UNIT = "s"
FIELDS = ("time", "input", "output", "duration", "think", "parent", "shared", "blocks", "branch")


def sessions(path: str, reading: Reading) -> Iterator[tuple[Place, int, list[dict[str, Any]]]]:
    """Block size and requests of each session that is no copy, with the place of its line."""
    place = Place(path)
    for record in records(place, reading):
        block_tokens = json_whole(record, "bs", place, 1, MAX_TOKENS)
        entries = record.get("req")
        if not isinstance(entries, list) or not all(isinstance(e, list) and len(e) == len(FIELDS) for e in entries):
            raise place.error(f"must be a list of [{', '.join(FIELDS)}]", "req")
        if record.get("dup_of") is None:
            yield place, block_tokens, [dict(zip(FIELDS, entry, strict=True)) for entry in entries]


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests session by session."""
    number = 0
    for session_id, (place, block_tokens, entries) in enumerate(sessions(path, reading)):
        prompts: list[tuple[Segment, ...]] = []
        for turn, entry in enumerate(entries):
            prompt = json_whole(entry, "input", place, 0, MAX_TOKENS)
            parent = json_whole(entry, "parent", place, -1, max(turn, 0))
            shared = json_whole(entry, "shared", place) * block_tokens if parent >= 0 else 0
            content = _first(prompts[parent], shared) if shared else ()
            if sum(n_tokens for _, n_tokens in content) != shared or shared > prompt:
                raise place.error(f"must not exceed the prompt or its parent's, got {shared} tokens", "shared")
            if prompt > shared:
                content = (*content, (number, prompt - shared))
            prompts.append(content)
            number += 1
            if number > reading.rows:
                raise place.error(f"more than {reading.rows} rows: refused")
            at_ns = json_time(entry, "time", reading.time_unit or UNIT, place)
            output = json_whole(entry, "output", place, 0, MAX_TOKENS)
            yield Row(at_ns, prompt, output, place.line, content or None, session_id, turn)


def _first(content: tuple[Segment, ...], n_tokens: int) -> tuple[Segment, ...]:
    """The first tokens of a text."""
    pieces = []
    for identity, length in content:
        if n_tokens <= 0:
            break
        pieces.append((identity, min(length, n_tokens)))
        n_tokens -= length
    return tuple(pieces)


def think_times_s(path: str, reading: Reading) -> list[float]:
    """Times between an answer and the next request, where the file knows them [s]."""
    return [
        json_time(entry, "think", reading.time_unit or UNIT, place) / NS_PER_S
        for place, _, entries in sessions(path, reading)
        for entry in entries
        if entry["think"] is not None
    ]

"""Mooncake's JSON lines: ``{"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}``.

A hash id names 512 tokens and everything before them; the last one may name fewer. Files that kvtwin writes carry
further keys, with which their replay equals the run they came from: ``id``, ``session_id``, ``turn``,
``max_output_tokens``, ``output_id``, ``slo_class``, ``kind``, ``priority``, ``n_samples`` and ``segments`` (identity
and length of each piece of the prompt, where blocks of 512 cannot say it).

References
----------
https://github.com/kvcache-ai/Mooncake (FAST 2025)
"""

from collections.abc import Iterator
from typing import Any

from scenarios.traces.records import records
from scenarios.traces.row import LEAST, MAX_ID, MAX_TOKENS, Row, json_time, json_whole
from scenarios.traces.text import Caps, Place
from sim.request import Segment
from sim.units import MS_PER_S, NS_PER_S

BLOCK_TOKENS = 512
OWN_WORDS = ("slo_class", "kind")
OWN_KEYS = ("id", "session_id", "turn", "max_output_tokens", "output_id", "priority", "n_samples")


def rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests in file order."""
    place = Place(path)
    for record in records(place, caps):
        arrival_ns = json_time(record, "timestamp", NS_PER_S // MS_PER_S, "ms", place)
        prompt = json_whole(record, "input_length", place, 0, MAX_TOKENS)
        output = json_whole(record, "output_length", place, 0, MAX_TOKENS)
        content = blocks(record.get("hash_ids"), prompt, BLOCK_TOKENS, place)
        if "segments" in record:
            content = pieces(record["segments"], prompt, place)
        row = Row(arrival_ns, prompt, output, place.line, content)
        yield _with_own_keys(row, record, place) if len(record) > 4 else row


def blocks(hash_ids: Any, prompt_tokens: int, block_tokens: int, place: Place) -> tuple[Segment, ...] | None:
    """A prompt of hashed blocks, all full but the last; None where nothing is hashed."""
    if hash_ids is None:
        return None
    if not isinstance(hash_ids, list) or not all(type(h) is int and 0 <= h < MAX_ID for h in hash_ids):
        raise place.error(f"must be a list of whole numbers >= 0, got {repr(hash_ids)[:80]}", "hash_ids")
    if not hash_ids:
        return None
    last = prompt_tokens - (len(hash_ids) - 1) * block_tokens
    if not 0 < last <= block_tokens:
        needed = -(-prompt_tokens // block_tokens)
        raise place.error(f"must be {needed} of {block_tokens} tokens each, got {len(hash_ids)}", "hash_ids")
    return (*[(h, block_tokens) for h in hash_ids[:-1]], (hash_ids[-1], last))


def pieces(segments: Any, prompt_tokens: int, place: Place) -> tuple[Segment, ...] | None:
    """A prompt given as [[identity, n_tokens], ...], or null where nobody shares it."""
    if segments is None:
        return None
    is_list = isinstance(segments, list) and all(
        isinstance(s, list) and len(s) == 2 and type(s[0]) is int and type(s[1]) is int and s[1] > 0 and s[0] >= 0
        for s in segments
    )
    if not is_list or sum(s[1] for s in segments) != prompt_tokens or any(s[0] >= MAX_ID for s in segments):
        problem = f"must be [identity, tokens] pairs of {prompt_tokens} tokens in all, got {repr(segments)[:80]}"
        raise place.error(problem, "segments")
    return tuple((s[0], s[1]) for s in segments)


def _with_own_keys(row: Row, record: dict[str, Any], place: Place) -> Row:
    given: dict[str, Any] = {
        key: json_whole(record, key, place, LEAST.get(key, 0)) for key in OWN_KEYS if key in record
    }
    for key in OWN_WORDS:
        given[key] = record.get(key, "")
        if not isinstance(given[key], str):
            raise place.error(f"must be text, got {given[key]!r}", key)
    return row._replace(**given)

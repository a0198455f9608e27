"""Datasets that load generators send: ShareGPT's conversations, and JSON lines of prompts.

They hold texts, not token counts: characters over ``scenario.chars_per_token``, rounded up, stand for tokens. And they
hold no times: all requests arrive at once.

* ShareGPT: a list of objects with ``conversations``, of which, as in vLLM, the first entry is the prompt and the second
  the answer; those with fewer are left out.
* Prompts: an object with ``prompt`` and ``output_tokens`` (or the text of its ``completion``) a line.

References
----------
https://github.com/vllm-project/vllm, vllm/benchmarks/datasets.py (``ShareGPTDataset``, ``CustomDataset``)
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

from scenarios.traces.records import records
from scenarios.traces.row import MAX_TOKENS, Row, json_whole, shown
from scenarios.traces.text import Place, Reading


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """The first exchange of each conversation, in file order."""
    place = Place(path)
    _note(reading)
    for record in records(place, reading):
        turns = record.get("conversations")
        if not isinstance(turns, list):
            raise place.error(f"must be a list, got {shown(turns)}", "conversations")
        if len(turns) >= 2:
            prompt, answer = (_tokens(_said(turn), reading, "conversations", place) for turn in turns[:2])
            yield Row(0, prompt, answer, place.line)


def prompt_rows(path: str, reading: Reading) -> Iterator[Row]:
    """Prompts in file order."""
    place = Place(path)
    _note(reading)
    for record in records(place, reading):
        prompt = _tokens(record.get("prompt"), reading, "prompt", place)
        if record.get("output_tokens") is None and "completion" in record:
            output = _tokens(record["completion"], reading, "completion", place)
        else:
            output = json_whole(record, "output_tokens", place, 0, MAX_TOKENS)
        yield Row(0, prompt, output, place.line)


def _said(turn: Any) -> Any:
    return turn.get("value", turn.get("content")) if isinstance(turn, dict) else None


def _tokens(text: Any, reading: Reading, key: str, place: Place) -> int:
    if not isinstance(text, str):
        raise place.error(f"must hold text, got {shown(text)}", key)
    return ceil(len(text) / reading.chars_per_token)


def _note(reading: Reading) -> None:
    reading.notes.append(
        f"Lengths are estimated: {reading.chars_per_token:g} characters of text are taken for a token "
        "(scenario.chars_per_token)."
    )

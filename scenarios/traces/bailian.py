"""Qwen Bailian's JSON lines: chats with parents, and prefix hashes of 16-token blocks.

Keys: ``chat_id, parent_chat_id (-1: none), timestamp [s], input_length, output_length, type, turn, hash_ids``.

References
----------
https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon (USENIX ATC 2025)
"""

from collections.abc import Iterator

from scenarios.traces.blocks import Blocks
from scenarios.traces.records import records
from scenarios.traces.row import MAX_TOKENS, Row, json_id, json_time, json_whole
from scenarios.traces.text import Place, Reading

UNIT = "s"
BLOCK_TOKENS = 16


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order; a session is a tree of chats, named by its root."""
    place, unit = Place(path), reading.time_unit or UNIT
    blocks = Blocks(BLOCK_TOKENS, reading)
    root: dict[int, int] = {}
    line_of: dict[int, int] = {}
    for record in records(place, reading):
        chat = json_id(record, "chat_id", place)
        parent = json_id(record, "parent_chat_id", place, -1)
        prompt = json_whole(record, "input_length", place, 0, MAX_TOKENS)
        if chat in root:
            raise place.error(f"must be new, {chat} is in line {line_of[chat]} too", "chat_id")
        line_of[chat] = place.line
        root[chat] = root.get(parent, chat)  # a parent before the file's beginning: the chat is a root here
        yield Row(
            json_time(record, "timestamp", unit, place),
            prompt,
            json_whole(record, "output_length", place, 0, MAX_TOKENS),
            place.line,
            blocks.text(record.get("hash_ids"), prompt, place),
            root[chat],
            json_whole(record, "turn", place),
        )

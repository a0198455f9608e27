"""Which prompts of a recorded run begin alike: ``prompt_blocks.jsonl``, a line a request.

``request_id``, ``block_tokens`` and ``hash_ids``, the identities of the prompt's full blocks: equal numbers after equal
prefixes mean equal text. What follows the last full block is taken for text that nobody shares.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.errors import TraceError
from sim.request import Segment, own_text

Text = tuple[Segment, ...]


def read_prompt_blocks(path: Path, rows: Sequence[dict[str, Any]]) -> list[Text | None]:
    """The text of each request's prompt by identity; None where the file does not name it.

    Parameters
    ----------
    path : Path
        The file.
    rows : sequence of dict
        Requests as recorded, with ``request_id`` and ``input_toks``.

    Raises
    ------
    TraceError
        If a line is malformed, names a request twice, or more blocks than its prompt has: file, line and field.
    """
    found: dict[str, Text] = {}
    lengths = {row.get("request_id"): row["input_toks"] for row in rows}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            name, block_tokens, ids = _row(line, where)
            if name in found:
                raise TraceError(f"{where}: request_id {name!r} a second time")
            if name not in lengths:  # it failed, or was cut off
                continue
            rest = lengths[name] - len(ids) * block_tokens
            if rest < 0:
                raise TraceError(
                    f"{where}: {len(ids)} full blocks of {block_tokens} tokens, but {name!r} has input_toks "
                    f"{lengths[name]}"
                )
            tail = ((own_text(number), rest),) if rest else ()
            found[name] = (*((one, block_tokens) for one in ids), *tail)
    return [found.get(str(row.get("request_id"))) for row in rows]


def _row(line: bytes, where: str) -> tuple[str, int, list[int]]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise TraceError(f"{where}: must be an object, got {str(row)[:40]!r}")
    name, block_tokens, ids = (row.get(key) for key in ("request_id", "block_tokens", "hash_ids"))
    if not isinstance(name, str):
        raise TraceError(f"{where}, request_id: must be text, got {name!r}")
    if type(block_tokens) is not int or block_tokens < 1:
        raise TraceError(f"{where}, block_tokens: must be a whole number >= 1 [tokens], got {block_tokens!r}")
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise TraceError(f"{where}, hash_ids: must be a list of whole numbers >= 0, got {str(ids)[:60]}")
    return name, block_tokens, ids


def shared_tokens(prompts: Sequence[Text | None]) -> int:
    """Tokens of prompts that an earlier one begins with too."""
    seen: set[int] = set()
    n_shared = 0
    for text in prompts:
        chain, is_shared = 0, True
        for identity, length in text or ():
            chain = hash((chain, identity, length))
            is_shared = is_shared and chain in seen
            n_shared += length if is_shared else 0
            seen.add(chain)
    return n_shared

"""Which format a trace file has, seen from its first line."""

import json
from collections.abc import Callable, Iterator

from scenarios.traces import (
    apex,
    azure,
    bailian,
    burstgpt,
    claude_code,
    llmservingsim,
    mooncake,
    plain,
    vidur,
    vllm,
)
from scenarios.traces.row import Row
from scenarios.traces.servegen import HEADER as CLIENTS
from scenarios.traces.text import Caps, Place, head
from sim.errors import ConfigError

Reader = Callable[[str, Caps], Iterator[Row]]

READERS: dict[str, Reader] = {
    "azure": azure.rows,
    "mooncake": mooncake.rows,
    "burstgpt": burstgpt.rows,
    "bailian": bailian.rows,
    "vidur": vidur.rows,
    "llmservingsim": llmservingsim.rows,
    "llmservingsim_csv": llmservingsim.csv_rows,
    "vllm": vllm.rows,
    "apex": apex.rows,
    "claude_code": claude_code.rows,
    "lengths": vidur.length_rows,
    "csv": plain.rows,
}
HEADERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("azure", frozenset(azure.HEADER)),
    ("burstgpt", frozenset(burstgpt.HEADER)),
    ("apex", frozenset(apex.HEADER)),
    ("llmservingsim_csv", frozenset(llmservingsim.HEADER)),
    ("csv", frozenset(plain.HEADER)),
    ("vidur", frozenset(vidur.HEADER)),
    ("lengths", frozenset(vidur.LENGTHS)),
)
KEYS: tuple[tuple[str, frozenset[str]], ...] = (
    ("bailian", frozenset({"chat_id", "input_length", "output_length", "timestamp"})),
    ("mooncake", frozenset({"timestamp", "input_length", "output_length"})),
    ("llmservingsim", frozenset({"input_toks", "output_toks"})),
    ("claude_code", frozenset({"bs", "req"})),
    ("vllm", frozenset({"input_lens", "output_lens"})),
)


def detect(path: str) -> str:
    """Name of a file's format: the first whose columns or keys are all in the first line.

    Raises
    ------
    TraceError
        If no format begins like this.
    """
    text = head(path)
    first = text.partition("\n")[0].rstrip("\r")
    if first.lstrip().startswith("{"):
        names = _keys(first) or _keys(text) or {key for key in ("input_lens", "output_lens") if f'"{key}"' in text}
        if not names and '"req": [[' in text.replace('"req":[[', '"req": [['):
            names = {"bs", "req"}
        formats = KEYS
    else:
        names = {cell.strip('"') for cell in first.split(",")}
        formats = HEADERS
    if set(CLIENTS) <= names:
        raise Place(path, 1).error("a table of clients, not of their requests: task=describe shows what it says")
    for name, needed in formats:
        if needed <= names:
            return name
    raise Place(path, 1).error(f"of no known format ({', '.join(READERS)}), got {first[:120]!r}")


def _keys(text: str) -> set[str]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return set()
    return set(record) if isinstance(record, dict) else set()


def rows(path: str, format: str | None = None, caps: Caps | None = None) -> Iterator[Row]:  # noqa: A002
    """Requests of a trace file in file order.

    Parameters
    ----------
    format : str or None
        Name of the format; None looks at the first line.
    """
    caps = Caps() if caps is None else caps
    if format is not None and format not in READERS:
        raise ConfigError(f"scenario.format must be one of {', '.join(READERS)}, got {format!r}")
    return READERS[format or detect(path)](path, caps)

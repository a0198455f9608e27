"""Which format a trace file has, seen from its header or its first object."""

from collections.abc import Callable, Iterator

from scenarios.traces import (
    aiperf,
    apex,
    azure,
    bailian,
    burstgpt,
    claude_code,
    guidellm,
    inference_perf,
    llmservingsim,
    mooncake,
    otel,
    plain,
    sharegpt,
    vidur,
    vllm,
)
from scenarios.traces.records import first_keys
from scenarios.traces.row import Row
from scenarios.traces.servegen import HEADER as CLIENTS
from scenarios.traces.text import Place, Reading, head
from sim.errors import ConfigError

Reader = Callable[[str, Reading], Iterator[Row]]

READERS: dict[str, Reader] = {
    "azure": azure.rows,
    "mooncake": mooncake.rows,
    "burstgpt": burstgpt.rows,
    "bailian": bailian.rows,
    "vidur": vidur.rows,
    "llmservingsim": llmservingsim.rows,
    "llmservingsim_csv": llmservingsim.csv_rows,
    "vllm": vllm.rows,
    "aiperf": aiperf.rows,
    "guidellm": guidellm.rows,
    "inference_perf": inference_perf.rows,
    "otel": otel.rows,
    "sharegpt": sharegpt.rows,
    "prompts": sharegpt.prompt_rows,
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
    ("llmservingsim", frozenset({"sub_requests"})),
    ("claude_code", frozenset({"bs", "req"})),
    ("vllm", frozenset({"input_lens", "output_lens"})),
    ("vllm", frozenset({"request_throughput", "total_input_tokens"})),  # without --save-detailed
    ("aiperf", frozenset({"metadata", "metrics"})),
    ("guidellm", frozenset({"benchmarks"})),
    ("inference_perf", frozenset({"start_time", "end_time", "info"})),
    ("otel", frozenset({"resourceSpans"})),
    ("sharegpt", frozenset({"conversations"})),
    ("prompts", frozenset({"prompt"})),
)
UNITS = {
    "mooncake": mooncake.UNIT,
    "burstgpt": burstgpt.UNIT,
    "bailian": bailian.UNIT,
    "vidur": vidur.UNIT,
    "llmservingsim": llmservingsim.UNIT,
    "llmservingsim_csv": llmservingsim.UNIT,
    "vllm": vllm.UNIT,
    "aiperf": aiperf.UNIT,
    "guidellm": guidellm.UNIT,
    "inference_perf": inference_perf.UNIT,
    "otel": otel.UNIT,
    "apex": apex.UNIT,
    "claude_code": claude_code.UNIT,
    "csv": plain.UNIT,
}
"""Units that formats write times in; the others write dates, or none."""


def detect(path: str) -> str:
    """Name of a file's format: the first whose columns or keys are all in the header or the first object.

    Raises
    ------
    TraceError
        If no format begins like this.
    """
    text = head(path).lstrip()
    first = text.partition("\n")[0].rstrip("\r")
    if text[:1] in ("{", "["):
        names, formats = first_keys(path)[0], KEYS
    else:
        names, formats = {cell.strip('"') for cell in first.split(",")}, HEADERS
    if set(CLIENTS) <= names:
        raise Place(path, 1).error("a table of clients, not of their requests: task=describe shows what it says")
    for name, needed in formats:
        if needed <= names:
            return name
    raise Place(path, 1).error(f"of no known format ({', '.join(READERS)}), got {first[:120]!r}")


def rows(path: str, format: str | None = None, reading: Reading | None = None) -> Iterator[Row]:  # noqa: A002
    """Requests of a trace file in file order.

    Parameters
    ----------
    format : str or None
        Name of the format; None looks at the beginning of the file.
    """
    reading = Reading() if reading is None else reading
    if format is not None and format not in READERS:
        raise ConfigError(f"scenario.format must be one of {', '.join(READERS)}, got {format[:80]!r}")
    name = format or detect(path)
    if reading.time_unit is not None and name not in UNITS:
        raise ConfigError(
            f"scenario.time_unit is for times in numbers; {name} has {'dates' if name == 'azure' else 'none'}"
        )
    return READERS[name](path, reading)

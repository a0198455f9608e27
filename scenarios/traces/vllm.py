"""Results of ``vllm bench serve --save-result --save-detailed``: one JSON object with a list per quantity.

Used are ``start_times`` [s], ``input_lens`` and ``output_lens``. Older versions wrote no start times: such a file does
not say when its requests were sent. A failed request has 0 output tokens (``scenario.skip_empty=true``).
"""

from collections.abc import Iterator
from typing import Any

from scenarios.traces.records import parse
from scenarios.traces.row import MAX_TOKENS, Row, json_time, json_whole
from scenarios.traces.text import BYTE_ORDER_MARK, Caps, Place, opened
from sim.units import NS_PER_S

LISTS = ("start_times", "input_lens", "output_lens")
MAX_BYTES = 1 << 28  # the whole object is held in memory


def rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests in the order of the lists; time starts with the earliest."""
    place = Place(path)
    most = min(caps.text_bytes, MAX_BYTES)
    with opened(path) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise place.error(f"more than {most} bytes of text: refused")
    try:
        record = parse(text.removeprefix(BYTE_ORDER_MARK).decode(), place)
    except UnicodeDecodeError as problem:
        raise place.error(f"not UTF-8 text: {problem.reason}") from None
    starts, prompts, outputs = (_list(record, name, place) for name in LISTS)
    if not len(starts) == len(prompts) == len(outputs) >= 1:
        sizes = f"{len(starts)}, {len(prompts)} and {len(outputs)}"
        raise place.error(f"must hold one or more requests in lists of one length, got {sizes}", ", ".join(LISTS))
    if len(starts) > caps.rows:
        raise place.error(f"more than {caps.rows} rows: refused")
    requests = []
    for k, values in enumerate(zip(starts, prompts, outputs, strict=True), 1):
        entry = dict(zip((f"{name}[{k - 1}]" for name in LISTS), values, strict=True))
        start, prompt, output = entry
        at_ns = json_time(entry, start, NS_PER_S, "s", place)
        n_prompt = json_whole(entry, prompt, place, 0, MAX_TOKENS)
        requests.append(Row(at_ns, n_prompt, json_whole(entry, output, place, 0, MAX_TOKENS), k))
    first_ns = min(row.arrival_ns for row in requests)
    for row in requests:
        yield row._replace(arrival_ns=row.arrival_ns - first_ns)


def _list(record: Any, name: str, place: Place) -> list[Any]:
    values = record.get(name) if isinstance(record, dict) else None
    if not isinstance(values, list):
        raise place.error("must be a list (vllm bench serve writes it with --save-detailed)", name)
    return values

"""Results of ``vllm bench serve --save-result --save-detailed``: one JSON object with a list per quantity.

Used are ``start_times`` [s], ``input_lens`` and ``output_lens``. Older versions wrote no start times: such a file does
not say when its requests were sent. A failed request has 0 output tokens (``scenario.skip_empty=true``). With
``--append-result`` a file holds one such object a line, each of a benchmark of its own.

References
----------
https://github.com/vllm-project/vllm, vllm/benchmarks/serve.py
"""

from collections.abc import Iterator
from typing import Any

from scenarios.traces.records import document, first_keys
from scenarios.traces.row import MAX_TOKENS, Row, json_time, json_whole
from scenarios.traces.text import Place, Reading, lines

LISTS = ("start_times", "input_lens", "output_lens")
UNIT = "s"


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in the order of the lists; time starts with the earliest."""
    place, unit = Place(path), reading.time_unit or UNIT
    _refuse_several(place, reading)
    record = document(place, reading)
    starts, prompts, outputs = (_list(record, name, place) for name in LISTS)
    if not len(starts) == len(prompts) == len(outputs) >= 1:
        sizes = f"{len(starts)}, {len(prompts)} and {len(outputs)}"
        raise place.error(f"must hold one or more requests in lists of one length, got {sizes}", ", ".join(LISTS))
    if len(starts) > reading.rows:
        raise place.error(f"more than {reading.rows} rows: refused")
    requests = []
    for k, values in enumerate(zip(starts, prompts, outputs, strict=True), 1):
        entry = dict(zip((f"{name}[{k - 1}]" for name in LISTS), values, strict=True))
        start, prompt, output = entry
        at_ns = json_time(entry, start, unit, place)
        n_prompt = json_whole(entry, prompt, place, 0, MAX_TOKENS)
        requests.append(Row(at_ns, n_prompt, json_whole(entry, output, place, 0, MAX_TOKENS), k))
    first_ns = min(row.arrival_ns for row in requests)
    for row in requests:
        yield row._replace(arrival_ns=row.arrival_ns - first_ns)


def _refuse_several(place: Place, reading: Reading) -> None:
    """Say what a file of several results is."""
    if not first_keys(place.path)[1]:
        return
    number = 0
    for block in lines(place.path, Reading(line_bytes=reading.text_bytes)):
        for line in block:
            number += 1
            if number > 1 and line.strip().startswith("{"):
                raise Place(place.path, number).error(
                    "a second result, as --append-result writes them: put each in a file of its own, for their "
                    "requests were sent in different benchmarks"
                )


def _list(record: Any, name: str, place: Place) -> list[Any]:
    values = record.get(name) if isinstance(record, dict) else None
    if not isinstance(values, list):
        raise place.error("must be a list (vllm bench serve writes it with --save-detailed)", name)
    return values

"""OpenTelemetry spans that vLLM writes of its requests (``--otlp-traces-endpoint``), in OTLP's JSON.

A file of the collector's file exporter holds one object with ``resourceSpans`` a line. A span is a request if it
carries token counts; it starts when the request arrives. Each answer of a request with several is a span, and a request
here.

References
----------
https://github.com/vllm-project/vllm, vllm/tracing/utils.py (``SpanAttributes``) and v1/engine/output_processor.py
(``do_tracing``); https://opentelemetry.io/docs/specs/otlp/ (64-bit numbers are texts in JSON)
"""

from collections.abc import Iterator
from typing import Any

from scenarios.traces.records import document, first_keys, records
from scenarios.traces.results import by_arrival
from scenarios.traces.row import UNITS, Row, scaled, shown, tokens
from scenarios.traces.text import Place, Reading

UNIT = "ns"
PROMPT = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.input_tokens")  # the second is OpenTelemetry's newer name
OUTPUT = ("gen_ai.usage.completion_tokens", "gen_ai.usage.output_tokens")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in order of arrival."""
    return by_arrival(_noted(Place(path), reading))


def _noted(place: Place, reading: Reading) -> Iterator[Row]:
    unit, n_rows = reading.time_unit or UNIT, 0
    exports = records(place, reading) if first_keys(place.path)[1] else iter([document(place, reading)])
    for export in exports:
        for span in _spans(export, place):
            given = {one.get("key"): _number(one.get("value"), place) for one in _list(span, "attributes", place)}
            counts = [next((given[name] for name in names if name in given), None) for names in (PROMPT, OUTPUT)]
            if counts == [None, None]:
                continue
            n_rows += 1
            if n_rows > reading.rows:
                raise place.error(f"more than {reading.rows} rows: refused")
            at_ns = scaled(str(span.get("startTimeUnixNano")), UNITS[unit], unit, "startTimeUnixNano", place)
            yield Row(at_ns, counts[0] or 0, counts[1] or 0, place.line)
    if not n_rows:
        raise place.error(f"has no spans with {PROMPT[0]}, as vLLM writes them")


def _spans(export: Any, place: Place) -> Iterator[dict[str, Any]]:
    for resource in _list(export, "resourceSpans", place):
        for scope in _list(resource, "scopeSpans", place):
            yield from _list(scope, "spans", place)


def _list(record: Any, name: str, place: Place) -> list[dict[str, Any]]:
    """A list of objects under a name; none where it is missing."""
    values = record.get(name, [])
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise place.error(f"must be a list of objects, got {shown(values)}", name)
    return values


def _number(value: Any, place: Place) -> int | None:
    """An attribute's whole number; None of other kinds."""
    number = value.get("intValue") if isinstance(value, dict) else None
    return None if number is None else tokens(str(number), "intValue", place)

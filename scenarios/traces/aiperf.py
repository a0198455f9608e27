"""AIPerf's ``profile_export.jsonl``: one JSON object a request, with ``metadata``, ``metrics`` and ``error``.

Used are ``request_start_ns`` [ns since 1970], ``x_correlation_id`` (a session), ``turn_index``, and of the metrics
``input_sequence_length`` and ``output_sequence_length``, which counts reasoning too. A failed request has no metrics
but ``error_isl``: 0 output tokens (``scenario.skip_empty=true``). Lines are written as requests end.

References
----------
https://github.com/ai-dynamo/aiperf, docs/tutorials/working-with-profile-exports.md
"""

from collections.abc import Iterator

from scenarios.traces.records import records
from scenarios.traces.results import Names, by_arrival, count, within
from scenarios.traces.row import Row, json_time, json_whole
from scenarios.traces.text import Place, Reading

UNIT = "ns"
PROMPT = ("metrics.input_sequence_length.value", "metrics.error_isl.value")
OUTPUT = ("metrics.output_sequence_length.value", "metrics.output_token_count.value")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in order of arrival."""
    return by_arrival(_noted(Place(path), reading))


def _noted(place: Place, reading: Reading) -> Iterator[Row]:
    sessions = Names()
    for record in records(place, reading):
        about = record.get("metadata")
        if not isinstance(about, dict):
            raise place.error("must be an object", "metadata")
        at_ns = json_time(about, "request_start_ns", reading.time_unit or UNIT, place)
        prompt, output = count(record, PROMPT, place), count(record, OUTPUT, place)
        turn = json_whole(about, "turn_index", place) if within(about, "turn_index") is not None else 0
        session = sessions.number(about.get("x_correlation_id"))
        yield Row(at_ns, prompt, output, place.line, session_id=session, turn=turn)

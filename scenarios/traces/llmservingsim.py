"""LLMServingSim's workloads: JSON lines ``input_toks, output_toks, arrival_time_ns``, or the same as CSV.

Its records of engine runs carry ``arrival_time`` [s since 1970] instead; their time starts with the first request.
Sessions of ``sub_requests``, of its agentic workloads, are no requests at known times: each waits for the one before.

References
----------
https://github.com/casys-kaist/LLMServingSim (IISWC 2024)
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.records import records
from scenarios.traces.row import MAX_NS, MAX_TOKENS, TOKENS, Row, json_time, json_whole, times
from scenarios.traces.table import Table
from scenarios.traces.text import Place, Reading

UNIT = "ns"
HEADER = ("arrival_ns", "input_tokens", "output_tokens")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in file order."""
    place = Place(path)
    first_ns = None
    for record in records(place, reading):
        if "sub_requests" in record:
            raise place.error(
                "a session of sub_requests (agentic workloads of LLMServingSim 2), each of which waits for the one "
                "before; only single requests with a time of their own are replayed"
            )
        if "arrival_time" in record and "arrival_time_ns" not in record:
            at_ns = json_time(record, "arrival_time", reading.time_unit or "s", place)
            first_ns = at_ns if first_ns is None else first_ns
            at_ns -= first_ns
        elif reading.time_unit in (None, UNIT):
            at_ns = json_whole(record, "arrival_time_ns", place, 0, MAX_NS)
        else:
            at_ns = json_time(record, "arrival_time_ns", reading.time_unit, place)
        prompt = json_whole(record, "input_toks", place, 0, MAX_TOKENS)
        yield Row(at_ns, prompt, json_whole(record, "output_toks", place, 0, MAX_TOKENS), place.line)


def csv_rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests of the CSV form in file order."""
    return starmap(Row, Table(path, reading, HEADER).values(times(reading.time_unit or UNIT), TOKENS, TOKENS))

"""LLMServingSim's workloads: JSON lines ``input_toks, output_toks, arrival_time_ns``, or the same as CSV.

Its records of engine runs carry ``arrival_time`` [s since 1970] instead; their time starts with the first request.

References
----------
https://github.com/casys-kaist/LLMServingSim (IISWC 2024)
"""

from collections.abc import Iterator
from itertools import starmap

from scenarios.traces.records import records
from scenarios.traces.row import MAX_NS, MAX_TOKENS, TOKENS, WHOLE, Row, json_time, json_whole
from scenarios.traces.table import Table
from scenarios.traces.text import Caps, Place
from sim.units import NS_PER_S

HEADER = ("arrival_ns", "input_tokens", "output_tokens")


def rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests in file order."""
    place = Place(path)
    first_ns = None
    for record in records(place, caps):
        if "arrival_time" in record and "arrival_time_ns" not in record:
            at_ns = json_time(record, "arrival_time", NS_PER_S, "s", place)
            first_ns = at_ns if first_ns is None else first_ns
            if at_ns < first_ns:
                raise place.error("must not lie before the first request's", "arrival_time")
            at_ns -= first_ns
        else:
            at_ns = json_whole(record, "arrival_time_ns", place, 0, MAX_NS)
        prompt = json_whole(record, "input_toks", place, 0, MAX_TOKENS)
        yield Row(at_ns, prompt, json_whole(record, "output_toks", place, 0, MAX_TOKENS), place.line)


def csv_rows(path: str, caps: Caps) -> Iterator[Row]:
    """Requests of the CSV form in file order."""
    return starmap(Row, Table(path, caps, HEADER).values(WHOLE, TOKENS, TOKENS))

"""guidellm's ``benchmarks.json``: benchmarks, each with its ``requests``: ``successful``, ``incomplete``, ``errored``.

Used are ``request_start_time`` (``start_time`` before version 0.4) [s since 1970], ``prompt_tokens`` and
``output_tokens``. Of several benchmarks, as of a sweep, all are read; they ran one after the other, and
``scenario.time_range`` picks one.

References
----------
https://github.com/vllm-project/guidellm, src/guidellm/schemas/request_stats.py
"""

from collections.abc import Iterator
from typing import Any

from scenarios.traces.records import document
from scenarios.traces.results import by_arrival, count, within
from scenarios.traces.row import Row, json_time
from scenarios.traces.text import Place, Reading

UNIT = "s"
KINDS = ("successful", "incomplete", "errored")
STARTS = ("request_start_time", "start_time")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in order of arrival."""
    return by_arrival(_noted(Place(path), reading))


def _noted(place: Place, reading: Reading) -> Iterator[Row]:
    benchmarks = within(document(place, reading), "benchmarks")
    requests = [
        request
        for benchmark in (benchmarks if isinstance(benchmarks, list) else [])
        for kind in KINDS
        for request in _list(within(benchmark, f"requests.{kind}"), f"requests.{kind}", place)
    ]
    if not requests:
        raise place.error("must hold benchmarks with requests", "benchmarks")
    if len(requests) > reading.rows:
        raise place.error(f"more than {reading.rows} rows: refused")
    for number, request in enumerate(requests, 1):
        if not isinstance(request, dict):
            raise place.error(f"request {number} must be an object")
        start = next((name for name in STARTS if request.get(name) is not None), STARTS[0])
        at_ns = json_time(request, start, reading.time_unit or UNIT, place)
        yield Row(at_ns, count(request, ("prompt_tokens",), place), count(request, ("output_tokens",), place), number)


def _list(values: Any, name: str, place: Place) -> list[Any]:
    if values is None:
        return []
    if not isinstance(values, list):
        raise place.error("must be a list", name)
    return values

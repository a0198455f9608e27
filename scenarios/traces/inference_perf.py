"""inference-perf's ``per_request_lifecycle_metrics.json``: a list with an object for each request.

Used are ``start_time`` [s] and of ``info`` the token counts: ``request_metrics.text.input_tokens`` and
``response_metrics.output_tokens``, which older versions wrote as ``input_tokens`` and ``output_tokens``. A failed
request has 0 output tokens (``scenario.skip_empty=true``).

References
----------
https://github.com/kubernetes-sigs/inference-perf, inference_perf/reportgen/base.py and apis/base.py
"""

from collections.abc import Iterator

from scenarios.traces.records import records
from scenarios.traces.results import by_arrival, count
from scenarios.traces.row import Row, json_time
from scenarios.traces.text import Place, Reading

UNIT = "s"
PROMPT = ("info.request_metrics.text.input_tokens", "info.input_tokens")
OUTPUT = ("info.response_metrics.output_tokens", "info.output_tokens")


def rows(path: str, reading: Reading) -> Iterator[Row]:
    """Requests in order of arrival."""
    return by_arrival(_noted(Place(path), reading))


def _noted(place: Place, reading: Reading) -> Iterator[Row]:
    for record in records(place, reading):
        at_ns = json_time(record, "start_time", reading.time_unit or UNIT, place)
        yield Row(at_ns, count(record, PROMPT, place), count(record, OUTPUT, place), place.line)

"""A run as a Chrome trace, which https://ui.perfetto.dev and chrome://tracing open.

One process per replica: its iterations as slices, its load as counters, its requests as asynchronous tracks (they
overlap). Times are microseconds since the first arrival. The file holds the beginning of a run, up to `MAX_EVENTS`
events.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sim.metrics.queue import Queue, queue
from sim.record import Result, row_ends_ns
from sim.report.pauses import Pauses, pauses
from sim.units import NS_PER_S, US_PER_S

MAX_EVENTS = 40_000  # Perfetto opens thirty times as many, but the file is written with every run
NS_PER_US = NS_PER_S // US_PER_S
EVENTS_PER_ITERATION, EVENTS_PER_PAUSE, EVENTS_PER_REQUEST = 3, 2, 8
SHOWN = (
    "replica", "start_ns", "n_steps", "prefill_tokens", "decode_seqs", "decode_context_tokens", "held_tokens",
    "idle_tokens",
)  # fmt: skip


def trace_json(result: Result, max_events: int = MAX_EVENTS) -> bytes:
    """The trace, gzipped; the same bytes for the same run."""
    queues = [queue(result, replica) for replica in range(result.n_replicas)]
    idle = pauses(result)
    until_ns = _horizon_ns(result, queues, idle, max_events)
    events = [
        *_names(result),
        *_iterations(result, until_ns),
        *_pauses(idle, result.start_ns, until_ns),
        *_waiting(queues, result.start_ns, until_ns),
        *_requests(result, until_ns),
    ]
    shown_s = (min(until_ns, result.end_ns) - result.start_ns) / NS_PER_S
    about = {"seed": result.seed, "shown_s": shown_s, "of_s": result.duration_ns / NS_PER_S}
    head = json.dumps({"displayTimeUnit": "ms", "otherData": about}, sort_keys=True)[:-1]
    text = head + ', "traceEvents": [\n' + ",\n".join(events) + "\n]}\n"
    return gzip.compress(text.encode(), compresslevel=1, mtime=0)


def _horizon_ns(result: Result, queues: Sequence[Queue], idle: Pauses, max_events: int) -> int:
    """Until when events fit the cap."""
    at_ns = {
        EVENTS_PER_ITERATION: [result.iterations.column("start_ns")],
        EVENTS_PER_REQUEST: [result.requests.column("finish_ns")],
        EVENTS_PER_PAUSE: [idle.begin_ns],
        1: [waiting.begin_ns for waiting in queues],
    }
    starts = np.concatenate([ticks for several in at_ns.values() for ticks in several])
    weight = np.repeat(list(at_ns), [sum(map(len, several)) for several in at_ns.values()])
    if int(weight.sum()) <= max_events:
        return result.end_ns + 1
    order = np.argsort(starts, kind="stable")
    return int(starts[order[np.searchsorted(np.cumsum(weight[order]), max_events)]])


def _names(result: Result) -> Iterator[str]:
    for replica in range(result.n_replicas):
        yield _event(ph="M", pid=replica, name="process_name", args={"name": f"replica {replica}"})
        yield _event(ph="M", pid=replica, tid=0, name="thread_name", args={"name": "iterations"})


def _iterations(result: Result, until_ns: int) -> Iterator[str]:
    table = result.iterations
    rows = table.rows()[: int(np.searchsorted(_ascending(table.column("start_ns")), until_ns))]
    column = {name: rows[:, i].tolist() for i, name in enumerate(table.columns) if name in SHOWN}
    ends_ns, origin_ns = row_ends_ns(table)[: len(rows)].tolist(), result.start_ns
    for end_ns, replica, start_ns, n, prompt, decoding, context, held, idle in zip(
        ends_ns, *(column[name] for name in SHOWN), strict=True
    ):
        ts = _ts(start_ns - origin_ns)
        kind = "prefill" if not decoding else "mixed" if prompt else "decode"
        yield (
            f'{{"ph":"X","pid":{replica},"tid":0,"ts":{ts},"dur":{(end_ns - start_ns) / NS_PER_US:.3f},"name":"{kind}",'
            f'"args":{{"iterations":{n},"decoding sequences":{decoding},'
            f'"prompt tokens":{prompt},"context tokens":{context}}}}}'
        )
        yield from _counters(replica, ts, held, idle, decoding)


def _pauses(idle: Pauses, origin_ns: int, until_ns: int) -> Iterator[str]:
    """Counters keep their last value until the next one, so a replica that stops says what is left."""
    columns = idle.replica, idle.begin_ns, idle.tokens["held_tokens"], idle.tokens["idle_tokens"]
    rows = np.stack([column.astype(np.int64) for column in columns], axis=1)
    for replica, at_ns, held, kept in rows[idle.begin_ns < until_ns].tolist():
        yield from _counters(replica, _ts(at_ns - origin_ns), held, kept, 0)


def _counters(replica: int, ts: str, held: int, idle: int, decoding: int) -> Iterator[str]:
    common = f'"ph":"C","pid":{replica},"ts":{ts}'
    yield f'{{{common},"name":"KV slots","args":{{"held":{held},"reusable":{idle}}}}}'
    yield f'{{{common},"name":"requests","args":{{"decoding":{decoding}}}}}'


def _waiting(queues: Sequence[Queue], origin_ns: int, until_ns: int) -> Iterator[str]:
    for replica, (begin_ns, length) in enumerate(queues):
        for at_ns, n in zip(begin_ns[begin_ns < until_ns].tolist(), length.tolist(), strict=False):
            yield f'{{"ph":"C","pid":{replica},"ts":{_ts(at_ns - origin_ns)},"name":"queue","args":{{"waiting":{n}}}}}'


def _ascending(start_ns: Any) -> Any:
    """Rows are written when they end, so those of other replicas may start a little earlier than the row before."""
    return np.maximum.accumulate(start_ns)


def _requests(result: Result, until_ns: int) -> Iterator[str]:
    table = result.requests
    rows, origin_ns = table.rows()[table.column("finish_ns") < until_ns], result.start_ns
    ids, next_ns = (result.handovers.column(name).tolist() for name in ("request_id", "next_token_ns"))
    handed = {one: at_ns for one, at_ns in zip(ids, next_ns, strict=True) if at_ns >= 0}
    for row in rows.tolist():
        f = dict(zip(table.columns, row, strict=True))
        common = f'"cat":"request","id":{f["id"]},"pid":{f["replica"]},"tid":1'
        tokens = f'"args":{{"prompt tokens":{f["prompt_tokens"]},"output tokens":{f["output_tokens"]}}}'
        marks = [f["arrival_ns"], f["scheduled_ns"], f["first_token_ns"], f["finish_ns"]]
        phases = ["queued", "prefill", "decode"]
        if f["id"] in handed and f["n_samples"] == 1:
            marks.insert(3, handed[f["id"]])
            phases.insert(2, "hand-over")
        for phase, begin_ns, end_ns in zip(phases, marks, marks[1:], strict=False):
            yield f'{{"ph":"b",{common},"ts":{_ts(begin_ns - origin_ns)},"name":"{phase}",{tokens}}}'
            yield f'{{"ph":"e",{common},"ts":{_ts(end_ns - origin_ns)},"name":"{phase}"}}'


def _ts(at_ns: int) -> str:
    """A time in microseconds, and a quarter of a nanosecond more.

    Perfetto drops a slice that overlaps the one before it. It reads times as floats and cuts ``1000 * ts`` to whole
    nanoseconds, where 1.001 would come out as 1000.
    """
    return f"{at_ns // NS_PER_US}.{at_ns % NS_PER_US:03}25"


def _event(**fields: Any) -> str:
    return json.dumps(fields, separators=(",", ":"))

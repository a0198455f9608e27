"""A run as a Prometheus server would have seen it: OpenMetrics text and a table, under vLLM's names.

``promtool tsdb create-blocks-from openmetrics metrics.om.txt`` makes blocks of the text, which a Prometheus serves to
dashboards that are made for vLLM. Time zero of the simulation is 1970, unless a trace's times say otherwise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim.metrics.watch import Observed, Scrapes
from sim.record import Result
from sim.units import NS_PER_S

PREFIX = "vllm:"
HELP = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
    "prompt_tokens": "Number of prefill tokens processed.",
    "generation_tokens": "Number of generation tokens processed.",
    "request_success": "Count of successfully processed requests.",
    "num_preemptions": "Cumulative number of preemptions from the engine.",
    "prefix_cache_queries": "Prefix cache queries, in number of tokens.",
    "prefix_cache_hits": "Prefix cache hits, in number of tokens.",
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "e2e_request_latency_seconds": "Histogram of end to end request latency in seconds.",
    "request_queue_time_seconds": "Histogram of time spent in the waiting queue in seconds.",
}
FINISHED = {"request_success": ',finished_reason="length"'}  # answers have the length that was asked for


def openmetrics(result: Result, seen: Scrapes) -> Iterator[str]:
    """The lines of the text, each with its end."""
    model = str((result.config.get("model") or {}).get("name", "")).replace("\\", "\\\\").replace('"', '\\"')
    labels = [f'model_name="{model}",engine="{index}"' for index in range(result.n_replicas)]
    stamps = [f"{t // NS_PER_S}.{t % NS_PER_S:09d}" for t in seen.times_ns.tolist()]
    for kind, families in (("gauge", seen.gauges), ("counter", seen.counters)):
        for name, values in families.items():
            yield from _head(name, kind)
            suffix = "_total" if kind == "counter" else ""
            for label, row in zip(labels, values.tolist(), strict=True):
                series = f"{PREFIX}{name}{suffix}{{{label}{FINISHED.get(name, '')}}}"
                for stamp, value in zip(stamps, row, strict=True):
                    yield f"{series} {value:.10g} {stamp}\n"
    for name, observed in seen.histograms.items():
        yield from _head(name, "histogram")
        for index, label in enumerate(labels):
            yield from _histogram(name, observed, index, label, stamps)
    yield "# EOF\n"


def _head(name: str, kind: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {HELP[name]}\n"
    yield f"# TYPE {PREFIX}{name} {kind}\n"


def _histogram(name: str, observed: Observed, index: int, label: str, stamps: list[str]) -> Iterator[str]:
    bounds = [*(str(bound) for bound in observed.bounds_s), "+Inf"]
    series = f"{PREFIX}{name}"
    counts, sums = observed.counts[index].tolist(), observed.sums_s[index].tolist()
    for stamp, row, total_s in zip(stamps, counts, sums, strict=True):
        for bound, count in zip(bounds, row, strict=True):
            yield f'{series}_bucket{{{label},le="{bound}"}} {count} {stamp}\n'
        yield f"{series}_count{{{label}}} {row[-1]} {stamp}\n"
        yield f"{series}_sum{{{label}}} {total_s:.10g} {stamp}\n"


def write_openmetrics(result: Result, seen: Scrapes, path: Path) -> None:
    """The text as a file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(openmetrics(result, seen))


def write_scrapes(seen: Scrapes, path: Path) -> None:
    """Gauges and counters as Parquet: a row a replica and scrape, a column a name."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_replicas, n_times = next(iter(seen.gauges.values())).shape
    columns: dict[str, Any] = {
        "time_ns": np.tile(seen.times_ns, n_replicas),
        "engine": np.repeat(np.arange(n_replicas), n_times),
    }
    columns |= {f"{PREFIX}{name}": values.reshape(-1) for name, values in seen.gauges.items()}
    columns |= {f"{PREFIX}{name}_total": values.reshape(-1) for name, values in seen.counters.items()}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    pq.write_table(table, path, compression="zstd", write_statistics=False)

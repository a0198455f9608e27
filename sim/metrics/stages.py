"""Numbers of a part of a run: of the requests that arrive in a stage of the traffic, or after its warm-up."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sim.metrics.slo import LIMITS, Slo
from sim.record import Result
from sim.units import NS_PER_S

if TYPE_CHECKING:
    from sim.metrics.summary import Measures

QUANTILES = (50, 90, 99)


def by_stage(result: Result, slo: Slo, measures: "Measures") -> list[dict[str, Any]]:
    """Of each stage in which traffic came its rate and `numbers_in` it."""
    return [
        {"rate": stage.rate, **numbers_in(result, slo, measures, stage.begin_ns, stage.end_ns)}
        for stage in result.stages
    ]


def after_warmup(result: Result, slo: Slo, measures: "Measures") -> dict[str, Any] | None:
    """`numbers_in` the run after its warm-up, where there is one (``warmup_s``)."""
    warmup_s = float(result.config.get("warmup_s") or 0.0)
    if not warmup_s:
        return None
    begin_ns = min(result.start_ns + round(warmup_s * NS_PER_S), result.end_ns)
    return numbers_in(result, slo, measures, begin_ns, result.end_ns)


def numbers_in(result: Result, slo: Slo, measures: "Measures", begin_ns: int, end_ns: int) -> dict[str, Any]:
    """Of the requests that arrive from one time to another: how many, how fast, how long each took.

    ``request_throughput`` and ``output_throughput`` count what ends in that time, whenever it came. Latencies, goodput
    and hits are of those that come in it, whenever they end.
    """
    requests, refused = result.requests, result.refused
    span_s = (end_ns - begin_ns) / NS_PER_S
    arrived = (requests.column("arrival_ns") >= begin_ns) & (requests.column("arrival_ns") < end_ns)
    ended = (requests.column("finish_ns") >= begin_ns) & (requests.column("finish_ns") < end_ns)
    n_refused = int(((refused.column("arrival_ns") >= begin_ns) & (refused.column("arrival_ns") < end_ns)).sum())
    n, n_good = int(arrived.sum()), int(measures.is_good[arrived].sum())
    n_prompt = int(requests.column("prompt_tokens")[arrived].sum())
    numbers: dict[str, Any] = {
        "begin_s": (begin_ns - result.start_ns) / NS_PER_S,
        "duration": span_s,
        "completed": n,
        "failed": n_refused,
        "request_rate": (n + n_refused) / span_s if span_s else 0.0,
        "request_throughput": int(ended.sum()) / span_s if span_s else 0.0,
        "output_throughput": int(requests.column("output_tokens")[ended].sum()) / span_s if span_s else 0.0,
        "request_goodput": n_good / span_s if slo.is_set and span_s else None,
        "attainment_frac": n_good / (n + n_refused) if slo.is_set and n + n_refused else None,
        "prefix_hit_frac": int(requests.column("cached_tokens")[arrived].sum()) / n_prompt if n_prompt else None,
    }
    for name in LIMITS:
        values = measures.latency_ms[name][arrived]
        values = values[~np.isnan(values)]
        numbers[f"mean_{name}"] = float(values.mean()) if len(values) else None
        for q in QUANTILES:
            key = f"{'median' if q == 50 else f'p{q}'}_{name}"
            numbers[key] = float(np.percentile(values, q)) if len(values) else None
    return numbers

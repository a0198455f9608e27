"""The numbers of a run: exactly the keys of ``vllm bench serve``'s JSON, and ours under one key of their own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from sim.metrics.fleet import fleet_numbers
from sim.metrics.gaps import token_gaps
from sim.metrics.groups import by_class, by_tenant, starving
from sim.metrics.latency import Bools, Floats, latencies, meets
from sim.metrics.load import Load, load, most_in_flight
from sim.metrics.pools import pool_numbers
from sim.metrics.population import Population
from sim.metrics.slo import LIMITS, Slo
from sim.metrics.stages import after_warmup, by_stage
from sim.metrics.steady import Steady, steady
from sim.record import Result, Table
from sim.spec import DTYPE_BYTES
from sim.units import MS_PER_S, NS_PER_S, PS_PER_S

PERCENTILES = (90, 95, 99)
QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)  # of token gaps; all at once cost little more than one [%]
OURS = "kvtwin"
PS_PER_MS = PS_PER_S // MS_PER_S
TRUSTED_P99_REQUESTS = 1_000  # with fewer, fewer than ten requests lie beyond the 99th percentile


@dataclass(frozen=True, slots=True)
class Measures:
    """What the metrics and the report both read: computed once from a result."""

    latency_ms: Mapping[str, Floats]  # ttft_ms, tpot_ms, e2el_ms, each of shape (n_requests,)
    is_good: Bools  # meets its objectives, shape (n_requests,)
    itl_ps: Population
    itl_ms: Mapping[str, float | None]  # mean, median, ... of the same, by the summary's keys
    itl_quantiles_ms: Floats  # at `QUANTILES`; NaN without gaps
    load: Load
    steady: Steady


def measure(result: Result, slo: Slo) -> Measures:
    """Compute what the summary and the report are made of."""
    latency_ms = latencies(result.requests)
    is_good = meets(latency_ms, result.requests.column("slo_class"), result.slo_classes, slo)
    gaps_ps = token_gaps(result)
    quantiles_ms = gaps_ps.percentiles(QUANTILES) / PS_PER_MS
    return Measures(
        latency_ms,
        is_good,
        gaps_ps,
        _itl_statistics(gaps_ps, quantiles_ms),
        quantiles_ms,
        load(result),
        steady(result, latency_ms["ttft_ms"], is_good if slo.is_set else None),
    )


def summary(result: Result, slo: Slo, measures: Measures | None = None) -> dict[str, Any]:
    """Metrics of a run.

    Returns
    -------
    dict
        Keys and units of ``vllm bench serve --save-result`` (vllm/benchmarks/serve.py, ``benchmark``) with
        ``--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 90,95,99``: latencies in ms, rates per second,
        ``duration`` in s from the first arrival to the last finish; ``failed`` counts refused requests. Our own numbers
        are under ``kvtwin``. Latencies count from the engine's queue; what a client sees of the first token and of the
        whole answer is ``client_ttft_ms`` and ``client_e2el_ms`` there. Peaks are exact: ``max_concurrent_requests`` at
        any one time, ``max_output_tokens_per_s`` of any whole second since the first arrival, and no less than the
        mean, which a shorter run or last second may exceed it by. What is undefined (the TPOT of one-token answers) is
        None.
    """
    measures = measures or measure(result, slo)
    requests = result.requests
    completed, n_input = len(requests), int(requests.column("prompt_tokens").sum())
    n_output, n_good = int(requests.column("output_tokens").sum()), int(measures.is_good.sum())
    duration_s = result.duration_ns / NS_PER_S
    output_throughput = _rate(n_output, duration_s)

    numbers: dict[str, Any] = {
        "duration": duration_s,
        "completed": completed,
        "failed": len(result.refused),
        "total_input_tokens": n_input,
        "total_output_tokens": n_output,
        "request_throughput": _rate(completed, duration_s),
        "request_goodput": _rate(n_good, duration_s) if slo.is_set else None,
        "output_throughput": output_throughput,
        "total_token_throughput": _rate(n_input + n_output, duration_s),
        "max_output_tokens_per_s": max(output_throughput, float(measures.load.output_tokens_in_second.most())),
        "max_concurrent_requests": most_in_flight(result),
    }
    for name in LIMITS:
        values = measures.latency_ms[name]
        numbers |= _statistics(name, values[~np.isnan(values)])
    numbers |= measures.itl_ms
    numbers[OURS] = _ours(result, slo, measures, numbers)
    return numbers


def recomputed_tokens(preemptions: Table) -> int:
    """Tokens whose KV preempted sequences had lost and did not find again when they came back."""
    lost, found = (preemptions.column(name) for name in ("lost_tokens", "found_tokens"))
    return int(np.maximum(0, lost - found).sum())


def to_json(numbers: Mapping[str, Any]) -> str:
    """JSON text, the same for the same numbers: sorted keys, no NaN."""
    return json.dumps(_plain(numbers), sort_keys=True, indent=2, allow_nan=False) + "\n"


def _ours(result: Result, slo: Slo, measures: Measures, numbers: Mapping[str, Any]) -> dict[str, Any]:
    requests, load = result.requests, measures.load
    capacity, duration_s = max(1, result.capacity_tokens), numbers["duration"]
    n_input = numbers["total_input_tokens"]
    offered = numbers["completed"] + numbers["failed"]
    counts = total_counts(result)
    queue_ms = (requests.column("scheduled_ns") - requests.column("arrival_ns")) / (NS_PER_S // MS_PER_S)
    preemptions = result.preemptions
    fleet = fleet_numbers(result)
    tenants = by_tenant(result, slo, measures.is_good, duration_s)
    mean_replicas = fleet["mean_replicas"] or 1.0
    n_devices = max(1.0, result.n_devices * (mean_replicas / result.n_replicas))
    return {
        "seed": result.seed,
        "engine": result.config.get("engine", {}).get("name"),
        "n_devices": result.n_devices // result.n_replicas * int(fleet["peak_replicas"] or 1),
        "n_replicas": fleet["peak_replicas"],
        "fleet": fleet,
        "steady": asdict(measures.steady),
        "slo": {name: slo.limits()[name] for name in LIMITS},
        "slo_attainment_frac": int(measures.is_good.sum()) / offered if offered and slo.is_set else None,
        "classes": by_class(result, slo, measures.is_good, duration_s),
        "tenants": tenants,
        "unfinished": result.n_unfinished,
        "stages": by_stage(result, slo, measures),
        "after_warmup": after_warmup(result, slo, measures),
        "total_token_throughput_per_device": numbers["total_token_throughput"] / n_devices,
        "output_throughput_per_device": numbers["output_throughput"] / n_devices,
        "tokens_per_s_per_user": MS_PER_S / numbers["median_tpot_ms"] if numbers["median_tpot_ms"] else None,
        **_statistics("queue_ms", queue_ms),
        **_clients(result, numbers),
        "n_token_gaps": measures.itl_ps.size,
        "kv": {
            "capacity_tokens": result.capacity_tokens,
            "bytes_per_token": slot_bytes(result, counts),
            "held_frac": load.mean_held_tokens / capacity,
            "live_frac": load.mean_live_tokens / capacity,  # held = live + reserved + internal
            "reserved_frac": load.mean_reserved_tokens / capacity,
            "internal_frac": load.mean_internal_tokens / capacity,
            "external_frac": load.mean_external_tokens / capacity,
            "shared_frac": load.mean_shared_tokens / capacity,
            "saved_frac": saved_frac(load),
            "idle_frac": load.mean_idle_tokens / capacity,
            "peak_held_frac": load.peak_held_tokens / capacity,
            "peak_used_frac": load.peak_used_tokens / capacity,
            "held_bytes": load.mean_held_tokens * slot_bytes(result, counts),
            "live_bytes": load.mean_live_tokens * slot_bytes(result, counts),
            "waste_frac": waste_frac(load),
        },
        "prefix_hit_frac": int(requests.column("cached_tokens").sum()) / n_input if n_input else None,
        "cached_tokens": int(requests.column("cached_tokens").sum()),
        "preemptions": len(preemptions),
        "preempted_requests": int((requests.column("n_preemptions") > 0).sum()),
        "swaps": int(preemptions.column("is_swap").sum()),
        "recomputed_tokens": recomputed_tokens(preemptions),
        "iterations": load.n_iterations,
        "mean_decode_seqs": load.mean_decode_seqs,
        "peak_waiting_requests": load.peak_waiting_seqs,
        "busy_frac": load.busy_s / (duration_s * mean_replicas) if duration_s else 0.0,
        "prefill_tokens_computed": load.prefill_tokens,
        "decoded_tokens": load.decoded_tokens,
        "padding_tokens": load.padding_tokens,
        "hbm": _hbm(result, load, counts),
        "transferred_bytes": _by_link(result),
        **pool_numbers(result),
        "counts": counts,
        "warnings": [*warnings(result, slo, numbers, counts), *starving(tenants)],
    }


def _clients(result: Result, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What clients see of the first token and of the whole answer: the front end's time is on top of the engine's."""
    added_ms = (
        sum(float(result.config.get("frontend", {}).get(f"{way}_s", 0.0)) for way in ("before", "after")) * MS_PER_S
    )
    seen: dict[str, Any] = {"frontend_ms": added_ms}
    for name in ("ttft_ms", "e2el_ms"):
        for kind in ("mean", "median", *(f"p{q}" for q in PERCENTILES)):
            engines = numbers[f"{kind}_{name}"]
            seen[f"{kind}_client_{name}"] = None if engines is None else engines + added_ms
    return seen


def _hbm(result: Result, load: Load, counts: Mapping[str, int | float]) -> dict[str, float | None]:
    """What weights and decoding read from the memory of all accelerators, and its share of their bandwidth at work.

    An iteration reads the weights that a token is multiplied with: of a mixture of experts at least those. A decoding
    sequence reads its context. What prompts read of the context before them is not counted.
    """
    model, device = result.provenance.get("model"), (result.config.get("hardware") or {}).get("device") or {}
    kv_bytes = load.read_tokens * slot_bytes(result, counts)
    if not isinstance(model, Mapping) or "weights" not in result.memory:
        return {"weights_bytes": None, "kv_bytes": kv_bytes, "bandwidth_frac": None}
    ranks = result.n_devices / max(1, result.n_replicas)
    weights = -result.memory["weights"] * ranks * model["active_parameters"] / model["parameters"]
    weights_bytes = load.n_iterations * weights
    peak = device.get("bandwidth_bytes_per_s")
    can_read = (peak or 0.0) * load.busy_s * ranks
    frac = (weights_bytes + kv_bytes) / can_read if can_read else None
    return {"weights_bytes": weights_bytes, "kv_bytes": kv_bytes, "bandwidth_frac": frac}


def saved_frac(load: Load) -> float:
    """Share of the slots that would be held if nothing were shared, neither prefixes nor prompts of several answers.

    References
    ----------
    Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", SOSP 2023, section 6.3: blocks saved
    by sharing over blocks without sharing.
    """
    unshared = load.mean_held_tokens + load.mean_shared_tokens
    return load.mean_shared_tokens / unshared if unshared else 0.0


def waste_frac(load: Load) -> float:
    """Share of the slots that admitted sequences hold in which no KV lives; shared slots count once."""
    empty = load.mean_reserved_tokens + load.mean_internal_tokens
    return empty / load.mean_held_tokens if load.mean_held_tokens else 0.0


AVERAGED = {"attended_frac": "seen_tokens", "prediction_error_frac": "predictions", "bits_per_element": "kv_blocks"}
"""Counts that are averages themselves, and the count of what they are averages over."""


def total_counts(result: Result) -> dict[str, int | float]:
    """Counts of the parts, summed over replicas; averages are averaged."""
    total: dict[str, int | float] = {}
    for counts in result.counts:
        for name, value in counts.items():
            total[name] = total.get(name, 0) + value * counts.get(_averaged_over(name), 1)
    for name in list(total):
        if _averaged_over(name):
            weight = total.get(_averaged_over(name), 0)
            total[name] = total[name] / weight if weight else result.counts[0][name]
    return total


def _averaged_over(name: str) -> str:
    """The count that a count is an average over, whole or of one class of requests (``code_attended_frac``)."""
    for suffix, weight in AVERAGED.items():
        if name == suffix or name.endswith(f"_{suffix}"):
            return name.removesuffix(suffix) + weight
    return ""


def slot_bytes(result: Result, counts: Mapping[str, int | float]) -> float:
    """Bytes of a KV slot, on all the accelerators of a replica: fewer than a token's where a cache narrows elements.

    Parameters
    ----------
    counts : mapping
        From `total_counts`.
    """
    bits = counts.get("bits_per_element")
    if bits is None:
        return result.kv_bytes_per_token
    return result.kv_bytes_per_token * bits / (8 * DTYPE_BYTES[result.config["model"]["kv_dtype"]])


def warnings(
    result: Result, slo: Slo, numbers: Mapping[str, Any], counts: Mapping[str, int | float] | None = None
) -> list[str]:
    """What a reader must know before trusting the numbers."""
    counts = total_counts(result) if counts is None else counts
    said = list(result.provenance.get("notes", ()))  # what the traffic's reader took for granted
    if numbers["failed"]:
        said.append(f"{numbers['failed']:,} requests could never be served and were refused.")
    if result.n_unfinished:
        said.append(
            f"{result.n_unfinished:,} requests were still under way when the run was stopped (stop_s); "
            "they are in no latency, and the longest are among them."
        )
    if not numbers["completed"]:
        said.append("No request completed.")
    elif numbers["completed"] < TRUSTED_P99_REQUESTS:
        said.append(
            f"Percentiles rest on {numbers['completed']:,} requests; a p99 needs at least {TRUSTED_P99_REQUESTS:,}."
        )
    for name, value in (*counts.items(), *result.provenance.items()):
        if name.endswith("extrapolated_runs") and value:
            reached = "; ".join(result.provenance.get("extrapolated", ()))
            where = f" ({reached})" if reached else ""
            said.append(f"{value:,} {name.replace('_', ' ')}: outside the range the costs were measured in{where}.")
    cost = result.provenance.get("cost")
    if isinstance(cost, Mapping) and str(cost.get("source", "")).startswith("data sheet"):
        said.append("Iteration times follow from the device's data sheet (cost=roofline): nobody measured them.")
    if not slo.is_set:
        said.append("No latency objective is set, so there is no goodput.")
    return said


def _by_link(result: Result) -> dict[str, int]:
    """Bytes moved over each link."""
    link, n_bytes = result.transfers.column("link"), result.transfers.column("n_bytes")
    return {name: int(n_bytes[link == index].sum()) for index, name in enumerate(result.links)}


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s else 0.0


def _statistics(name: str, values: Floats) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(_names(name))
    median, *tail = np.percentile(values, [50, *PERCENTILES])
    return dict(zip(_names(name), (float(v) for v in (values.mean(), median, values.std(), *tail)), strict=True))


def _itl_statistics(gaps_ps: Population, quantiles_ms: Floats) -> dict[str, float | None]:
    if not gaps_ps.size:
        return dict.fromkeys(_names("itl_ms"))
    median, *tail = (quantiles_ms[QUANTILES.index(q)] for q in (50, *PERCENTILES))
    mean, std = (v / PS_PER_MS for v in gaps_ps.mean_std())
    return dict(zip(_names("itl_ms"), (float(v) for v in (mean, median, std, *tail)), strict=True))


def _names(name: str) -> Sequence[str]:
    return [f"{kind}_{name}" for kind in ("mean", "median", "std", *(f"p{q}" for q in PERCENTILES))]


def _plain(value: Any) -> Any:
    """Python's own types only, and None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not isfinite(value):
        return None
    return value

"""What somebody who asks each replica from time to time would see: gauges and counters as vLLM's Prometheus endpoint.

All of it follows from the facts after the run. At each moment what has happened by then counts, that nanosecond
included.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.errors import ConfigError
from sim.metrics.queue import queue
from sim.metrics.slots import Floats, slots
from sim.record import Ints, Result, durations_ps, row_ends_ns
from sim.units import NS_PER_S, PS_PER_NS

MOST_CELLS = 20_000_000  # replicas times scrapes: beyond it the files take gigabytes
# vllm/v1/metrics/loggers.py
TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)


@dataclass(frozen=True, slots=True)
class Observed:
    """A histogram over time: ``counts[replica, time, bucket]`` are at most ``bounds_s[bucket]``, the last is all."""

    bounds_s: tuple[float, ...]
    counts: Ints
    sums_s: Floats  # (n_replicas, n_times)


@dataclass(frozen=True, slots=True)
class Scrapes:
    """By vLLM's names without ``vllm:``; arrays of shape (n_replicas, n_times)."""

    times_ns: Ints
    gauges: dict[str, npt.NDArray[np.generic]]
    counters: dict[str, Ints]
    histograms: dict[str, Observed]


def scrapes(result: Result, every_s: float) -> Scrapes:
    """Ask every replica so often, from the first arrival on, until all has ended.

    Raises
    ------
    ConfigError
        If that would be far too often.
    """
    every_ns = max(1, round(every_s * NS_PER_S))
    n_times = -(-result.duration_ns // every_ns)
    if n_times * result.n_replicas > MOST_CELLS:
        raise ConfigError(
            f"task.scrape_s={every_s:g} asks {result.n_replicas} replicas {n_times:,} times, more than {MOST_CELLS:,}"
        )
    times_ns = result.start_ns + every_ns * np.arange(1, n_times + 1)
    requests, preemptions = result.requests, result.preemptions
    of = {name: requests.column(name) for name in requests.columns}
    replica, n_replicas = of["replica"], result.n_replicas
    empty = np.zeros((n_replicas, n_times), dtype=np.int64)

    def counted(at_ns: Ints, whose: Ints, how_much: Ints) -> Ints:
        """How much has happened at each replica by each time."""
        found = np.zeros((n_replicas, n_times + 1), dtype=np.int64)
        np.add.at(found, (whose, np.searchsorted(times_ns, at_ns, side="left")), how_much)
        return np.cumsum(found[:, :n_times], axis=1) if n_times else empty

    ones = np.ones(len(requests), dtype=np.int64)
    waiting, held, decoded = empty.copy(), np.zeros(empty.shape), empty.copy()
    for index in range(n_replicas):
        length = queue(result, index)
        place = np.searchsorted(length.begin_ns, times_ns, side="right") - 1
        waiting[index] = np.where(place >= 0, np.append(length.length, 0)[place], 0)
        held[index], decoded[index] = _in_iterations(result, index, times_ns)
    resumed = (preemptions.column("last_token_ns") >= 0) & (preemptions.column("next_token_ns") >= 0)
    next_ns, whose = preemptions.column("next_token_ns")[resumed], preemptions.column("replica")[resumed]
    arrived, finished = (counted(of[f"{name}_ns"], replica, ones) for name in ("arrival", "finish"))
    by_prompts = counted(of["first_token_ns"], replica, of["n_samples"]) + counted(
        next_ns, whose, np.ones(len(next_ns), dtype=np.int64)
    )
    n_preempted = np.ones(len(preemptions), dtype=np.int64)
    seconds = {
        "time_to_first_token_seconds": ("first_token_ns", "first_token_ns", TTFT_S),
        "e2e_request_latency_seconds": ("finish_ns", "finish_ns", REQUEST_S),
        "request_queue_time_seconds": ("finish_ns", "scheduled_ns", REQUEST_S),
    }
    return Scrapes(
        times_ns,
        {
            "num_requests_running": arrived - finished - waiting,
            "num_requests_waiting": waiting,
            "kv_cache_usage_perc": held / max(1, result.capacity_tokens),
        },
        {
            "prompt_tokens": counted(of["first_token_ns"], replica, of["prompt_tokens"]),
            "generation_tokens": decoded + by_prompts,
            "request_success": finished,
            "num_preemptions": counted(preemptions.column("preempted_ns"), preemptions.column("replica"), n_preempted),
            "prefix_cache_queries": counted(of["scheduled_ns"], replica, of["prompt_tokens"]),
            "prefix_cache_hits": counted(of["scheduled_ns"], replica, of["cached_tokens"]),
        },
        {
            name: _observed(times_ns, of[at], replica, n_replicas, (of[end] - of["arrival_ns"]) / NS_PER_S, bounds_s)
            for name, (at, end, bounds_s) in seconds.items()
        },
    )


def _in_iterations(result: Result, replica: int, times_ns: Ints) -> tuple[Floats, Ints]:
    """Slots held at each time, and tokens that decoding has given by then."""
    iterations = result.iterations
    mine = iterations.column("replica") == replica
    column = {name: iterations.column(name)[mine] for name in iterations.columns}
    if not len(column["n_steps"]) or not len(times_ns):
        return np.zeros(len(times_ns)), np.zeros(len(times_ns), dtype=np.int64)
    ends_ns = row_ends_ns(iterations)[mine]
    n, per_step = column["n_steps"], column["decode_seqs"]
    before = np.cumsum(n * per_step) - n * per_step
    row = np.searchsorted(column["start_ns"], times_ns, side="right") - 1
    at = np.maximum(row, 0)
    done = _steps_done(column, at, times_ns)
    span = slots(column, result)["held_tokens"]
    held = span.begin[at] + (span.end - span.begin)[at] * done / n[at]
    is_running = (row >= 0) & (times_ns < ends_ns[at])
    return np.where(is_running, held, 0.0), np.where(row >= 0, before[at] + done * per_step[at], 0)


def _steps_done(column: dict[str, Ints], row: Ints, times_ns: Ints) -> Ints:
    """How many iterations of a row have ended by each time, by bisection."""
    n, first, growth, start, carry = (
        column[name][row] for name in ("n_steps", "first_ps", "growth_ps", "start_ns", "carry_ps")
    )
    left_ps = (times_ns - start + 1) * PS_PER_NS - carry  # less than so much must have passed
    done, most = np.zeros_like(n), n.copy()
    while np.any(done < most):
        k = (done + most + 1) // 2
        has_ended = durations_ps(k, first, growth) < left_ps
        done, most = np.where(has_ended, k, done), np.where(has_ended, most, k - 1)
    return done


def _observed(
    times_ns: Ints, at_ns: Ints, replica: Ints, n_replicas: int, values_s: Floats, bounds_s: tuple[float, ...]
) -> Observed:
    shape = (n_replicas, len(times_ns) + 1)
    when = np.searchsorted(times_ns, at_ns, side="left")
    counts, sums = np.zeros((*shape, len(bounds_s) + 1), dtype=np.int64), np.zeros(shape)
    np.add.at(counts, (replica, when, np.searchsorted(bounds_s, values_s, side="left")), 1)
    np.add.at(sums, (replica, when), values_s)
    counts = np.cumsum(np.cumsum(counts, axis=1), axis=2)[:, : len(times_ns)]
    return Observed(bounds_s, counts, np.cumsum(sums, axis=1)[:, : len(times_ns)])

"""How busy the replicas were and what their memory held, from the iterations table."""

from dataclasses import dataclass

import numpy as np

from sim.metrics.gaps import chunks_by_replica
from sim.metrics.queue import queue
from sim.metrics.seconds import Seconds
from sim.metrics.slots import Floats, growing_seqs, slots
from sim.record import Ints, Result, durations_ps
from sim.units import NS_PER_S, PS_PER_NS, PS_PER_S

SLOTS = ("held_tokens", "live_tokens", "reserved_tokens", "internal_tokens", "idle_tokens")
STILL = ("external_tokens", "shared_tokens")  # what an iteration does not change


@dataclass(frozen=True, slots=True)
class Load:
    """Sums over all iterations of all replicas; averages are over busy time unless said otherwise."""

    n_iterations: int
    n_decode_iterations: int
    busy_s: float  # engine time, summed over replicas
    decoded_tokens: int  # tokens that decode iterations produced
    prefill_tokens: int  # prompt tokens computed, recomputation included
    read_tokens: float  # KV entries that decoding sequences read, over all iterations
    padding_tokens: int  # computed for nobody: what pads prompts, and rows of decode batches whose answer had ended
    mean_held_tokens: float  # KV slots held by admitted sequences: live, reserved and internal ones
    mean_live_tokens: float  # of these, slots with KV
    mean_reserved_tokens: float  # of these, empty and meant for tokens to come
    mean_internal_tokens: float  # of these, empty and meant for none: ends of blocks, rounded extents
    mean_external_tokens: float  # free slots outside the longest hole, where extents must lie in one piece
    mean_shared_tokens: float  # slots that sharing saved: each further reader of a live one
    mean_idle_tokens: float  # KV kept for reuse that no sequence references
    peak_held_tokens: int
    peak_used_tokens: int  # held and idle together
    peak_waiting_seqs: int
    output_tokens_in_second: Seconds  # of all replicas, by second since the first arrival

    @property
    def mean_decode_seqs(self) -> float:
        """Sequences that decode in a decode iteration, on average; NaN if none ran."""
        return self.decoded_tokens / self.n_decode_iterations if self.n_decode_iterations else float("nan")


def load(result: Result) -> Load:
    """Sum up the iterations of a run."""
    names = result.iterations.columns
    totals = dict.fromkeys(("steps", "decode_steps", "decoded", "prefill", "padding"), 0)
    read_tokens = 0.0
    weighted = dict.fromkeys((*SLOTS, *STILL), 0.0)
    peak = dict.fromkeys(("held_tokens", "used_tokens"), 0)
    busy_ps = 0.0
    origin_ns = result.start_ns
    per_second = Seconds()
    per_second.add((prefill_output_ns(result) - origin_ns) // NS_PER_S)
    for _, rows in chunks_by_replica(result.iterations, 1):
        column = dict(zip(names, rows, strict=True))
        n, decoding = column["n_steps"], column["decode_seqs"]
        duration_ps = durations_ps(n, column["first_ps"], column["growth_ps"])
        weights = duration_ps.astype(np.float64)
        busy_ps += float(weights.sum())
        totals["steps"] += int(n.sum())
        totals["decode_steps"] += int(n[decoding > 0].sum())
        totals["decoded"] += int(np.dot(n, decoding))
        totals["prefill"] += int(column["prefill_tokens"].sum())
        totals["padding"] += int(np.dot(n, column["padding_seqs"]) + column["padding_tokens"].sum())
        k = n.astype(np.float64)
        read_tokens += float(np.dot(k, column["decode_context_tokens"]))
        read_tokens += float(np.dot(k * (k - 1.0) / 2.0, growing_seqs(column)))
        spans = slots(column, result)
        at = _mean_progress(n, column["first_ps"], column["growth_ps"]) * weights
        for name in SLOTS:
            begin, end = spans[name]
            weighted[name] += float(np.dot(begin, weights) + np.dot(end - begin, at))
        for name in STILL:
            weighted[name] += float(np.dot(column[name].astype(np.float64), weights))
        for name in peak:
            peak[name] = max(peak[name], int(spans[name].end.max(initial=0)))
        _add_decoded(column, origin_ns, per_second)
    mean = {name: total / busy_ps if busy_ps else 0.0 for name, total in weighted.items()}
    return Load(
        n_iterations=totals["steps"],
        n_decode_iterations=totals["decode_steps"],
        busy_s=busy_ps / PS_PER_S,
        decoded_tokens=totals["decoded"],
        prefill_tokens=totals["prefill"],
        read_tokens=read_tokens,
        padding_tokens=totals["padding"],
        **{f"mean_{name}": mean[name] for name in mean},
        peak_held_tokens=peak["held_tokens"],
        peak_used_tokens=peak["used_tokens"],
        peak_waiting_seqs=max(int(queue(result, i).length.max(initial=0)) for i in range(result.n_replicas)),
        output_tokens_in_second=per_second,
    )


def _mean_progress(n: Ints, first_ps: Ints, growth_ps: Ints) -> Floats:
    """Share of a row's iterations that are done, on average over its time: over one half where they become longer."""
    k = n.astype(np.float64)
    weighted = k * k / 2 * first_ps + growth_ps * (k * (k - 1) * (2 * k - 1) / 6 + k * (k - 1) / 4)
    total: Floats = k * (k * first_ps + k * (k - 1) / 2 * growth_ps)
    progress: Floats = np.divide(weighted, total, out=np.full(len(k), 0.5), where=total > 0)
    return progress


def prefill_output_ns(result: Result) -> Ints:
    """When prefills produced output tokens: first ones, and the next ones after preemptions and hand-overs [ns]."""
    preemptions = result.preemptions
    next_ns = preemptions.column("next_token_ns")[preemptions.column("last_token_ns") >= 0]
    requests = result.requests
    first_ns = np.repeat(requests.column("first_token_ns"), requests.column("n_samples"))
    handed_ns = result.handovers.column("next_token_ns")
    return np.concatenate([first_ns, next_ns[next_ns >= 0], handed_ns[handed_ns >= 0]])


def _add_decoded(column: dict[str, Ints], origin_ns: int, per_second: Seconds) -> None:
    """Add each decode iteration's tokens to the second in which it ends."""
    runs = np.flatnonzero(column["decode_seqs"])
    n, first, growth, decoding = (column[name][runs] for name in ("n_steps", "first_ps", "growth_ps", "decode_seqs"))
    start_second, start_ns = np.divmod(column["start_ns"][runs] - origin_ns, NS_PER_S)
    start_ps = start_ns * PS_PER_NS + column["carry_ps"][runs]  # of that second: 64 bits hold 106 days in picoseconds
    first_second = start_second + (start_ps + first) // PS_PER_S
    last_second = start_second + (start_ps + durations_ps(n, first, growth)) // PS_PER_S
    per_second.add(last_second, n * decoding)

    # Runs that reach over full seconds: move what had ended before each of them one second back.
    crossings = last_second - first_second
    run = np.repeat(np.arange(len(runs)), crossings)
    second = first_second[run] + 1 + np.arange(len(run)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
    before, most = np.zeros_like(run), n[run]  # iterations ended by then, by bisection
    while np.any(before < most):
        k = (before + most + 1) // 2
        elapsed_ps = start_ps[run] + durations_ps(k, first[run], growth[run])
        has_ended = elapsed_ps < (second - start_second[run]) * PS_PER_S
        before, most = np.where(has_ended, k, before), np.where(has_ended, most, k - 1)
    per_second.add(second - 1, before * decoding[run])
    per_second.add(second, -before * decoding[run])


def most_in_flight(result: Result) -> int:
    """Most requests in flight at any one time; one that ends as another arrives is not in flight beside it.

    vLLM up to 0.28 counts those that touch the same second instead (vllm/benchmarks/serve.py), and so finds three where
    short answers follow one another three times a second.
    """
    arrivals_ns, finishes_ns = (np.sort(result.requests.column(name)) for name in ("arrival_ns", "finish_ns"))
    in_flight = np.arange(1, len(arrivals_ns) + 1) - np.searchsorted(finishes_ns, arrivals_ns, side="right")
    return int(in_flight.max(initial=0))

"""The part of a run in which it worked, what was offered and served in it, and what held it up.

Averages over a whole run are low where its last requests come long after the others: of a chatbot's hour the first
minutes hold most of the work. So rates are counted where the work is, and the offered rate where the arrivals are.
"""

from dataclasses import dataclass

import numpy as np

from sim.metrics.gaps import chunks_by_replica
from sim.metrics.latency import Bools, Floats
from sim.record import Result, durations_ps
from sim.units import MS_PER_S, NS_PER_S, PS_PER_S

SATURATED_ABOVE = 0.05
"""Seconds by which the wait for a first token grows in a second: a twentieth more arrives than is served.

Of a first-come queue that is offered ``a`` and serves ``s``, who arrives ``t`` later waits ``(a / s - 1) t`` longer.
"""
FEWEST_SATURATED = 100  # requests; with fewer the growth is chance
N_BINS, PER_BIN = 40, 10  # a bin with fewer requests is mostly chance
MOST_LOOKED_AT = 50_000  # requests: more do not move the ends by a pixel
ALL_PLACES = 0.95  # those that have just ended still take theirs, and a prompt's last piece may not fill an iteration
PLACES, TOKENS, MEMORY = "places", "tokens", "memory"


@dataclass(frozen=True, slots=True)
class Steady:
    """Where the work is; times in seconds since the first arrival."""

    begin_s: float
    end_s: float
    n_arrived: int  # in it
    offered_per_s: float  # where the arrivals are
    served_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float | None
    busy_frac: float
    wait_growth: float  # of TTFT over the time of arrival, where the arrivals are [s/s]
    is_saturated: bool
    held_up_frac: dict[str, float]  # share of the time in it in which somebody waits for a place, tokens or memory
    n_places: int | None  # sequences in a batch, at most; None where nothing is said
    n_tokens: int | None  # in an iteration, at most


def steady(result: Result, ttft_ms: Floats, is_good: Bools | None = None) -> Steady:
    """Find the part of a run in which it worked, and count in it.

    Parameters
    ----------
    ttft_ms : array, shape (n_requests,)
        From `sim.metrics.latency.latencies`.
    is_good : bool array, shape (n_requests,), or None
        Which requests met their objectives; None where there are none.
    """
    requests = result.requests
    arrival, first, finish = (
        (requests.column(name) - result.start_ns) / NS_PER_S for name in ("arrival_ns", "first_token_ns", "finish_ns")
    )
    n_output, n_prompt = requests.column("output_tokens"), requests.column("prompt_tokens")
    some = slice(None, None, max(1, len(requests) // MOST_LOOKED_AT))
    begin_s, end_s = busiest(first[some], finish[some], n_output[some].astype(np.float64))
    from_s, to_s = busiest(arrival[some], arrival[some], np.ones(len(arrival[some])))
    span_s, offered_s = max(end_s - begin_s, 1e-9), max(to_s - from_s, 1e-9)
    came, ended = (arrival >= from_s) & (arrival <= to_s), (finish >= begin_s) & (finish <= end_s)
    refused_s = (result.refused.column("arrival_ns") - result.start_ns) / NS_PER_S
    n_offered = int(came.sum()) + int(((refused_s >= from_s) & (refused_s <= to_s)).sum())
    made = _made(first, finish, n_output.astype(np.float64), np.array([begin_s, end_s]))
    output_per_s = float(made[1] - made[0]) / span_s
    growth = slope(arrival[came], ttft_ms[came] / MS_PER_S)
    begun = (first >= begin_s) & (first <= end_s)
    batching = result.config.get("batching") or {}
    n_places = batching.get("max_num_seqs") or batching.get("max_batch_size")
    n_tokens = batching.get("max_num_batched_tokens")
    busy_frac, held_up = _held_up(result, begin_s, end_s, n_places or np.inf, n_tokens or np.inf)
    return Steady(
        begin_s,
        end_s,
        int(((arrival >= begin_s) & (arrival <= end_s)).sum()),
        n_offered / offered_s if len(arrival) > 1 else 0.0,
        int(ended.sum()) / span_s,
        output_per_s,
        output_per_s + int(n_prompt[begun].sum()) / span_s,
        None if is_good is None else int((ended & is_good).sum()) / span_s,
        busy_frac,
        growth,
        int(came.sum()) >= FEWEST_SATURATED and growth > SATURATED_ABOVE,
        held_up,
        n_places,
        n_tokens,
    )


def busiest(begin_s: Floats, end_s: Floats, amount: Floats) -> tuple[float, float]:
    """From when to when at least half as much is done as at the best time: full width at half maximum.

    Parameters
    ----------
    begin_s, end_s, amount : array, shape (n,)
        What is done, each evenly from its begin to its end.

    Examples
    --------
    >>> hour = np.arange(0.0, 3600.0, 60.0)  # one a minute, and in the first minute 600
    >>> start = np.concatenate([np.arange(0.0, 60.0, 0.1), hour])
    >>> begin_s, end_s = busiest(start, start, np.ones(len(start)))
    >>> round(begin_s), 55 < end_s < 65
    (0, True)
    """
    if not len(begin_s):
        return 0.0, 0.0
    low, high = float(begin_s.min()), float(end_s.max())
    while True:
        inside = int(((end_s >= low) & (begin_s <= high)).sum())
        n_bins = min(N_BINS, max(1, inside // PER_BIN))
        edges = np.linspace(low, high, n_bins + 1)
        level = np.diff(_made(begin_s, end_s, amount, edges))
        busy = np.flatnonzero(level >= level.max() / 2.0)
        narrower = float(edges[busy[0]]), float(edges[busy[-1] + 1])
        if n_bins < 2 or narrower[1] - narrower[0] >= 0.7 * (high - low):  # also where all is done at one time
            return narrower
        low, high = narrower


def _made(begin_s: Floats, end_s: Floats, amount: Floats, at_s: Floats) -> Floats:
    """How much is done by some times, ascending."""
    if not len(begin_s):
        return np.zeros(len(at_s))
    lasts = end_s > begin_s
    at_once = np.sort(begin_s[~lasts])
    total = np.concatenate([[0.0], np.cumsum(amount[~lasts][np.argsort(begin_s[~lasts])])])
    made: Floats = total[np.searchsorted(at_once, at_s, side="right")]
    if at_s[0] <= begin_s.min():
        made[0] = 0.0  # what is done at the very first time belongs to what follows
    if lasts.any():
        rate = amount[lasts] / (end_s - begin_s)[lasts]
        times = np.concatenate([begin_s[lasts], end_s[lasts]])
        order = np.argsort(times, kind="stable")
        times = times[order]
        rates = np.cumsum(np.concatenate([rate, -rate])[order])
        done = np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(times))])
        made = made + np.interp(at_s, times, done)
    return made


def slope(x: Floats, y: Floats) -> float:
    """Of the straight line through some points, by least squares; 0 where there is no line.

    Examples
    --------
    >>> slope(np.array([0.0, 1.0, 2.0]), np.array([5.0, 5.5, 6.0]))
    0.5
    """
    off = x - x.mean() if len(x) else x
    spread = float(np.dot(off, off))
    return float(np.dot(off, y)) / spread if spread else 0.0


def _held_up(
    result: Result, begin_s: float, end_s: float, n_places: float, n_tokens: float
) -> tuple[float, dict[str, float]]:
    """Share of the time in which engines work, and in which somebody waits, by what is used up.

    While somebody waits at an iteration's begin and at its end, all places of the batch are taken, or the iteration
    computes all the prompt tokens that it may; or else the cache has no room for the next one.
    """
    names = result.iterations.columns
    busy_s, held_up_s = 0.0, dict.fromkeys((PLACES, TOKENS, MEMORY), 0.0)
    waited: dict[int, bool] = {}
    for replica, rows in chunks_by_replica(result.iterations, result.n_replicas):
        column = dict(zip(names, rows, strict=True))
        length_s = durations_ps(column["n_steps"], column["first_ps"], column["growth_ps"]) / PS_PER_S
        start_s = (column["start_ns"] - result.start_ns) / NS_PER_S
        spent_s = np.maximum(0.0, np.minimum(start_s + length_s, end_s) - np.maximum(start_s, begin_s))
        busy_s += float(spent_s.sum())
        is_some = column["waiting_seqs"] > 0
        waits = is_some & np.append(waited.get(replica, False), is_some[:-1])
        waited[replica] = bool(is_some[-1])
        running = column["decode_seqs"] + column["padding_seqs"] + column["partial_seqs"]
        no_place = waits & (running >= ALL_PLACES * n_places)
        no_tokens = waits & ~no_place & (column["decode_seqs"] + column["prefill_tokens"] >= ALL_PLACES * n_tokens)
        for name, at in ((PLACES, no_place), (TOKENS, no_tokens), (MEMORY, waits & ~no_place & ~no_tokens)):
            held_up_s[name] += float(spent_s[at].sum())
    whole_s = max(end_s - begin_s, 1e-9) * result.n_replicas
    return min(1.0, busy_s / whole_s), {name: spent_s / whole_s for name, spent_s in held_up_s.items()}

"""What happened over time, in a few hundred bins: the average of each, and the extremes so that no peak is lost."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.metrics.gaps import chunks_by_replica
from sim.metrics.queue import queue
from sim.metrics.slots import slots
from sim.record import Ints, Result, durations_ps
from sim.units import NS_PER_S, PS_PER_NS

Floats = npt.NDArray[np.float64]

N_BINS = 400
COUNTS = ("decode_seqs",)  # the same all along a row
SLOTS = ("held_tokens", "live_tokens", "idle_tokens", "used_tokens")
STAYS = ("idle_tokens", "used_tokens")  # what is kept for reuse is still there when the engine has nothing to do
NS = NS_PER_S


@dataclass(frozen=True, slots=True)
class Level:
    """A quantity that has a value at any time: per bin its average over time and replicas, and its extremes."""

    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Timelines:
    """Everything over time; arrays of shape (n_bins,), bin i reaching from ``edges_s[i]`` to ``edges_s[i + 1]``."""

    edges_s: Floats
    levels: dict[str, Level]  # by column of the iterations table, per replica
    waiting: Level  # requests in the queue, per replica
    decoded_per_s: Floats  # output tokens, all replicas
    prefilled_per_s: Floats  # prompt tokens computed, all replicas
    recomputed: Ints  # preemptions in each bin after which KV was computed again
    swapped: Ints  # and those after which it was loaded
    prompt_tokens: Floats  # of requests first scheduled in each bin
    cached_tokens: Floats  # of these, found resident

    @property
    def centres_s(self) -> Floats:
        """Middle of each bin."""
        return (self.edges_s[1:] + self.edges_s[:-1]) / 2


def timelines(result: Result, n_bins: int = N_BINS) -> Timelines:
    """Bin a run's facts over its duration.

    When a replica does nothing its queue and its batch are empty; what it keeps for reuse it goes on keeping.
    """
    end_ns = max(result.end_ns, 1)
    edges_ns = np.linspace(0, end_ns, n_bins + 1, dtype=np.float64)
    width_ns = end_ns / n_bins
    names = result.iterations.columns
    busy = np.zeros(n_bins)
    total = {name: np.zeros(n_bins) for name in (*COUNTS, *SLOTS)}
    low = {name: np.full(n_bins, np.inf) for name in total}
    high = {name: np.full(n_bins, -np.inf) for name in total}
    tokens = {"decode": np.zeros(n_bins), "prefill": np.zeros(n_bins)}
    for _, rows in chunks_by_replica(result.iterations, 1):
        column = dict(zip(names, rows, strict=True))
        n = column["n_steps"]
        length_ns = durations_ps(n, column["first_ps"], column["growth_ps"]) / PS_PER_NS
        start_ns = column["start_ns"] + column["carry_ps"] / PS_PER_NS
        row, at, spent_ns = _pieces(start_ns, start_ns + length_ns, width_ns, n_bins)
        busy += np.bincount(at, weights=spent_ns, minlength=n_bins)
        share = spent_ns / np.maximum(length_ns[row], 1e-9)
        done = np.cumsum(share)
        done -= (done - share)[np.searchsorted(row, row)]  # of each piece's row, by the piece's end
        for kind, amount in (("decode", n * column["decode_seqs"]), ("prefill", column["prefill_tokens"])):
            tokens[kind] += np.bincount(at, weights=share * amount[row], minlength=n_bins)
        order = slice(None) if np.all(at[1:] >= at[:-1]) else np.argsort(at, kind="stable")
        begins = np.flatnonzero(np.diff(at[order], prepend=-1))
        bins = at[order][begins]
        spans = slots(column, result)
        for name in total:
            if name in COUNTS:
                first = last = column[name][row]
            else:
                begin, change = spans[name].begin[row], (spans[name].end - spans[name].begin)[row]
                first, last = begin + change * (done - share), begin + change * done
            total[name] += np.bincount(at, weights=spent_ns * (first + last), minlength=n_bins) / 2
            if len(bins):  # all of them grow or shrink along a row, so the extremes are at the ends of its pieces
                ends = (first,) if last is first else (first, last)
                for values in ends:
                    low[name][bins] = np.minimum(low[name][bins], np.minimum.reduceat(values[order], begins))
                    high[name][bins] = np.maximum(high[name][bins], np.maximum.reduceat(values[order], begins))

    available = width_ns * result.n_replicas
    is_never_idle = busy > 0.999 * available
    levels = {}
    for name in total:
        if name in STAYS:
            levels[name] = _carried(total[name], busy, low[name], high[name])
        else:
            lowest = np.where(is_never_idle, low[name], 0.0)
            levels[name] = Level(total[name] / available, lowest, np.maximum(high[name], lowest))
    requests = result.requests
    first_at = _bin(requests.column("first_token_ns"), width_ns, n_bins)
    scheduled_at = _bin(requests.column("scheduled_ns"), width_ns, n_bins)
    width_s = width_ns / NS
    preempted_at = _bin(result.preemptions.column("preempted_ns"), width_ns, n_bins)
    is_swap = result.preemptions.column("is_swap")
    return Timelines(
        edges_ns / NS,
        levels,
        _waiting(result, width_ns, n_bins),
        (tokens["decode"] + np.bincount(first_at, minlength=n_bins)) / width_s,
        tokens["prefill"] / width_s,
        np.bincount(preempted_at[is_swap == 0], minlength=n_bins),
        np.bincount(preempted_at[is_swap != 0], minlength=n_bins),
        _sums(scheduled_at, requests.column("prompt_tokens"), n_bins),
        _sums(scheduled_at, requests.column("cached_tokens"), n_bins),
    )


def _bin(ticks_ns: Ints | Floats, width_ns: float, n_bins: int) -> Ints:
    at: Ints = np.clip((ticks_ns / width_ns).astype(np.int64), 0, n_bins - 1)
    return at


def _sums(at: Ints, values: Ints, n_bins: int) -> Floats:
    return np.bincount(at, weights=values, minlength=n_bins).astype(np.float64)


def _pieces(start_ns: Floats, end_ns: Floats, width_ns: float, n_bins: int) -> tuple[Ints, Ints, Floats]:
    """Cut spans at the bins' edges: (span, bin, duration [ns]) of every piece, in order of span."""
    first = _bin(start_ns, width_ns, n_bins)
    last = np.maximum(first, np.clip(np.ceil(end_ns / width_ns).astype(np.int64) - 1, 0, n_bins - 1))
    n = last - first + 1
    span = np.repeat(np.arange(len(n)), n)
    at = first[span] + np.arange(len(span)) - np.repeat(np.cumsum(n) - n, n)
    spent = np.minimum(end_ns[span], (at + 1) * width_ns) - np.maximum(start_ns[span], at * width_ns)
    return span, at, np.maximum(spent, 0.0)


def _waiting(result: Result, width_ns: float, n_bins: int) -> Level:
    """The queue of each replica, from the first nanosecond to the last."""
    total, low, high = np.zeros(n_bins), np.full(n_bins, np.inf), np.zeros(n_bins)
    for replica in range(result.n_replicas):
        begin_ns, length = queue(result, replica)
        edges_ns = np.concatenate([[0], begin_ns, [max(result.end_ns, 1)]]).astype(np.float64)
        row, at, spent_ns = _pieces(edges_ns[:-1], edges_ns[1:], width_ns, n_bins)
        row, at, spent_ns = row[spent_ns > 0], at[spent_ns > 0], spent_ns[spent_ns > 0]
        waiting = np.concatenate([[0], length])[row].astype(np.float64)
        total += np.bincount(at, weights=spent_ns * waiting, minlength=n_bins)
        np.minimum.at(low, at, waiting)
        np.maximum.at(high, at, waiting)
    return Level(total / (width_ns * result.n_replicas), low, high)


def _carried(total: Floats, busy: Floats, low: Floats, high: Floats) -> Level:
    """A level that stays when the engine stops: bins without an iteration repeat the one before."""
    seen = busy > 0
    source = np.maximum.accumulate(np.where(seen, np.arange(len(busy)), -1))
    mean = np.where(seen, total / np.where(seen, busy, 1.0), 0.0)
    return Level(*(np.where(source >= 0, values[source], 0.0) for values in (mean, low, high)))

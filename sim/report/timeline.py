"""What happened over time, in a few hundred bins: the average of each, and the extremes so that no peak is lost."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.metrics.fleet import lives
from sim.metrics.gaps import chunks_by_replica
from sim.metrics.load import prefill_output_ns
from sim.metrics.queue import queue
from sim.metrics.slots import slots
from sim.record import Ints, Result, durations_ps
from sim.report.pauses import pauses
from sim.units import MS_PER_S, NS_PER_S, PS_PER_NS, PS_PER_S

Floats = npt.NDArray[np.float64]

N_BINS = 400
COUNTS = ("decode_seqs", "partial_seqs")  # the same all along a row
SLOTS = ("held_tokens", "live_tokens", "idle_tokens", "used_tokens")
NS = NS_PER_S
PS_PER_MS = PS_PER_S // MS_PER_S


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
    iteration_ms: Level  # duration of iterations, over the time that any runs; NaN where none does
    waiting: Level  # requests in the queue, per replica
    decoded_per_s: Floats  # output tokens, all replicas
    prefilled_per_s: Floats  # prompt tokens computed, all replicas
    recomputed: Floats  # preemptions in each bin after which KV was computed again
    swapped: Floats  # and those after which it was loaded
    prompt_tokens: Floats  # of requests first scheduled in each bin
    cached_tokens: Floats  # of these, found resident

    @property
    def centres_s(self) -> Floats:
        """Middle of each bin."""
        return (self.edges_s[1:] + self.edges_s[:-1]) / 2


class _Sums:
    """A quantity gathered from pieces of time: in each bin its integral, its extremes, and how much time they cover."""

    def __init__(self, n_bins: int) -> None:
        self.total, self.covered_ns = np.zeros(n_bins), np.zeros(n_bins)
        self.low, self.high = np.full(n_bins, np.inf), np.zeros(n_bins)

    def add(self, at: Ints, spent_ns: Floats, first: Ints | Floats, last: Ints | Floats | None = None) -> None:
        """Pieces of bins ``at``, along which the quantity goes evenly from ``first`` to ``last`` or does not change."""
        is_some = spent_ns > 0
        at, spent_ns, first = at[is_some], spent_ns[is_some], first[is_some]
        last = None if last is None else last[is_some]
        n_bins = len(self.total)
        mean = first if last is None else (first + last) / 2
        self.total += np.bincount(at, weights=spent_ns * mean, minlength=n_bins)
        self.covered_ns += np.bincount(at, weights=spent_ns, minlength=n_bins)
        for values in (first,) if last is None else (first, last):
            np.minimum.at(self.low, at, values)
            np.maximum.at(self.high, at, values)

    def level(self, available_ns: Floats) -> Level:
        """The quantity is 0 in the time that no piece covers."""
        low = np.where(self.covered_ns > 0.999 * available_ns, self.low, 0.0)
        return Level(self.total / np.maximum(available_ns, 1.0), low, self.high)

    def while_covered(self) -> Level:
        """The quantity in the time that pieces cover; NaN where none does."""
        is_some = self.covered_ns > 0
        mean = np.divide(self.total, self.covered_ns, out=np.full(len(is_some), np.nan), where=is_some)
        return Level(mean, np.where(is_some, self.low, np.nan), np.where(is_some, self.high, np.nan))


def timelines(result: Result, n_bins: int = N_BINS, span_s: tuple[float, float] | None = None) -> Timelines:
    """Bin a run's facts over its duration, from the first arrival on, or over a part of it.

    While a replica computes nothing its batch is empty; what it keeps for reuse it goes on keeping.
    """
    begin_s, end_s = (0.0, max(result.duration_ns, 1) / NS) if span_s is None else span_s
    origin_ns, run_ns = result.start_ns + round(begin_s * NS), max(1, round((end_s - begin_s) * NS))
    edges_ns = begin_s * NS + np.linspace(0, run_ns, n_bins + 1, dtype=np.float64)
    width_ns = run_ns / n_bins
    names = result.iterations.columns
    sums = {name: _Sums(n_bins) for name in (*COUNTS, *SLOTS)}
    iteration_ms = _Sums(n_bins)
    tokens = {"decode": np.zeros(n_bins), "prefill": np.zeros(n_bins)}
    for _, rows in chunks_by_replica(result.iterations, 1):
        column = dict(zip(names, rows, strict=True))
        n = column["n_steps"]
        length_ns = durations_ps(n, column["first_ps"], column["growth_ps"]) / PS_PER_NS
        start_ns = column["start_ns"] - origin_ns + column["carry_ps"] / PS_PER_NS
        row, at, spent_ns = _pieces(start_ns, start_ns + length_ns, width_ns, n_bins)
        share = spent_ns / np.maximum(length_ns[row], 1e-9)
        done = np.cumsum(share)
        done -= (done - share)[np.searchsorted(row, row)]  # of each piece's row, by the piece's end
        done += np.clip(-start_ns / np.maximum(length_ns, 1e-9), 0.0, 1.0)[row]  # and before what is looked at
        ends_ps = column["first_ps"] + (n - 1) * column["growth_ps"]
        iteration_ms.add(at, spent_ns, column["first_ps"][row] / PS_PER_MS, ends_ps[row] / PS_PER_MS)
        for kind, amount in (("decode", n * column["decode_seqs"]), ("prefill", column["prefill_tokens"])):
            tokens[kind] += np.bincount(at, weights=share * amount[row], minlength=n_bins)
        for name in COUNTS:
            sums[name].add(at, spent_ns, column[name][row])
        for name, span in slots(column, result).items():
            if name in SLOTS:
                begin, change = span.begin[row], (span.end - span.begin)[row]
                sums[name].add(at, spent_ns, begin + change * (done - share), begin + change * done)

    idle = pauses(result)
    pause, at, spent_ns = _pieces(idle.begin_ns - origin_ns, idle.end_ns - origin_ns, width_ns, n_bins)
    for name in SLOTS:
        sums[name].add(at, spent_ns, idle.tokens[name][pause])
    available_ns = _available_ns(result, width_ns, n_bins)
    levels = {name: of.level(available_ns) for name, of in sums.items()}
    requests, preemptions = result.requests, result.preemptions

    def counted(times_ns: Ints, values: Ints | None = None) -> Floats:
        off_ns = times_ns - origin_ns
        is_in = (off_ns >= 0) & (off_ns <= run_ns)
        at = _bin(off_ns[is_in], width_ns, n_bins)
        weights = None if values is None else values[is_in]
        return np.bincount(at, weights=weights, minlength=n_bins).astype(np.float64)

    scheduled_ns, preempted_ns = requests.column("scheduled_ns"), preemptions.column("preempted_ns")
    is_swap = preemptions.column("is_swap") != 0
    width_s = width_ns / NS
    return Timelines(
        edges_ns / NS,
        levels,
        iteration_ms.while_covered(),
        _waiting(result, origin_ns, width_ns, n_bins),
        (tokens["decode"] + counted(prefill_output_ns(result))) / width_s,
        tokens["prefill"] / width_s,
        counted(preempted_ns[~is_swap]),
        counted(preempted_ns[is_swap]),
        counted(scheduled_ns, requests.column("prompt_tokens")),
        counted(scheduled_ns, requests.column("cached_tokens")),
    )


def _bin(ticks_ns: Ints | Floats, width_ns: float, n_bins: int) -> Ints:
    at: Ints = np.clip((ticks_ns / width_ns).astype(np.int64), 0, n_bins - 1)
    return at


def _pieces(start_ns: Ints | Floats, end_ns: Ints | Floats, width_ns: float, n_bins: int) -> tuple[Ints, Ints, Floats]:
    """Cut spans at the bins' edges: (span, bin, duration [ns]) of every piece, in order of span."""
    first = _bin(start_ns, width_ns, n_bins)
    last = np.maximum(first, np.clip(np.ceil(end_ns / width_ns).astype(np.int64) - 1, 0, n_bins - 1))
    n = last - first + 1
    span = np.repeat(np.arange(len(n)), n)
    at = first[span] + np.arange(len(span)) - np.repeat(np.cumsum(n) - n, n)
    spent = np.minimum(end_ns[span], (at + 1) * width_ns) - np.maximum(start_ns[span], at * width_ns)
    return span, at, np.maximum(spent, 0.0)


def _waiting(result: Result, origin_ns: int, width_ns: float, n_bins: int) -> Level:
    sums = _Sums(n_bins)
    for replica in range(result.n_replicas):
        begin_ns, length = queue(result, replica)
        edges_ns = np.concatenate([[0], begin_ns - result.start_ns, [max(result.duration_ns, 1)]])
        edges_ns = edges_ns - (origin_ns - result.start_ns)
        spell, at, spent_ns = _pieces(edges_ns[:-1], edges_ns[1:], width_ns, n_bins)
        is_some = spent_ns > 0
        sums.add(at[is_some], spent_ns[is_some], np.append(0, length)[spell[is_some]])
    return sums.level(_available_ns(result, width_ns, n_bins))


def _available_ns(result: Result, width_ns: float, n_bins: int) -> Floats:
    """Time of all replicas that are there, in each bin."""
    there = lives(result)
    edges_ns = np.linspace(0, width_ns * n_bins, n_bins + 1)
    spent_ns = np.zeros(n_bins + 1)  # by each edge
    for begin_ns, end_ns in zip(there.begin_ns - result.start_ns, there.end_ns - result.start_ns, strict=True):
        spent_ns += np.clip(edges_ns, begin_ns, end_ns) - begin_ns
    return np.diff(spent_ns)

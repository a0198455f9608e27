"""Spells in which a replica computes nothing, and what its memory holds then."""

from dataclasses import dataclass

import numpy as np

from sim.metrics.fleet import lives
from sim.metrics.slots import Floats, slots
from sim.record import Ints, Result, row_ends_ns


@dataclass(frozen=True, slots=True)
class Pauses:
    """Of all replicas, arrays of shape (n_pauses,); the time before a replica's first iteration is none."""

    replica: Ints
    begin_ns: Ints
    end_ns: Ints
    tokens: dict[str, Floats]  # slots, by the names of `sim.metrics.slots`


def pauses(result: Result) -> Pauses:
    """The pauses between rows of iterations, and from each replica's last one until it is gone, or the run ends.

    Kept for reuse is what the next row has left of it and what those admitted with that row have found, but no more
    than the row before used; after a replica's last row, what that row had. Requests hold nothing, unless some are
    under way, waiting for their keys and values to be loaded: then they hold what the next row says.
    """
    iterations = result.iterations
    ends_ns = row_ends_ns(iterations)
    gone_ns = lives(result).end_ns.tolist()
    found = [_of(replica, result, ends_ns, gone_ns[replica]) for replica in range(result.n_replicas)]
    of, begin_ns, end_ns, last, following, hit_tokens, is_loading = np.concatenate(found, axis=1)
    ending, beginning = (
        slots(dict(zip(iterations.columns, iterations.rows()[rows].T, strict=True)), result)
        for rows in (last, following)
    )
    tokens = {name: span.begin * is_loading for name, span in beginning.items()}
    left_tokens = beginning["idle_tokens"].begin
    kept_tokens = np.minimum(left_tokens + hit_tokens, ending["used_tokens"].end)
    tokens["idle_tokens"] = np.where(is_loading, left_tokens, kept_tokens)
    tokens["used_tokens"] = tokens["held_tokens"] + tokens["idle_tokens"]
    return Pauses(of, begin_ns, end_ns, tokens)


def _of(replica: int, result: Result, ends_ns: Ints, gone_ns: int) -> Ints:
    """One replica's pauses: replica, begin, end, row before, row after, tokens it found, whether any is under way."""
    rows = np.flatnonzero(result.iterations.column("replica") == replica)
    begin_ns = ends_ns[rows]
    end_ns = np.append(result.iterations.column("start_ns")[rows], gone_ns)[1:]
    requests = result.requests.rows()[result.requests.column("replica") == replica]
    scheduled_ns, finish_ns, cached_tokens = (
        requests[:, result.requests.columns.index(name)] for name in ("scheduled_ns", "finish_ns", "cached_tokens")
    )
    order = np.argsort(scheduled_ns)
    hit_tokens = np.append(0, np.cumsum(cached_tokens[order]))
    before, then = (np.searchsorted(scheduled_ns[order], ticks, "right") for ticks in (begin_ns, end_ns))
    n_ended = np.searchsorted(np.sort(finish_ns), begin_ns, "right")
    following = np.append(rows[1:], rows[-1:])
    hits = hit_tokens[then] - hit_tokens[before]
    found = np.stack([np.full(len(rows), replica), begin_ns, end_ns, rows, following, hits, before > n_ended])
    return found[:, end_ns > begin_ns]

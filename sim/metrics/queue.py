"""Who waits when, from the times that requests and preemptions carry.

These are exact however the iterations table is cut into rows, whose ``waiting_seqs`` is the queue at one moment of
each row.
"""

from typing import NamedTuple

import numpy as np

from sim.record import Ints, Result


class Queue(NamedTuple):
    """A queue's length over time: ``length[i]`` from ``begin_ns[i]`` until the next one; none before the first."""

    begin_ns: Ints
    length: Ints


def queue(result: Result, replica: int) -> Queue:
    """The queue of one replica. Its last length is 0."""
    of, begin_ns, end_ns = _waits(result)
    begin_ns, end_ns = begin_ns[of == replica], end_ns[of == replica]
    times_ns, at = np.unique(np.concatenate([begin_ns, end_ns]), return_inverse=True)
    arrived, left = (np.bincount(ends, minlength=len(times_ns)) for ends in np.split(at, [len(begin_ns)]))
    is_change = arrived != left
    return Queue(times_ns[is_change], np.cumsum(arrived - left)[is_change])


def _waits(result: Result) -> tuple[Ints, Ints, Ints]:
    """Every wait (replica, begin, end): from arrival and hand-over to admission, and from preemption to the next token.

    One preempted again before its next token has waited all along.
    """
    requests, preemptions, handed = result.requests, result.preemptions, result.handovers
    order = np.lexsort((preemptions.column("preempted_ns"), preemptions.column("request_id")))
    request_id, replica, preempted_ns, next_ns = (
        preemptions.column(name)[order] for name in ("request_id", "replica", "preempted_ns", "next_token_ns")
    )
    is_again = np.append(request_id[1:] == request_id[:-1], [False] * (len(order) > 0))
    following_ns = np.where(is_again, np.roll(preempted_ns, -1), preempted_ns)
    is_admitted = handed.column("admitted_ns") >= 0
    return (
        np.concatenate([_arrived_at(result), replica, handed.column("replica")[is_admitted]]),
        np.concatenate([requests.column("arrival_ns"), preempted_ns, handed.column("ready_ns")[is_admitted]]),
        np.concatenate(
            [
                requests.column("scheduled_ns"),
                np.where(next_ns >= 0, next_ns, following_ns),
                handed.column("admitted_ns")[is_admitted],
            ]
        ),
    )


def _arrived_at(result: Result) -> Ints:
    """The replica at which each request arrived: the one that ended it, or the first that handed it over."""
    replica = result.requests.column("replica").copy()
    handed = result.handovers
    if len(handed):
        first = dict(
            zip(handed.column("request_id")[::-1].tolist(), handed.column("source")[::-1].tolist(), strict=True)
        )
        ids = result.requests.column("id").tolist()
        replica = np.array(
            [first.get(one, own) for one, own in zip(ids, replica.tolist(), strict=True)], dtype=np.int64
        )
    return replica

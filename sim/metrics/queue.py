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
    """Every wait (replica, begin, end): from arrival to admission, and from preemption to the next token.

    One preempted again before its next token has waited all along.
    """
    requests, preemptions = result.requests, result.preemptions
    order = np.lexsort((preemptions.column("preempted_ns"), preemptions.column("request_id")))
    request_id, replica, preempted_ns, next_ns = (
        preemptions.column(name)[order] for name in ("request_id", "replica", "preempted_ns", "next_token_ns")
    )
    is_again = np.append(request_id[1:] == request_id[:-1], [False] * (len(order) > 0))
    following_ns = np.where(is_again, np.roll(preempted_ns, -1), preempted_ns)
    return (
        np.concatenate([requests.column("replica"), replica]),
        np.concatenate([requests.column("arrival_ns"), preempted_ns]),
        np.concatenate([requests.column("scheduled_ns"), np.where(next_ns >= 0, next_ns, following_ns)]),
    )

"""What went over each link between memories, and how much of the time something was under way."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.record import NOBODYS, Ints, Result
from sim.units import MS_PER_S, NS_PER_S

LINK_OF_POOL = {"prefill": "hand-over, out", "decode": "hand-over, in"}
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinkUse:
    """One direction of a link, all replicas; arrays of shape (n_bins,)."""

    name: str
    n_links: int  # one a replica, or one that all share
    n_transfers: int
    n_bytes: int
    busy_frac: float  # of the run
    p50_ms: float  # of a transfer's duration; NaN without transfers
    p99_ms: float
    bytes_per_s: Floats
    busy_fracs: Floats


def link_uses(result: Result, edges_ns: Floats) -> list[LinkUse]:
    """Every link of a run, in bins of time.

    A transfer's bytes are spread evenly over its duration, and a link counts as used while one is under way, its
    latency included. What goes on after the last request's end is not shown.

    Parameters
    ----------
    result : Result
    edges_ns : array, shape (n_bins + 1,)
        Ends of the bins, from 0 on, where the first request arrives [ns].
    """
    columns = {name: result.transfers.column(name) for name in result.transfers.columns}
    return [
        _use(name, {key: values[columns["link"] == i] for key, values in columns.items()}, edges_ns, result)
        for i, name in enumerate(result.links)
    ]


def _use(name: str, of: dict[str, Ints], edges_ns: Floats, result: Result) -> LinkUse:
    start, end = ((of[name] - result.start_ns).astype(np.float64) for name in ("start_ns", "end_ns"))
    width_ns = np.diff(edges_ns)
    n_links = 1 if NOBODYS in of["replica"] else _n_owners(name, result)
    moved = np.diff(_moved_by(edges_ns, start, end, of["n_bytes"].astype(np.float64)))
    busy_ns = np.zeros(len(width_ns))
    for replica in np.unique(of["replica"]):
        mine = of["replica"] == replica
        busy_ns += np.diff(_busy_by(edges_ns, start[mine], end[mine]))
    p50_ms, p99_ms = np.percentile((end - start) * (MS_PER_S / NS_PER_S), [50, 99]) if len(start) else (np.nan, np.nan)
    return LinkUse(
        name,
        n_links,
        len(start),
        int(of["n_bytes"].sum()),
        float(busy_ns.sum() / (width_ns.sum() * n_links)),
        float(p50_ms),
        float(p99_ms),
        moved / width_ns * NS_PER_S,
        busy_ns / (width_ns * n_links),
    )


def _n_owners(name: str, result: Result) -> int:
    """Replicas that have such a link."""
    for pool in result.pools:
        if len(result.pools) > 1 and name == LINK_OF_POOL.get(pool.name):
            return len(pool.replicas)
    return result.n_replicas


def _moved_by(at_ns: Floats, start: Floats, end: Floats, n_bytes: Floats) -> Floats:
    """Bytes moved by each of some times.

    Examples
    --------
    >>> _moved_by(np.array([0.0, 5.0, 10.0, 99.0]), np.array([0.0, 5.0]), np.array([10.0, 15.0]), np.array([8.0, 8.0]))
    array([ 0.,  4., 12., 16.])
    """
    times = np.concatenate([start, end])
    rates = n_bytes / np.maximum(end - start, 1.0)
    order = np.argsort(times, kind="stable")
    rate = np.cumsum(np.concatenate([rates, -rates])[order])
    times = times[order]
    total = np.concatenate([[0.0], np.cumsum(rate[:-1] * np.diff(times))])
    return np.interp(at_ns, times, total) if len(times) else np.zeros(len(at_ns))


def _busy_by(at_ns: Floats, start: Floats, end: Floats) -> Floats:
    """Time in which at least one span was under way, by each of some times [ns].

    Examples
    --------
    >>> _busy_by(np.array([2.0, 5.0, 20.0, 40.0]), np.array([0.0, 1.0, 30.0]), np.array([10.0, 4.0, 35.0]))
    array([ 2.,  5., 10., 15.])
    """
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    opens = np.flatnonzero(np.concatenate([[True], start[1:] > reach[:-1]]))
    begins, ends = start[opens], reach[np.concatenate([opens[1:] - 1, [len(reach) - 1]])]
    lengths = np.cumsum(ends - begins)
    times = np.stack([begins, ends], axis=1).ravel()
    total = np.stack([lengths - (ends - begins), lengths], axis=1).ravel()
    busy_ns: Floats = np.interp(at_ns, times, total)
    return busy_ns

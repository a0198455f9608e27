"""How many replicas there were, for how long, and what they cost."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.record import FLEET_EVENTS, Ints, Result, row_ends_ns
from sim.units import NS_PER_S

Floats = npt.NDArray[np.float64]
S_PER_H = 3600
NEVER = -1


@dataclass(frozen=True, slots=True)
class Lives:
    """Of all replicas there ever were, arrays of shape (n_replicas,), within the run [ns].

    A replica costs from ``begin_ns``, when it was asked for, to ``end_ns``, when it has served its last request or is
    lost; it takes requests from ``open_ns`` to ``close_ns``, which are equal if it never did.
    """

    begin_ns: Ints
    open_ns: Ints
    close_ns: Ints
    end_ns: Ints

    @property
    def total_ns(self) -> int:
        """All their time."""
        return int((self.end_ns - self.begin_ns).sum())

    def open_over_time(self) -> tuple[Ints, Ints]:
        """How many take requests: from each of some times on, so many [ns, replicas]."""
        return steps(self.open_ns, self.close_ns)

    def there_over_time(self) -> tuple[Ints, Ints]:
        """How many there are that cost, starting and draining ones too: from each of some times on, so many."""
        return steps(self.begin_ns, self.end_ns)


def lives(result: Result) -> Lives:
    """Every replica's life, cut to the run: from its first arrival to its last finish."""
    n = result.n_replicas
    at = {event: np.full(n, NEVER, dtype=np.int64) for event in FLEET_EVENTS}
    for at_ns, replica, event in result.fleet.rows().tolist():
        at[FLEET_EVENTS[event]][replica] = at_ns
    if not len(result.fleet):
        at["opened"][:] = result.start_ns
    last_ns = np.zeros(n, dtype=np.int64)
    np.maximum.at(last_ns, result.iterations.column("replica"), row_ends_ns(result.iterations))
    opened, drained, failed, cancelled = (at[name] for name in ("opened", "drained", "failed", "cancelled"))
    began = np.where(at["started"] == NEVER, opened, at["started"])
    close = _first(drained, failed, np.full(n, result.end_ns))
    end = _first(
        np.where(drained == NEVER, NEVER, np.maximum(drained, last_ns)), failed, cancelled, np.full(n, result.end_ns)
    )
    has_opened = opened != NEVER
    close = np.where(has_opened, close, end)
    open_ns = np.where(has_opened, opened, close)
    return Lives(*(np.clip(times, result.start_ns, result.end_ns) for times in (began, open_ns, close, end)))


def fleet_numbers(result: Result) -> dict[str, float | int | None]:
    """Of a summary: replicas and what they cost; ``cost`` where ``hardware.price_per_hour`` is given."""
    there = lives(result)
    n_devices = result.n_devices / result.n_replicas
    gpu_hours = there.total_ns / NS_PER_S / S_PER_H * n_devices
    price = (result.config.get("hardware") or {}).get("price_per_hour")
    events = result.fleet.rows()
    n_changes = int((events[:, 0] > 0).sum()) if len(events) else 0
    return {
        "changes": n_changes,
        "mean_replicas": there.total_ns / result.duration_ns if result.duration_ns else float(result.n_replicas),
        "peak_replicas": int(there.there_over_time()[1].max(initial=0)) or result.n_replicas,
        "gpu_hours": gpu_hours,
        "price_per_hour": price,
        "cost": None if price is None else gpu_hours * price,
    }


def steps(begin_ns: Ints, end_ns: Ints) -> tuple[Ints, Ints]:
    """How many spans are under way: from each of some times on, so many.

    Examples
    --------
    >>> [part.tolist() for part in steps(np.array([0, 0, 5]), np.array([9, 5, 9]))]
    [[0, 9], [2, 0]]
    """
    times_ns, at = np.unique(np.concatenate([begin_ns, end_ns]), return_inverse=True)
    begun, ended = (np.bincount(part, minlength=len(times_ns)) for part in np.split(at, [len(begin_ns)]))
    count = np.cumsum(begun - ended)
    is_change = begun != ended
    return times_ns[is_change], count[is_change]


def _first(*times: Ints) -> Ints:
    """The earliest of some times, element by element, where they are at all."""
    never = np.iinfo(np.int64).max
    first: Ints = np.minimum.reduce([np.where(one == NEVER, never, one) for one in times])
    return first

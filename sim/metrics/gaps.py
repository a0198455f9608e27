"""Inter-token latency: the gaps between consecutive tokens of every sequence, pooled.

Nothing is recorded per token. All sequences of a replica that decode do so in lock-step, so the gaps follow from the
iterations:

    iteration        prefill   decode   decode   prefill   decode          time runs to the right
    A decodes                  |--------|------------------|               stalled by the prefill: one long gap
    B is prefilled                               |---------|               B's first token ends its prefill
    joined, decode      1, 0     0, 1     0, 1      1, 0     0, 2

Within a run of iterations each gap is the duration of one iteration. The gap that ends with a run's first iteration
reaches back to the previous decode iteration for those that took part in it, and to their own prefill for those whose
prompt was completed after it. A sequence that leaves has no gap after. A preempted sequence's gap spans its absence,
and that of one whose prompt another pool has computed its hand-over.

Time is the engine's picosecond clock, of which the nanosecond ticks in the requests table are the whole part.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sim.errors import InvariantError
from sim.metrics.population import Population, Series
from sim.record import Ints, Result, Table, durations_ps
from sim.units import PS_PER_NS

CHUNK_ROWS = 1 << 13  # iteration rows looked at together: 1 MB, so that they stay in the cache


def chunks_by_replica(iterations: Table, n_replicas: int, chunk_rows: int = CHUNK_ROWS) -> Iterator[tuple[int, Ints]]:
    """The iterations table in pieces of one replica each, every replica's in order of time.

    Yields
    ------
    (replica, rows)
        ``rows`` of shape (n_columns, n_rows): ``rows[iterations.columns.index("n_steps")]`` is contiguous.
    """
    table = iterations.rows()
    for start in range(0, len(table), chunk_rows):
        rows = np.ascontiguousarray(table[start : start + chunk_rows].T)
        if n_replicas == 1:
            yield 0, rows
            continue
        for replica in np.unique(rows[0]):
            yield int(replica), rows[:, rows[0] == replica]


def token_gaps(result: Result, chunk_rows: int = CHUNK_ROWS) -> Population:
    """All gaps between consecutive tokens of one sequence, over all sequences [ps].

    Raises
    ------
    InvariantError
        If more sequences start decoding than decode.
    """
    absent, cut = _absences(result)
    parts = [*absent]
    names = result.iterations.columns
    pending: dict[int, Ints] = {}  # of each replica: its last decode row and the prefill rows after it
    for replica, rows in chunks_by_replica(result.iterations, result.n_replicas, chunk_rows):
        if replica in pending:
            rows = np.concatenate([pending[replica], rows], axis=1)
        column = dict(zip(names, rows, strict=True))
        decodes = np.flatnonzero(column["decode_seqs"])
        has_previous = replica in pending and pending[replica].shape[1] > 0 and decodes[:1].tolist() == [0]
        parts += _gaps_of(column, decodes, has_previous, _of(cut, replica))
        keep_from = decodes[-1] if len(decodes) else 0
        kept = rows[:, keep_from:]
        pending[replica] = kept[:, (kept[names.index("joined_seqs")] > 0) | (np.arange(kept.shape[1]) == 0)].copy()
    return Population(parts)


def _gaps_of(column: dict[str, Ints], decodes: npt.NDArray[np.intp], has_previous: bool, cut: Ints) -> list[Series]:
    """Gaps that end in the decode rows of consecutive rows of one replica, except in a ``has_previous`` first one."""
    if not len(decodes):
        return []
    n, first, growth, decoding = (column[name] for name in ("n_steps", "first_ps", "growth_ps", "decode_seqs"))
    origin_ns = column["start_ns"][0]  # 64 bits hold 106 days in picoseconds: traces are longer
    start_ps = (column["start_ns"] - origin_ns) * PS_PER_NS + column["carry_ps"]
    end_ps = start_ps + durations_ps(n, first, growth)
    token_ps = start_ps + first  # when the first iteration of a row ends

    # Those whose prompt was completed by a row without decodes, until the next decode row; less those preempted before.
    joined = np.where(decoding > 0, 0, column["joined_seqs"])
    if len(cut):
        joined = joined - _matches(cut, origin_ns + end_ps // PS_PER_NS) * (joined > 0)
    prefills = np.flatnonzero(joined)
    following = np.searchsorted(decodes, prefills)
    prefills, following = prefills[following < len(decodes)], following[following < len(decodes)]
    fresh = Series(
        token_ps[decodes[following]] - end_ps[prefills],
        np.zeros(len(prefills), dtype=np.int64),
        np.ones(len(prefills), dtype=np.int64),
        joined[prefills],
    )

    # Those that also took part in the decode row before.
    arrived = np.bincount(following, weights=joined[prefills], minlength=len(decodes)).astype(np.int64)
    old = decoding[decodes] - arrived
    gap = token_ps[decodes] - np.concatenate([token_ps[decodes[:1]], end_ps[decodes[:-1]]])
    if has_previous:  # its own gaps were counted with the rows before
        decodes, old, gap = decodes[1:], old[1:], gap[1:]
    elif old[0]:
        at_ns = column["start_ns"][decodes[0]]
        raise InvariantError(f"{old[0]} sequences decode at {at_ns} ns that no iteration has started")
    if np.any(old < 0):
        raise InvariantError("more sequences have started decoding than decode")
    plain = (gap == first[decodes]) & (old == decoding[decodes])
    runs = Series(first[decodes], growth[decodes], n[decodes], decoding[decodes]).pick(plain)
    late = decodes[~plain]
    ones = np.ones(len(late), dtype=np.int64)
    stalled = Series(gap[~plain], 0 * ones, ones, old[~plain])
    rest = Series(first[late] + growth[late], growth[late], n[late] - 1, decoding[late])
    return [fresh, runs, stalled.pick(stalled.weight > 0), rest.pick(rest.n > 0)]


def _absences(result: Result) -> tuple[list[Series], Ints]:
    """Gaps across preemptions and hand-overs; (replica, tick) of the tokens before preemptions.

    A sequence preempted again before its next token has ``next_token_ns`` in its last row only. One that comes back
    computes at least a token and gets the next one from that prefill, so it counts as joined. The token before a
    preemption may be of the replica that handed the sequence over, whose rows count it as joined nowhere.
    """
    preempted, handed = (
        dict(zip(table.columns, table.rows().T, strict=True)) for table in (result.preemptions, result.handovers)
    )
    gaps = [
        _gaps(preempted["last_token_ns"], preempted["next_token_ns"]),
        _gaps(handed["ready_ns"], handed["next_token_ns"]),
    ]
    is_cut = (preempted["last_token_ns"] >= 0) & (preempted["next_token_ns"] >= 0)
    if len(result.handovers):
        elsewhere = set(zip(handed["request_id"].tolist(), handed["ready_ns"].tolist(), strict=True))
        last = zip(preempted["request_id"].tolist(), preempted["last_token_ns"].tolist(), strict=True)
        is_cut &= np.array([one not in elsewhere for one in last], dtype=bool)
    return gaps, np.stack([preempted["replica"], preempted["last_token_ns"]])[:, is_cut]


def _gaps(last_ns: Ints, next_ns: Ints) -> Series:
    """One gap for each absence that has a token before it and one after."""
    is_gap = (last_ns >= 0) & (next_ns >= 0)
    ones = np.ones(int(is_gap.sum()), dtype=np.int64)
    return Series((next_ns - last_ns)[is_gap] * PS_PER_NS, 0 * ones, ones, ones)


def _of(ticks: Ints, replica: int) -> Ints:
    """Sorted ticks of one replica."""
    return np.sort(ticks[1, ticks[0] == replica])


def _matches(ticks: Ints, at_ns: Ints) -> Ints:
    """How many of the sorted ``ticks`` equal each of ``at_ns``."""
    found: Ints = np.searchsorted(ticks, at_ns, side="right") - np.searchsorted(ticks, at_ns)
    return found

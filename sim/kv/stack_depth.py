"""LRU at every capacity in one pass: how deep in a stack of all blocks each reference finds its block.

A cache of C blocks holds the C that were used last: the top of one stack, whatever C. A reference hits where its block
stands no deeper than C, so depths answer for all capacities at once. The depth of a block last touched at p is the
number of distinct blocks touched since, itself included: all touches since, less those whose block was touched again.

References
----------
Mattson, Gecsei, Slutz and Traiger, "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from sim.kv.replay import Hits, Trace

Ints = Any
"""An array of whole numbers."""

_BOTTOM = 1 << 40  # depth of what was never touched: deeper than any cache


def lru_hits(trace: Trace, capacities: Sequence[int], touch: Literal["tail_first", "head_first"]) -> list[Hits]:
    """What `replay` finds with `Lru` at each capacity.

    Parameters
    ----------
    trace : Trace
    capacities : sequence of int
        [blocks].
    touch : {"tail_first", "head_first"}
        In which order a request's blocks come to the top. If all are looked up first, what is fetched depends on the
        capacity, and there is no one stack.
    """
    is_tail_first = touch == "tail_first"
    keys = np.array([key for keys in trace.blocks for key in (keys[::-1] if is_tail_first else keys)], dtype=np.int64)
    lengths = np.array([len(keys) for keys in trace.blocks], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)))  # of each request's touches
    blank = np.concatenate(([0], np.cumsum(trace.n_blank())))  # blank blocks of all requests before
    request = np.repeat(np.arange(len(lengths)), lengths)
    before, after = _neighbours(keys)
    # a request's blank blocks come to the top before its others if these are freed tail first, and else after them
    blank_below = blank[request + is_tail_first]
    since = np.where(before < 0, _BOTTOM, blank[request] - blank_below[before])
    at_start = since + _distinct(before, starts[request])
    if is_tail_first:
        at_turn = reach = at_start  # all are looked up at once, and each stands deeper than those before it
    else:
        at_turn = since + _distinct(before, np.arange(len(keys)))
        offset = request * (2 * _BOTTOM)
        reach = np.maximum.accumulate(at_start + offset) - offset  # the deepest of the prompt so far

    def resident(n_requests: int) -> Ints:
        """Depths, after so many requests, of all that has been touched."""
        end = starts[n_requests]
        top = np.flatnonzero(after[:end] >= end)
        return blank[n_requests] - blank_below[top] + np.arange(len(top), 0, -1)

    at_warmup, at_end = resident(trace.n_warmup), resident(len(lengths))
    found = []
    for capacity in capacities:
        n_hit, n_resident = (
            np.bincount(request[where <= capacity], minlength=len(lengths)) for where in (reach, at_turn)
        )
        n_kept = (np.minimum(lengths, capacity) if is_tail_first else lengths) - n_resident
        n_more = int(np.count_nonzero(at_end <= capacity)) - int(np.count_nonzero(at_warmup <= capacity))
        n_evicted = int(n_kept[trace.n_warmup :].sum()) - n_more
        found.append(Hits.of(trace, n_hit, n_resident, n_evicted))
    return found


def _neighbours(keys: Ints) -> tuple[Ints, Ints]:
    """When each reference's block was touched before, or -1, and when it will be, or the end."""
    by_key = np.argsort(keys, kind="stable")
    is_same = keys[by_key[1:]] == keys[by_key[:-1]]
    before, after = np.full(len(keys), -1), np.full(len(keys), len(keys))
    before[by_key[1:][is_same]] = by_key[:-1][is_same]
    after[by_key[:-1][is_same]] = by_key[1:][is_same]
    return before, after


def _distinct(before: Ints, until: Ints) -> Ints:
    """How many distinct blocks are touched from the time ``before`` each reference's on ``until`` another; 0 if never.

    A block touched in between counts at its last touch: what is left out are pairs of touches of one block, both in
    between. Pairs are in order of their second touch, so those that count are the first so many.
    """
    again = np.flatnonzero(before >= 0)
    since, until = before[again], until[again]
    n_pairs = np.searchsorted(again, until)
    n_distinct = np.zeros(len(before), dtype=np.int64)
    n_distinct[again] = until - since - _count_above(since, n_pairs, since)
    return n_distinct


def _count_above(values: Ints, n_first: Ints, bounds: Ints) -> Ints:
    """For each bound, how many of the first so many values are above it: a wavelet tree, one bit of all at a time.

    Values whose bit is 0 go before those whose bit is 1, each in their order; a range of values that have had the same
    bits as the bound stays one range. O((n + q) log(max)) in as many numpy calls as there are bits.
    """
    count = np.zeros(len(bounds), dtype=np.int64)
    left, right = np.zeros_like(count), n_first.astype(np.int64)
    for bit in reversed(range(int(values.max(initial=0)).bit_length())):
        is_one = values >> bit & 1
        zeros_until = np.concatenate(([0], np.cumsum(1 - is_one)))
        left_zeros, right_zeros = zeros_until[left], zeros_until[right]
        goes_right = (bounds >> bit & 1).astype(bool)
        count += np.where(goes_right, 0, (right - left) - (right_zeros - left_zeros))
        n_zeros = zeros_until[-1]
        left = np.where(goes_right, n_zeros + left - left_zeros, left_zeros)
        right = np.where(goes_right, n_zeros + right - right_zeros, right_zeros)
        values = np.concatenate((values[is_one == 0], values[is_one == 1]))
    return count

"""What KV slots hold while a row of iterations runs.

A row says what is true when its first iteration has been planned. Then KV comes into slots that are reserved for it,
and where none are, slots are taken as it grows:

    slots  |                   ____----  held = live + reserved + internal
           |   ________----''''
           |               ____----''''  live: + prompt tokens computed, + one per growing sequence and iteration
           |   ____----''''
           +-------------------------->  iterations of the row

All of it is taken as linear from the row's begin to its end, and what is kept for reuse as it is at the begin, though a
long row may take from it. So the averages depend a little on how a run is cut into rows: they are within two points
(``idle_frac``; the others within 0.1) of those of one row per iteration.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.record import Ints, Result

Floats = npt.NDArray[np.float64]


class Span(NamedTuple):
    """A quantity at the begin and at the end of rows, each of shape (n_rows,)."""

    begin: Floats
    end: Floats


def slots(column: Mapping[str, Ints], result: Result) -> dict[str, Span]:
    """Token slots over the course of rows of the iterations table, each slot counted once.

    Parameters
    ----------
    column : mapping of name to int array, shape (n_rows,)
        Of the iterations table.

    Returns
    -------
    dict
        ``live_tokens`` hold KV; ``reserved_tokens`` are held for tokens to come; ``internal_tokens`` are held for no
        token; ``held_tokens`` is the sum of these; ``idle_tokens`` hold KV that nobody references; ``used_tokens`` is
        held and idle together.
    """
    n, batch = column["n_steps"], column["decode_seqs"] + column["padding_seqs"]
    live = column["live_tokens"] - column["shared_tokens"]
    internal = column["internal_tokens"]
    reserved = column["held_tokens"] - live - internal
    growing = growing_seqs(column)
    grown = np.minimum(column["prefill_tokens"], reserved) + n * growing

    cache = result.config.get("cache") or {}
    block_tokens = int(cache.get("block_tokens", 1))  # contiguous caches have none
    do_all_grow = (growing == batch) & (column["partial_seqs"] == 0)
    ends = _block_ends(internal, n, growing, do_all_grow, block_tokens) if block_tokens > 1 else internal.astype(float)
    spans = {
        "live_tokens": Span(live.astype(np.float64), (live + grown).astype(np.float64)),
        "reserved_tokens": Span(reserved.astype(np.float64), np.maximum(0, reserved - grown).astype(np.float64)),
        "internal_tokens": Span(ends, ends),
    }
    held = [np.minimum(sum(parts), result.capacity_tokens) for parts in zip(*spans.values(), strict=True)]
    idle = [np.minimum(column["idle_tokens"], result.capacity_tokens - slots_held) for slots_held in held]
    spans["held_tokens"] = Span(*held)
    spans["idle_tokens"] = Span(*idle)
    spans["used_tokens"] = Span(held[0] + idle[0], held[1] + idle[1])
    return spans


def growing_seqs(column: Mapping[str, Ints]) -> Ints:
    """Decoding sequences of rows whose context becomes longer with every token.

    One reads what is live and, if it grows, its new token; a window's does not grow. Prompts under computation are
    live, too, but nobody decodes them.
    """
    batch = column["decode_seqs"] + column["padding_seqs"]
    growing: Ints = np.clip(column["decode_context_tokens"] - column["live_tokens"], 0, batch)
    return np.where(column["partial_seqs"] > 0, batch, growing)


def _block_ends(
    internal: Ints, n: Ints, growing: Ints, do_all_grow: npt.NDArray[np.bool_], block_tokens: int
) -> Floats:
    """Empty ends of blocks, on average over a row.

    A growing sequence's last block is half empty on average over as many iterations as a block has slots. In what is
    left of a row it is as at the begin, and half a token more: the slot of the token under computation is taken.
    """
    cycled = n // block_tokens * block_tokens
    as_begun = internal + growing / 2
    half = np.where(do_all_grow, growing * (block_tokens / 2), as_begun)
    ends: Floats = (cycled * half + (n - cycled) * as_begun) / n
    return ends

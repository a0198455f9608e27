"""One engine iteration as the cost model sees it, and the contract of cost models."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from mypy_extensions import mypyc_attr

from sim.units import FAR


class Chunk(NamedTuple):
    """Part of one prompt computed in an iteration."""

    new_tokens: int
    context_tokens: int  # already cached before it, attended by the new ones
    reach_tokens: int = FAR  # that a token attends to at most, itself among them; a retention bounds it

    @property
    def seen_tokens(self) -> int:
        """Of its prompt when it is computed."""
        return self.new_tokens + self.context_tokens


class StepShape(NamedTuple):
    """What one iteration computes. Sums and extremes only, so that building it is O(1) in the batch.

    ``decode_context_tokens`` counts the KV entries that decoding sequences read in this iteration, summed over
    sequences: each attends to its cached tokens and to the one it computes now. ``decode_growing`` of the
    ``decode_seqs`` read one more entry in each following iteration; the others slide over a window and do not.
    """

    chunks: tuple[Chunk, ...] = ()
    decode_seqs: int = 0
    decode_context_tokens: int = 0
    decode_max_context_tokens: int = 0
    decode_growing: int = 0
    moved_bytes: float = 0.0  # copied inside device memory on the critical path (growth, compaction, quantising)
    host_bytes: float = 0.0  # moved over the host link on the critical path (transfers that do not overlap)
    finished_seqs: int = 0  # sequences that ended with the previous iteration, for the host's bookkeeping


class Pace(NamedTuple):
    """Durations of consecutive iterations: ``first_ps``, then each ``growth_ps`` more, for ``n_steps`` of them.

    At a fixed batch every term of an iteration is constant or linear in the KV read, so a run of iterations is an
    arithmetic series. ``n_steps`` says how far this piece reaches before the next knot of the cost model.
    """

    first_ps: int
    growth_ps: int
    n_steps: int


Chunks = tuple[tuple[int, int, int], ...]
Shape = tuple[Chunks, int, int, int, int, float, float, int]
"""`Chunk`s and a `StepShape`, or bare tuples of their fields: the hot loop makes and takes apart those in half the
time, and compiled it makes none at all."""


@mypyc_attr(allow_interpreted_subclasses=True)
class CostModel(ABC):
    """Time of engine iterations."""

    capture_sizes: tuple[int, ...] = ()  # token counts with a CUDA graph, which takes memory
    provenance: Mapping[str, object] | None = None  # where its times come from; None: it does not say

    def n_extrapolated(self) -> int:
        """Runs of iterations that it was asked for outside of what was measured."""
        return 0

    def extrapolations(self) -> list[str]:
        """What was asked for outside of what was measured: operation, axis, how far, and the range."""
        return []

    @abstractmethod
    def pace(self, shape: Shape) -> tuple[int, int, int]:
        """A `Pace`: duration of the iteration ``shape`` and of those after it, while no sequence joins or leaves.

        Exactness: for every ``k < n_steps`` the pace of the shape ``k`` iterations later starts at exactly
        ``first_ps + k * growth_ps``. In that shape the context has grown by ``k * decode_growing``; the maximum by
        ``k`` if all grow, else not at all (who slides over a window is the longest); bytes moved and finished
        sequences are zero, for they are matters of the first iteration alone.
        A shape with chunks has ``n_steps`` 1.
        """
        ...

"""What becomes of a preempted sequence's KV: computed again, or copied down and loaded when its turn comes.

    recompute   its memory is given up; coming back, it computes its prompt and its answer so far once more
    swap        what of it is below comes back over the link, in competition with every other transfer
    auto        whichever loses less time, its own and that of all who decode beside it, asked of the link and of the
                cost model each time anew

References
----------
Kwon et al., "Efficient memory management for large language model serving with PagedAttention", SOSP 2023, section 4.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sim.ledger import DecodeLedger
from sim.step import Chunk, CostModel, StepShape


class Times(NamedTuple):
    """Estimates for one sequence, as of now: time lost, added up over all who lose it.

    Computing again delays the sequence and everyone who decodes beside it; a load that overlaps delays it alone.
    """

    save_ps: int  # by copying its KV down first, which those wait for who are to use its memory
    load_ps: int  # until its next token, if its KV is loaded
    compute_ps: int  # until its next token, if its KV is computed


Estimate = Callable[[], Times]
"""Works the times out; whoever does not need them does not ask."""


class Preemption(Protocol):
    """Whether KV goes down, and whether it comes back."""

    needs_below: bool  # it asks for memory below the device

    def saves(self, estimate: Estimate) -> bool:
        """Whether to copy down what would be lost with the memory of a sequence preempted now."""
        ...

    def loads(self, estimate: Estimate) -> bool:
        """Whether a preempted sequence whose turn has come loads what is below."""
        ...


@dataclass(frozen=True, slots=True)
class Recompute:
    """Always compute again: vLLM v1's way, and v0's where a request has one answer."""

    needs_below = False

    def saves(self, estimate: Estimate) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def loads(self, estimate: Estimate) -> bool:  # noqa: ARG002
        """Never."""
        return False


@dataclass(frozen=True, slots=True)
class Swap:
    """Always save and load."""

    needs_below = True

    def saves(self, estimate: Estimate) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def loads(self, estimate: Estimate) -> bool:  # noqa: ARG002
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class Cheaper:
    """Save, and load, where less time is lost so than by computing again."""

    needs_below = True

    def saves(self, estimate: Estimate) -> bool:
        """If saving and loading together take less."""
        save_ps, load_ps, compute_ps = estimate()
        return save_ps + load_ps < compute_ps

    def loads(self, estimate: Estimate) -> bool:
        """If loading takes less, whatever saving took."""
        _, load_ps, compute_ps = estimate()
        return load_ps < compute_ps


@dataclass(frozen=True, slots=True)
class Estimator:
    """What bringing a sequence back takes beside those that decode now, by the cost model."""

    cost: CostModel
    max_batched_tokens: int  # of one iteration, decoding sequences included

    def computing_ps(self, start_tokens: int, stop_tokens: int, ledger: DecodeLedger | None) -> int:
        """Time lost by computing a text from one length to another, in pieces as large as they may be [ps].

        The sequence waits for these iterations, everyone who decodes for what they take longer than without it.
        """
        batch = _batch(ledger)
        most = max(1, self.max_batched_tokens - batch[0])
        alone_ps = self.cost.pace(StepShape((), *batch))[0] if batch[0] else 0
        lost_ps = 0
        for start in range(start_tokens, stop_tokens, most):
            chunk = Chunk(min(most, stop_tokens - start), start)
            iteration_ps = self.cost.pace(StepShape((chunk,), *batch))[0]
            lost_ps += iteration_ps + batch[0] * (iteration_ps - alone_ps)
        return lost_ps

    def loading_ps(self, load_ps: int, ledger: DecodeLedger | None) -> int:
        """Time lost by a load that overlaps: until the end of the iteration in which it is over, for one [ps]."""
        batch = _batch(ledger)
        if not batch[0]:
            return load_ps
        iteration_ps = self.cost.pace(StepShape((), *batch))[0]
        return -(-load_ps // iteration_ps) * iteration_ps

    def waiting_ps(self, wait_ps: int, ledger: DecodeLedger | None) -> int:
        """Time lost by a copy that everyone who decodes waits for [ps]."""
        return wait_ps * _batch(ledger)[0]


def _batch(ledger: DecodeLedger | None) -> tuple[int, int, int, int]:
    """Who decodes, as `StepShape` says it."""
    if ledger is None or not ledger.members:
        return 0, 0, 0, 0
    return len(ledger.members), ledger.context_tokens(), ledger.max_context_tokens(), ledger.n_growing

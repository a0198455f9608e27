"""Batches of whole requests: fill, pad, run until the longest has ended."""

from sim.batching.plan import DECODE, Batch, Plan, Scheduler
from sim.errors import ConfigError
from sim.spec import as_given
from sim.units import MS_PER_S, ns_from_s


class RequestLevel(Scheduler):
    """What serving was before iteration-level scheduling (Orca, OSDI'22, section 2).

    An idle engine takes up to ``max_batch_size`` waiting requests, pads their prompts to the longest, and decodes until
    the longest answer has ended. Nobody joins, and nobody leaves, before: an answer's tokens are streamed as they are
    generated, but the request finishes, and its memory is freed, with its batch. ``batching=static`` starts at once
    with what is there; ``batching=dynamic`` waits for a full batch, at most ``max_wait_time_ms`` after the first
    arrival (as Triton Inference Server's dynamic batcher).

    Parameters
    ----------
    max_batch_size : int
        Sequences that run together; of a request with several answers, each counts [sequences].
    max_wait_time_ms : float
        How long the first of a batch waits for others [ms].
    """

    returns_together: bool = True
    admits_in_order: bool = True

    def __init__(self, max_batch_size: int = 32, max_wait_time_ms: float = 0.0) -> None:
        if max_batch_size < 1:
            raise ConfigError(f"batching.max_batch_size must be >= 1 [requests], got {max_batch_size}")
        if not 0 <= max_wait_time_ms < float("inf"):
            raise ConfigError(
                f"batching.max_wait_time_ms must be >= 0 and finite [ms], got {as_given(max_wait_time_ms)}"
            )
        self.max_batch_size = max_batch_size
        self._max_wait_ns = ns_from_s(max_wait_time_ms / MS_PER_S)

    @property
    def most_seqs(self) -> int:
        """``max_batch_size``."""
        return self.max_batch_size

    def plan(self, batch: Batch, now_ns: int) -> Plan | int | None:
        """The next iteration; the time a batch starts although it is not full; or None, on arrival."""
        ledger, waiting = batch.ledger, batch.waiting
        batch.make_room()
        if ledger.members:
            return DECODE
        if batch.partial:
            return self._start(batch)
        if not len(waiting):
            return None
        first = waiting.first(self.max_batch_size)
        starts_ns = min(sequence.request.arrival_ns for sequence in first) + self._max_wait_ns
        if now_ns < starts_ns and sum(sequence.n_samples for sequence in first) < self.max_batch_size:
            return starts_ns
        while len(waiting) and batch.n_running() < self.max_batch_size:
            if batch.admit(None, now_ns, self.max_batch_size - batch.n_running()) is None:
                break
        return self._start(batch)

    def _start(self, batch: Batch) -> Plan | None:
        """Compute the prompts of a batch, once all KV that it found below has come."""
        if not batch.partial or batch.loading():
            return None
        chunks = [(sequence, sequence.prefill_left_tokens) for sequence in batch.partial]
        longest = max(sequence.target_tokens for sequence, _ in chunks)
        return Plan(chunks, decodes=False, pad_to_tokens=longest)

"""Iteration-level batching, whole prompts first: Orca's idea as the first vLLM scheduled it."""

from sim.batching.plan import DECODE, Batch, Plan, Scheduler
from sim.errors import ConfigError


class Continuous(Scheduler):
    """Sequences join and leave at every iteration; waiting prompts are computed whole, and decoding waits for them.

    The rules are vLLM v0's without chunked prefill: an iteration computes prompts or decodes, never both. A prompt
    longer than ``max_num_batched_tokens`` makes an iteration of its own. Admission is stricter than v0's: caches leave
    room for one more token of every decoding sequence, where ``BlockSpaceManager.can_allocate`` (core/block_manager.py)
    leaves the watermark alone. So fewer are admitted only to be preempted.

    Parameters
    ----------
    max_num_batched_tokens : int
        Prompt tokens computed in one iteration.
    max_num_seqs : int
        Sequences running at once; vLLM v0's default is 256.
    """

    admits_in_order: bool = True

    def __init__(self, max_num_batched_tokens: int = 8192, max_num_seqs: int = 256) -> None:
        for key, value in (("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens)):
            if value < 1:
                raise ConfigError(f"batching.{key} must be >= 1, got {value}")
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs

    @property
    def most_tokens(self) -> int:
        """``max_num_batched_tokens``."""
        return self.max_num_batched_tokens

    @property
    def most_seqs(self) -> int:
        """``max_num_seqs``."""
        return self.max_num_seqs

    def plan(self, batch: Batch, now_ns: int) -> Plan | None:
        """The next iteration, or None when nothing can run before something arrives."""
        ledger, waiting = batch.ledger, batch.waiting
        budget = self.max_num_batched_tokens
        chunks = [(one, one.prefill_left_tokens) for one in batch.partial if one.loading is None]
        budget -= sum(n_tokens for _, n_tokens in chunks)
        while budget > 0 and len(waiting) and batch.n_running() < self.max_num_seqs:
            if chunks and waiting.head().target_tokens - batch.match(waiting.head()) > budget:
                break
            admitted = batch.admit(None, now_ns, self.max_num_seqs - batch.n_running())
            if admitted is None:
                break
            if admitted[1]:
                chunks.append(admitted)
                budget -= admitted[1]
        if chunks:
            return Plan(chunks, decodes=False)
        n_preempted = batch.make_room()
        if not ledger.members:
            batch.has_emptied = n_preempted > 0
            return None
        return DECODE

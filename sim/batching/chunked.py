"""Chunked prefill under one token budget: vLLM v1's scheduler, and Sarathi-Serve's."""

from sim.batching.plan import DECODE, Batch, Plan, Scheduler
from sim.errors import ConfigError
from sim.sequence import Sequence


class Chunked(Scheduler):
    """Decodes first, then prompts in order, cut to what is left of the budget.

    The rules are vLLM v1's (``v1/core/sched/scheduler.py``): running sequences before waiting ones under one budget;
    what is admitted may start with part of its prompt; the head of the queue blocks those behind it; an iteration
    that preempted admits nobody.

    Parameters
    ----------
    max_num_batched_tokens : int
        Tokens computed in one iteration, prompts and decodes together. Default 8192, vLLM's for online serving on
        devices with 70 GB or more.
    max_num_seqs : int
        Sequences running at once. Default 256; vLLM's is 1024 on such devices when serving online.
    plans_ahead : bool
        Whether an iteration is planned when the one before it starts, so that the host works while the device does:
        vLLM's async scheduling, its default since 0.14. Who arrives during an iteration then waits for the next one
        too, and a place freed by an iteration is taken one iteration later.
    long_prefill_token_threshold : int
        Tokens of one prompt computed in one iteration at most, so that others get some too; 0 for as many as fit.
    forks_samples : bool
        Whether several answers compute their prompt once and share it, as vLLM v0 did. In v1 each is a request of its
        own (``ParentRequest``, v1/engine/parallel_sampling.py), which finds what the cache has kept of the prompt.
    """

    admits_in_order: bool = True

    def __init__(
        self,
        max_num_batched_tokens: int = 8192,
        max_num_seqs: int = 256,
        plans_ahead: bool = False,
        long_prefill_token_threshold: int = 0,
        forks_samples: bool = True,
        n_batches: int = 1,
    ) -> None:
        if max_num_seqs < 1:
            raise ConfigError(f"batching.max_num_seqs must be >= 1 [sequences], got {max_num_seqs}")
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"batching.max_num_batched_tokens must be >= batching.max_num_seqs ({max_num_seqs}), "
                f"so that every running sequence can decode, got {max_num_batched_tokens}"
            )
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        if long_prefill_token_threshold < 0:
            raise ConfigError(
                f"batching.long_prefill_token_threshold must be >= 0 [tokens], got {long_prefill_token_threshold}"
            )
        self.plans_ahead = plans_ahead
        self.forks_samples = forks_samples
        self.long_prefill_token_threshold = long_prefill_token_threshold
        if n_batches < 1:
            raise ConfigError(f"batching.n_batches must be >= 1, got {n_batches}")
        self._budget = n_batches * max_num_batched_tokens
        self._most_at_once = long_prefill_token_threshold or self._budget

    @property
    def most_tokens(self) -> int:
        """``max_num_batched_tokens``."""
        return self.max_num_batched_tokens

    @property
    def chunk_tokens(self) -> int:
        """``long_prefill_token_threshold``, or the whole budget."""
        return min(self._most_at_once, self._budget)

    @property
    def most_seqs(self) -> int:
        """``max_num_seqs``."""
        return self.max_num_seqs

    def plan(self, batch: Batch, now_ns: int) -> Plan | None:
        """The next iteration, or None when nothing can run before something arrives."""
        kv, ledger, waiting = batch.kv, batch.ledger, batch.waiting
        n_decoding = len(ledger.members)
        n_preempted = 0
        last_served: int | None = None
        batch.took_ahead = False
        if n_decoding and (ledger.alarms or not kv.steps_within(ledger, 1)):
            n_preempted = batch.make_room(in_turn=True)
            n_decoding = len(ledger.members) - len(batch.held_back)
            last_served = batch.last_served
        if n_decoding and not waiting and not batch.partial:
            return DECODE
        budget = self._budget - n_decoding
        chunks: list[tuple[Sequence, int]] = []
        for sequence in tuple(batch.partial):
            if last_served is not None and sequence.order > last_served:
                break
            if sequence.loading is not None:
                continue
            n_tokens = min(sequence.prefill_left_tokens, budget, self._most_at_once)
            if not n_tokens or sequence not in batch.partial:
                continue
            n_gave_way = batch.extend(sequence, n_tokens)
            if n_gave_way:  # what they were to compute is not computed
                n_preempted += n_gave_way
                n_decoding = len(ledger.members) - len(batch.held_back)
                chunks = [chunk for chunk in chunks if chunk[0] in batch.partial]
                budget = self._budget - n_decoding - sum(n for _, n in chunks)
            if sequence not in batch.partial:
                break  # nobody behind it is served
            chunks.append((sequence, n_tokens))
            budget -= n_tokens
        n_running = batch.n_running()
        if not n_preempted:
            if waiting and n_decoding and batch.reusing is not None:
                batch.reusing.take_ahead(ledger)
                batch.took_ahead = True
            while waiting and budget and n_running < self.max_num_seqs:
                admitted = batch.admit(min(budget, self._most_at_once), now_ns, self.max_num_seqs - n_running)
                if admitted is None:
                    break
                n_running += admitted[0].n_samples
                if admitted[1]:
                    chunks.append(admitted)
                    budget -= admitted[1]
        if not chunks and not n_decoding:
            batch.has_emptied = n_preempted > 0
            return None
        return Plan(chunks) if chunks else DECODE

"""The serving engine: one replica that plans, works out how long, waits, and commits.

plan      the scheduler picks what the next iterations compute and takes the memory for it
run       how many iterations this plan holds for, and when they end: one event for all of them
cut       who arrives, or is loaded, shortens the run to the iteration under way
settle    who looks in has the iterations committed that have ended by now; the rest of the run goes on
commit    the ledger advances, tokens and finishes are marked, memory is freed, facts are written

    run       |----|----|----|----|----|----|----|----|   8 iterations, one event at their end
    arrival                      ^
    cut       |----|----|----|----|                       4: the next plan knows of the arrival
    settle    |====|====|====|----|                       3 committed, 1 under way
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from math import sqrt
from typing import Any

from librt.strings import write_i64_le
from mypy_extensions import mypyc_attr

from sim.batching.plan import Batch, Plan, Scheduler
from sim.batching.queue import Accounting, LookAhead, Queue
from sim.clock import Clock, Turning
from sim.errors import InvariantError
from sim.kv.abilities import Prefetcher
from sim.kv.cache import KVCache, Transit
from sim.ledger import DecodeLedger
from sim.record import Recorder
from sim.request import Finished, Request
from sim.samples import Sample
from sim.sequence import Sequence
from sim.step import Chunks, CostModel
from sim.units import PS_PER_NS


@mypyc_attr(allow_interpreted_subclasses=True)
class NextPool(ABC):
    """Where sequences go on whose prompt is complete, if that is elsewhere."""

    @abstractmethod
    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served there, or None."""
        ...

    @abstractmethod
    def take(self, source: "Replica", sequence: Sequence) -> Transit:
        """A sequence goes on there from now on; its KV stays in its source's memory until that has it `let_go`."""
        ...


class Replica(Turning):
    """One engine instance: a queue, a scheduler, a KV cache, a cost model and the loop that turns them.

    Parameters
    ----------
    env : Clock
    index : int
        Of the replica: in the rows it writes, and its turn among those whose iterations end in one nanosecond.
    on_finish : callable or None
        Told of every request that ends or is refused, where that brings about others.
    max_len : int
        The longest the model allows a prompt and its answer to be together [tokens].
    max_steps : int or None
        Iterations in one run at most, and no iteration without an event; None is as many as the plan holds for. The
        results are the same.
    next_pool : NextPool or None
        Who decodes what this one has computed the prompt of; None: it does so itself.
    """

    def __init__(
        self,
        env: Clock,
        index: int,
        scheduler: Scheduler,
        queue: Queue,
        kv: KVCache,
        cost: CostModel,
        recorder: Recorder,
        on_finish: Callable[[Finished], None] | None,
        max_len: int,
        max_steps: int | None = None,
        next_pool: NextPool | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.scheduler = scheduler
        self.kv = kv
        self.cost = cost
        self.recorder = recorder
        self.on_finish = on_finish
        self.max_len = max_len
        self.max_steps = max_steps
        self.next_pool = next_pool
        self.handed_over: dict[Sequence, Transit] = {}  # what goes on elsewhere and is still in memory here
        self.ledger = DecodeLedger(kv.block_tokens, kv.window_tokens)
        self._unseen: deque[Sequence] = deque()  # arrived after the next plan was made (scheduler.plans_ahead)
        self._look_ahead: LookAhead | None = None
        self._accounts = queue if isinstance(queue, Accounting) else None
        waiting = queue
        if isinstance(kv, Prefetcher) and kv.prefetch_requests:
            self._look_ahead = waiting = LookAhead(queue, kv, self._unseen)
        self.batch = Batch(waiting, kv, self.ledger, self.preempt, self._disturb, index)
        self.n_outstanding = 0  # sequences taken and not yet ended; a prompt counts for each answer it will have
        self.outstanding_tokens = 0  # of their prompts
        self.due_ns: int | None = None  # when the run ends, or an idle replica looks again; None: on arrival
        self._is_busy = False  # an iteration is under way
        self._plan = Plan()  # of the run under way, as the rest up to `_n_ended`
        self._start_ns = 0
        self._carry_ps = 0  # what rounding to whole nanoseconds has left over
        self._n_steps = 0
        self._first_ps = 0
        self._growth_ps = 0
        self._owed_ps = 0  # what rounding will have left over at the end of the run
        self._n_decoding = 0
        self._context_tokens = 0
        self._last_decode_ns = 0
        self._n_preempted = 0  # sequences that gave way in planning this iteration
        self._n_ended = 0  # sequences that ended with the previous iteration
        self._ended: list[Sequence] = []  # of a batch whose answers return together
        self._plans_ahead = scheduler.plans_ahead
        self._passes_by = scheduler.admits_in_order and queue.keeps_head  # an arrival behind others changes no plan

    @property
    def n_waiting(self) -> int:
        """Sequences in the queue, or on their way there."""
        return len(self.batch.waiting) + len(self._unseen)

    def submit(self, sequence: Sequence) -> None:
        """Take a request into the queue, or refuse it when it could never be served."""
        request = sequence.request if sequence.samples is None else sequence.samples.request
        if request.tenant:
            self.recorder.belongs(request)
        reason = self.refuses(request)
        if reason is not None:
            self.recorder.refuse(request, reason)
            if self.on_finish is not None:
                self.on_finish(Finished(request, self.env.now_ns, is_refused=True))
            return
        self.n_outstanding += sequence.n_samples
        self.outstanding_tokens += sequence.n_samples * request.prompt_tokens
        if sequence.n_samples > 1 and not self.scheduler.forks_samples and isinstance(sequence, Sample):
            sequence.samples.are_apart = True
            for one in (sequence, *sequence.apart()):
                self._take(one)
            return
        self._take(sequence)

    def _take(self, sequence: Sequence) -> None:
        """Take one sequence into the queue, seen by the next plan or by the one after it."""
        sequence.placed_ns = self.env.now_ns
        if self._look_ahead is not None:
            self._look_ahead.announce(sequence)
        waiting = self.batch.waiting
        is_behind = self._passes_by and len(waiting) > 0
        if not self._is_busy:
            waiting.push(sequence)
            self._wake(self.env.now_ns)
        elif self._plans_ahead:
            self._unseen.append(sequence)
            if not is_behind and self._n_steps > 1:
                now_ns = self.env.now_ns
                was_planned = now_ns > self._start_ns and not self.env.has_had(self.index)
                self._cut(now_ns, int(was_planned))  # one more, before it came
        else:
            waiting.push(sequence)
            if not is_behind and self._n_steps > 1:
                self._cut(self.env.now_ns, 0)

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served, or None."""
        if self.next_pool is not None:
            reason = self.next_pool.refuses(request)
            if reason is not None:
                return reason
            request = request._replace(output_tokens=1, max_output_tokens=1)
        n_tokens = request.prompt_tokens + request.output_tokens
        if n_tokens > self.max_len and not self.kv.is_endless:
            return f"prompt and output of {n_tokens} tokens exceed the model's maximum of {self.max_len}"
        if request.n_samples > 1:
            if not self.scheduler.forks_samples:
                return self.kv.refuses(request._replace(n_samples=1))
            if request.n_samples > self.scheduler.most_seqs:
                return f"{request.n_samples} answers to sample at once, the batch has {self.scheduler.most_seqs} places"
        return self.kv.refuses(request)

    def counts(self) -> dict[str, int | float]:
        """Facts of the parts at the end of a run."""
        return {"admissions": self.batch.n_admitted, **self.kv.counts()}

    def settle(self, now_ns: int) -> None:
        """Commit the iterations that have ended before now; what is under way goes on and ends when it would have.

        One that ends in this very nanosecond is still under way: what comes from outside comes before it. What other
        replicas bring about in it does not, if their turn is later than this one's.
        """
        if not self._is_busy or self._n_steps == 1:
            return
        n_steps = self._steps_to(now_ns) - 1
        if n_steps:
            n_left = self._n_steps - n_steps
            self._n_steps = n_steps
            end_ns = self._end_ns()
            self._commit(end_ns)
            self._start_ns, self._n_steps = end_ns, n_left
            self._first_ps += n_steps * self._growth_ps
            self._end_ns()  # as before, but for what is left over from now on
            self._context_tokens = self.ledger.context_tokens()
            if self.batch.took_ahead and self.batch.reusing is not None:  # so would the plan of the one under way have
                self.batch.reusing.take_ahead(self.ledger)

    def fail(self, now_ns: int) -> list[Sequence]:
        """All that runs or waits here loses its KV and is handed back, in the order of its arrival here.

        A fault is a preemption of everybody: what they have generated stays theirs. Tokens of the iteration under way
        are lost. The replica goes on, empty, with whatever is submitted to it.
        """
        self.settle(now_ns)
        self._is_busy = False
        self.due_ns = None
        batch = self.batch
        self._go_on()
        self._part_with_leaving(now_ns)
        for sequence in [*reversed(batch.partial), *reversed(list(self.ledger))]:
            self.preempt(sequence)
        self.kv.advance(self.ledger, 0)  # what the iteration under way was to copy from is free too
        queue = batch.waiting if self._look_ahead is None else self._look_ahead.queue
        handed_back = [queue.take() for _ in range(len(queue))]
        handed_back += self._unseen
        self._unseen.clear()
        for sequence in handed_back:  # what is on its way to them comes here in vain
            self._end_transit(sequence, None)
        for transit in [*self.handed_over.values()]:
            transit.end(None)
        self._n_preempted = self._n_ended = 0
        self.n_outstanding = self.outstanding_tokens = 0
        return handed_back

    def _wake(self, now_ns: int) -> None:
        """An idle replica plans, when all that comes in this nanosecond has come."""
        if self.due_ns != now_ns:
            self.due_ns = now_ns
            self.env.call(self, now_ns)

    def _disturb(self, _: Any = None) -> None:
        """What a plan would look at has changed from outside (KV has been loaded): plan anew after this iteration."""
        if not self._is_busy:
            self._wake(self.env.now_ns)
        elif self._n_steps > 1:
            self._cut(self.env.now_ns, 0)

    def _cut(self, now_ns: int, n_more: int) -> None:
        """Let the run end with the iteration under way, or so many later."""
        n_steps = self._steps_to(now_ns) + n_more
        if n_steps < self._n_steps:
            self._n_steps = n_steps
            self.due_ns = self._end_ns()
            self.env.call(self, self.due_ns)

    def _steps_to(self, now_ns: int) -> int:
        """Iterations of the run that have begun, the one under way included, at least one."""
        if now_ns > self._start_ns and self.env.has_had(self.index):
            now_ns += 1  # what ends in this nanosecond has ended, and the next has begun
        target_ps = (now_ns - self._start_ns) * PS_PER_NS - self._carry_ps
        return steps_until(self._first_ps, self._growth_ps, target_ps, self._n_steps)

    def _end_ns(self) -> int:
        """When the run ends, as long as it is now; in `_owed_ps` what is left over then."""
        ps = self._carry_ps + elapsed_ps(self._first_ps, self._growth_ps, self._n_steps)
        self._owed_ps = ps % PS_PER_NS
        return self._start_ns + ps // PS_PER_NS

    def turn(self, now_ns: int) -> None:
        """The run has ended, or an idle replica was to look again: commit, plan and run, until others are due."""
        env = self.env
        if self._is_busy:
            self._commit(now_ns)
        while self._next(now_ns):
            end_ns = self._end_ns()
            if self.max_steps is not None or not env.move_on_to(end_ns, self.index):
                self.due_ns = end_ns
                env.call(self, end_ns)
                return
            now_ns = end_ns
            self._commit(now_ns)

    def _next(self, now_ns: int) -> bool:
        """Plan, and begin a run: whether there is one."""
        batch, scheduler = self.batch, self.scheduler
        plan = scheduler.plan(batch, now_ns)
        while not isinstance(plan, Plan) and (self._unseen or batch.leaving or batch.has_emptied):
            batch.has_emptied = False
            batch.held_back.clear()
            self._catch_up(now_ns)  # no iteration runs that would be planned during
            plan = scheduler.plan(batch, now_ns)
        if isinstance(plan, Plan):
            self._begin(plan, now_ns)
            return True
        self._is_busy = False
        self.due_ns = None
        if plan is not None:
            self._wake(plan)
        elif len(batch.waiting) and not batch.loading() and not self.handed_over:
            raise InvariantError(f"replica {self.index}: requests wait, nothing runs, and none is admitted")
        return False

    def _begin(self, plan: Plan, now_ns: int) -> None:
        """Begin a run of what is planned: what it computes, how long it takes, and how many iterations it holds for.

        A run ends with the first member to finish or to need the cache's attention, with the free memory, or at the
        cost model's next knot. Whoever comes before cuts it.
        """
        batch, ledger, kv = self.batch, self.ledger, self.kv
        if batch.held_back:
            self._hold_back()
        n_decoding = context = longest = growing = 0
        if plan.decodes and ledger.members:
            n_decoding, growing = len(ledger.members), ledger.n_growing
            context = ledger.resident_tokens + ledger.padding_tokens + growing
            longest = ledger.max_context_tokens()
        copies = kv.copies
        moved, hosted = copies.moved_bytes, copies.host_bytes
        chunks = _chunks(plan) if plan.chunks else ()
        first_ps, growth_ps, n_steps = self.cost.pace(
            (chunks, n_decoding, context, longest, growing, moved, hosted, self._n_ended)
        )
        if chunks or moved or hosted or self._n_preempted or batch.is_provisional or batch.leaving:
            n_steps = 1
            copies.moved_bytes = copies.host_bytes = 0.0
            batch.is_provisional = False
        elif self._unseen and not (self._passes_by and len(batch.waiting)):
            n_steps = 1  # then they are seen
        else:
            to_event = ledger.steps_to_event()
            if to_event is not None and to_event < n_steps:
                n_steps = to_event
            if self.max_steps is not None and self.max_steps < n_steps:
                n_steps = self.max_steps
            n_steps = kv.steps_within(ledger, n_steps)
        self._plan = plan
        self._start_ns = now_ns
        self._n_steps, self._first_ps, self._growth_ps = n_steps, first_ps, growth_ps
        self._n_decoding, self._context_tokens = n_decoding, context
        self._is_busy = True

    def _hold_back(self) -> None:
        """Sequences miss the next iteration: until it has ended they are none that decode."""
        for sequence in self.batch.held_back:
            if self.ledger.step > sequence.joined_step:
                sequence.last_token_ns = self._last_decode_ns
            self.ledger.leave(sequence)

    def _go_on(self) -> None:
        """Those that missed an iteration decode again, but for who had ended before it."""
        for sequence in self.batch.held_back:
            if not sequence.is_finished:
                self.ledger.rejoin(sequence)
        self.batch.held_back.clear()

    def _commit(self, end_ns: int) -> None:
        """The run has gone so far: write it down, count its tokens, end what has ended."""
        ledger, kv, batch, plan = self.ledger, self.kv, self.batch, self._plan
        chunks, partial, leaving = plan.chunks, batch.partial, batch.leaving
        n_steps, first_ps, growth_ps, carry_ps = self._n_steps, self._first_ps, self._growth_ps, self._carry_ps
        n_decoding = self._n_decoding
        n_emitting = ledger.n_emitting if n_decoding else 0
        live_tokens = ledger.resident_tokens
        held_tokens, shared_tokens, rounding_tokens = kv.held_tokens, kv.shared_tokens, kv.rounding_tokens
        n_prefilled = n_joined = n_padding = 0
        pad_to_tokens = plan.pad_to_tokens
        complete: list[Sequence] = []
        if partial:
            for sequence in partial:
                live_tokens += sequence.computed_tokens - sequence.dropped_tokens
            for sequence, n_tokens in chunks:
                n_prefilled += n_tokens
                if pad_to_tokens is not None:
                    n_padding += pad_to_tokens - sequence.computed_tokens - n_tokens
                if sequence.computed_tokens + n_tokens == sequence.target_tokens:
                    complete.append(sequence)
                    if self.next_pool is None:
                        n_joined += sequence.n_samples * (sequence.generated_tokens + 1 < sequence.output_tokens)
        if shared_tokens and leaving:  # they still hold what they share
            members = ledger.members
            live_tokens += sum([sequence.resident_tokens for sequence in leaving if sequence.order not in members])
        for sequence in batch.held_back:
            live_tokens += sequence.resident_tokens
        for sequence in self.handed_over:
            live_tokens += sequence.resident_tokens
        if rounding_tokens is None:
            rounding_tokens = held_tokens - n_prefilled - live_tokens + shared_tokens
            if rounding_tokens < 0:  # of a long prompt a window holds only the end
                rounding_tokens = 0
        iterations = self.recorder.iterations
        row = iterations.row
        write_i64_le(row, self.index)
        write_i64_le(row, self._start_ns)
        write_i64_le(row, carry_ps)
        write_i64_le(row, n_steps)
        write_i64_le(row, first_ps)
        write_i64_le(row, growth_ps)
        write_i64_le(row, n_prefilled)
        write_i64_le(row, n_joined)
        write_i64_le(row, n_emitting)
        write_i64_le(row, self._context_tokens)
        write_i64_le(row, self.n_waiting)
        write_i64_le(row, len(partial))
        write_i64_le(row, held_tokens)
        write_i64_le(row, live_tokens)
        write_i64_le(row, kv.idle_tokens)
        write_i64_le(row, self._n_preempted)
        write_i64_le(row, n_decoding - n_emitting)
        write_i64_le(row, rounding_tokens)
        write_i64_le(row, kv.external_tokens)
        write_i64_le(row, shared_tokens)
        write_i64_le(row, n_padding)
        iterations.keep()
        self._carry_ps = self._owed_ps
        self._n_preempted = 0
        kv.advance(ledger, n_steps if n_decoding else 0)
        if n_decoding:
            ledger.advance(n_steps)
            self._last_decode_ns = end_ns
        if batch.held_back:
            self._go_on()
        for sequence, n_tokens in chunks:
            sequence.computed_tokens += n_tokens
            kv.trim(sequence, ledger)
        for sequence in complete:
            partial.remove(sequence)
            self._start_decoding(sequence, pad_to_tokens, end_ns)
        if self._unseen or leaving:
            last_start_ps = carry_ps + elapsed_ps(first_ps, growth_ps, n_steps - 1)
            self._catch_up(self._start_ns + last_start_ps // PS_PER_NS)
        self._n_ended = 0
        if (ledger.ends and ledger.ends[0][0] <= ledger.step) or self._ended:
            self._end_sequences(end_ns)

    def _end_sequences(self, now_ns: int) -> None:
        """End those that have got their last token; where a batch's answers return together, when all have."""
        ended = self.ledger.finished()
        self._n_ended = len(ended)
        if self.scheduler.returns_together:
            self._ended += ended
            ended = []
            if not self.ledger.n_emitting:
                ended, self._ended = self._ended, ended
        for sequence in ended:
            self._finish(sequence, now_ns)
        if self.batch.leaving:
            self._let_go(now_ns)

    def _let_go(self, now_ns: int) -> None:
        """Free what has ended at once where the next plan, made before, could not tell.

        Nobody is to be admitted by it or asks for a prompt's next piece, and who decodes has what it needs.
        """
        batch, kv, ledger = self.batch, self.kv, self.ledger
        if len(batch.waiting) or batch.partial or ledger.steps_to_event() == 0 or not kv.steps_within(ledger, 1):
            return
        for sequence in batch.leaving:
            if sequence.order in ledger.members:
                return
        if batch.reusing is not None and ledger.members:
            batch.reusing.take_ahead(ledger)
        self._part_with_leaving(now_ns)

    def _part_with_leaving(self, now_ns: int) -> None:
        """Whoever has ended is out of the next plan, and gives its memory back."""
        for sequence in self.batch.leaving:
            if sequence.order in self.ledger.members:  # what it decoded in vain, nobody finds
                self.ledger.leave(sequence)
                sequence.unnamed_tokens = 1
            self.kv.release(sequence, now_ns)
        self.batch.leaving.clear()

    def _catch_up(self, seen_ns: int) -> None:
        """What the next plan knows of, if it is made while the iteration before it runs, from ``seen_ns`` on.

        vLLM's async scheduling (``EngineCore.step_with_batch_queue``, v1/engine/core.py) plans iteration k+1 when k
        starts: who arrived since then is not in it, and who ended in k still holds a place and memory. Whether a stop
        token would end an answer could not be known: it is decoded once more, in vain.
        """
        batch, unseen = self.batch, self._unseen
        self._part_with_leaving(self.env.now_ns)
        while unseen and unseen[0].placed_ns <= seen_ns:
            batch.waiting.push(unseen.popleft())

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's memory and put it back at the head of the queue.

        What it has generated stays; its KV is computed again, or loaded where the cache has saved it.

        One that only pads its batch has its answer: it is returned now. One that ended after the plan was made, vLLM
        preempts like any other, and then has nothing left to do for it.
        """
        now_ns = self.env.now_ns
        if sequence in self.batch.leaving:
            self.batch.leaving.remove(sequence)
            self.batch.is_provisional = True
            if sequence.order in self.ledger.members:
                self.ledger.leave(sequence)
            self._leave_unnamed(sequence)
            self.kv.release(sequence, now_ns)
            return
        if sequence in self._ended:
            self._ended.remove(sequence)
            self._finish(sequence, now_ns)
            return
        if sequence.order in self.ledger.members:
            self.ledger.leave(sequence)
            self._leave_unnamed(sequence)
            if self.ledger.step > sequence.joined_step:
                sequence.last_token_ns = self._last_decode_ns
        else:
            self.batch.partial.remove(sequence)
            self.batch.n_unforked -= sequence.n_samples - 1
        if sequence.preempted_ns is not None:
            self._note_absence(sequence, sequence.preempted_ns, -1, -1)
        n_tokens = sequence.computed_tokens
        self.kv.release(sequence, now_ns)
        if sequence.transit is not None and sequence.transit.has_come:  # else it is sent once more
            self._end_transit(sequence, None)
        self._put_back(sequence, n_tokens, now_ns)

    def _note_absence(self, sequence: Sequence, preempted_ns: int, last_ns: int, next_ns: int) -> None:
        """Write down that a sequence was preempted, and what of its text it had lost and found again."""
        self.recorder.preemptions.add(
            sequence.request.id,
            self.index,
            preempted_ns,
            last_ns,
            next_ns,
            sequence.is_swapped_in,
            sequence.lost_tokens,
            sequence.was_decoding,
            sequence.found_tokens,
        )

    def _leave_unnamed(self, sequence: Sequence) -> None:
        """While a decoding sequence's output is on its way, a block that its last token fills has no hash yet."""
        if self._plans_ahead and sequence.computed_tokens > sequence.target_tokens:
            sequence.unnamed_tokens += 1

    def _put_back(self, sequence: Sequence, lost_tokens: int, now_ns: int) -> None:
        """A sequence that holds nothing any more waits again, in front of those that arrived after it."""
        self._n_preempted += 1
        sequence.lost_tokens, sequence.found_tokens = lost_tokens, 0
        sequence.preempted_ns = now_ns
        sequence.n_preemptions += 1
        sequence.computed_tokens = sequence.dropped_tokens = sequence.unnamed_tokens = 0
        sequence.was_decoding = lost_tokens >= sequence.target_tokens
        sequence.target_tokens = sequence.request.prompt_tokens + sequence.generated_tokens
        self.batch.waiting.push_back(sequence)

    def _start_decoding(self, sequence: Sequence, pad_to_tokens: int | None, now_ns: int) -> None:
        """A prompt is complete: its iteration also sampled the next token."""
        sequence.generated_tokens += 1
        if sequence.first_token_ns is None:
            sequence.first_token_ns = now_ns
        if sequence.preempted_ns is not None:
            last_ns = -1 if sequence.last_token_ns is None else sequence.last_token_ns
            self._note_absence(sequence, sequence.preempted_ns, last_ns, now_ns)
            sequence.preempted_ns = None
        self._end_transit(sequence, now_ns)
        sequence.last_token_ns = now_ns
        if pad_to_tokens is not None and self.ledger.window_tokens is None:  # a window soon leaves padding behind
            sequence.padding_tokens = pad_to_tokens - sequence.resident_tokens
        else:
            sequence.padding_tokens = 0
        if sequence.n_samples > 1:
            self._fork(sequence, now_ns)  # type: ignore[arg-type]
        else:
            self._decode(sequence)

    def _decode(self, sequence: Sequence) -> None:
        """A sequence has its first token: it decodes from now on, here or in another pool.

        Who is done with that token ends here. A place in the batch is free at once, as an engine knows beforehand that
        its part of the request ends with this token.
        """
        if self.next_pool is None or sequence.generated_tokens == sequence.output_tokens:
            self.ledger.join(sequence)
            return
        self.n_outstanding -= 1
        self.handed_over[sequence] = self.next_pool.take(self, sequence)

    def let_go(self, sequence: Sequence) -> None:
        """What a sequence that goes on elsewhere has left here is not needed any more."""
        now_ns = self.env.now_ns
        self.settle(now_ns)
        del self.handed_over[sequence]
        sequence.is_finished = True
        self.kv.release(sequence, now_ns)
        self._disturb()

    def _end_transit(self, sequence: Sequence, next_token_ns: int | None) -> None:
        """A sequence that was handed over goes on by itself."""
        transit: Transit | None = sequence.transit
        if transit is not None:
            sequence.transit = None
            transit.end(next_token_ns)

    def _fork(self, sequence: Sample, now_ns: int) -> None:
        """Several answers are sampled from a prompt that is complete: the others join the one that computed it.

        Their places in the batch are theirs since its admission, and so is their memory where the cache gives each KV
        of its own. Where it shares the prompt, and a copy turns out to be needed and has no room, that one alone is
        preempted. So nobody waits for anything while holding memory, and requests cannot lock each other out.
        """
        batch, ledger = self.batch, self.ledger
        others = sequence.fork()
        batch.n_unforked -= len(others)
        n_held = self.kv.fork(sequence, others, ledger)
        self._decode(sequence)
        for number, other in enumerate(others):
            batch.n_admitted += 1
            other.order = batch.n_admitted
            if number < n_held:
                self._decode(other)
            else:
                self._put_back(other, other.computed_tokens, now_ns)

    def _finish(self, sequence: Sequence, now_ns: int) -> None:
        """A request has its answer: write its row, give its memory back, tell the client.

        Of several sampled together, each gives its memory back, and the last one ends the request.
        """
        request = sequence.request
        scheduled_ns, first_token_ns = sequence.scheduled_ns, sequence.first_token_ns
        cached_tokens = sequence.cached_tokens
        if scheduled_ns is None or first_token_ns is None or cached_tokens is None:
            raise InvariantError(f"request {request.id} ended without having been scheduled")
        if not self._plans_ahead or request.output_tokens >= request.max_output_tokens:
            self.ledger.leave(sequence)
        sequence.is_finished = True
        if self._accounts is not None:
            self._accounts.ended(sequence, request.output_tokens)
        self.n_outstanding -= 1
        self.outstanding_tokens -= request.prompt_tokens
        if self._plans_ahead:
            self.batch.leaving.append(sequence)
        else:
            self.kv.release(sequence, now_ns)
        output_tokens, n_preemptions, apart_tokens = request.output_tokens, sequence.n_preemptions, 0
        samples = sequence.samples
        if samples is not None:
            if not samples.ended(sequence):
                return
            request, n_preemptions = samples.request, samples.n_preemptions
            scheduled_ns, first_token_ns = samples.scheduled_ns, samples.first_token_ns
            cached_tokens, apart_tokens = samples.cached_tokens, samples.apart_tokens()
            output_tokens *= request.n_samples
        requests = self.recorder.requests
        row = requests.row
        write_i64_le(row, request.id)
        write_i64_le(row, self.index)
        write_i64_le(row, request.arrival_ns)
        write_i64_le(row, scheduled_ns)
        write_i64_le(row, first_token_ns)
        write_i64_le(row, now_ns)
        write_i64_le(row, request.prompt_tokens)
        write_i64_le(row, output_tokens)
        write_i64_le(row, cached_tokens)
        write_i64_le(row, n_preemptions)
        write_i64_le(row, -1 if request.session_id is None else request.session_id)
        write_i64_le(row, request.turn)
        write_i64_le(row, self.recorder.slo_class(request.slo_class))
        write_i64_le(row, request.n_samples)
        write_i64_le(row, apart_tokens)
        requests.keep()
        if self.on_finish is not None:
            self.on_finish(Finished(request, now_ns))


def _chunks(plan: Plan) -> Chunks:
    """The plan's prompt pieces as the cost model sees them, padded where the batch pads."""
    longest = plan.pad_to_tokens
    if longest is None:
        return tuple(
            [(n_tokens, one.computed_tokens - one.dropped_tokens, one.reach_tokens) for one, n_tokens in plan.chunks]
        )
    return tuple([(longest - one.computed_tokens, one.resident_tokens, one.reach_tokens) for one, _ in plan.chunks])


def elapsed_ps(first_ps: int, growth_ps: int, n_steps: int) -> int:
    """Duration of ``n_steps`` iterations, the first of ``first_ps``, each ``growth_ps`` longer than the one before.

    Examples
    --------
    >>> elapsed_ps(10, 2, 3)  # 10 + 12 + 14
    36
    """
    if n_steps == 1:  # products of picoseconds leave the machine's small integers
        return first_ps
    return n_steps * first_ps + growth_ps * (n_steps * (n_steps - 1) // 2)


def steps_until(first_ps: int, growth_ps: int, target_ps: int, most: int) -> int:
    """Fewest iterations that take ``target_ps`` or longer, between 1 and ``most``.

    Examples
    --------
    >>> steps_until(10, 2, 23, 9), steps_until(10, 2, 22, 9), steps_until(10, 0, 1000, 9)
    (3, 2, 9)
    """
    if target_ps <= first_ps:
        return 1
    b = first_ps - 0.5 * growth_ps  # growth / 2 * n^2 + b * n = target
    under_root = b * b + 2.0 * growth_ps * target_ps  # below 0: never, they get shorter too fast
    n_steps = int(2.0 * target_ps / (b + sqrt(under_root))) + 1 if under_root > 0.0 else most
    if n_steps > most:
        n_steps = most
    spare_ps = n_steps * first_ps + growth_ps * (n_steps * (n_steps - 1) // 2) - target_ps
    while spare_ps < 0 and n_steps < most:  # floats have rounded too much away
        spare_ps += first_ps + growth_ps * n_steps
        n_steps += 1
    while spare_ps >= first_ps + growth_ps * (n_steps - 1):  # or not enough
        n_steps -= 1
        spare_ps -= first_ps + growth_ps * n_steps
    return n_steps

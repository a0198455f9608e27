"""The serving engine: one process per replica that plans, computes how long, waits, and commits.

plan      the scheduler picks what the next iteration computes and takes the memory for it
horizon   how many iterations nothing can disturb, and when they end
wait      one timeout for all of them
commit    the ledger advances, tokens and finishes are marked, memory is freed, facts are written
"""

from collections import deque
from collections.abc import Callable, Generator
from math import sqrt
from typing import Any

import simpy

from sim.batching.plan import DECODE_ON, DECODE_OPEN, Batch, Plan, Scheduler
from sim.batching.queue import LookAhead, Queue
from sim.clock import Clock, Inbox, Turn
from sim.errors import InvariantError
from sim.kv.abilities import Prefetcher
from sim.kv.cache import KVCache
from sim.ledger import DecodeLedger
from sim.record import Recorder
from sim.request import Finished, Request
from sim.samples import Sample, sampled
from sim.sequence import Sequence
from sim.step import Chunks, CostModel, Shape
from sim.units import LAST_NS, PS_PER_NS


class Replica:
    """One engine instance: a queue, a scheduler, a KV cache, a cost model and the loop that turns them.

    Parameters
    ----------
    env : Clock
    index : int
        Of the replica: in the rows it writes, and its turn among those whose iterations end in one nanosecond.
    next_outside_ns : callable
        Earliest time at which anything outside this replica can change what it serves, `LAST_NS` if nothing can.
    on_finish : callable or None
        Told of every request that ends or is refused, where that brings about others.
    max_len : int
        The longest the model allows a prompt and its answer to be together [tokens].
    max_steps : int or None
        Iterations in one timeout at most, and no iteration without one; None is as many as nothing can disturb. The
        results are the same.
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
        next_outside_ns: Callable[[], int],
        on_finish: Callable[[Finished], None] | None,
        max_len: int,
        max_steps: int | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.scheduler = scheduler
        self.kv = kv
        self.cost = cost
        self.recorder = recorder
        self.next_outside_ns = next_outside_ns
        self.on_finish = on_finish
        self.max_len = max_len
        self.max_steps = max_steps
        self.ledger = DecodeLedger(kv.block_tokens, kv.window_tokens)
        self._unseen: deque[Sequence] = deque()  # arrived after the next plan was made (scheduler.plans_ahead)
        self._look_ahead: LookAhead | None = None
        if isinstance(kv, Prefetcher) and kv.prefetch_requests:
            self._look_ahead = queue = LookAhead(queue, kv, self._unseen)
        self.batch = Batch(queue, kv, self.ledger, self.preempt)
        self.inbox = Inbox(env)
        self.turn = Turn(env, index)
        self.n_outstanding = 0  # requests taken and not yet ended
        self._carry_ps = 0  # what rounding to whole nanoseconds has left over
        self._last_decode_ns = 0
        self._n_preempted = 0  # sequences that gave way in planning this iteration
        self._n_ended = 0  # sequences that ended with the previous iteration
        self._ended: list[Sequence] = []  # of a batch whose answers return together
        self._plans_ahead = scheduler.plans_ahead
        self._is_busy = False
        env.process(self.serve())

    def submit(self, request: Request) -> None:
        """Take a request into the queue, or refuse it when it could never be served."""
        reason = self.refuses(request)
        if reason is not None:
            self.recorder.refuse(request, reason)
            if self.on_finish is not None:
                self.on_finish(Finished(request, self.env.now_ns, is_refused=True))
            return
        self.n_outstanding += 1
        sequence = Sequence(request) if request.n_samples == 1 else sampled(request)
        if self._look_ahead is not None:
            self._look_ahead.announce(sequence)
        if self._is_busy and self._plans_ahead:
            self._unseen.append(sequence)
            return
        self.batch.waiting.push(sequence)
        self.inbox.wake()

    def refuses(self, request: Request) -> str | None:
        """Why a request could never be served, or None."""
        n_tokens = request.prompt_tokens + request.output_tokens
        if n_tokens > self.max_len and not self.kv.is_endless:
            return f"prompt and output of {n_tokens} tokens exceed the model's maximum of {self.max_len}"
        if request.n_samples > 1 and request.n_samples > self.scheduler.most_seqs:
            return f"{request.n_samples} answers to sample at once, the batch has {self.scheduler.most_seqs} places"
        return self.kv.refuses(request)

    def counts(self) -> dict[str, int | float]:
        """Facts of the parts at the end of a run."""
        return {"admissions": self.batch.n_admitted, **self.kv.counts()}

    def serve(self) -> Generator[simpy.Event, Any, None]:
        """Serve for ever."""
        env, scheduler, batch = self.env, self.scheduler, self.batch
        now_ns = env.now_ns
        while True:
            plan = scheduler.plan(batch, now_ns)
            if not isinstance(plan, Plan):
                if self._unseen or batch.leaving:  # nothing runs that a plan could be made during
                    self._catch_up(now_ns)
                    continue
                loads = batch.loading() if batch.partial else []
                if plan is None and len(batch.waiting) and not loads:
                    raise InvariantError(f"replica {self.index}: requests wait, nothing runs, and none is admitted")
                yield self.inbox.arrival(plan, [sequence.loading for sequence in loads])
                now_ns = env.now_ns
                continue
            if (plan is DECODE_OPEN or plan is DECODE_ON) and self._only_decodes():
                now_ns = yield from self.decode(plan, now_ns)
                continue
            shape, pace, n_steps = self.horizon(plan, now_ns)
            owed_ps = self._carry_ps + (pace[0] if n_steps == 1 else elapsed_ps(pace[0], pace[1], n_steps))
            whole_ns = owed_ps // PS_PER_NS
            end_ns = now_ns + whole_ns
            self._is_busy = True
            if self.max_steps is not None or not env.skip_to(end_ns):
                yield self.turn.at(end_ns)
            self._is_busy = False
            self.commit(plan, shape, pace, n_steps, now_ns, end_ns)
            self._carry_ps = owed_ps - whole_ns * PS_PER_NS
            now_ns = end_ns

    def _only_decodes(self) -> bool:
        """Whether the next iterations are such as `decode` runs: no prompts, no copies, nobody who gave way."""
        batch, kv = self.batch, self.kv
        return not (
            batch.partial
            or self._n_preempted
            or batch.has_attended
            or kv.copies.moved_bytes
            or kv.copies.host_bytes
            or self.max_steps is not None
            or self.scheduler.returns_together
        )

    def decode(self, plan: Plan, now_ns: int) -> Generator[simpy.Event, Any, int]:
        """Run after run of iterations that only decode, while the plan stands; returns when the last has ended [ns].

        What `horizon` and `commit` do, written out for the turn that most turns are: nothing is looked up twice. With
        ``max_steps`` all turns go through those two, and the tests hold both ways equal to the nanosecond.
        """
        env, batch, ledger, kv, copies = self.env, self.batch, self.ledger, self.kv, self.kv.copies
        waiting, leaving, unseen = batch.waiting, batch.leaving, self._unseen
        cost, iterations, is_open = self.cost, self.recorder.iterations, plan.is_open
        append, pack, index, next_outside_ns = iterations.append, iterations.pack, self.index, self.next_outside_ns
        carry_ps, n_ended = self._carry_ps, self._n_ended
        self._is_busy = True
        while True:
            n_decoding, n_growing = len(ledger.members), ledger.n_growing
            live_tokens = ledger.resident_tokens
            context = live_tokens + ledger.padding_tokens + n_growing
            longest = ledger.max_context_tokens()
            first_ps, growth_ps, n_steps = cost.pace(((), n_decoding, context, longest, n_growing, 0.0, 0.0, n_ended))
            to_event = ledger.steps_to_event()
            if to_event is not None and to_event < n_steps:
                n_steps = to_event
            n_steps = kv.steps_within(ledger, n_steps)
            if n_steps < 1:
                break  # somebody has to give way
            if leaving or (unseen and is_open):
                n_steps = 1
            elif is_open and n_steps > 1 and (until_ns := next_outside_ns()) != LAST_NS:
                most = n_steps
                n_steps = steps_until(first_ps, growth_ps, (until_ns - now_ns) * PS_PER_NS - carry_ps, most)
                if n_steps < most and self._plans_ahead and until_ns > now_ns:
                    n_steps += 1  # planned before that happened
            owed_ps = carry_ps + n_steps * first_ps + growth_ps * (n_steps * (n_steps - 1) // 2)  # elapsed_ps
            whole_ns = owed_ps // PS_PER_NS
            end_ns = now_ns + whole_ns
            if not env.skip_to(end_ns):
                yield self.turn.at(end_ns)
            n_emitting = ledger.n_emitting
            held_tokens, shared_tokens, rounding_tokens = kv.held_tokens, kv.shared_tokens, kv.rounding_tokens
            if shared_tokens and leaving:  # they still hold what they share
                live_tokens += sum(sequence.resident_tokens for sequence in leaving)
            if rounding_tokens is None:
                rounding_tokens = held_tokens - live_tokens + shared_tokens
                if rounding_tokens < 0:
                    rounding_tokens = 0
            append(
                pack(
                    index,
                    now_ns,
                    carry_ps,
                    n_steps,
                    first_ps,
                    growth_ps,
                    0,
                    0,
                    n_emitting,
                    context,
                    len(waiting) + len(unseen),
                    0,
                    held_tokens,
                    live_tokens,
                    kv.idle_tokens,
                    0,
                    n_decoding - n_emitting,
                    rounding_tokens,
                    kv.external_tokens,
                    shared_tokens,
                )
            )
            kv.advance(ledger, n_steps)
            ledger.advance(n_steps)
            if unseen or leaving:
                self._catch_up(now_ns + (carry_ps + elapsed_ps(first_ps, growth_ps, n_steps - 1)) // PS_PER_NS)
            carry_ps = owed_ps - whole_ns * PS_PER_NS
            now_ns = end_ns
            n_ended = 0
            if ledger.ends and ledger.ends[0][0] <= ledger.step:
                ended = ledger.finished()
                n_ended = len(ended)
                for sequence in ended:
                    self._finish(sequence, now_ns)
            if not is_open or len(waiting) or not ledger.members or copies.moved_bytes or copies.host_bytes:
                break
        self._is_busy = False
        self._carry_ps, self._n_ended, self._last_decode_ns = carry_ps, n_ended, now_ns
        return now_ns

    def horizon(self, plan: Plan, start_ns: int) -> tuple[Shape, tuple[int, int, int], int]:
        """What the planned iteration computes, how long it takes, and how many like it nothing can disturb.

        A run of iterations ends with the first member to finish or to need the cache's attention, with the free
        memory, at the cost model's next knot, or with the first iteration to end after the outside may have changed.
        """
        ledger, kv = self.ledger, self.kv
        chunks = plan.chunks
        batch = context = longest = growing = 0
        if plan.decodes and ledger.members:
            batch, growing = len(ledger.members), ledger.n_growing
            context = ledger.resident_tokens + ledger.padding_tokens + growing
            longest = ledger.max_context_tokens()
        copies = kv.copies
        moved, hosted = copies.moved_bytes, copies.host_bytes
        shape = (_chunks(plan) if chunks else (), batch, context, longest, growing, moved, hosted, self._n_ended)
        pace = self.cost.pace(shape)
        whole = self.batch
        if chunks or self._n_preempted or moved or hosted or whole.has_attended or whole.leaving:
            copies.moved_bytes = copies.host_bytes = 0.0
            whole.has_attended = False
            return shape, pace, 1
        if self._unseen and plan.is_open:
            return shape, pace, 1
        first_ps, growth_ps, n_steps = pace
        to_event = ledger.steps_to_event()
        if to_event is not None and to_event < n_steps:
            n_steps = to_event
        if self.max_steps is not None and self.max_steps < n_steps:
            n_steps = self.max_steps
        n_steps = kv.steps_within(ledger, n_steps)
        if n_steps > 1:
            until_ns = self.next_outside_ns() if plan.is_open else LAST_NS
            if until_ns != LAST_NS:
                target_ps = (until_ns - start_ns) * PS_PER_NS - self._carry_ps
                most, n_steps = n_steps, steps_until(first_ps, growth_ps, target_ps, n_steps)
                if self._plans_ahead and until_ns > start_ns and n_steps < most:
                    n_steps += 1  # planned before that happened
            if whole.partial and whole.loading():
                target_ps = (self.env.next_ns() - start_ns) * PS_PER_NS - self._carry_ps
                n_steps = steps_until(first_ps, growth_ps, target_ps, n_steps)
            if plan.valid_until_ns is not None:
                target_ps = (plan.valid_until_ns - start_ns) * PS_PER_NS - self._carry_ps
                n_steps = steps_until(first_ps, growth_ps, target_ps, n_steps)
        return shape, pace, n_steps

    def commit(
        self, plan: Plan, shape: Shape, pace: tuple[int, int, int], n_steps: int, start_ns: int, end_ns: int
    ) -> None:
        """The planned iterations have run: write them down, count their tokens, end what has ended."""
        ledger, kv, batch = self.ledger, self.kv, self.batch
        chunks, partial = plan.chunks, batch.partial
        n_decoding, context = shape[1], shape[2]
        n_emitting = ledger.n_emitting if n_decoding else 0
        live_tokens = ledger.resident_tokens
        held_tokens, rounding_tokens = kv.held_tokens, kv.rounding_tokens
        n_prefilled = n_joined = 0
        complete = []
        if partial:
            for sequence in partial:
                live_tokens += sequence.computed_tokens - sequence.dropped_tokens
            for sequence, n_tokens in chunks:
                n_prefilled += n_tokens
                if sequence.computed_tokens + n_tokens == sequence.target_tokens:
                    complete.append(sequence)
                    n_joined += sequence.n_samples * (sequence.generated_tokens + 1 < sequence.output_tokens)
        shared_tokens = kv.shared_tokens
        if shared_tokens and batch.leaving:  # they still hold what they share
            live_tokens += sum(sequence.resident_tokens for sequence in batch.leaving)
        if rounding_tokens is None:
            rounding_tokens = held_tokens - n_prefilled - live_tokens + shared_tokens
            if rounding_tokens < 0:  # of a long prompt a window holds only the end
                rounding_tokens = 0
        iterations = self.recorder.iterations
        iterations.append(
            iterations.pack(
                self.index,
                start_ns,
                self._carry_ps,
                n_steps,
                pace[0],
                pace[1],
                n_prefilled,
                n_joined,
                n_emitting,
                context,
                len(batch.waiting) + len(self._unseen),
                len(partial),
                held_tokens,
                live_tokens,
                kv.idle_tokens,
                self._n_preempted,
                n_decoding - n_emitting,
                rounding_tokens,
                kv.external_tokens,
                shared_tokens,
            )
        )
        self._n_preempted = 0
        kv.advance(ledger, n_steps if n_decoding else 0)
        if n_decoding:
            ledger.advance(n_steps)
            self._last_decode_ns = end_ns
        for sequence, n_tokens in chunks:
            sequence.computed_tokens += n_tokens
            kv.trim(sequence, ledger)
        for sequence in complete:
            partial.remove(sequence)
            self._start_decoding(sequence, plan.pad_to_tokens, end_ns)
        if self._unseen or batch.leaving:
            last_ps = self._carry_ps + elapsed_ps(pace[0], pace[1], n_steps - 1)
            self._catch_up(start_ns + last_ps // PS_PER_NS)
        ended = ledger.finished() if ledger.ends and ledger.ends[0][0] <= ledger.step else []
        self._n_ended = len(ended)
        if self.scheduler.returns_together:
            self._ended += ended
            ended = []
            if not ledger.n_emitting:
                ended, self._ended = self._ended, ended
        for sequence in ended:
            self._finish(sequence, end_ns)

    def _catch_up(self, seen_ns: int) -> None:
        """What the next plan knows of, if it is made while the iteration before it runs, from ``seen_ns`` on.

        vLLM's async scheduling (``EngineCore.step_with_batch_queue``, v1/engine/core.py) plans iteration k+1 when k
        starts: who arrived since then is not in it, and who ended in k still holds a place and memory.
        """
        batch, unseen = self.batch, self._unseen
        for sequence in batch.leaving:
            self.kv.release(sequence, self.env.now_ns)
        batch.leaving.clear()
        while unseen and unseen[0].request.arrival_ns <= seen_ns:
            batch.waiting.push(unseen.popleft())

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's memory and put it back at the head of the queue.

        What it has generated stays; its KV is computed again, or loaded where the cache has saved it.

        One that only pads its batch has its answer: it is returned now.
        """
        now_ns = self.env.now_ns
        if sequence in self._ended:
            self._ended.remove(sequence)
            self._finish(sequence, now_ns)
            return
        if sequence.order in self.ledger.members:
            self.ledger.leave(sequence)
            sequence.last_token_ns = max(sequence.last_token_ns or 0, self._last_decode_ns)
        else:
            self.batch.partial.remove(sequence)
            self.batch.n_unforked -= sequence.n_samples - 1
        if sequence.preempted_ns is not None:
            is_swap = sequence.is_swapped_in
            self.recorder.preemptions.add(sequence.request.id, self.index, sequence.preempted_ns, -1, -1, is_swap)
        self.kv.release(sequence, now_ns)
        self._put_back(sequence, now_ns)

    def _put_back(self, sequence: Sequence, now_ns: int) -> None:
        """A sequence that holds nothing any more waits again, in front of those that arrived after it."""
        self._n_preempted += 1
        sequence.preempted_ns = now_ns
        sequence.n_preemptions += 1
        sequence.computed_tokens = sequence.dropped_tokens = 0
        sequence.target_tokens = sequence.request.prompt_tokens + sequence.generated_tokens
        self.batch.waiting.push_back(sequence)

    def _start_decoding(self, sequence: Sequence, pad_to_tokens: int | None, now_ns: int) -> None:
        """A prompt is complete: its iteration also sampled the next token."""
        sequence.generated_tokens += 1
        if sequence.first_token_ns is None:
            sequence.first_token_ns = now_ns
        if sequence.preempted_ns is not None:
            last_ns = -1 if sequence.last_token_ns is None else sequence.last_token_ns
            row = sequence.request.id, self.index, sequence.preempted_ns, last_ns, now_ns, sequence.is_swapped_in
            self.recorder.preemptions.add(*row)
            sequence.preempted_ns = None
        sequence.last_token_ns = now_ns
        if pad_to_tokens is not None and self.ledger.window_tokens is None:  # a window soon leaves padding behind
            sequence.padding_tokens = pad_to_tokens - sequence.resident_tokens
        else:
            sequence.padding_tokens = 0
        if sequence.n_samples > 1:
            self._fork(sequence, now_ns)  # type: ignore[arg-type]
        else:
            self.ledger.join(sequence)

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
        ledger.join(sequence)
        for number, other in enumerate(others):
            batch.n_admitted += 1
            other.order = batch.n_admitted
            if number < n_held:
                ledger.join(other)
            else:
                self._put_back(other, now_ns)

    def _finish(self, sequence: Sequence, now_ns: int) -> None:
        """A request has its answer: write its row, give its memory back, tell the client.

        Of several sampled together, each gives its memory back, and the last one ends the request.
        """
        request = sequence.request
        scheduled_ns, first_token_ns = sequence.scheduled_ns, sequence.first_token_ns
        cached_tokens = sequence.cached_tokens
        if scheduled_ns is None or first_token_ns is None or cached_tokens is None:
            raise InvariantError(f"request {request.id} ended without having been scheduled")
        self.ledger.leave(sequence)
        sequence.is_finished = True
        if self._plans_ahead and len(self.batch.waiting):  # else nobody would notice
            self.batch.leaving.append(sequence)
        else:
            self.kv.release(sequence, now_ns)
        output_tokens, n_preemptions = request.output_tokens, sequence.n_preemptions
        samples = sequence.samples
        if samples is not None:
            if not samples.ended(sequence):
                return
            request, n_preemptions = samples.request, samples.n_preemptions
            output_tokens *= request.n_samples
        self.n_outstanding -= 1
        requests = self.recorder.requests
        requests.append(
            requests.pack(
                request.id,
                self.index,
                request.arrival_ns,
                scheduled_ns,
                first_token_ns,
                now_ns,
                request.prompt_tokens,
                output_tokens,
                cached_tokens,
                n_preemptions,
                -1 if request.session_id is None else request.session_id,
                request.turn,
                self.recorder.slo_class(request.slo_class),
                request.n_samples,
            )
        )
        if self.on_finish is not None:
            self.on_finish(Finished(request, now_ns))


def _chunks(plan: Plan) -> Chunks:
    """The plan's prompt pieces as the cost model sees them, padded where the batch pads."""
    longest = plan.pad_to_tokens
    if longest is None:
        return tuple([(n_tokens, one.computed_tokens - one.dropped_tokens) for one, n_tokens in plan.chunks])
    return tuple([(longest - one.computed_tokens, one.resident_tokens) for one, _ in plan.chunks])


def elapsed_ps(first_ps: int, growth_ps: int, n_steps: int) -> int:
    """Duration of ``n_steps`` iterations, the first of ``first_ps``, each ``growth_ps`` longer than the one before.

    Examples
    --------
    >>> elapsed_ps(10, 2, 3)  # 10 + 12 + 14
    36
    """
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

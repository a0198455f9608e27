"""Continuous batching with chunked prefill: the loop that serves, and generation without one.

The rules are those of ``batching=chunked`` (vLLM v1's scheduler): who decodes comes first, each with one token; then
prompts in order of admission, cut to what is left of the token budget; then the queue, first come first served. Who was
admitted last gives way when memory is short, and computes its KV anew. Planning, launching and sampling follow one
another (`plans_ahead` false): the host's time adds to the device's.
"""

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calibration.engine.decoder import Batch, Decoder, Pool, sample
from calibration.engine.memory import Memory, Sequence
from kernels.decode_plan import DecodePlan, plan_decode
from kernels.prefill_plan import plan_prefill
from sim.errors import ConfigError
from sim.request import Request
from sim.units import NS_PER_S

CAPTURED = (1, 2, 4, *range(8, 257, 8))  # batch sizes whose decode iteration becomes a CUDA graph, as vLLM's


@dataclass(slots=True)
class Iteration:
    """A row of what the engine did."""

    end_ns: int
    n_prompt_tokens: int
    n_decoding: int
    n_running: int
    n_waiting: int


@dataclass(eq=False)
class Engine:
    """A decoder, its memory, and who is being served.

    Parameters
    ----------
    max_num_batched_tokens, max_num_seqs : int
        As ``batching=chunked``.
    temperature : float
        Of sampling, where an answer is not said beforehand.
    """

    decoder: Decoder
    memory: Memory
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 32
    temperature: float = 0.0
    told: Callable[[Sequence, int], None] | None = None  # of every token as it is generated
    waiting: deque[Sequence] = field(default_factory=deque)
    partial: list[Sequence] = field(default_factory=list)  # admitted, prompt incomplete, in order of admission
    decoding: list[Sequence] = field(default_factory=list)
    iterations: list[Iteration] = field(default_factory=list)
    n_preempted: int = 0
    _graphs: "dict[int, Graph]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"batching.max_num_batched_tokens must be >= batching.max_num_seqs ({self.max_num_seqs}), "
                f"got {self.max_num_batched_tokens}"
            )
        self._generator = torch.Generator(self.decoder.device).manual_seed(0)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is here."""
        return not (self.waiting or self.partial or self.decoding)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises
        ------
        ConfigError
            If it is longer than the model allows, or has no prompt.
        """
        n_tokens, most = len(sequence.tokens) + sequence.request.output_tokens, self.decoder.model.max_len
        if not sequence.tokens or n_tokens > most:
            raise ConfigError(f"prompt and answer must have 2 to {most} tokens together, got {n_tokens}")
        sequence.queued_ns = self.decoder.clock.now_ns()
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Nobody waits for a sequence any more: forget it, and take back what it holds."""
        for queue in (self.waiting, self.partial, self.decoding):
            if sequence in queue:
                queue.remove(sequence)
        if sequence.holding is not None:
            self.memory.release(sequence)

    def serve(self, requests: Iterable[Sequence]) -> list[Sequence]:
        """Serve sequences as their requests arrive, in the clock's time from now on; all of them, answered."""
        todo = deque(sorted(requests, key=lambda sequence: sequence.request.arrival_ns))
        served, start_ns = list(todo), self.decoder.clock.now_ns()
        while todo or not self.is_idle:
            while todo and start_ns + todo[0].request.arrival_ns <= self.decoder.clock.now_ns():
                self.submit(todo.popleft())
            if self.is_idle:
                self.decoder.clock.sleep(
                    (start_ns + todo[0].request.arrival_ns - self.decoder.clock.now_ns()) / NS_PER_S
                )
            else:
                self.step()
        return served

    def step(self) -> list[Sequence]:
        """One iteration; who ended in it.

        Raises
        ------
        ConfigError
            If the memory does not suffice for a single sequence.
        """
        n_before = self.n_preempted
        chunks = self._plan()
        if not chunks and not self.decoding and self.n_preempted > n_before:
            chunks = self._plan()  # all gave way: now they come back one by one
        if not chunks and not self.decoding:
            raise ConfigError(f"{self.waiting[0].target_tokens} tokens of a sequence alone exceed the KV memory")
        now_ns = self.decoder.clock.now_ns()
        for sequence, _ in chunks:
            sequence.scheduled_ns = now_ns if sequence.scheduled_ns is None else sequence.scheduled_ns
        decoding = list(self.decoding)
        logits = self._forward(chunks, decoding)
        complete = [one for one, n in chunks if one.computed_tokens + n == one.target_tokens]
        tokens = sample(logits, self.temperature, self._generator).tolist() if len(logits) else []
        end_ns = self.decoder.clock.now_ns()
        for sequence, n_new in [*chunks, *((one, 1) for one in decoding)]:
            sequence.computed_tokens += n_new
            sequence.resident_tokens += n_new
        ended = []
        for sequence, token in zip([*complete, *decoding], tokens, strict=True):
            self._generated(sequence, token, end_ns)
            if sequence.is_finished:
                ended.append(sequence)
        for sequence in complete:
            self.partial.remove(sequence)
            self.decoding.append(sequence)
        for sequence in [one for one, _ in chunks] + decoding:
            self.memory.settled(sequence)
        for sequence in ended:
            self.decoding.remove(sequence)
            self.memory.release(sequence)
        n_prompt = sum(n for _, n in chunks)
        n_running = len(self.partial) + len(self.decoding)
        self.iterations.append(Iteration(end_ns, n_prompt, len(decoding), n_running, len(self.waiting)))
        return ended

    def _generated(self, sequence: Sequence, token: int, now_ns: int) -> None:
        if sequence.forced is not None:
            token = sequence.forced[sequence.n_generated]
        sequence.tokens.append(token)
        sequence.n_generated += 1
        sequence.last_token_ns = now_ns
        if sequence.first_token_ns is None:
            sequence.first_token_ns = now_ns
        if self.told is not None:
            self.told(sequence, token)

    def _plan(self) -> list[tuple[Sequence, int]]:
        """Who computes how much of its prompt beside those that decode; room is taken for all of it."""
        memory = self.memory
        n_before = self.n_preempted
        for sequence in list(self.decoding):
            while sequence in self.decoding and not memory.extend(sequence, 1):
                self._preempt_last()
        budget = self.max_num_batched_tokens - len(self.decoding)
        chunks: list[tuple[Sequence, int]] = []
        for sequence in list(self.partial):
            n_tokens = min(sequence.target_tokens - sequence.computed_tokens, budget)
            while n_tokens and sequence in self.partial and not memory.extend(sequence, n_tokens):
                self._preempt_last()
            if n_tokens and sequence in self.partial:
                chunks.append((sequence, n_tokens))
                budget -= n_tokens
        if self.n_preempted == n_before:
            while self.waiting and budget and len(self.partial) + len(self.decoding) < self.max_num_seqs:
                sequence = self.waiting[0]
                matched = memory.match(sequence)
                n_tokens = min(sequence.target_tokens - matched, budget)
                if not memory.admit(sequence, n_tokens):
                    break
                if sequence.scheduled_ns is None:
                    sequence.cached_tokens = sequence.computed_tokens
                self.partial.append(self.waiting.popleft())
                chunks.append((sequence, n_tokens))
                budget -= n_tokens
        return [(one, n) for one, n in chunks if one in self.partial]

    def _preempt_last(self) -> None:
        """Whoever was admitted last gives way, prompts in progress first, and is the next to be admitted."""
        running = self.partial or self.decoding
        sequence = running.pop()
        self.memory.release(sequence)
        sequence.computed_tokens = sequence.resident_tokens = 0
        self.waiting.appendleft(sequence)
        self.n_preempted += 1

    def _forward(self, chunks: Row[tuple[Sequence, int]], decoding: Row[Sequence]) -> Tensor:
        if self.decoder.device.type == "cuda" and not chunks and len(decoding) <= CAPTURED[-1]:
            size = next(n for n in CAPTURED if n >= len(decoding))
            if size not in self._graphs:
                self._graphs[size] = Graph(self, size)
            return self._graphs[size].replay(decoding)
        return self.decoder.forward(make_batch(self.decoder, self.memory, chunks, decoding), self.memory.pool)


class Graph:
    """A decode iteration of a fixed batch size, captured: what a replay reads is copied into its buffers before."""

    def __init__(self, engine: Engine, size: int) -> None:
        from kernels.timing import capturing

        decoder, memory = engine.decoder, engine.memory
        self._decoder, self._memory, self._size = decoder, memory, size
        device, pool = decoder.device, memory.pool
        n_columns = 1 if pool.extent_tokens else -(-pool.n_slots // pool.block_tokens)
        plan = plan_decode([0] * size, is_fixed_grid=True, **span_of(memory), **shape_of(decoder))
        zeros = torch.zeros(size, dtype=torch.int64, device=device)
        self.batch = Batch(
            zeros.clone(), zeros.clone(), zeros - 1, torch.arange(size, device=device), 0,
            decode=plan, decode_table=torch.zeros(size, n_columns, dtype=torch.int32, device=device),
            ring_blocks=memory.ring_blocks,
        )  # fmt: skip
        for _ in range(2):  # compiles and allocates
            self.logits = decoder.forward(self.batch, pool)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with capturing(self._graph):
            self.logits = decoder.forward(self.batch, pool)

    def replay(self, decoding: Row[Sequence]) -> Tensor:
        """Logits of the sequences."""
        batch, n = self.batch, len(decoding)
        new = make_batch(self._decoder, self._memory, (), decoding, is_planned=False)
        assert new.decode_table is not None, "somebody decodes"
        for target, source in ((batch.tokens, new.tokens), (batch.positions, new.positions), (batch.slots, new.slots)):
            target[:n].copy_(source)
        batch.slots[n:] = -1
        assert batch.decode_table is not None, "a graph of decoding"
        assert isinstance(batch.decode, DecodePlan), "a graph of decoding"
        batch.decode_table[:n, : new.decode_table.shape[1]].copy_(new.decode_table)
        lens = torch.zeros(self._size, dtype=torch.int64)
        lens[:n] = torch.tensor([one.resident_tokens + 1 for one in decoding])
        batch.decode.refill(lens.tolist())
        self._graph.replay()
        return self.logits[:n]


def shape_of(decoder: Decoder) -> dict[str, Any]:
    """Heads and device, as plans take them."""
    one = decoder.attention
    heads = {"n_heads": one.n_heads, "n_kv_heads": one.n_kv_heads, "head_dim": one.head_dim}
    return {**heads, "device": decoder.device}


def span_of(memory: Memory) -> dict[str, Any]:
    """What attention sees, as plans take it."""
    return {"window": memory.window, "n_sinks": memory.n_sinks}


def make_batch(
    decoder: Decoder,
    memory: Memory,
    chunks: Row[tuple[Sequence, int]],
    decoding: Row[Sequence],
    is_planned: bool = True,
) -> Batch:
    """One iteration's tokens, positions, slots, tables and plans; room has been taken before.

    ``is_planned`` false leaves the plan of those that decode to a captured graph, which has its own.
    """
    device = decoder.device
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    wanted: list[int] = []
    for sequence, n_new in [*chunks, *((one, 1) for one in decoding)]:
        start, resident = sequence.computed_tokens, sequence.resident_tokens
        tokens += sequence.tokens[start : start + n_new]
        positions += range(start, start + n_new)
        slots += (memory.slot(sequence, resident + i) for i in range(n_new))
        if start + n_new == sequence.target_tokens:
            wanted.append(len(tokens) - 1)
    ids = torch.tensor([tokens, positions, slots], dtype=torch.int64).to(device)
    n_prompt = sum(n for _, n in chunks)
    wanted_ids = torch.tensor(wanted, dtype=torch.int64, device=device)
    batch = Batch(ids[0], ids[1], ids[2], wanted_ids, n_prompt, ring_blocks=memory.ring_blocks)
    common = span_of(memory) | shape_of(decoder)
    if chunks:
        lens = [one.resident_tokens + n for one, n in chunks]
        batch.prefill = plan_prefill([n for _, n in chunks], lens, **common)
        batch.prefill_table = table_of(memory, [one for one, _ in chunks], device)
    if decoding:
        if is_planned:
            batch.decode = plan_decode([one.resident_tokens + 1 for one in decoding], **common)
        batch.decode_table = table_of(memory, decoding, device)
    return batch


def table_of(memory: Memory, sequences: Row[Sequence], device: torch.device) -> Tensor:
    """Block tables of some sequences, as wide as the longest."""
    rows = [list(memory.table(one)) for one in sequences]
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int32).to(device)


def generate(
    decoder: Decoder, memory: Memory, prompts: Row[Row[int]], max_new_tokens: int, temperature: float = 0.0
) -> list[list[int]]:
    """Answers to some prompts, batched: the engine's loop without arrivals."""
    most = max(len(prompt) for prompt in prompts)
    engine = Engine(decoder, memory, max(most, len(prompts)), len(prompts), temperature)
    sequences = [
        Sequence(Request(i, 0, len(prompt), max_new_tokens, max_new_tokens), list(prompt))
        for i, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        engine.submit(sequence)
    while not engine.is_idle:
        engine.step()
    return [sequence.tokens[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]


def window_mask(n_tokens: int, window: int, n_sinks: int) -> Tensor:
    """What each token sees behind a window with sinks, shape (n_tokens, n_tokens)."""
    at = torch.arange(n_tokens)
    return (at <= at[:, None]) & ((at > at[:, None] - window) | (at < n_sinks))


def recompute(decoder: Decoder, tokens: Row[int], is_seen: Tensor | None = None) -> Tensor:
    """Logits behind every token of a text, shape (n_tokens, vocab), without a cache: standard attention, whole matrix.

    What every cache is held to. ``is_seen`` (n_tokens, n_tokens) says what each token sees, all before it unless told:
    a cache that drops tokens is held to a recompute that masks them.
    """
    device, heads = decoder.device, decoder.attention
    n = len(tokens)
    at = torch.arange(n, device=device)
    is_seen = at <= at[:, None] if is_seen is None else is_seen.to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = heads.n_heads // heads.n_kv_heads
        k, v = (x.repeat_interleave(group, 1).double() for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q.double(), k) * heads.head_dim**-0.5
        weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)

    ids = torch.tensor(list(tokens), device=device)
    return decoder.forward(Batch(ids, at, at, at, n), attend)


def regenerate(decoder: Decoder, prompt: Row[int], max_new_tokens: int) -> list[int]:
    """An answer at temperature 0 with everything computed anew for every token."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(recompute(decoder, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def pool_of(decoder: Decoder, n_slots: int, block_tokens: int = 16, extent_tokens: int = 0) -> Pool:
    """A pool in the decoder's own format, on its device."""
    return Pool(decoder.model, n_slots, block_tokens, decoder.device, decoder.dtype, extent_tokens)

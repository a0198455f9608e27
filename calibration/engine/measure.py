"""The engine's parts, timed in place: every layer, attention, copies, and the host beside them.

Whole forward passes are run at chosen shapes with a clock between their parts, so weights and keys come from where they
come from in serving; a part timed in a loop of its own would find its weights in the processor's caches. The median
over repeats and layers is a row of the measurement table, from which `step=fit` makes a profile of this one model.
The host's time is that of the same loop around a decoder that computes nothing.
"""

import platform
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.engine.clocks import Clock
from calibration.engine.decoder import Decoder, sample
from calibration.engine.memory import Extents, Hierarchical, Paged, Sequence
from calibration.engine.serving import Engine, make_batch, pool_of
from calibration.measurements import Measurements, frame
from calibration.points_gpu import write_batch
from sim.cost.dense import CALLS
from sim.cost.host import HostCost
from sim.kv.allocator import FirstFit
from sim.kv.reservation import Growing
from sim.request import Request
from sim.step import Chunk
from sim.units import NS_PER_S

N_PASSES, N_REPEATS = 3, 2  # all shapes in another order each pass, so that no burst of a neighbour's hits one alone
N_CALLS = 5  # of a copy
Cases = list[tuple[list[Chunk], list[int]]]
"""Prompt chunks, and KV entries read by each decoding sequence."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is measured: up to the longest sequence, the largest batch, the token budget."""

    most_tokens: int
    most_seqs: int
    budget: int

    def cases(self) -> Cases:
        """Decoding batches, equal and not; prompts, with and without a cached context."""
        contexts = powers(16, self.most_tokens)
        cases: Cases = [([], [n] * batch) for batch, n in product(powers(1, self.most_seqs), contexts)]
        rng = np.random.default_rng(0)
        for batch in (3, 5, 6, 8, 12, 16, 24)[: max(3, self.most_seqs // 3)]:
            if batch <= self.most_seqs:
                for _ in range(3):
                    low, high = np.log2(16), np.log2(self.most_tokens)
                    cases.append(([], [int(2**x) for x in rng.uniform(low, high, batch)]))
        news = powers(8, min(self.budget, self.most_tokens))
        cases += [([Chunk(new, 0)] * n, []) for n, new in product((1, 2, 4), news) if n * new <= self.budget]
        cases += [
            ([Chunk(new, context)] * n, [])
            for n, new, context in product((1, 2), news[::2], contexts[1::2])
            if n * new <= self.budget and new + context <= self.most_tokens
        ]
        return cases


def powers(low: int, high: int) -> list[int]:
    """Powers of two from low on, and the end.

    Examples
    --------
    >>> powers(16, 100)
    [16, 32, 64, 100]
    """
    found = [low]
    while 2 * found[-1] < high:
        found.append(2 * found[-1])
    return [*found, high] if found[-1] < high else found


def measure(decoder: Decoder, shapes: Shapes) -> Measurements:
    """The table of everything the engine's iterations consist of, but for the host's time."""
    import pandas as pd

    layers: dict[tuple[str, int], list[float]] = defaultdict(list)
    parts: list[Any] = []
    model = decoder.model
    one = decoder.attention
    heads: dict[str, Any] = {"n_heads": one.n_heads, "n_kv_heads": one.n_kv_heads, "head_dim": one.head_dim}
    dtype = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[decoder.dtype]
    heads |= {"dtype": dtype, "kv_dtype": dtype}
    appends: dict[int, list[float]] = defaultdict(list)
    cases = shapes.cases()
    attention: list[list[float]] = [[] for _ in cases]
    order = np.random.default_rng(1)
    for at in (int(i) for _ in range(N_PASSES) for i in order.permutation(len(cases))):
        chunks, decoding = cases[at]
        times, n_tokens = timed_forward(decoder, chunks, decoding)
        for name in CALLS:
            layers[name, n_tokens] += times.get(name, ())
        for name in ("lm_head", "sampler"):
            layers[name, len(chunks) + len(decoding)] += times[name]
        appends[n_tokens] += times["append"]
        attention[at] += times["prefill_attention" if chunks else "decode_attention"]
    parts += [attention_row(*case, median(times), heads) for case, times in zip(cases, attention, strict=True)]
    for (name, count), seconds in sorted(layers.items()):
        if seconds:
            where = {"decode_seqs": count} if name in ("lm_head", "sampler") else {"new_tokens": count}
            kind = "sequence_layer" if "decode_seqs" in where else "layer"
            parts.append(frame(kind, detail=name, seconds=median(seconds), **where))
    row_bytes = 2 * one.n_kv_heads * one.head_dim * decoder.dtype.itemsize
    parts += [
        frame("append", new_tokens=n, bytes=n * row_bytes, seconds=median(seconds), **heads)
        for n, seconds in sorted(appends.items())
    ]
    parts += copies(decoder, shapes)
    return Measurements(
        device=torch.cuda.get_device_name() if decoder.device.type == "cuda" else f"CPU {platform.machine()}",
        source="kvtwin engine",
        convention=f"parts of whole passes, {decoder.clock.name} clock, median of {N_PASSES * N_REPEATS} and layers",
        provenance={"torch": torch.__version__, "threads": torch.get_num_threads()},
        subject={
            "model": model.name, "tensor_parallel": 1, "d_model": model.d_model, "d_ff": decoder.feed_forward.d_ff,
            "vocab": model.vocab, "dtype": dtype, "kv_dtype": dtype,
        },
        rows=pd.concat(parts, ignore_index=True),
    )  # fmt: skip


def timed_forward(decoder: Decoder, chunks: list[Chunk], decoding: list[int]) -> tuple[dict[str, list[float]], int]:
    """Seconds of each part of a forward pass, one per pass and layer; and how many tokens it computed."""
    lens = [chunk.seen_tokens for chunk in chunks] + decoding
    news = [chunk.new_tokens for chunk in chunks] + [1] * len(decoding)
    pool = pool_of(decoder, sum(-(-n // 16) * 16 for n in lens))
    memory = Paged(pool, decoder.ops.kv_copy, has_prefixes=False)
    sequences = []
    for i, (n, new) in enumerate(zip(lens, news, strict=True)):
        sequence = Sequence(Request(i, 0, n, 2, 2), [j % decoder.model.vocab for j in range(n)])
        assert memory.admit(sequence, n), "the pool was made for them"
        sequence.computed_tokens = sequence.resident_tokens = n - new
        sequences.append(sequence)
    n_chunks = len(chunks)
    batch = make_batch(
        decoder, memory, [(s, n) for s, n in zip(sequences[:n_chunks], news, strict=False)], sequences[n_chunks:]
    )
    found: dict[str, list[float]] = defaultdict(list)
    for repeat in range(N_REPEATS + 1):
        decoder.times = []
        logits = decoder.forward(batch, pool)
        start_ns = decoder.clock.now_ns()
        sample(logits, 0.0).tolist()
        decoder.times.append(("sampler", (decoder.clock.now_ns() - start_ns) / NS_PER_S))
        if repeat:  # the first allocates
            for name, seconds in decoder.times:
                found[name].append(max(seconds, 1e-9))
    decoder.times = None
    return found, sum(news)


def attention_row(chunks: list[Chunk], decoding: list[int], seconds: float, heads: dict[str, Any]) -> Any:
    """A row of attention, under the operation its shape belongs to."""
    if chunks:
        new, context, _ = chunks[0]
        operation = "cached_prefill_attention" if context else "batched_prefill_attention"
        columns: dict[str, Any] = {"prefill_seqs": len(chunks), "new_tokens": new, "context_tokens": context}
        return frame(operation, seconds=seconds, **columns, **heads)
    is_equal = len(set(decoding)) == 1
    return frame(
        "decode_attention" if is_equal else "ragged_decode_attention",
        detail="" if is_equal else write_batch([], decoding),
        decode_seqs=len(decoding),
        decode_total_tokens=sum(decoding),
        decode_longest_tokens=max(decoding),
        seconds=seconds,
        **heads,
    )


def copies(decoder: Decoder, shapes: Shapes) -> list[Any]:
    """Growing extents, and blocks to and from host memory: all layers of some tokens at once."""
    rows = []
    n_slots = 4 * shapes.most_tokens
    pool = pool_of(decoder, n_slots, extent_tokens=shapes.most_tokens)
    extents = Extents(pool, decoder.ops.kv_copy, FirstFit, Growing())
    for n in powers(16, shapes.most_tokens):
        seconds = repeated(decoder.clock, lambda n=n: extents._move(list(range(n)), list(range(n_slots - n, n_slots))))  # type: ignore[misc]
        rows.append(frame("block_copy", n=n, bytes=n * extents.token_bytes, seconds=seconds))
    n_blocks = shapes.most_tokens // 16
    host = Hierarchical(pool_of(decoder, n_slots), decoder.ops.kv_copy, n_blocks)
    for way in ("h2d", "d2h"):
        for n in powers(1, n_blocks):

            def move(n: int = n, way: str = way) -> None:
                for block, place in zip(host._blocks[:n], host._host, strict=False):
                    here, there = host._slots(block), place
                    if way == "h2d":
                        here.copy_(there)
                    else:
                        there.copy_(here)

            n_bytes = n * 16 * host.token_bytes
            rows.append(
                frame("transfer", detail=f"{way} pinned", n=n, bytes=n_bytes, seconds=repeated(decoder.clock, move))
            )
    return rows


def repeated(clock: Clock, run: Callable[[], Any]) -> float:
    """Median time of a call [s]."""
    times = []
    for _ in range(N_CALLS + 1):
        start_ns = clock.now_ns()
        run()
        times.append((clock.now_ns() - start_ns) / NS_PER_S)
    return median(times[1:])


def measure_host(decoder: Decoder, shapes: Shapes) -> HostCost:
    """The host's time of an iteration, per sequence, and per sequence that ends: the loop around a forward pass.

    Least squares over batches of each size, half of which end in the iteration; nothing below zero.
    """
    rows, seconds = [], []

    def nothing(chunks: list[Any], decoding: list[Any]) -> Tensor:
        make_batch(decoder, engine.memory, chunks, decoding)
        n_done = sum(one.computed_tokens + n == one.target_tokens for one, n in chunks)
        return torch.zeros(n_done + len(decoding), 2)

    for batch, n_ending in product(powers(1, shapes.most_seqs), (0, 1)):
        n_ending *= batch // 2
        found = []
        for _ in range(N_CALLS):
            pool = pool_of(decoder, (shapes.most_seqs + 1) * 64)
            engine = Engine(decoder, Paged(pool, decoder.ops.kv_copy, True), shapes.budget, shapes.most_seqs)
            engine._forward = nothing  # type: ignore[method-assign, assignment]
            for i in range(batch):
                n_out = 3 if i < n_ending else 9
                engine.submit(Sequence(Request(i, 0, 2, n_out, n_out), [i, i + 1]))
            while engine.waiting or engine.partial:
                engine.step()
            while min(s.n_generated for s in engine.decoding) < 2:
                engine.step()
            start_ns = decoder.clock.now_ns()
            engine.step()
            found.append((decoder.clock.now_ns() - start_ns) / NS_PER_S)
        rows.append((1.0, float(batch), float(n_ending)))
        seconds.append(median(found))
    base, per_seq, per_finished = np.linalg.lstsq(np.array(rows), np.array(seconds), rcond=None)[0]
    terms = {"base_s": base, "per_seq_s": per_seq, "per_finished_s": per_finished}
    return HostCost(**{name: max(0.0, float(x)) for name, x in terms.items()}, scheduling="sync")

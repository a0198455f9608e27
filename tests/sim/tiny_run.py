"""A serving engine of the simplest kind, which notes every token: what metrics and reports are checked against.

It writes the same tables as the real engine, and beside them the time of each single token, in whole picoseconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sim.record import (
    ITERATION_COLUMNS,
    PREEMPTION_COLUMNS,
    REFUSED_COLUMNS,
    REQUEST_COLUMNS,
    TRANSFER_COLUMNS,
    Result,
    Table,
)

BASE_PS, PER_SEQ_PS, PER_TOKEN_PS, PER_PROMPT_TOKEN_PS = 4_000_123_457, 20_000_011, 9_001, 11_000_003
CAPACITY_TOKENS = 60_000
TIERED = {
    "hit_tokens_device": 700,
    "hit_tokens_dram": 300,
    "evicted_blocks_dram": 5,
    "kept_tokens_dram": 1_600,
    "room_tokens_dram": 16_000,
    "swapped_out": 6,
    "prefetched_blocks": 9,
    "reloaded_tokens": 4_000,
}
"""Counts of a cache with memory below the device's."""


@dataclass
class Running:
    request: dict[str, int]
    tokens_ps: list[int]  # when each token came
    left_tokens: int  # of its prompt, to compute before the next token
    preempted: dict[str, int] | None = None


@dataclass
class TinyRun:
    result: Result
    tokens_ps: dict[int, list[int]] = field(default_factory=dict)

    def gaps_ps(self) -> np.ndarray:
        gaps = [np.diff(times) for times in self.tokens_ps.values()]
        return np.concatenate(gaps).astype(np.float64) if gaps else np.zeros(0)


def table(columns: tuple[str, ...], rows: Iterable[dict[str, int]]) -> Table:
    filled = Table(columns)
    for row in rows:
        filled.add(*(int(row.get(name, 0)) for name in columns))
    return filled


def later(result: Result, by_ns: int) -> Result:
    """The same run, so much later."""
    moved = {}
    for name in ("requests", "iterations", "preemptions", "transfers", "refused"):
        facts: Table = getattr(result, name)
        rows = facts.rows().copy()
        for i, column in enumerate(facts.columns):
            if column.endswith("_ns"):
                rows[:, i] += by_ns * (rows[:, i] >= 0)  # -1 is no time
        moved[name] = table(facts.columns, [dict(zip(facts.columns, row, strict=True)) for row in rows.tolist()])
    return replace(result, **moved, end_ns=result.end_ns + by_ns)


def tiny_run(
    seed: int = 0,
    n_requests: int = 40,
    n_replicas: int = 1,
    rate_per_s: float = 20.0,
    mixes: bool = False,
    preempts: float = 0.0,
    n_refused: int = 0,
    max_output: int = 40,
    **fields: Any,
) -> TinyRun:
    """Serve random requests on identical replicas, prefill first or (``mixes``) in chunks beside the decodes."""
    rng = np.random.default_rng(seed)
    arrivals_ns = np.cumsum(rng.exponential(1e9 / rate_per_s, n_requests)).astype(int)
    requests = [
        {
            "id": i,
            "replica": int(rng.integers(n_replicas)),
            "arrival_ns": int(arrivals_ns[i]),
            "prompt_tokens": int(rng.integers(20, 900)),
            "output_tokens": int(rng.integers(1, max_output)),
            "session_id": -1 if i % 3 else i,
            "slo_class": i % 2,
            "n_samples": 1,
        }
        for i in range(n_requests)
    ]
    run = _Log()
    for replica in range(n_replicas):
        _serve(replica, [r for r in requests if r["replica"] == replica], rng, mixes, preempts, run)
    run.iterations.sort(key=lambda row: (row["start_ns"], row["replica"]))
    run.requests.sort(key=lambda row: (row["finish_ns"], row["id"]))
    end_ns = max([row["finish_ns"] for row in run.requests], default=0)
    refused = [
        {"id": n_requests + i, "arrival_ns": i, "prompt_tokens": 200_000, "slo_class": 1} for i in range(n_refused)
    ]
    transfers = [
        {
            "link": i % 2,
            "start_ns": i * end_ns // 20,
            "end_ns": (i + 1) * end_ns // 20,
            "n_bytes": 1 << 24,
            "n_pieces": 64,
        }
        for i in range(16)
    ]
    values = {
        "requests": table(REQUEST_COLUMNS, run.requests),
        "iterations": table(ITERATION_COLUMNS, run.iterations),
        "preemptions": table(PREEMPTION_COLUMNS, run.preemptions),
        "transfers": table(TRANSFER_COLUMNS, transfers if preempts else ()),
        "refused": table(REFUSED_COLUMNS, refused),
        "refusals": {row["id"]: "prompt and output of 200000 tokens exceed the model's maximum" for row in refused},
        "slo_classes": ("", "code"),
        "links": ("to dram", "from dram") if preempts else (),
        "n_replicas": n_replicas,
        "n_devices": n_replicas,
        "capacity_tokens": CAPACITY_TOKENS,
        "kv_bytes_per_token": 131_072.0,
        "end_ns": end_ns,
        "seed": seed,
        "config": {
            "scenario": {"name": "chatbot", "rate": rate_per_s, "n_requests": n_requests},
            "cache": {"_target_": "sim.kv.paged.Paged", "block_tokens": 16},
            "batching": {"_target_": "sim.batching.Chunked", "token_budget": 2048},
            "hardware": {"name": "h200", "note": "<script>alert('never runs')</script>"},
            "seed": seed,
        },
        "memory": {
            "device memory": 150_754_820_096.0,
            "not used": -15_075_482_009.0,
            "weights": -16_060_522_496.0,
            "activations": -1_342_177_280.0,
            "graphs and context": -2_147_483_648.0,
            "KV cache": 116_129_154_663.0,
        },
        "counts": tuple(
            {"evicted_blocks": 12, "extrapolated_steps": 3} | (TIERED if preempts else {}) for _ in range(n_replicas)
        ),
        "provenance": {"cost": "roofline", "device": "H200 SXM data sheet", "version": "0.1.0"},
    }
    return TinyRun(Result(**(values | fields)), run.tokens_ps)


@dataclass
class _Log:
    requests: list[dict[str, int]] = field(default_factory=list)
    iterations: list[dict[str, int]] = field(default_factory=list)
    preemptions: list[dict[str, int]] = field(default_factory=list)
    tokens_ps: dict[int, list[int]] = field(default_factory=dict)


def _serve(
    replica: int, arriving: list[dict[str, int]], rng: np.random.Generator, mixes: bool, preempts: float, log: _Log
) -> None:
    waiting: list[Running] = []
    swapped: list[Running] = []
    decoding: list[Running] = []
    start_ns = carry_ps = 0
    while arriving or waiting or swapped or decoding:
        while arriving and arriving[0]["arrival_ns"] <= start_ns:
            request = arriving.pop(0)
            waiting.append(Running(request, [], request["prompt_tokens"]))
        if not (waiting or swapped or decoding):
            start_ns = arriving[0]["arrival_ns"]
            continue

        n_preempted = 0
        while len(decoding) > 1 and rng.random() < preempts:
            victim = decoding.pop(int(rng.integers(len(decoding))))
            is_swap = int(rng.integers(2))
            lost_tokens = victim.request["prompt_tokens"] + len(victim.tokens_ps) - 1
            victim.preempted = {
                "request_id": victim.request["id"],
                "replica": replica,
                "preempted_ns": start_ns,
                "last_token_ns": victim.tokens_ps[-1] // 1000,
                "is_swap": is_swap,
                "lost_tokens": lost_tokens,
                "is_decoding": 1,
                "found_tokens": lost_tokens - 6 if is_swap else 0,
            }
            victim.request["n_preemptions"] = victim.request.get("n_preemptions", 0) + 1
            victim.left_tokens = 7 if is_swap else lost_tokens + 1
            (swapped if is_swap else waiting).insert(0, victim)
            n_preempted += 1
        back = [s for s in swapped if not decoding or rng.random() < 0.3]
        swapped = [s for s in swapped if s not in back]
        waiting = back + waiting

        chunks: list[tuple[Running, int]] = []
        if waiting and len(decoding) < 12:
            if mixes:
                chunks = [(waiting[0], min(waiting[0].left_tokens, 256))]
            else:
                chunks = [(s, s.left_tokens) for s in waiting[:4]]
        batch = decoding if mixes or not chunks else []
        for sequence, _ in chunks:
            sequence.request.setdefault("scheduled_ns", start_ns)
        context = sum(s.request["prompt_tokens"] + len(s.tokens_ps) for s in batch)
        n_prompt = sum(n for _, n in chunks)
        first_ps = BASE_PS + PER_SEQ_PS * len(batch) + PER_TOKEN_PS * context + PER_PROMPT_TOKEN_PS * n_prompt
        growth_ps = 0 if chunks else PER_TOKEN_PS * len(batch)
        n_steps = 1
        if not chunks:
            shortest = min(s.request["output_tokens"] - len(s.tokens_ps) for s in batch)
            n_steps = int(rng.integers(1, shortest + 1))
        begin_ps = start_ns * 1000 + carry_ps
        ends_ps = [begin_ps + k * first_ps + k * (k - 1) // 2 * growth_ps for k in range(1, n_steps + 1)]

        decodes_now = len(batch)
        for sequence in batch:
            _tokens(sequence, ends_ps, log)
        joined = []
        for sequence, n in chunks:
            sequence.left_tokens -= n
            if not sequence.left_tokens:
                waiting.remove(sequence)
                _tokens(sequence, ends_ps, log)
                joined.append(sequence)
        live = sum(s.request["prompt_tokens"] + len(s.tokens_ps) for s in decoding)
        log.iterations.append(
            {
                "replica": replica,
                "start_ns": start_ns,
                "carry_ps": carry_ps,
                "n_steps": n_steps,
                "first_ps": first_ps,
                "growth_ps": growth_ps,
                "prefill_tokens": n_prompt,
                "joined_seqs": sum(len(s.tokens_ps) < s.request["output_tokens"] for s in joined),
                "decode_seqs": decodes_now,
                "decode_context_tokens": context,
                "waiting_seqs": len(waiting),
                "partial_seqs": len(chunks),
                "held_tokens": live + 8 * len(decoding),
                "live_tokens": live,
                "idle_tokens": min(20_000, 50 * len(log.requests)),
                "preempted_seqs": n_preempted,
            }
        )
        start_ns, carry_ps = divmod(ends_ps[-1], 1000)
        for sequence in [*decoding, *joined]:
            if len(sequence.tokens_ps) == sequence.request["output_tokens"]:
                _finish(sequence, log)
        decoding = [s for s in [*decoding, *joined] if len(s.tokens_ps) < s.request["output_tokens"]]


def _tokens(sequence: Running, ends_ps: list[int], log: _Log) -> None:
    sequence.tokens_ps += ends_ps
    if sequence.preempted is not None:
        log.preemptions.append(sequence.preempted | {"next_token_ns": ends_ps[0] // 1000})
        sequence.preempted = None


def _finish(sequence: Running, log: _Log) -> None:
    times = sequence.tokens_ps
    log.tokens_ps[sequence.request["id"]] = times
    cached = sequence.request["prompt_tokens"] // 4 * (sequence.request["id"] % 2)
    log.requests.append(
        sequence.request | {"first_token_ns": times[0] // 1000, "finish_ns": times[-1] // 1000, "cached_tokens": cached}
    )

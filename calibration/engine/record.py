"""A served run as a recorder of production engines writes it, so that ``step=validate`` reads it like any other."""

import csv
import json
import time
from collections.abc import Mapping
from collections.abc import Sequence as Row
from pathlib import Path
from typing import Any

from calibration.engine.memory import Sequence
from calibration.engine.serving import Engine
from calibration.measurements import replace
from sim.units import NS_PER_S

IDENTITY_TOKENS = 16  # of the blocks that say which prompts begin alike


def write_run(folder: Path, engine: Engine, served: Row[Sequence], start_ns: int, about: Mapping[str, Any]) -> None:
    """``meta.json``, ``requests.jsonl``, ``prompt_blocks.jsonl`` and ``timeseries.csv`` of what was served.

    Parameters
    ----------
    start_ns : int
        When the first arrival was counted from, by the engine's clock.
    about : mapping
        ``hardware`` of ``meta.json``: the device's name as its profile has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, pool = engine.decoder.model, engine.memory.pool
    dtype = str(engine.decoder.dtype).removeprefix("torch.")
    meta = {
        "schema_version": 1,
        "model": model.name,
        "vllm_version": "0.19.0",
        "engine": "kvtwin",
        "engine_kwargs": {
            "model": model.name, "tensor_parallel_size": 1, "data_parallel_size": 1, "dtype": dtype,
            "max_num_seqs": engine.max_num_seqs, "max_num_batched_tokens": engine.max_num_batched_tokens,
            "max_model_len": model.max_len, "enforce_eager": engine.decoder.device.type != "cuda",
            "async_scheduling": False, "kv_cache_dtype": "auto",
        },
        "kv_cache": {
            "num_gpu_blocks": pool.n_slots // pool.block_tokens + 1,  # one is nobody's, as vLLM counts
            "block_size": pool.block_tokens,
            "enable_prefix_caching": getattr(engine.memory, "_has_prefixes", False),
        },
        "hardware": dict(about),
        "num_requests": len(served),
    }  # fmt: skip
    replace(folder / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())
    replace(folder / "requests.jsonl", "".join(json.dumps(row) + "\n" for row in rows(served, start_ns)).encode())
    replace(folder / "prompt_blocks.jsonl", "".join(json.dumps(row) + "\n" for row in identities(served)).encode())
    with (folder / "timeseries.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("t", "prompt_throughput", "gen_throughput", "running", "waiting"))
        writer.writerows(timeseries(engine, start_ns))


def rows(served: Row[Sequence], start_ns: int) -> list[dict[str, Any]]:
    """A row a request; arrivals by the wall clock, the rest by the engine's, as production recorders have them."""
    epoch_s = time.time()
    return [
        {
            "request_id": f"bench-{one.request.id}",
            "input_toks": one.request.prompt_tokens,
            "output_toks": one.n_generated,
            "cached_toks": one.cached_tokens,
            "arrival_time": epoch_s + one.request.arrival_ns / NS_PER_S,
            **{
                name: None if ticks is None else ticks / NS_PER_S
                for name, ticks in (
                    ("queued_ts", max(one.queued_ns or 0, start_ns + one.request.arrival_ns)),
                    ("scheduled_ts", one.scheduled_ns),
                    ("first_token_ts", one.first_token_ns),
                    ("last_token_ts", one.last_token_ns),
                )
            },
        }
        for one in served
    ]


def identities(served: Row[Sequence]) -> list[dict[str, Any]]:
    """Of each prompt the numbers of its full blocks: equal ones after equal ones mean equal text."""
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    found = []
    for one in served:
        ids, before = [], 0
        prompt = one.tokens[: one.request.prompt_tokens]
        for start in range(0, len(prompt) - IDENTITY_TOKENS + 1, IDENTITY_TOKENS):
            block = (before, tuple(prompt[start : start + IDENTITY_TOKENS]))
            before = known.setdefault(block, len(known) + 1)
            ids.append(before)
        name = f"bench-{one.request.id}"
        found.append({"request_id": name, "block_tokens": IDENTITY_TOKENS, "hash_ids": ids})
    return found


def timeseries(engine: Engine, start_ns: int) -> list[tuple[float, float, float, int, int]]:
    """Tokens of each second, and who ran and waited at its end."""
    found: dict[int, list[float]] = {}
    for row in engine.iterations:
        second = found.setdefault((row.end_ns - start_ns) // NS_PER_S + 1, [0.0, 0.0, 0, 0])
        second[0] += row.n_prompt_tokens
        second[1] += row.n_decoding
        second[2:] = [row.n_running, row.n_waiting]
    return [(float(t), prompt, out, int(run), int(wait)) for t, (prompt, out, run, wait) in sorted(found.items())]

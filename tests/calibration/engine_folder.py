"""Recorded runs made up: kernel times by a formula, answers by a simulation, written as a recorder writes them."""

import csv
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np

from calibration.prediction import Predicted
from sim.request import Request
from sim.units import NS_PER_S

EPOCH_S, MONOTONIC_S = 1_700_000_000.0, 7_000.0  # where the clocks of front end and engine core start


class Listed:
    """Requests that come as they are listed."""

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    def requests(self, seed: int) -> Iterable[Request]:
        return iter(self._requests)


def traffic(n: int, per_s: float, prompts: tuple[int, int], outputs: tuple[int, int]) -> list[Request]:
    """Poisson arrivals of uniform lengths."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(NS_PER_S / per_s, n)).astype(int)
    news, outs = rng.integers(*prompts, n), rng.integers(*outputs, n)
    rows = zip(arrivals.tolist(), news.tolist(), outs.tolist(), strict=True)
    return [Request(i, arrival, new, out, out) for i, (arrival, new, out) in enumerate(rows)]


def write_table(path: Path, header: str, rows: Iterable[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def attention_us(chunk: int, context: float, n: int, cached: int) -> float:
    """One layer: a floor, pairs of the chunk, entries read by decoding sequences, at rates the device may reach."""
    return 8.0 + 5e-5 * chunk * (context + chunk / 2.0) + 3e-3 * n * (cached + 1)


def write_bundle(folder: Path, model: str, degree: int, *, is_new: bool, layers: tuple[str, ...]) -> None:
    """Kernel times of one rank, in the layout of old bundles or of newer ones, without a sweep of unequal contexts."""
    (folder / f"tp{degree}").mkdir(parents=True)
    about = f"gpu: NVIDIA RTX PRO 6000 Blackwell Server Edition\nmodel: {model}\nvllm_version: 0.28.0\n"
    (folder / "meta.yaml").write_text(about, encoding="utf-8")
    rows = []
    for chunk, context, n, cached in product((0, 16, 128, 1024), (0, 256, 4096), (0, 1, 8, 64), (0, 16, 512, 8192)):
        if bool(n) == bool(cached) and (chunk or (n and not context)):
            us = attention_us(chunk, context, n, cached)
            key = context + chunk / 2.0 if chunk else 0.0
            rows.append(("attention", chunk, key, n, cached, 1, us) if is_new else (chunk, context, n, cached, us))
            if is_new and n:
                rows.append(("attention", chunk, key, n, cached, 4, 9.0 * us))  # with drafts: not to be taken
    names = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"
    if is_new:
        names = "layer,prefill_chunk,prefill_key,n_decode,kv_decode,decode_q_len,time_us"
    write_table(folder / f"tp{degree}" / "attention.csv", names, rows)
    tokens = (*range(1, 17), *range(32, 65, 16), *range(128, 2049, 64))
    slopes = [0.9 if layer == "gate_up_proj" else 0.1 for layer in layers]
    dense = [(layer, count, 20.0 + i + slopes[i] * count) for i, layer in enumerate(layers) for count in tokens]
    write_table(folder / f"tp{degree}" / "dense.csv", "layer,tokens,time_us", dense)
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    heads = [
        (layer, count, base + count) for layer, base in (("lm_head", 700.0), ("sampler", 50.0)) for count in counts
    ]
    write_table(folder / f"tp{degree}" / "per_sequence.csv", "layer,sequences,time_us", heads)


def write_run(folder: Path, meta: dict, requests: list[Request], told: Predicted) -> None:
    """``meta.json``, ``requests.jsonl`` and ``timeseries.csv`` of a run that answered as a simulation did."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(meta | {"num_requests": len(requests)}), encoding="utf-8")
    times = {"queued_ts": told.queued_ns, "first_token_ts": told.first_token_ns, "last_token_ts": told.last_token_ns}
    with (folder / "requests.jsonl").open("w", encoding="utf-8") as file:
        for i, request in enumerate(requests):
            row = {
                "request_id": f"bench-{i}",
                "input_toks": request.prompt_tokens,
                "output_toks": request.output_tokens,
                "arrival_time": EPOCH_S + request.arrival_ns / NS_PER_S,
                "num_preemptions": 0,  # a column nobody knows
                **{name: MONOTONIC_S + float(ticks[i]) / NS_PER_S for name, ticks in times.items()},
            }
            file.write(json.dumps(row) + "\n")
    seconds = range(1, int(told.last_token_ns.max() // NS_PER_S) + 2)
    write_table(folder / "timeseries.csv", "t,running,preempted", [(float(t), 3.0, 0.0) for t in seconds])

"""Extents that grow by a factor: closed forms, and what they cost on real lengths."""

import csv
from collections.abc import Iterator
from math import log
from pathlib import Path

import numpy as np

from sim.kv.reservation import grown_to
from tests.reproductions.row import Reproduction, Row, Skipped

LENGTHS = Path("../shared/data/traces/etalon/sharegpt_8k_filtered_stats_llama2_tokenizer.csv")
MEAN_PROMPT_TOKENS, MEAN_OUTPUT_TOKENS = 161.31, 337.99  # ShareGPT in Kwon et al., SOSP 2023, section 6.1
N_LENGTHS = 6_000
LONGEST = 4_000_000  # [tokens], so that rounding to whole tokens no longer shows
ONE_POINT = 0.01

FILL = ((1.25, 0.89), (1.5, 0.81), (2.0, 0.68))  # growth, live share of what is allocated
COPIED = ((1.25, 4.6), (1.5, 2.65), (2.0, 1.63))  # growth, tokens copied per token generated
COPIED_AT_EVERY_STEP = 326.0
STATIC_FILL = 0.16


def reproductions() -> list[Reproduction]:
    """The closed forms and ShareGPT."""
    lengths = sharegpt() if LENGTHS.exists() else None
    return [
        Reproduction(
            "Growing extents: closed forms", "geometric series; lengths spread evenly on a log scale", forms()
        ),
        Reproduction(
            "Growing extents on ShareGPT lengths, from the prompt's length on",
            "a separate event loop over ShareGPT lengths of the same means, not the same sample",
            Skipped(f"{LENGTHS} is not there") if lengths is None else on_sharegpt(*lengths),
        ),
    ]


def extents(growth: float) -> Iterator[tuple[int, int]]:
    """Each extent's length and the next one's, from one token up to `LONGEST`."""
    n_tokens = 1
    while n_tokens < LONGEST:
        grown = grown_to(n_tokens, growth, n_tokens + 1)
        yield n_tokens, grown
        n_tokens = grown


def forms() -> list[Row]:
    """Mean fill, copies per token once full, and what is held while copying."""
    rows = []
    for growth in (1.25, 1.5, 2.0):
        steps = list(extents(growth))
        old, new = steps[-1]
        lengths = np.arange(old + 1, new + 1)
        fill = float(np.average(lengths / new, weights=1.0 / lengths))
        copied = sum(n_tokens for n_tokens, _ in steps) / new
        rows += [
            Row(f"mean fill, x{growth}", (growth - 1) / (growth * log(growth)), fill, 1e-4),
            Row(f"tokens copied per token, x{growth}", 1 / (growth - 1), copied, 1e-4 / (growth - 1)),
            Row(f"held while copying / new extent, x{growth}", 1 + 1 / growth, (old + new) / new, 1e-4),
        ]
    return rows


def on_sharegpt(prompts: np.ndarray, outputs: np.ndarray) -> list[Row]:
    """Fill and copies when answers of real lengths are decoded."""
    rows = []
    fills = {}
    copies = {}
    for growth, _ in FILL:
        sums = np.sum([decode(int(p), int(o), growth) for p, o in zip(prompts, outputs, strict=True)], axis=0)
        fills[growth], copies[growth] = sums[0] / sums[1], sums[2] / outputs.sum()
    rows += [Row(f"live / allocated, x{growth}", fill, fills[growth], ONE_POINT) for growth, fill in FILL]
    rows += [
        Row(f"tokens copied per token generated, x{growth}", copied, copies[growth], 0.03 * copied)
        for growth, copied in COPIED
    ]
    every_step = [decode(int(p), int(o), 1.0) for p, o in zip(prompts, outputs, strict=True)]
    live, allocated, copied = np.array(every_step).T
    rows += [
        Row("live / allocated, copy every step", 1.0, float(live.sum() / allocated.sum()), 0.0),
        Row(
            "tokens copied per token generated, copy every step",
            COPIED_AT_EVERY_STEP,
            float(np.mean(copied / outputs)),
            0.03 * COPIED_AT_EVERY_STEP,
            f"mean over requests; over tokens {copied.sum() / outputs.sum():.0f}",
        ),
        Row(
            "live / 2048 reserved",
            STATIC_FILL,
            float(np.mean(live / outputs) / 2048),
            ONE_POINT,
            f"mean over requests; over time {live.sum() / outputs.sum() / 2048:.3f}",
        ),
    ]
    return rows


def decode(prompt_tokens: int, output_tokens: int, growth: float) -> tuple[int, int, int]:
    """Live and allocated slots summed over the steps of one answer, and tokens copied."""
    live = output_tokens * prompt_tokens + output_tokens * (output_tokens + 1) // 2
    allocated = copied = 0
    held, n_tokens, end = prompt_tokens, prompt_tokens, prompt_tokens + output_tokens
    while n_tokens < end:
        if held == n_tokens:
            copied += n_tokens
            held = grown_to(held, growth, n_tokens + 1)
        n_steps = min(held, end) - n_tokens
        allocated += n_steps * held
        n_tokens += n_steps
    return live, allocated, copied


def sharegpt() -> tuple[np.ndarray, np.ndarray]:
    """Prompt and answer lengths spread evenly over the file, scaled to the paper's means, shape (N_LENGTHS,) each."""
    with LENGTHS.open(newline="") as file:
        table = np.array([(int(r["num_prefill_tokens"]), int(r["num_decode_tokens"])) for r in csv.DictReader(file)])
    scaled = table * np.array([MEAN_PROMPT_TOKENS, MEAN_OUTPUT_TOKENS]) / table.mean(axis=0)
    chosen = np.linspace(0, len(table) - 1, N_LENGTHS).astype(int)
    prompts, outputs = np.maximum(np.rint(scaled[chosen]), 1).astype(int).T
    return prompts, outputs

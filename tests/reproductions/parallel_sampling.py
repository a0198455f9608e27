"""What several answers to one prompt save by sharing its blocks: PagedAttention's figure for parallel sampling.

Saved blocks over blocks without sharing, over time. Every answer of a request has the request's length, as in the
paper's traces, so the share that sharing saves hangs on lengths alone: (n - 1) prompts' full blocks of n whole
sequences. Requests come slowly enough that all have room: nobody is preempted, and no order of preemption matters.
"""

from functools import partial

import numpy as np

from sim.batching import Continuous
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.record import Recorder
from sim.units import NS_PER_S
from tests.reproductions.paged_attention import KV_SLOTS, MAX_LEN, FittedTimes, sharegpt_lengths
from tests.reproductions.row import Reproduction, Row
from tests.sim.kv.sites import cache_on
from tests.sim.serving import Listed, asked, serve

BLOCK_TOKENS = 16
SAVED = ((2, 0.162), (6, 0.305))  # the ends of the published range; 4 answers lie between
N_REQUESTS = 1_000
GAP_S = 8.0  # between requests


def reproductions() -> list[Reproduction]:
    """Memory saved by two and by six answers."""
    return [
        Reproduction(
            "PagedAttention: share of the KV memory that parallel sampling saves",
            "Kwon et al., SOSP 2023, section 6.3: 16.2 to 30.5 % on ShareGPT with 2, 4 and 6 answers",
            [Row(f"{n} answers", published, saved_frac(n), 0.1 * published) for n, published in SAVED],
        )
    ]


def saved_frac(n_samples: int) -> float:
    """Serve requests one after the other, and average what is saved over time."""
    listed = [
        asked(i, round(i * GAP_S * NS_PER_S), int(prompt), int(answer), n_samples=n_samples)
        for i, (prompt, answer) in enumerate(
            zip(*(lengths[:N_REQUESTS] for lengths in sharegpt_lengths()), strict=True)
        )
    ]
    house = serve(
        Listed(listed),
        scheduler=partial(Continuous, 2_560, 256),
        kv=partial(cache_on, PagedCache, KV_SLOTS, Lru, BLOCK_TOKENS, prefix_caching=False),
        cost=FittedTimes,
        max_len=MAX_LEN,
    )
    return shared_over_unshared(house.recorder)


def shared_over_unshared(recorder: Recorder) -> float:
    """Blocks that sharing saves over blocks without sharing, both in the middle of each row's iterations."""
    table = recorder.iterations
    column = {name: table.column(name).astype(np.float64) for name in table.columns}
    n_steps = column["n_steps"]
    elapsed_ps = n_steps * column["first_ps"] + n_steps * (n_steps - 1) / 2 * column["growth_ps"]
    grown_tokens = column["decode_seqs"] * (n_steps - 1) / 2
    shared = float((column["shared_tokens"] * elapsed_ps).sum())
    held = float(((column["held_tokens"] + grown_tokens) * elapsed_ps).sum())
    return shared / (held + shared)

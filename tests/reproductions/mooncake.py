"""Prefix cache hit rates of the Mooncake conversation trace."""

from functools import partial
from pathlib import Path

from scenarios.replay import Replay
from sim.kv.eviction import Arc, Belady, BlankFirst, Fifo, Gdsf, Lfu, Lru, S3Fifo
from sim.kv.replay import Trace, read, replay
from tests.reproductions.row import Reproduction, Row, Skipped

TRACE = Path("../shared/data/traces/mooncake/conversation_trace.jsonl.gz")
BLOCK_TOKENS = 512  # of the released trace's hash ids
LAST_DIGIT = 0.5e-4  # published to four decimals or more
CAPACITIES = (1_000, 10_000, 30_000, 50_000, 100_000)  # [blocks]

LFU, FIFO = partial(BlankFirst, order=Lfu), partial(BlankFirst, order=Fifo)
REQUESTS = (  # share of all blocks hit, whole requests at a time: a separate replay of the released file
    ("LRU, last block first", Lru, "tail_first", (0.04453, 0.21160, 0.32575, 0.35456, 0.36369)),
    ("LRU, first block first", Lru, "head_first", (0.04448, 0.21117, 0.32571, 0.35456, 0.36369)),
    ("FIFO", FIFO, "head_first_once", (0.04336, 0.18128, 0.29332, 0.33355, 0.35631)),
    ("LFU", LFU, "head_first", (0.04808, 0.13176, 0.27589, 0.34381, 0.36310)),
)
STREAM = (  # hits of a stream of block ids at 10,000 blocks: libCacheSim
    ("ARC", partial(BlankFirst, order=Arc), 0.2225),
    ("GDSF", partial(BlankFirst, order=Gdsf), 0.2171),
    ("LRU", Lru, 0.2112),
    ("S3-FIFO", partial(BlankFirst, order=S3Fifo), 0.1925),
    ("FIFO", FIFO, 0.1865),
    ("LFU", LFU, 0.1318),
)
FIGURE_9 = (  # capacity [tokens], the released trace replayed, as printed in the paper (its blocks were finer)
    (1e4, 0.0264, 0.0450),
    (1e5, 0.0435, 0.0731),
    (1e6, 0.0554, 0.0866),
    (2e6, 0.0874, 0.1202),
    (4e6, 0.1818, 0.2149),
    (5e6, 0.2148, 0.2471),
    (8e6, 0.2719, 0.2997),
    (1e7, 0.2972, 0.3263),
    (5e7, 0.3789, 0.3983),
    (1e8, 0.3819, 0.4006),
)


def reproductions() -> list[Reproduction]:
    """By policy and capacity, as a flat stream, and the paper's figure 9."""
    trace: Trace | None = read(Replay(str(TRACE)).requests(0), BLOCK_TOKENS) if TRACE.exists() else None
    missing = Skipped(f"{TRACE} is not there (https://github.com/kvcache-ai/Mooncake, FAST25-release/traces)")
    return [
        Reproduction(
            "Mooncake conversation trace: share of blocks in the longest resident prefix",
            "independent replay of the released trace, 288,500 blocks of 512 tokens",
            missing if trace is None else by_policy(trace),
        ),
        Reproduction(
            "Mooncake conversation trace as a flat stream, 10,000 blocks",
            "libCacheSim 0.3.5",
            missing if trace is None else flat(trace),
        ),
        Reproduction(
            "Mooncake, figure 9: LRU, share of full blocks",
            "Qin et al., FAST 2025, figure 9; target: the released trace, whose blocks are coarser than theirs",
            missing if trace is None else figure_9(trace),
        ),
    ]


def by_policy(trace: Trace) -> list[Row]:
    """Share of all blocks hit, for each policy and capacity."""
    return [
        Row(f"{name}, {capacity:,} blocks", published, replay(trace, policy(capacity), touch).block_frac, LAST_DIGIT)
        for name, policy, touch, row in REQUESTS
        for capacity, published in zip(CAPACITIES, row, strict=True)
    ]


def flat(trace: Trace) -> list[Row]:
    """Hits whether the prefix is resident or not, block by block."""
    bound = ("Belady", partial(BlankFirst, order=partial(Belady, future=trace.future())), 0.3664)
    return [
        Row(name, published, replay(trace, policy(10_000), "head_first").resident_frac, LAST_DIGIT)
        for name, policy, published in (bound, *STREAM)
    ]


def figure_9(trace: Trace) -> list[Row]:
    """Share of full blocks hit over capacity."""
    return [
        Row(
            f"{tokens:.0e} tokens",
            published,
            replay(trace, Lru(int(tokens) // BLOCK_TOKENS), "head_first").full_frac,
            LAST_DIGIT,
            f"paper {paper:.4f}",
        )
        for tokens, published, paper in FIGURE_9
    ]

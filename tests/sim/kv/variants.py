"""Every cache of conf/cache/, and what can be set about it: small enough that a dozen requests fill it."""

from sim.build import Builder
from sim.clock import Clock
from sim.config import conf_dir
from sim.kv.cache import KVCache
from sim.record import Recorder
from tests.sim.kv.composed import configured
from tests.sim.serving import LinearCost

MAX_LEN = 96  # of one sequence [tokens]
SLOTS = 320  # for extents, of which a buddy has 128 slots each
WINDOW = 22  # of models that have one: it ends inside a block [tokens]
POOL_SLOTS = 160  # for blocks
COST = LinearCost(5_003, 1_009, 101, 53)
EXTENT = {"model__max_len": MAX_LEN, "hardware__kv_blocks": SLOTS // 16, "cache__reservation__max_len": MAX_LEN}
GROWS = {"model__max_len": MAX_LEN, "hardware__kv_blocks": SLOTS // 16, "cache__reservation__initial": 16}
BLOCKS = {"model__max_len": MAX_LEN, "hardware__kv_blocks": POOL_SLOTS // 4, "cache__block_tokens": 4}
RING = {**BLOCKS, "cache__retention__window": 28, "cache__retention__sinks": 4}
SHARE = {**BLOCKS, "cache__retention__every": 8}
FIRST_FIT, BUDDY = "sim.kv.allocator.FirstFit", "sim.kv.allocator.Buddy"
ORACLE = {**EXTENT, "cache__reservation___target_": "sim.kv.reservation.Oracle"}
GIB_PER_SLOT = 131_072 / 2**30  # of llama-3.1-8b
SMALL_TIERS = {
    "tiers__levels__0__capacity_gib": 120 * GIB_PER_SLOT,
    "tiers__levels__1__capacity_gib": 400 * GIB_PER_SLOT,
    "cache__chunk_tokens": 8,
}
TIERED = {**BLOCKS, **SMALL_TIERS}

VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "static": (("cache=static",), EXTENT),
    "static first_fit": (("cache=static",), {**EXTENT, "cache__allocator___target_": FIRST_FIT}),
    "static pow2": (("cache=static",), {**ORACLE, "cache__reservation__rounding": "power_of_two"}),
    "static oracle first_fit": (("cache=static",), {**ORACLE, "cache__allocator___target_": FIRST_FIT}),
    "static forgetful": (("cache=static",), {**EXTENT, "cache__session_caching": False}),
    "static lfu": (("cache=static", "eviction=lfu"), EXTENT),
    "dynamic": (("cache=dynamic",), GROWS),
    "dynamic by one": (("cache=dynamic",), {**GROWS, "cache__reservation__growth": 1.0}),
    "dynamic buddy": (("cache=dynamic",), {**GROWS, "cache__allocator___target_": BUDDY}),
    "dynamic windowed": (("cache=dynamic",), {**GROWS, "model__stack__0__attention__window": 40}),
    "predictive": (("cache=predictive",), {**GROWS, "cache__reservation__ahead": 4}),
    "predictive windowed": (("cache=predictive",), {**GROWS, "model__stack__0__attention__window": 40}),
    "paged": (("cache=paged",), BLOCKS),
    "paged by token": (("cache=paged",), {**BLOCKS, "hardware__kv_blocks": POOL_SLOTS, "cache__block_tokens": 1}),
    "paged forgetful": (("cache=paged",), {**BLOCKS, "cache__prefix_caching": False}),
    "paged watermark": (("cache=paged",), {**BLOCKS, "cache__watermark": 0.05}),
    "paged windowed": (("cache=paged",), {**BLOCKS, "model__stack__0__attention__window": WINDOW}),
    "paged lfu": (("cache=paged", "eviction=lfu"), BLOCKS),
    "paged fifo": (("cache=paged", "eviction=fifo"), BLOCKS),
    "paged s3fifo": (("cache=paged", "eviction=s3fifo"), BLOCKS),
    "paged arc": (("cache=paged", "eviction=arc"), BLOCKS),
    "paged gdsf": (("cache=paged", "eviction=gdsf"), BLOCKS),
    "streaming": (("cache=streaming",), RING),
    "streaming overlapping": (("cache=streaming",), {**RING, "cache__retention__overlap": 8}),
    "streaming dynamic": (
        ("cache=streaming",),
        {**RING, "cache__retention__overlap": 8, "cache__retention__dynamic": True},
    ),
    "streaming dense": (("cache=streaming",), {**RING, "cache__retention__prompt": "dense"}),
    "streaming windowed": (("cache=streaming",), {**RING, "model__stack__0__attention__window": WINDOW}),
    "compressed": (("cache=compressed",), SHARE),
    "compressed by piece": (("cache=compressed",), {**SHARE, "cache__retention__prompt": "by_piece"}),
    "compressed 4 bits": (("cache=compressed",), {**SHARE, "cache__retention__bits": 4}),
    "compressed 2 bits of all": (
        ("cache=compressed", "eviction=fifo"),
        {**SHARE, "cache__retention__bits": 2, "cache__retention__keep_ratio": 1.0},
    ),
    "compressed windowed": (("cache=compressed",), {**SHARE, "model__stack__0__attention__window": WINDOW}),
    "hierarchical": (("cache=hierarchical",), TIERED),
    "hierarchical back": (("cache=hierarchical",), {**TIERED, "cache__write": "back"}),
    "hierarchical preempted": (("cache=hierarchical", "preemption=auto"), {**TIERED, "cache__write": "preempted"}),
    "hierarchical no overlap": (("cache=hierarchical",), {**TIERED, "cache__overlap": False}),
    "hierarchical small": (
        ("cache=hierarchical",),
        {**TIERED, "tiers__levels__0__capacity_gib": 40 * GIB_PER_SLOT},  # less than a text may have
    ),
    "hierarchical lfu": (("cache=hierarchical", "eviction=lfu"), TIERED),
    "hierarchical windowed": (("cache=hierarchical",), {**TIERED, "model__stack__0__attention__window": WINDOW}),
    "hierarchical failing": (("cache=hierarchical",), {**TIERED, "tiers__levels__0__fails_at_s": 1e-6}),
}


def made(variant: str, env: Clock, recorder: Recorder) -> KVCache:
    """The cache that the command line would make."""
    choices, settings = VARIANTS[variant]
    builder = Builder(configured(*choices, **settings))
    return builder.cache(builder.capacity(), env, COST, recorder, 0)


def names_of_files() -> set[str]:
    """The caches that there are."""
    return {path.stem for path in (conf_dir() / "cache").glob("*.yaml")}

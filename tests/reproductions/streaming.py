"""StreamingLLM: generation without end in constant memory, at a constant cost per token."""

from sim.kv.eviction import Lru
from sim.kv.pruned import PrunedCache
from sim.kv.retention import Window
from tests.reproductions.row import Reproduction, Row
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve

SINKS, WINDOW = 4, 1_020  # Xiao et al., table 1: perplexity 5.40 of Llama-2-13B on PG19 [tokens]
PROMPT_TOKENS, GENERATED_TOKENS = 2_000, 1_000_000
COST = LinearCost(10_000_000, per_context_ps=60_000)  # any: it shows what is read


def reproductions() -> list[Reproduction]:
    """Memory held, tokens attended, time per token."""
    return [
        Reproduction(
            f"StreamingLLM: {GENERATED_TOKENS:,} tokens through {SINKS} sinks and a window of {WINDOW:,}",
            "Xiao et al., ICLR 2024: memory (sinks + window) x bytes per token, decoding flat in length",
            constant(),
        )
    ]


def constant() -> list[Row]:
    """What the first and the last tokens of a long answer take."""
    house = serve(
        Listed([asked(0, 0, PROMPT_TOKENS, GENERATED_TOKENS)]),
        kv=lambda: cache_on(PrunedCache, 1 << 20, Lru, Window(WINDOW, SINKS)),
        cost=lambda: COST,
        max_len=4_096,
    )
    rows = house.iterations()
    decoding = [row for row in rows if row["decode_seqs"]]
    counts = house.replicas[0].kv.counts()
    kept, seen = SINKS + WINDOW, PROMPT_TOKENS + GENERATED_TOKENS - 1
    return [
        Row("tokens generated", float(GENERATED_TOKENS), float(house.requests()[0]["output_tokens"])),
        Row("KV slots held, at most", float(kept), float(max(row["held_tokens"] for row in rows))),
        Row("KV slots held, at the end", float(kept), float(rows[-1]["held_tokens"])),
        Row("KV entries read by the first decoded token", float(kept), float(decoding[0]["decode_context_tokens"])),
        Row("each token slower than the one before by [ps]", 0.0, float(max(row["growth_ps"] for row in decoding))),
        Row("attended fraction of all it has seen", kept / seen, float(counts["attended_frac"]), 1e-12),
    ]

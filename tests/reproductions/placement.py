"""Where extents lie and which block goes next: facts small enough to count by hand."""

from sim.kv.allocator import Buddy
from sim.kv.eviction import Lru, Unit
from tests.reproductions.row import Reproduction, Row

KV_SLOTS = 15_700  # OPT-13B on a 40 GB A100, Kwon et al., SOSP 2023, table 1 [tokens]
MAX_LEN = 2_048


def reproductions() -> list[Reproduction]:
    """Orca's reservations in a buddy allocator, and vLLM's free queue."""
    return [
        Reproduction(
            "Buddy allocation of the PagedAttention baselines",
            "Kwon et al., SOSP 2023, section 6.2 (OPT-13B, 15,700 KV slots, 2,048 tokens at most)",
            buddy(),
        ),
        Reproduction(
            "vLLM's worked example: ten blocks of four tokens",
            "vLLM documentation, Automatic Prefix Caching, example",
            [free_queue()],
        ),
    ]


def buddy() -> list[Row]:
    """How many sequences of the maximum fit."""
    allocator = Buddy(KV_SLOTS)
    n_sequences = 0
    while allocator.take(MAX_LEN) is not None:
        n_sequences += 1
    return [Row("sequences batched, Orca (Max)", 7.0, float(n_sequences))]


def free_queue() -> Row:
    """The free queue after both requests; blocks that were never full hold nothing and are a dot."""
    evictor = Lru(10)
    evictor.victims(5)  # request 0: blocks 0 to 4
    evictor.victims(2)  # request 1: 0 and 1 shared, 5 and 6 new
    block = {i: Unit(i, 4) for i in (0, 1, 2, 3, 5)}
    evictor.park_blank(1)  # request 0 ends; its last block, 4, is not full
    evictor.park([block[3], block[2]])
    evictor.park_blank(1)  # request 1 ends; nor is 6
    evictor.park([block[5], block[1], block[0]])
    taken = [evictor.victims(1) for _ in range(10)]
    ours = "-".join(str(evicted[0].key) if evicted else "." for evicted in taken)
    return Row("free queue (7-8-9-4-3-2-6-5-1-0)", ".-.-.-.-3-2-.-5-1-0", ours)

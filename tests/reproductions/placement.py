"""Where extents lie and which block goes next: facts small enough to count by hand."""

from sim.kv.allocator import Buddy
from sim.kv.eviction import Lru, Unit
from sim.kv.paged import PagedCache
from sim.ledger import DecodeLedger
from sim.request import Request, Segment
from sim.sequence import Sequence
from tests.reproductions.row import Reproduction, Row
from tests.sim.kv.sites import cache_on

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
            [free_queue(), *third_request()],
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


def third_request() -> list[Row]:
    """29 tokens, 12 of them cached: they take 0, 1 and 2 from the queue and then 7, 8, 9, 4 and 3, the last evicted.

    Request 0 has a prompt of 15 tokens and generates until its fifth block is begun; request 1 shares ten of its 14.
    """
    cache, ledger = cache_on(PagedCache, 40, Lru, block_tokens=4), DecodeLedger(4)
    begin, rest = (1, 10), (2, 5)
    first = admitted(cache, ledger, ((*begin,), (*rest,)), 15)
    ledger.join(first)
    cache.advance(ledger, 2)
    ledger.advance(2)
    second = admitted(cache, ledger, ((*begin,), (3, 4)), 14)
    ledger.leave(first)
    cache.release(first, 0)
    cache.release(second, 0)
    third = Sequence(Request(2, 0, 29, 1, 1, content=((*begin,), (2, 2), (4, 17))))
    n_cached = cache.match(third.request)
    cache.admit(third, 29 - n_cached, ledger)
    return [
        Row("request 1 finds cached [tokens]", 8.0, float(second.cached_tokens or 0)),
        Row("request 2 finds cached [tokens]", 12.0, float(n_cached)),
        Row("blocks it holds (0-1-2-7-8-9-4-3)", 8.0, float(cache.held_tokens // 4)),
        Row("of those it took, blocks that lost their text (3)", 1.0, float(cache.counts()["evicted_blocks"])),
        Row("blocks that keep theirs (5)", 1.0, float(cache.idle_tokens // 4)),
    ]


def admitted(cache: PagedCache, ledger: DecodeLedger, content: tuple[Segment, ...], n_tokens: int) -> Sequence:
    """A request whose prompt has been computed."""
    sequence = Sequence(Request(len(content), 0, n_tokens, 3, 3, content=content, output_id=-1))
    sequence.cached_tokens = cache.match(sequence.request)
    cache.admit(sequence, n_tokens - sequence.cached_tokens, ledger)
    sequence.computed_tokens = n_tokens
    sequence.generated_tokens = 1
    return sequence

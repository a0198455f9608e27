"""Classes beside each other: each its own cache and share, and conversations that move at their cost."""

from dataclasses import replace
from functools import partial

import pytest

from sim.errors import ConfigError
from sim.kv.allocator import FirstFit
from sim.kv.by_class import CacheByClass, ClassShare
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import Lru
from sim.kv.hierarchical import HierarchicalCache
from sim.kv.paged import PagedCache
from sim.kv.pruned import PrunedCache
from sim.kv.reservation import Growing
from sim.kv.retention import Share, Window
from sim.kv.tiers import Tiers, TierSpec
from sim.metrics.summary import slot_bytes, total_counts
from sim.report.cache_facts import cache_tables
from sim.run import simulate
from sim.step import Pace, StepShape
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve

EXTENTS = partial(ContiguousCache, allocator=FirstFit, reservation=Growing(128, 2.0))
PAGED = partial(PagedCache, block_tokens=4)
PRUNED = partial(PrunedCache, retention=Share(0.5, every=1000), block_tokens=1)
TIERED = partial(HierarchicalCache, block_tokens=4)
BYTE_S = TierSpec("dram", 1e6 / (1 << 30), 1e9, 1e9, 0.0, 0.0, Lru)  # 1 byte per ns
COST = LinearCost(1_000_000)  # 1,000 ns an iteration


def by_class(chat=EXTENTS, document=PAGED, capacity=2048, **fields):
    classes = {"chat": ClassShare(0.5, chat), "document": ClassShare(0.5, document)}
    how = {"classes": classes, "eviction": Lru, "kv_bytes_per_token": 10.0, "cost": COST, "tiers": Tiers((BYTE_S,))}
    return partial(cache_on, CacheByClass, capacity_tokens=capacity, **(how | fields))


def two_turns(first="chat", then="document", prompt=100, output=21, others=()):
    """A conversation of 100 + 21 tokens, the last of which has no KV, and a question of 5 with an answer of 3."""
    said = ((1, prompt), (-1, output), (2, 5))
    return [
        asked(0, 0, prompt, output, content=((1, prompt),), output_id=-1, session_id=7, kind=first),
        *others,
        asked(1, 200_000, prompt + output + 5, 3, content=said, output_id=-2, session_id=7, turn=1, kind=then),
    ]


class PerByte(LinearCost):
    """10 ns an iteration, and 1 ns for every byte moved."""

    def pace(self, shape):
        first, growth, n_steps = super().pace(shape)
        moved_bytes = int(StepShape(*shape).moved_bytes)
        return Pace(first + 1000 * moved_bytes, growth, 1 if moved_bytes else n_steps)


def run(listed, kv, **how):
    return serve(Listed(listed), **({"kv": kv, "cost": lambda: COST} | how))


def test_a_conversation_moves_to_its_new_classs_cache_for_the_time_that_copying_it_takes():
    """120 tokens of KV at 10 B, 1 ns a byte: the iteration that takes up the second turn is 1,200 ns longer."""
    house = run(two_turns(), by_class(), cost=lambda: PerByte(10_000))

    first, second = house.requests()
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 120)
    assert second["first_token_ns"] - second["scheduled_ns"] == 10 + 120 * 10
    assert second["finish_ns"] - second["first_token_ns"] == 2 * 10
    counts = house.replicas[0].kv.counts()
    assert {
        key: counts[key] for key in ("class_changes", "class_moves", "class_moved_tokens", "class_moved_bytes")
    } == {
        "class_changes": 1,
        "class_moves": 1,
        "class_moved_tokens": 120,
        "class_moved_bytes": 1200.0,
    }
    assert (counts["chat_requests"], counts["document_requests"]) == (1, 1)


def test_what_has_moved_is_gone_where_it_was_and_held_where_it_is():
    house = run(two_turns(), by_class())
    rows = [row for row in house.iterations() if row["start_ns"] >= 200_000]

    assert rows[0]["idle_tokens"] == 0, "the extent of the first turn"
    assert rows[0]["held_tokens"] == 128, "32 blocks of 4 for 126 tokens"
    assert house.replicas[0].kv.idle_tokens == 128, "128 tokens in full blocks that stay findable"


def test_a_conversation_that_keeps_its_class_moves_nothing():
    counts = run(two_turns(then="chat"), by_class()).replicas[0].kv.counts()

    assert (counts["class_changes"], counts["class_moved_tokens"], counts["chat_requests"]) == (0, 0, 2)


def test_what_another_class_finds_already_is_not_copied_again():
    """Another document begins with the same 100 tokens: 25 blocks are there, 20 of the 120 tokens move."""
    other = asked(5, 100_000, 110, 2, content=((1, 100), (3, 10)), session_id=8, kind="document")
    house = run(two_turns(others=[other]), by_class())

    assert house.requests()[-1]["cached_tokens"] == 120
    assert house.replicas[0].kv.counts()["class_moved_tokens"] == 20


def test_compressed_kv_moves_as_far_as_it_goes_but_not_into_a_cache_of_whole_texts():
    """Half of the 100 tokens stays, and the 20 since: 70 move where a conversation has KV of its own."""
    moved = run(two_turns(), by_class(chat=PRUNED, document=EXTENTS))
    computed = run(two_turns(), by_class(chat=PRUNED, document=PAGED))

    assert moved.replicas[0].kv.counts()["class_moved_tokens"] == 70
    assert moved.requests()[-1]["cached_tokens"] == 120
    assert computed.replicas[0].kv.counts()["class_moved_tokens"] == 0
    assert computed.requests()[-1]["cached_tokens"] == 0
    assert computed.replicas[0].kv.counts()["class_changes"] == 1


def test_fewer_bits_make_a_copy_cheaper():
    """Read at 16 bits and written at 5 (4, and scales): 120 tokens of 10 B and of 3.125 B."""
    four_bits = partial(PrunedCache, retention=Share(1.0, bits=4), block_tokens=4)
    counts = run(two_turns(), by_class(document=four_bits)).replicas[0].kv.counts()

    assert counts["class_moved_bytes"] == 120 * (10.0 + 10.0 * 5 / 16) / 2
    assert counts["document_moved_tokens"] == 6, "what is new is quantised, and not what was on its way"


def test_what_lies_below_comes_over_the_link():
    """Of 64 blocks a document left 30 full; another takes 61. So 27 were evicted and are loaded, at 1 ns a byte."""
    crowd = asked(5, 100_000, 240, 2, content=((9, 240),), session_id=9, kind="document")
    house = run(two_turns("document", "chat", others=[crowd]), by_class(document=TIERED, capacity=512))

    counts = house.replicas[0].kv.counts()
    names = list(house.recorder.links)
    up = [row for row in house.recorder.transfers.rows().tolist() if names[row[1]] == "from dram"]
    second = house.requests()[-1]
    assert second["cached_tokens"] == 120
    assert (counts["class_moved_tokens"], counts["class_loaded_tokens"]) == (3 * 4, 27 * 4)
    assert [row[3] - row[2] for row in up] == [27 * 4 * 10]
    assert second["first_token_ns"] - second["scheduled_ns"] == 27 * 4 * 10 + 1000


def test_what_is_lost_on_its_way_to_another_class_is_computed():
    """The tier fails in the midst of those 1,080 ns."""
    crowd = asked(5, 100_000, 240, 2, content=((9, 240),), session_id=9, kind="document")
    listed = two_turns("document", "chat", others=[crowd])
    levels = Tiers((replace(BYTE_S, fails_at_s=200.5e-6),))
    house = run(listed, by_class(document=TIERED, capacity=512, tiers=levels))

    counts = house.replicas[0].kv.counts()
    assert house.requests()[-1]["cached_tokens"] == 3 * 4
    assert (counts["class_moved_tokens"], counts["class_loaded_tokens"]) == (3 * 4, 0)
    assert sum(row["prefill_tokens"] for row in house.iterations()) == 100 + 240 + 126 - 12


def test_a_class_that_runs_full_preempts_its_own():
    """Two documents outgrow their 8 blocks; the chat, admitted last, goes on."""
    listed = [asked(i, 0, 12, 10, kind="document") for i in (0, 1)] + [asked(2, 0, 12, 10, kind="chat")]
    house = run(listed, by_class(capacity=72))

    rows = {row["id"]: row for row in house.requests()}
    assert (rows[0]["n_preemptions"], rows[1]["n_preemptions"], rows[2]["n_preemptions"]) == (0, 1, 0)


def test_empty_slots_of_the_caches_add_up():
    """20 tokens in blocks of 16 leave 12 empty at the end; what an extent reserves is not waste of this kind."""
    blocks = partial(PagedCache, block_tokens=16)
    listed = [asked(0, 0, 20, 1, kind="document"), asked(1, 0, 20, 1, kind="chat")]
    house = run(listed, by_class(document=blocks))

    assert [(row["held_tokens"], row["internal_tokens"]) for row in house.iterations()] == [(32 + 128, 12)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClassShare(0.0, PAGED), r"cache.classes: share must be > 0 and <= 1, got 0"),
        (lambda: by_class(classes={})(), "cache.classes must name at least one class, got none"),
        (
            lambda: by_class(classes={"a": ClassShare(0.7, PAGED), "b": ClassShare(0.7, PAGED)})(),
            "cache.classes: the shares must not exceed 1 in all, got 1.4",
        ),
        (lambda: by_class(capacity=4)(), "cache.classes.document: KV capacity must hold one block of 4 tokens"),
        (
            lambda: by_class(chat=partial(PrunedCache, retention=Window(60, 4)))(),
            "cache.classes.chat: its cache lets sequences slide over 64 tokens",
        ),
        (
            lambda: run([asked(0, 0, 5, 5)], by_class()),
            "cache=by_class serves chat, document, got request 0 of class '': classify=true",
        ),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_range(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_requests_that_no_share_can_hold_are_refused_by_class():
    house = run([asked(0, 0, 1100, 5, kind="document")], by_class())

    assert house.recorder.refusals == {0: "document: 276 KV blocks needed, the device has 256"}


def test_the_four_classes_of_the_configuration_are_served_and_conversations_move():
    how = ("scenario=mixed_sessions", "scenario.n_requests=60", "classify=true", "cache=by_class")
    counts = simulate(*how).counts[0]

    classes = ("short_chat", "long_document", "code", "creative")
    assert min(counts[f"{name}_requests"] for name in classes) > 0
    assert counts["class_moves"] > 0
    assert counts["class_moved_bytes"] == counts["class_moved_tokens"] * 131_072
    assert counts["class_changes"] >= counts["class_moves"]
    facts = {row[0]: row[1] for row in cache_tables({"counts": counts}, {})[0].rows}
    assert facts["conversations that changed class"] == f"{counts['class_changes']}"
    assert facts["copied to the new class's cache"] == f"{counts['class_moved_bytes'] / 2**30:.1f} GiB"


@pytest.mark.parametrize("bits", [16, 4])
def test_the_slots_of_all_classes_take_the_memory_there_is(bits):
    result = simulate(
        "scenario.n_sessions=5",
        "classify=true",
        "cache=by_class",
        "hardware.kv_blocks=20000",
        f"cache.classes.creative.cache.retention.bits={bits}",
    )
    held_bytes = result.capacity_tokens * slot_bytes(result, total_counts(result))
    assert held_bytes == pytest.approx(20000 * 16 * result.kv_bytes_per_token, rel=1e-4)


def test_the_parts_get_what_the_run_knows_of_the_model():
    """8-bit KV compressed to 8 bits is as wide as before: the part's room is its share, not twice that."""
    shares = {"creative": ClassShare(1.0, partial(PrunedCache, retention=Share(1.0, bits=8)))}
    assert cache_on(CacheByClass, 1600, Lru, shares, kv_dtype="fp8").capacity_tokens == 1600
    assert cache_on(CacheByClass, 1600, Lru, shares).capacity_tokens > 2000
    longest = {"code": ClassShare(1.0, partial(ContiguousCache, allocator=FirstFit, reservation=Growing(8, 2.0)))}
    refused = cache_on(CacheByClass, 1600, Lru, longest, model_max_len=40).refuses(asked(0, 0, 30, 30, kind="code"))
    assert refused == "code: 59 KV slots needed, extents have 40 at most"


def test_a_class_whose_copies_do_not_overlap_holds_up_the_whole_batch():
    """What is written through at 1 byte per ns: two blocks of 4 tokens of 10 B, the iteration after is 80 ns longer."""
    cost = LinearCost(10_000, per_host_byte_ps=1_000)
    prompt = asked(0, 0, 8, 3, content=((1, 8),), kind="chat")
    with_copy, without = (
        run([prompt], by_class(chat=partial(HierarchicalCache, block_tokens=4, overlap=overlap)), cost=lambda: cost)
        for overlap in (False, True)
    )
    assert without.requests()[0]["finish_ns"] == 3 * 10
    assert with_copy.requests()[0]["finish_ns"] == 3 * 10 + 80

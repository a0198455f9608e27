"""Admission that asks for room for the whole prompt, though it takes its first piece alone."""

import pytest

import sim
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.ledger import DecodeLedger
from sim.request import Request
from sim.sequence import Sequence
from tests.sim.kv.sites import cache_on


def admitted(reserves_prompt: bool, prompt_tokens: int) -> bool:
    """Whether a first piece of 8 tokens is taken in where 6 of 10 blocks of 4 tokens are free."""
    cache, ledger = cache_on(PagedCache, 40, Lru, block_tokens=4, reserves_prompt=reserves_prompt), DecodeLedger(4)
    assert cache.admit(Sequence(Request(0, 0, 16, 1, 1)), 16, ledger)
    late = Sequence(Request(1, 0, prompt_tokens, 1, 1))
    taken = cache.admit(late, 8, ledger)
    assert cache.held_tokens == (16 + 8 if taken else 16)
    return taken


def test_a_prompt_without_room_waits_although_its_first_piece_has_some():
    assert admitted(False, 25)
    assert not admitted(True, 25)
    assert admitted(True, 24), "six blocks are free"


def test_a_prompt_whose_head_is_cached_asks_for_the_rest_alone():
    cache, ledger = cache_on(PagedCache, 40, Lru, block_tokens=4, reserves_prompt=True), DecodeLedger(4)
    first = Sequence(Request(0, 0, 20, 1, 1, content=((7, 20),)))
    assert cache.admit(first, 20, ledger)
    assert cache.admit(Sequence(Request(1, 0, 40, 1, 1, content=((7, 20), (8, 20)))), 4, ledger), "20 tokens are there"
    assert not cache.admit(Sequence(Request(2, 0, 40, 1, 1)), 4, ledger)


@pytest.mark.parametrize("seed", [0, 1])
def test_fewer_are_preempted_where_prompts_come_in_pieces(seed):
    short_of_memory = [
        "scenario.n_sessions=60", "scenario.rate=40", "hardware.kv_blocks=400", "cache.prefix_caching=false",
        "batching.max_num_batched_tokens=256", f"seed={seed}",
    ]  # fmt: skip
    eager, careful = (
        sim.simulate(*short_of_memory, f"cache.reserves_prompt={reserves}") for reserves in ("false", "true")
    )
    assert len(careful.requests) == len(eager.requests)
    assert 0 < len(careful.preemptions) < len(eager.preemptions)

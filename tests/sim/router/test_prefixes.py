"""What a router knows of the replicas' text: by probing, by its own book, by events."""

from functools import partial

import pytest

from sim.errors import ConfigError
from sim.kv.allocator import FirstFit
from sim.kv.contiguous import ContiguousCache
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.kv.reservation import Growing
from sim.request import Request
from sim.router import CacheEvents, PrefixAffinity, Prefixes, Probe, Sent
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, asked, serve

PAGED = partial(cache_on, PagedCache, 64, Lru, 4)
TEN_NS = partial(LinearCost, 10_000)


def text(number: int, at_ns: int, *pieces: tuple[int, int], output: int = 2) -> Request:
    return asked(number, at_ns, sum(n for _, n in pieces), output, content=pieces, output_id=-number - 1)


def known(prefixes: Prefixes, listed: list[Request], at_ns: dict[int, Request], kv=PAGED) -> list[int]:
    """How much of a prompt the first replica is taken to have, asked at some times."""
    seen = []

    def look(request: Request, house: House) -> None:
        now_ns = house.env.now_ns
        first = house.replicas[:1]
        (at_most,) = prefixes.found(request, first, now_ns)
        first[0].settle(now_ns)
        seen.extend(prefixes.found(request, first, now_ns))
        assert at_most >= seen[-1]

    meanwhile = {time: partial(look, request) for time, request in at_ns.items()}
    router = partial(PrefixAffinity, prefixes)
    serve(Listed(listed), router=router, replicas=2, kv=kv, cost=TEN_NS, meanwhile=meanwhile)
    return seen


PROMPT = text(0, 20, (7, 16), (8, 8))
ASKED = text(9, 0, (7, 16), (9, 8))  # begins with the same 16 tokens


def test_a_probe_finds_what_the_cache_would():
    """The prompt arrives at 20 and is admitted then: its blocks are found at once. 16 tokens are in common."""
    assert known(Probe(), [PROMPT], {19: ASKED, 21: ASKED, 500: ASKED}) == [0, 16, 16]


@pytest.mark.parametrize(("delay_ns", "found"), [(0, [0, 16, 16, 16]), (100, [0, 0, 0, 16])])
def test_events_are_known_after_the_delay(delay_ns, found):
    prefixes = CacheEvents(delay_ns * 1e-6)
    assert known(prefixes, [PROMPT], dict.fromkeys((19, 21, 119, 120), ASKED)) == found


def test_events_tell_of_answers_too():
    """Of 24 prompt tokens and 9 answered, all but the last computed: 32, eight blocks; the follow-up has 40."""
    first = text(0, 20, (7, 16), (8, 8), output=9)
    follow_up = text(5, 0, (7, 16), (8, 8), (-1, 9), (3, 7))
    at = {500: follow_up}
    assert known(CacheEvents(), [first], dict(at)) == known(Probe(), [first], dict(at)) == [32]
    assert known(Sent(4), [first], dict(at)) == [20], "a router's own book has the prompt only, but for its last token"


def test_events_tell_of_evictions():
    """64 slots of 4: a later prompt of 60 tokens takes all but one block; only it is found then."""
    other = text(1, 300, (70, 60))
    at = {299: ASKED, 350: ASKED}
    for prefixes in (Probe(), CacheEvents()):
        assert known(prefixes, [PROMPT, other], dict(at)) == [16, 0]
    assert known(Sent(4), [PROMPT, other], dict(at)) == [16, 16], "a router's own book does not know"


def test_with_no_delay_events_say_what_a_probe_says():
    """Prompts that overlap, in a cache that is too small for them, asked for after each."""
    listed = [text(i, 40 * i, (i % 3, 12), (i % 2, 8), (100 + i, 5), output=7) for i in range(20)]
    probes = {40 * i + 13: text(99, 0, (i % 3, 12), (i % 2, 8), (100 + i - 1, 5)) for i in range(20)}
    assert known(CacheEvents(), listed, dict(probes)) == known(Probe(), listed, dict(probes))


def test_the_book_keeps_what_was_sent_last():
    """Room for 6 blocks of 4 tokens. A prompt of 24 has five before its last token; then comes one of 13 with three."""
    sent = Sent(4, 6)

    class Place:
        index = 0

    first, second = text(0, 0, (1, 24)), text(1, 0, (2, 13))
    sent.sent(first, Place(), 0)
    assert sent.found(first, [Place()], 0) == [20]
    sent.sent(second, Place(), 0)
    assert sent.found(second, [Place()], 0) == [12]
    assert sent.found(first, [Place()], 0) == [0], "its first blocks are the oldest"
    sent.sent(first, Place(), 0)
    assert sent.found(first, [Place()], 0) == [20]


def test_events_need_a_cache_that_names_its_blocks():
    kv = partial(cache_on, ContiguousCache, 300, allocator=FirstFit, reservation=Growing(8, 1.5))
    with pytest.raises(ConfigError, match=r"router.prefixes takes events .* got a ContiguousCache; router=prefix_aff"):
        known(CacheEvents(), [PROMPT, text(1, 21, (1, 9))], {}, kv)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: CacheEvents(-1.0), "router.prefixes.delay_ms must be >= 0"),
        (lambda: Sent(0), "router.prefixes.block_tokens must be >= 1"),
        (lambda: Sent(16, 0), "router.prefixes.capacity_blocks must be >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(make, expected):
    with pytest.raises(ConfigError, match=expected):
        make()

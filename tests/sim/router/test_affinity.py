"""Routers that send a request where its text is."""

from collections import Counter
from functools import partial

import pytest

from sim.errors import ConfigError
from sim.fleet import Fleet
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.request import Request
from sim.router import ARRIVAL, PrefixAffinity, Prefixes, Probe, SessionAffinity
from tests.sim.kv.sites import cache_on
from tests.sim.router.test_load import Loaded, fleet_of, served_by
from tests.sim.serving import LinearCost, Listed, asked, serve


def placed(router, fleet: Fleet, request: Request) -> int:
    return fleet.open.index(router.place(request, ARRIVAL, fleet, 0))


class Numbered(Loaded):
    """With an index, which sessions are hashed with."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def test_a_session_stays_and_moves_only_when_its_replica_goes():
    fleet = fleet_of(*(Numbered(i) for i in range(5)))
    router = SessionAffinity()

    def homes() -> list[int]:
        return [
            router.place(asked(0, 0, 4, 1, session_id=session), ARRIVAL, fleet, 0).index for session in range(3_000)
        ]

    before = homes()
    assert homes() == before
    for n in Counter(before).values():
        assert abs(n - 600) < 4 * (3_000 * 0.2 * 0.8) ** 0.5
    fleet.drain(2)
    after = homes()
    assert all(now == then for now, then in zip(after, before, strict=True) if then != 2)
    assert {now for now, then in zip(after, before, strict=True) if then == 2} == {0, 1, 3, 4}


def test_what_is_of_no_session_goes_to_the_least_loaded():
    assert placed(SessionAffinity(), fleet_of(Loaded(3), Loaded(2), Loaded(2)), asked(0, 0, 4, 1)) == 1


class Told(Prefixes):
    """Knows what it was told at the start, and notes what it is told later."""

    def __init__(self, *n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.n_too_many = 0
        self.went: list[int] = []

    def found(self, request, replicas, now_ns):
        return [self.n_tokens[r.n_outstanding % 10] + self.n_too_many * (not r.is_settled) for r in replicas]

    def sent(self, request, replica, now_ns):
        self.went.append(replica.n_outstanding)


@pytest.mark.parametrize(
    ("slack", "loads", "chosen"),
    [
        (0, (0, 1, 2), 0),  # the least loaded alone is looked at
        (1, (0, 1, 2), 1),  # replica i's load is its last digit, and 0, 32 and 64 tokens of the prompt are there
        (2, (0, 1, 2), 2),
        (9, (0, 11, 2), 2),  # too busy for what it has
        (40, (0, 21, 12), 2),
        (40, (0, 12, 22), 1),  # both have as much: the less loaded
    ],
)
def test_the_longest_prefix_within_the_slack_wins(slack, loads, chosen):
    prefixes = Told(0, 32, 64)
    fleet = fleet_of(*(Loaded(load) for load in loads))
    for prefixes.n_too_many in (0, 5):
        assert placed(PrefixAffinity(prefixes, slack), fleet, asked(0, 0, 99, 1)) == chosen
    assert prefixes.went == [loads[chosen]] * 2


class Fading(Told):
    """What the second and the third are said to have, they have no more once somebody looks."""

    def found(self, request, replicas, now_ns):
        return [self.n_tokens[r.n_outstanding] if r.n_outstanding == 0 or not r.is_settled else 8 for r in replicas]


def test_who_is_said_to_have_most_is_looked_at_before_it_is_chosen():
    fleet = fleet_of(*(Loaded(load) for load in (0, 1, 2)))
    assert placed(PrefixAffinity(Fading(16, 32, 64), 9), fleet, asked(0, 0, 99, 1)) == 0
    assert [replica.is_settled for replica in fleet.open] == [True, True, True]


def test_slack_in_tokens_is_of_the_prompts_outstanding():
    fleet = fleet_of(Loaded(0, 100), Loaded(1, 150), Loaded(2, 151))
    assert placed(PrefixAffinity(Told(0, 32, 64), 50, "tokens"), fleet, asked(0, 0, 99, 1)) == 1


def test_a_negative_slack_is_refused():
    with pytest.raises(ConfigError, match=r"router.slack must be >= 0 \[requests\], got -1"):
        PrefixAffinity(Probe(), -1)


def test_probed_a_prompt_goes_where_its_beginning_is():
    """A takes head 1, B (less loaded) head 2; then each head finds its own, whichever is less loaded."""
    heads = [1, 2, 2, 1, 2, 1]
    listed = [
        asked(i, 30 * i, 24, 9, content=((head, 16), (100 + i, 8)), output_id=-i - 1) for i, head in enumerate(heads)
    ]
    listed[1] = listed[1]._replace(arrival_ns=5)  # while A is at work
    how = {"replicas": 2, "kv": partial(cache_on, PagedCache, 256, Lru, 4), "cost": partial(LinearCost, 1_000)}
    house = serve(Listed(listed), router=lambda: PrefixAffinity(Probe(), 4), **how)
    assert served_by(house) == {0: 0, 1: 1, 2: 1, 3: 0, 4: 1, 5: 0}
    assert [row["cached_tokens"] for row in sorted(house.requests(), key=lambda row: row["id"])] == [
        0,
        0,
        16,
        16,
        16,
        16,
    ]

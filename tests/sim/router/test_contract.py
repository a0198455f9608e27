"""One suite for all routers: every file of conf/router/, before replicas that serve.

That runs with jumps equal single steps with each of them, and lose nobody, is in tests/laws.
"""

from functools import partial

import pytest

from sim.batching import Chunked
from sim.engine import Replica
from sim.fleet import Fleet
from sim.kv.eviction import Lru
from sim.kv.paged import PagedCache
from sim.request import Request
from sim.router import ARRIVAL, Router
from tests.sim.chosen import each_of
from tests.sim.kv.sites import cache_on
from tests.sim.serving import House, LinearCost, Listed, asked, serve

ROUTERS = each_of("router")
TEN_NS = partial(LinearCost, 10_000)


def talk(number: int, at_ns: int, answer: int = 9) -> Request:
    """A turn of one of three conversations, behind a head that all share."""
    session = number % 3
    content = ((1, 32), (100 + session, 16), (200 + number, 8))
    return asked(number, at_ns, 56, answer, content=content, output_id=-number - 1, session_id=session)


TALKS = [talk(i, 37 * i) for i in range(24)]


class Watching(Router):
    """A router between traffic and another one, which notes what that one was shown and what it chose."""

    def __init__(self, router: Router, answer: int = 0) -> None:
        self.router = router
        self.answer = answer
        self.chosen: list[int] = []

    def place(self, request: Request, stage: str, fleet: Fleet, now_ns: int) -> Replica:
        open_before = list(fleet.open)
        seen = request._replace(output_tokens=self.answer or request.output_tokens)
        if self.answer == 0:
            seen = request
        for replica in fleet.open:
            replica.settle(now_ns)
        before = [state(replica, request) for replica in fleet.open]
        replica = self.router.place(seen, stage, fleet, now_ns)
        assert fleet.open == open_before
        assert replica in fleet.open
        assert before == [state(replica, request) for replica in fleet.open], "who looks leaves no trace"
        self.chosen.append(replica.index)
        return replica


def state(replica: Replica, request: Request) -> tuple[object, ...]:
    """All that looking could disturb."""
    kv = replica.kv
    queue = len(replica.batch.waiting)
    return kv.held_tokens, kv.idle_tokens, kv.match(request), dict(kv.counts()), queue, replica.n_outstanding


def watched(name: str, answer: int = 0, **how: object) -> tuple[list[int], House]:
    router = Watching(ROUTERS[name](), answer)
    kv = partial(cache_on, PagedCache, 640, Lru, 4)
    house = serve(
        Listed(TALKS),
        scheduler=partial(Chunked, 64, 4),
        kv=kv,
        cost=TEN_NS,
        router=lambda: router,
        **{"replicas": 4, **how},
    )
    return router.chosen, house


@pytest.mark.parametrize("name", ROUTERS)
def test_it_takes_an_open_replica_and_looking_leaves_no_trace(name):
    chosen, house = watched(name)
    assert len(chosen) == len(TALKS) == len(house.requests())


@pytest.mark.parametrize("name", ROUTERS)
def test_the_same_run_is_routed_the_same_way(name):
    assert watched(name)[0] == watched(name)[0]


@pytest.mark.parametrize("name", ROUTERS)
def test_it_takes_no_note_of_how_long_the_answer_will_be(name):
    """A router that is shown other lengths chooses the same."""
    assert watched(name)[0] == watched(name, answer=1000)[0]


@pytest.mark.parametrize("name", ROUTERS)
def test_one_replica_gets_everything(name):
    assert set(watched(name, replicas=1)[0]) == {0}


@pytest.mark.parametrize("name", ROUTERS)
def test_it_follows_a_fleet_that_grows_and_shrinks(name):
    """At 200 replica 4 comes, at 400 all others but 4 go; at 600 replica 5 comes."""

    def shrink(house: House) -> None:
        for index in range(4):
            house.fleet.drain(index)

    def grow(house: House) -> None:
        house.fleet.add()

    chosen, house = watched(name, meanwhile={200: grow, 400: shrink, 600: grow})
    late = [index for index, request in zip(chosen, TALKS, strict=True) if request.arrival_ns > 400]
    assert set(late) <= {4, 5}
    assert len(house.requests()) == len(TALKS)


@pytest.mark.parametrize("name", ROUTERS)
def test_it_serves_what_has_no_text_and_no_session(name):
    listed = [asked(i, 5 * i, 4, 2) for i in range(12)]
    house = serve(Listed(listed), router=ROUTERS[name], replicas=3)
    assert len(house.requests()) == 12


def test_the_stage_of_an_arrival_is_told():
    stages = []

    class Noting(Router):
        def place(self, request, stage, fleet, now_ns):
            stages.append(stage)
            return fleet.open[0]

    serve(Listed([asked(0, 0, 4, 1)]), router=Noting)
    assert stages == [ARRIVAL]

"""Routers that look at nothing."""

from collections import Counter

from sim.router import ARRIVAL, Random, RoundRobin
from tests.sim.router.test_load import Loaded, fleet_of, served_by
from tests.sim.serving import Listed, asked, serve


def test_round_robin_takes_each_in_turn():
    house = serve(Listed([asked(i, i, 4, 2) for i in range(5)]), replicas=3, router=RoundRobin)
    assert served_by(house) == {0: 0, 1: 1, 2: 2, 3: 0, 4: 1}


def test_random_takes_each_as_often_and_another_seed_takes_others():
    fleet = fleet_of(*(Loaded(i) for i in range(5)))

    def taken(seed: int) -> list[int]:
        router = Random(seed)
        return [router.place(asked(0, 0, 4, 1), ARRIVAL, fleet, 0).n_outstanding for _ in range(10_000)]

    assert taken(1) == taken(1) != taken(2)
    for n in Counter(taken(1)).values():
        assert abs(n - 2_000) < 4 * (10_000 * 0.2 * 0.8) ** 0.5

"""Replicas come and go."""

import pytest

from sim.errors import InvariantError
from tests.sim.serving import House, Listed, asked, serve


def served_by(house: House) -> dict[int, int]:
    return {row["id"]: row["replica"] for row in house.requests()}


def test_an_added_replica_takes_its_turn():
    house = serve(Listed([asked(i, i, 4, 2) for i in range(4)]), meanwhile={2: lambda house: house.fleet.add()})
    assert served_by(house) == {0: 0, 1: 0, 2: 1, 3: 0}


def test_a_drained_replica_serves_what_it_has_and_takes_nothing_more():
    listed = [asked(i, i, 4, 9) for i in range(4)]
    house = serve(Listed(listed), replicas=2, meanwhile={2: lambda house: house.fleet.drain(0)})
    assert served_by(house) == {0: 0, 1: 1, 2: 1, 3: 1}


def test_a_replica_is_drained_once():
    def twice(house: House) -> None:
        house.fleet.drain(0)
        with pytest.raises(InvariantError, match="replica 0 is drained"):
            house.fleet.drain(0)

    serve(Listed([asked(0, 0, 4, 1)]), replicas=2, meanwhile={5: twice})

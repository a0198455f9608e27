"""Scores that are added."""

import pytest

from sim.errors import ConfigError
from sim.router import ARRIVAL, Weighted
from tests.sim.router.test_affinity import Told
from tests.sim.router.test_load import Loaded, Slots, fleet_of
from tests.sim.serving import asked


class Scored(Loaded):
    def __init__(self, n_outstanding: int, n_waiting: int, n_running: int, held: int) -> None:
        super().__init__(n_outstanding, kv=Slots(held))
        self.n_waiting = n_waiting
        self.batch = self
        self._n_running = n_running

    def n_running(self) -> int:
        return self._n_running


def three() -> list[Scored]:
    """(prefix of 80 tokens, queue, running, KV): (0, 4, 2, 10 %), (40, 2, 6, 50 %), (80, 0, 10, 90 %)."""
    return [Scored(0, 4, 2, 10), Scored(1, 2, 6, 50), Scored(2, 0, 10, 90)]


@pytest.mark.parametrize(
    ("weights", "scores"),
    [
        ({"prefix": 1.0}, [0, 0.5, 1]),
        ({"queue": 1.0}, [0, 0.5, 1]),
        ({"running": 1.0}, [1, 0.5, 0]),
        ({"kv": 1.0}, [0.9, 0.5, 0.1]),
        ({"prefix": 3.0, "queue": 2.0, "kv": 1.0, "running": 0.5}, [0.9 + 0.5, 1.5 + 1 + 0.5 + 0.25, 3 + 2 + 0.1]),
    ],
)
def test_scores_are_added_by_weight(weights, scores):
    none = {"prefix": 0.0, "queue": 0.0, "kv": 0.0, "running": 0.0}
    router = Weighted(Told(0, 40, 80), **{**none, **weights})
    parts = zip(router.inside(asked(0, 0, 80, 1), three(), 0), router.outside(three()), strict=True)
    assert [sum(both) for both in parts] == pytest.approx(scores)
    best = router.place(asked(0, 0, 80, 1), ARRIVAL, fleet_of(*three()), 0)
    assert best.n_outstanding == scores.index(max(scores))


def test_where_all_are_equal_the_one_with_fewest_outstanding_is_taken():
    fleet = fleet_of(Scored(2, 1, 1, 5), Scored(1, 1, 1, 5), Scored(1, 1, 1, 5))
    assert Weighted(Told(8, 8, 8), queue=1.0).place(asked(0, 0, 80, 1), ARRIVAL, fleet, 0) is fleet.open[1]


def test_weights_of_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"must not all be 0"):
        Weighted(Told(), 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match=r"router\.kv must be >= 0 and finite"):
        Weighted(Told(), kv=-1.0)

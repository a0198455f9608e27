"""Generation without end: constant memory in the model that is simulated and in the simulator; windows that move."""

import gc
import tracemalloc
from dataclasses import dataclass, field
from functools import partial

import pytest

from sim.kv.eviction import Lru
from sim.kv.pruned import PrunedCache
from sim.kv.retention import Kept, Window
from sim.run import run
from tests.sim.kv.composed import configured
from tests.sim.kv.sites import cache_on
from tests.sim.serving import LinearCost, Listed, asked, serve

MILLION = 1_000_000


def generated(n_tokens, *choices, **settings):
    """One answer of so many tokens: the result, and the memory that simulating it took at most [B]."""
    config = configured("scenario=synthetic", *choices, **settings)
    listed = Listed([asked(0, 0, 100, n_tokens)])
    gc.collect()  # what an earlier test left is not counted, nor collected in between
    tracemalloc.start()
    try:
        result = run(config, scenario=listed, cost=LinearCost(10_000_000, per_context_ps=1_000))
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_million_tokens_take_no_more_memory_than_ten_thousand_neither_there_nor_here():
    generated(2_000, "cache=streaming")  # what is imported and composed once
    short, short_bytes = generated(10_000, "cache=streaming")
    long, long_bytes = generated(MILLION, "cache=streaming")
    assert long.requests.column("output_tokens").tolist() == [MILLION]
    assert long.iterations.column("held_tokens").max() == short.iterations.column("held_tokens").max() == 1024
    assert len(long.iterations) == len(short.iterations) < 20, "a row is a run of iterations"
    assert long_bytes - short_bytes < MILLION / 4, "a token kept anywhere would take a byte at the least"
    assert long.counts[0]["attended_frac"] == 1024 / (100 + MILLION - 1)


@pytest.mark.parametrize(
    ("settings", "most_tokens"),
    [
        ({"cache__retention__overlap": 510}, 1024),
        ({"cache__retention__overlap": 500, "cache__retention__dynamic": True}, 2044),
    ],
    ids=["overlapping", "dynamic"],
)
def test_a_window_that_runs_full_holds_no_more_either_and_writes_a_row_each_time_it_does(settings, most_tokens):
    result, _ = generated(MILLION, "cache=streaming", **settings)
    assert result.requests.column("output_tokens").tolist() == [MILLION]
    rows = result.iterations
    reached = rows.column("live_tokens") + rows.column("n_steps") * rows.column("decode_seqs")
    assert reached.max() == most_tokens
    assert rows.column("held_tokens").max() <= most_tokens
    n_cuts = MILLION / (most_tokens - 4 - settings["cache__retention__overlap"])
    assert len(rows) <= 2 * n_cuts + 20


@pytest.mark.parametrize("cache", ["static", "dynamic", "predictive", "paged", "hierarchical"])
def test_a_models_own_window_bounds_every_cache(cache):
    """Mistral 7B attends to its last 4,096 tokens; a growing extent holds the old one too while it is copied."""
    result, _ = generated(30_000, f"cache={cache}", "model=mistral-7b")
    live, held = (result.iterations.column(name) for name in ("live_tokens", "held_tokens"))
    assert result.requests.column("output_tokens").tolist() == [30_000]
    assert live.max() == 4096
    assert held[-1] == 4096
    assert held.max() <= 2 * 4096
    assert len(result.iterations) < 60


def test_a_models_own_window_and_a_narrower_one_of_the_cache_are_one_mechanism():
    narrow, _ = generated(MILLION, "cache=streaming", "model=mistral-7b")
    native, _ = generated(30_000, "cache=streaming", "model=mistral-7b", cache__retention__window=8_000)
    assert narrow.iterations.column("live_tokens").max() == 1024
    assert native.iterations.column("live_tokens").max() == 4096, "the model attends no further"


@dataclass
class Witnessed:
    """A retention that is watched: when it was asked, by whom, what it saw and said."""

    watched: Window
    said: list[tuple[int, float, int]] = field(default_factory=list)  # (resident, pressure, room)

    @property
    def window_tokens(self) -> int | None:
        return self.watched.window_tokens

    @property
    def most_tokens(self) -> int | None:
        return self.watched.most_tokens

    def kept(self, computed_tokens: int, resident_tokens: int, room_tokens: int | None, pressure_frac: float) -> Kept:
        kept = self.watched.kept(computed_tokens, resident_tokens, room_tokens, pressure_frac)
        self.said.append((resident_tokens, pressure_frac, kept.room_tokens))
        return kept


def test_a_dynamic_window_widens_while_memory_is_free_narrows_in_a_crowd_and_widens_again():
    witnessed = Witnessed(Window(64, 4, overlap=16, dynamic=True))
    alone = asked(0, 0, 10, 6_000)
    crowd = [asked(i, 2_000_000, 10, 1_500) for i in range(1, 31)]
    house = serve(
        Listed([alone, *crowd]),
        kv=partial(cache_on, PrunedCache, 1024, Lru, witnessed, 4),
        cost=partial(LinearCost, 1_000_000),
        max_len=1 << 20,
    )
    rooms = [room for _, _, room in witnessed.said]
    pressures = [pressure for _, pressure, _ in witnessed.said]
    assert len(house.requests()) == 31
    assert {4 + 32, 4 + 64, 4 + 128} == set(rooms), "half the base, the base, twice the base"
    crowded = [i for i, pressure in enumerate(pressures) if pressure > 0.9]
    first, last = crowded[0], crowded[-1]
    assert set(rooms[1:first]) >= {132}, "alone before the crowd"
    assert min(rooms[first : last + 1]) == 36, "in the crowd"
    assert rooms[-1] == 132, "alone again"
    assert max(row["held_tokens"] for row in house.iterations()) <= 1024
    for (_, pressure, room), (resident, _, _) in zip(witnessed.said[1:], witnessed.said[1:], strict=True):
        assert 36 <= room <= 132
        assert resident <= 132
        assert pressure <= 1.0


def test_attention_that_sees_more_of_the_text_in_a_wider_window_is_reported():
    seen = {
        window: generated(20_000, "cache=streaming", cache__retention__window=window)[0].counts[0]["attended_frac"]
        for window in (252, 508, 1020)
    }
    assert seen == {window: (window + 4) / 20_099 for window in seen}

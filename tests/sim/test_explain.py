"""A small run, drawn: the map shows what the cache holds, and events are those of the run."""

import json
from itertools import islice

import pytest
from rich.console import Console

from sim.config import choices_of, compose, make
from sim.errors import ConfigError
from sim.explain import Explain, First
from sim.kv.drawing import EMPTY, FREE, IDLE, SHARED

CACHES = [name for name in choices_of("cache") if name != "by_class"]
FEW = ("task=explain", "scenario=chatbot", "scenario.rate=50")


def explained(*overrides, **settings):
    config = compose([*FEW, *overrides])
    return Explain(**{"slots": 4096} | settings).watched(config, make(config["scenario"], "scenario"))


def test_only_the_first_requests_are_served():
    scenario = make(compose(list(FEW))["scenario"], "scenario")
    assert [r.id for r in First(scenario, 3).requests(0)] == [r.id for r in islice(scenario.requests(0), 3)]
    assert not hasattr(First(scenario, 3), "follow_up")


@pytest.mark.parametrize("cache", CACHES)
def test_the_map_holds_what_the_cache_counts_after_every_iteration(cache):
    found = explained(f"cache={cache}")
    assert len(found.frames) > 50
    for i, frame in enumerate(found.frames):
        drawn = sum(owner not in (FREE, IDLE) for owner in frame.owners)
        assert drawn == frame.n_held, i
        assert sum(owner == IDLE for owner in frame.owners) == frame.n_idle, i
        assert set(frame.owners) - {FREE, IDLE, EMPTY, SHARED} <= set(frame.running), i


def test_what_several_read_is_in_all_their_tables_and_nothing_else_is():
    found = explained("cache=paged")
    frame = found.frames[found.fullest()]
    readers = [sum(unit in of for of in frame.tables.values()) for unit in range(found.n_units)]
    for unit, owner in enumerate(frame.owners):
        assert (readers[unit] > 1) == (owner == SHARED), unit
    assert sum(owner == SHARED for owner in frame.owners) == 512 // 16, "the system prompt that all begin with"


def test_a_static_extent_is_one_piece_and_mostly_empty():
    found = explained("cache=static")
    frame = found.frames[found.fullest()]
    units = sorted(frame.tables[frame.running[0]])
    assert units == list(range(units[0], units[-1] + 1))
    assert sum(owner == EMPTY for owner in frame.owners) > 0


def test_events_are_those_of_the_run():
    found = explained("cache=paged")
    kinds = [kind for _, kind, _ in found.events()]
    assert kinds.count("end") == len(found.requests) == 12
    preempted = sum(row[found.columns.index("n_preemptions")] for row in found.requests)
    assert kinds.count("preempt") == preempted > 0
    cached = [row[found.columns.index("cached_tokens")] for row in found.requests]
    assert kinds.count("hit") == sum(n > 0 for n in cached)


def test_the_task_writes_a_page_and_numbers_and_says_what_happened(tmp_path):
    config, console = compose(list(FEW)), Console(record=True, width=100)
    task = make({**config["task"], "slots": 4096}, "task")
    task(config=config, scenario=make(config["scenario"], "scenario"), out=tmp_path, console=console)
    written = json.loads((tmp_path / "explain.json").read_text())
    assert len(written["iterations"]) > 50
    assert "What cache=paged does" in (tmp_path / "explain.html").read_text()
    assert "12 requests took " in console.export_text()


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ((), {"requests": 0}, "task.requests must be a whole number >= 1"),
        ((), {"iterations": 5}, "task.iterations must be >= what the traffic takes"),
        (("cache=by_class", "classify=true"), {}, "task=explain draws one cache"),
    ],
)
def test_what_cannot_be_drawn_is_refused(overrides, settings, message):
    with pytest.raises(ConfigError, match=message):
        explained(*overrides, **settings)

import json
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from scenarios.replay import Replay
from sim import simulate
from sim.config import choices_of, compose, make
from sim.errors import ConfigError
from sim.hit_rate import HitRate, hits, made_by, unlimited
from sim.kv.eviction import BlankFirst, Fifo, Lru
from sim.kv.replay import Touch, Trace, all_requests, read, replay
from sim.kv.whole_requests import Requests
from sim.report.hit_rate import ORDERS, curve
from sim.request import Request
from tests.sim.report.browser import CHROMIUM, Browser

TRACE = Path("../shared/data/traces/mooncake/conversation_trace.jsonl.gz")


def request(id_: int, *content: tuple[int, int], prompt_tokens: int | None = None) -> Request:
    n_tokens = prompt_tokens or sum(n for _, n in content)
    return Request(id_, id_, n_tokens, 1, 1, content=content or None)


class Prompts:
    """A scenario of given requests."""

    def __init__(self, *requests: Request) -> None:
        self._requests = requests

    def requests(self, seed: int):
        return iter(self._requests)

    def follow_up(self, finished):
        return None


def test_a_prompt_is_cut_into_blocks_and_equal_prefixes_get_equal_numbers():
    trace = read(
        [request(0, (7, 8), (8, 6)), request(1, (7, 8), (9, 6)), request(2, (7, 8), (8, 6)), request(3, (8, 6))], 4
    )
    assert trace.blocks == [[0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 2, 3], [6, 7]]
    assert (trace.n_references, replay(trace, Lru(1)).n_full, trace.n_distinct) == (14, 10, 8)


def test_text_without_identity_takes_room_and_never_hits():
    prompts = [
        request(0, (1, 8)),
        request(1, prompt_tokens=12),
        request(2, (1, 8)),
        request(3, (1, 4), prompt_tokens=8),
    ]
    trace = read(prompts, 4)
    assert trace.blocks == [[0, 1], [], [0, 1], [0]]
    roomy, tight = replay(trace, Lru(5)), replay(trace, Lru(3))
    assert (roomy.hit_blocks, roomy.hit_tokens, roomy.n_references) == (3, 12, 9)
    assert tight.hit_blocks == 1  # request 1 pushes out 0 and 1; request 3 finds what request 2 brought back


def test_a_hit_ends_where_the_first_block_is_missing():
    trace = read([request(0, (1, 12)), request(1, (2, 4)), request(2, (1, 12))], 4)
    tail_first = replay(trace, Lru(3))
    head_first = replay(trace, Lru(3), "head_first")
    assert (tail_first.hit_blocks, tail_first.resident_blocks) == (2, 2)  # the leaf made room
    assert (head_first.hit_blocks, head_first.resident_blocks) == (0, 0)  # the root did, and a stream chases its tail
    once = replay(trace, Lru(3), "head_first_once")
    assert (once.hit_blocks, once.resident_blocks) == (0, 2)


def test_an_incomplete_last_block_counts_its_own_tokens_only():
    trace = read([request(0, (1, 10)), request(1, (1, 10))], 4)
    hits = replay(trace, Lru(10))
    assert (hits.hit_blocks, hits.hit_full, hits.hit_tokens) == (3, 2, 10)
    assert (hits.block_frac, hits.full_frac, hits.token_frac) == (0.5, 0.5, 0.5)


def test_of_a_prompt_longer_than_the_cache_the_beginning_is_kept():
    trace = read([request(0, (1, 40)), request(1, (1, 40))], 4)
    assert replay(trace, Lru(6)).hit_blocks == 6


prompts = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=4), min_size=1, max_size=25
)


def slow_lru_hits(trace: Trace, capacity: int) -> int:
    """Tail-first LRU in the plainest words: a list of blocks, the most recent last."""
    recent: list[int] = []
    n_hits = 0
    for blocks in trace.blocks:
        for block in blocks:
            if block not in recent:
                break
            n_hits += 1
        recent = [block for block in recent if block not in blocks] + blocks[::-1]
        recent = recent[max(0, len(recent) - capacity) :]
    return n_hits


@given(prompts=prompts, capacity=st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_the_bulk_replay_equals_a_plain_list(prompts, capacity):
    trace = read([request(i, *content) for i, content in enumerate(prompts)], 4)
    assert replay(trace, Lru(capacity)).hit_blocks == slow_lru_hits(trace, capacity)


POLICIES = choices_of("eviction")
mixed_prompts = st.lists(
    st.one_of(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=4),
        st.integers(1, 30),  # tokens whose text has no identity
    ),
    min_size=1,
    max_size=25,
)


def traced(prompts: list, n_warmup: int = 0) -> Trace:
    """Prompts as a trace in blocks of 4."""
    trace = read(
        [
            request(i, prompt_tokens=prompt) if isinstance(prompt, int) else request(i, *prompt)
            for i, prompt in enumerate(prompts)
        ],
        4,
    )
    trace.n_warmup = min(n_warmup, len(prompts) - 1)
    return trace


@pytest.mark.parametrize("policy", POLICIES)
@given(prompts=prompts)
@settings(max_examples=20, deadline=None)
def test_every_policy_hits_all_that_repeats_if_nothing_must_go(policy, prompts):
    trace = traced(prompts)
    maker = made_by(policy, {}, trace)
    found = replay(trace, maker(1000))
    assert found.resident_blocks == len(trace.future()) - trace.n_distinct == found.hit_blocks
    assert found.evicted_blocks == 0
    assert hits(maker, Requests(trace), [1000], "tail_first") == [found]
    assert unlimited(trace) == found


@pytest.mark.parametrize("touch", get_args(Touch))
@pytest.mark.parametrize("policy", POLICIES)
@given(prompts=mixed_prompts, capacity=st.integers(1, 40), n_warmup=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_the_quick_ways_count_what_the_replay_of_every_block_counts(policy, touch, prompts, capacity, n_warmup):
    trace = traced(prompts, n_warmup)
    if policy == "belady":  # its class knows no references to what a cache was too small to take in
        capacity += max(map(len, trace.blocks))
    maker = made_by(policy, {}, trace)
    capacities = [capacity, capacity + 7]
    assert hits(maker, Requests(trace), capacities, touch) == [replay(trace, maker(one), touch) for one in capacities]


@cache
def composed_with(blank_first: bool) -> dict:
    return compose(["task=hit_rate", f"eviction.blank_first={blank_first}"])


@pytest.mark.parametrize("blank_first", [False, True])
@given(prompts=mixed_prompts, capacity=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_lru_is_replayed_as_the_engine_frees_blocks_without_content(blank_first, prompts, capacity):
    config = composed_with(blank_first)
    trace = traced(prompts)
    maker = made_by("lru", config, trace)
    assert hits(maker, Requests(trace), [capacity], "tail_first") == [replay(trace, maker(capacity))]


@pytest.mark.parametrize("policy", ["fifo", "lfu", "belady", "lru"])
def test_the_quick_ways_agree_where_much_is_held_while_room_is_made(policy):
    random = np.random.default_rng(7)
    for _ in range(40):
        conversations = [[(key, 12)] for key in range(6)]
        prompts = []
        for number in range(120):  # turns of six conversations, each longer than the one before until it starts anew
            talk = conversations[int(random.integers(6))]
            talk[1:] = [] if len(talk) > 4 else [*talk[1:], (100 + number, int(random.integers(1, 20)))]
            prompts.append([*talk])
        trace = traced(prompts)
        capacities = [int(capacity) for capacity in random.integers(20, 60, 2)]
        maker = made_by(policy, {}, trace)
        found = hits(maker, Requests(trace), capacities, "tail_first")
        assert found == [replay(trace, maker(capacity)) for capacity in capacities]


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"belady"}))
@given(prompts=prompts, capacity=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_no_policy_finds_more_single_blocks_than_the_bound(policy, prompts, capacity):
    trace = traced([[(key, min(n_tokens, 4))] for segments in prompts for key, n_tokens in segments])
    found, bound = (
        hits(made_by(one, {}, trace), Requests(trace), [capacity], "tail_first")[0] for one in (policy, "belady")
    )
    assert found.resident_blocks <= bound.resident_blocks


def test_hits_misses_and_evictions_counted_by_hand():
    trace = traced([[(1, 8)], [(2, 4)], [(1, 8)], [(3, 8)], [(1, 8)]])  # blocks a b | c | a b | d e | a b
    lru = hits(made_by("lru", {}, trace), Requests(trace), [3], "tail_first")[0]
    # a b c fit; a b are found; d e push out c and then b, the leaf; a is found, b comes back in e's place
    assert (lru.hit_blocks, lru.missed_blocks, lru.evicted_blocks) == (3, 6, 3)
    trace.n_warmup = 3
    lru = hits(made_by("lru", {}, trace), Requests(trace), [3], "tail_first")[0]
    assert (lru.n_references, lru.hit_blocks, lru.missed_blocks, lru.evicted_blocks) == (4, 1, 3, 3)
    assert lru.token_frac == 0.25


def test_the_chosen_policy_is_replayed_with_its_settings():
    config = compose(["task=hit_rate", "eviction=s3fifo", "eviction.order.small_frac=0.5"])
    trace = traced([[(i * i % (23 + i % 9), 4)] for i in range(400)])
    own, file = (
        hits(made_by("s3fifo", given, trace), Requests(trace), [12], "head_first")[0].hit_blocks
        for given in (config, {**config, "choices": {"eviction": "lru"}})
    )
    assert own != file


@pytest.mark.skipif(
    not TRACE.exists(), reason=f"{TRACE} is not there: the Mooncake trace is not part of this repository"
)
def test_the_mooncake_trace_meets_its_published_hit_rates():
    trace = read(Replay(str(TRACE)).requests(0), 512)
    golden = json.loads((TRACE.parent / "golden_hit_rates.json").read_text())["conversation"]["request_level"]["10000"]
    tail_first = hits(made_by("lru", {}, trace), Requests(trace), [10_000], "tail_first")[0]
    fifo = replay(trace, BlankFirst(10_000, Fifo), "head_first_once")
    ours = [tail_first.block_frac, tail_first.full_frac, tail_first.token_frac, fifo.block_frac]
    theirs = [golden["lru_tail_first"][k] for k in ("block", "fullblk", "token")] + [golden["fifo_head_first"]["block"]]
    assert ours == pytest.approx(theirs, abs=5e-7)


def test_the_task_writes_what_it_prints(tmp_path):
    scenario = Prompts(*(request(i, (i % 3, 8), (i % 5, 8)) for i in range(40)))
    console = Console(record=True, width=120)
    HitRate(["lru", "belady"], [4, 400], block_tokens=4)(scenario=scenario, seed=0, out=tmp_path, console=console)
    written = json.loads((tmp_path / "hit_rate.json").read_text())
    assert [(p["policy"], p["capacity_blocks"]) for p in written["points"]] == [
        ("lru", 4),
        ("lru", 400),
        ("belady", 4),
        ("belady", 400),
    ]
    assert written["n_block_references"] == 160
    for point in written["points"]:
        assert point["hit_blocks"] + point["missed_blocks"] == 160
        assert f"{point['missed_blocks']}" in console.export_text(clear=False)
    assert [p["evicted_blocks"] > 0 for p in written["points"]] == [True, False, True, False]
    assert written["points"][1]["token_frac"] == written["unlimited"]["token_frac"] > written["points"][0]["token_frac"]
    assert f"{written['unlimited']['token_frac']:.4f}" in console.export_text()
    assert "belady" in (tmp_path / "hit_rate.html").read_text()


@pytest.mark.parametrize("touch", get_args(Touch))
def test_the_table_says_in_which_order_blocks_were_touched_and_that_answers_do_not_count(touch, tmp_path):
    console = Console(record=True, width=120)
    task = HitRate(["fifo"], [4], block_tokens=4, touch=touch)
    task(scenario=Prompts(request(0, (0, 8))), seed=0, out=tmp_path, console=console)
    assert f"answers do not count; {touch}: {ORDERS[touch]}" in " ".join(console.export_text().split())


def test_the_curve_has_a_line_per_policy_over_rising_capacity():
    trace = read([request(0, (1, 8)), request(1, (1, 8))], 4)
    points = HitRate(["lru", "fifo"], [30, 20]).points(trace, {})
    figure = curve(points, points[0].hits, 4)
    assert [(line["name"], line["x"], line["y"]) for line in figure.traces] == [
        ("lru", [20, 30], [50, 50]),
        ("fifo", [20, 30], [50, 50]),
        ("unlimited", [20, 30], [50, 50]),
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/setup_chromium.sh as root")
def test_the_page_is_drawn_offline_in_the_dark_and_no_wider_than_a_phone(tmp_path):
    scenario = Prompts(*(request(i, (i % 3, 8), (i % 5, 8)) for i in range(40)))
    task = HitRate(["lru", "fifo", "belady"], [4, 8, 400], block_tokens=4)
    task(scenario=scenario, seed=0, out=tmp_path, console=Console(record=True))
    with Browser(tmp_path / "profile") as browser:
        phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.send("Emulation.setDeviceMetricsOverride", **phone)
        browser.open(tmp_path / "hit_rate.html", scheme="dark")
        assert browser.n_drawn() == 1
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 28)"
        assert (browser.problems, browser.requests) == ([], [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policies": ["lrru"]}, "policies: lrru is not a choice; did you mean lru"),
        ({"policies": []}, r"policies must be a list of at least one, got \[\]"),
        ({"policies": "lru"}, "policies must be a list of at least one, got 'lru'"),
        ({"capacity_blocks": [10, 0]}, r"capacity_blocks must be whole numbers >= 1 \[blocks\], got 0"),
        ({"block_tokens": 0}, r"task.block_tokens must be >= 1 \[tokens\], got 0"),
        ({"warmup_frac": 1.0}, r"task.warmup_frac must be in \[0, 1\), got 1.0"),
        ({"touch": "random"}, "task.touch must be one of tail_first, head_first, head_first_once, got 'random'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HitRate(**{"policies": ["lru"], "capacity_blocks": [100]} | settings)


def test_a_scenario_without_requests_is_refused():
    with pytest.raises(ConfigError, match="no request"):
        read([], 4)


def test_who_waits_for_answers_is_replayed_to_the_end_of_the_session():
    scenario = make(compose(["scenario=chatbot", "scenario.n_sessions=40"])["scenario"], "scenario")

    held = list(all_requests(scenario, 0))

    assert len(held) == len(simulate("scenario=chatbot", "scenario.n_sessions=40").requests) > 40
    assert [r.arrival_ns for r in held] == sorted(r.arrival_ns for r in held)

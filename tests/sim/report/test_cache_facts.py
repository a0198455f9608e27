"""What a report says about the cache of its run."""

import json
import re
from pathlib import Path

import pytest

from sim import simulate
from sim.metrics import Slo, measure, summary
from sim.report.cache_facts import PUBLISHED, cache_tables
from sim.report.page import report_page

CHAT = ("scenario=chatbot", "scenario.n_sessions=60", "scenario.rate=4", "hardware.kv_blocks=9000")
SAID = {
    "paged": {"blocks evicted"},
    "static": {"conversations evicted"},
    "dynamic": {"conversations evicted", "extents replaced by longer ones", "copied by resizing"},
    "predictive": {"lengths predicted", "error of a prediction, mean"},
    "streaming": {"conversations evicted", "attended fraction", "bits per element"},
    "compressed": {"compactions", "tokens moved by compacting", "attended fraction", "bits per element"},
}


@pytest.fixture(scope="module", params=SAID)
def run(request):
    cache = request.param
    few = ("cache.reservation.initial=64",) if cache in ("dynamic", "predictive") else ()
    result = simulate(*CHAT, f"cache={cache}", *few)
    measures = measure(result, Slo(ttft_ms=500))
    return cache, result, measures, summary(result, Slo(ttft_ms=500), measures)


def test_every_cache_says_what_it_did(run):
    cache, result, _, numbers = run
    did = cache_tables(numbers["kvtwin"], result.config)[0]
    assert SAID[cache] <= {name for name, _, _ in did.rows}
    assert all(value and meaning for _, value, meaning in did.rows)


def test_what_is_published_about_answers_is_quoted_with_its_source_where_less_than_all_is_kept(run):
    cache, result, _, numbers = run
    tables = cache_tables(numbers["kvtwin"], result.config)
    assert len(tables) == (2 if cache in ("streaming", "compressed") else 1)
    if len(tables) == 2:
        assert "not simulated" in tables[1].title
        assert all(re.search(r"(ICLR|NeurIPS|ICML) 20\d\d", source) for *_, source in tables[1].rows)


def test_the_quoted_classes_exist():
    for target in PUBLISHED:
        module, _, name = target.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name), target


def test_what_was_held_is_split_into_what_it_was_held_for(run):
    cache, result, measures, numbers = run
    text = report_page(result, Slo(ttft_ms=500), measures, numbers)
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S).group(1)
    traces = next(figure for figure in json.loads(data) if figure["id"] == "plot-memory")["traces"]
    share = {trace["name"].split("  ")[0]: trace["x"][0] for trace in traces}
    kv = numbers["kvtwin"]["kv"]
    assert sum(share.values()) == pytest.approx(100, abs=0.01)
    assert share["reserved for tokens to come"] == pytest.approx(100 * kv["reserved_frac"], rel=1e-3)
    assert share["lost to rounding"] == pytest.approx(100 * kv["internal_frac"], rel=1e-3, abs=1e-6)
    assert kv["held_frac"] == pytest.approx(kv["live_frac"] + kv["reserved_frac"] + kv["internal_frac"])
    assert kv["waste_frac"] == pytest.approx(1 - kv["live_frac"] / kv["held_frac"])
    assert (kv["waste_frac"] > 0.9) == (cache == "static")


def test_every_term_of_the_tiles_is_explained_on_the_page(run):
    _, result, measures, numbers = run
    text = report_page(result, Slo(ttft_ms=500), measures, numbers)
    words = text.partition('id="words"')[2]
    for term in ("TTFT", "TPOT", "ITL", "E2EL", "p99", "objective", "goodput", "KV cache", "prefix hit", "preempted"):
        assert term in words, term


def test_the_page_says_how_far_the_times_are_off_in_a_few_lines(run):
    _, result, measures, numbers = run
    text = report_page(result, Slo(ttft_ms=500), measures, numbers)
    assert "How far the times of single operations are off" in text
    assert "random_forest" not in text
    assert Path(result.provenance["cost"]["profile"]).name in text

"""Load curves: the same requests closer together, judged while the load lasts."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from rich.console import Console

from sim.config import compose, make
from sim.errors import ConfigError
from sim.load import LoadCurve
from sim.metrics import Slo
from sim.metrics.steady import slope
from sim.probe import JUDGED, Prober, Until, at_rate, judged
from sim.record import REQUEST_COLUMNS
from sim.report.rates import Limit, in_words
from sim.units import NS_PER_S
from tests.sim.tiny_run import table

SMALL = ["scenario=synthetic", "task=load", "rates=[4,400]"]


def made(node):
    return make(node, "scenario")


def first(scenario, n=40):
    return [request for _, request in zip(range(n), scenario.requests(3), strict=False)]


@pytest.mark.parametrize("name", ["chatbot", "synthetic", "rag", "long_document"])
def test_another_rate_brings_the_same_requests_closer_together(name):
    node = compose([f"scenario={name}"])["scenario"]
    slow, fast = (first(made(at_rate(node, rate, 1000.0))) for rate in (1.0, 4.0))
    assert [(one.prompt_tokens, one.output_tokens) for one in slow] == [
        (one.prompt_tokens, one.output_tokens) for one in fast
    ]
    assert [one.arrival_ns for one in slow] == pytest.approx([4 * one.arrival_ns for one in fast], rel=1e-6, abs=10)


@pytest.mark.parametrize("name", ["chatbot", "synthetic", "mixed"])
def test_nothing_arrives_after_the_window(name):
    node = compose([f"scenario={name}"])["scenario"]
    arrivals = [one.arrival_ns for one in Until(made(at_rate(node, 8.0, 30.0)), 30 * NS_PER_S).requests(0)]
    assert 150 < len(arrivals) < 400
    assert arrivals[-1] < 30 * NS_PER_S


def test_an_open_stream_stays_one_that_does_not_listen():
    config = compose(["scenario=synthetic"])
    assert not hasattr(Until(made(config["scenario"]), 1), "follow_up")


@pytest.fixture(scope="module")
def probes():
    probe = Prober(compose(SMALL), 60.0)
    return probe(4.0), probe(80.0)


def test_a_light_load_is_served_as_it_comes_and_an_overload_is_named(probes):
    light, heavy = probes
    assert not light.is_saturated
    assert heavy.is_saturated
    assert heavy.served_per_s < 0.95 * heavy.offered_per_s, "seen at the other end of the queue"
    assert light.latency_ms["ttft_p99_ms"] < heavy.latency_ms["ttft_p99_ms"]
    assert light.output_tokens_per_s < heavy.output_tokens_per_s
    assert in_words(probes).startswith("Overloaded from 80/s on")


def test_the_wait_grows_by_what_arrives_too_much():
    arrivals_s, service_s = np.arange(0.0, 100.0, 1.0), 1.25
    waits_s = np.arange(1, 101) * service_s - arrivals_s
    assert slope(arrivals_s, waits_s) == pytest.approx(0.25)


def test_only_requests_of_the_judged_part_are_judged():
    begin_s, end_s = (share * 80.0 for share in JUDGED)
    seconds = [0.0, begin_s - 0.1, begin_s, 50.0, end_s - 0.1, end_s, 79.0]
    rows = [
        {
            "id": i,
            "arrival_ns": int(at * NS_PER_S),
            "first_token_ns": int((at + (2.0 if i == 3 else 0.1)) * NS_PER_S),
            "finish_ns": int((at + 2.0) * NS_PER_S),
            "prompt_tokens": 100 * (i + 1),
            "output_tokens": 11,
            "cached_tokens": 50,
            "n_samples": 1,
        }
        for i, at in enumerate(seconds)
    ]

    @dataclass
    class Run:
        requests = table(REQUEST_COLUMNS, rows)
        refused = table(("arrival_ns",), [{"arrival_ns": 60 * NS_PER_S}, {"arrival_ns": 1}])
        slo_classes = ("",)
        refusals: dict[int, str] = field(default_factory=dict)

    one = judged(Run(), Slo(ttft_ms=500), 1.0, 80.0)
    assert (one.n_requests, one.n_refused, one.n_good) == (4, 1, 2)
    assert one.attainment_frac == 0.5
    assert one.offered_per_s == pytest.approx(4 / 30)
    assert one.prefix_hit_frac == pytest.approx(150 / (300 + 400 + 500))
    assert one.latency_ms["ttft_p50_ms"] == pytest.approx(100.0)


@pytest.mark.parametrize(("share", "needed"), [(1.0, 10.0), (0.9, 9.0), (0.5, 5.0)])
def test_the_limit_a_share_keeps_is_the_least_that_it_keeps(share, needed):
    values = np.arange(1.0, 11.0)
    limit = Limit("ttft_ms", "", needed, values)
    assert limit.needed_ms(share) == needed
    assert limit.kept_frac() >= share
    assert Limit("ttft_ms", "", needed - 0.01, values).kept_frac() < share


def test_a_latency_that_is_not_there_keeps_every_limit():
    limit = Limit("tpot_ms", "", 1.0, np.array([0.5, 2.0, np.nan, np.nan]))
    assert limit.kept_frac() == 0.75
    assert limit.needed_ms(0.75) == 0.5


def test_the_same_curve_comes_out_again_as_table_page_and_file(tmp_path):
    written = []
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        with (out / "console").open("w", encoding="utf-8") as quiet:
            LoadCurve([400, 4], 10.0)(config=compose(SMALL), out=out, console=Console(file=quiet, width=200))
        written.append((out / "load.json").read_bytes())
    assert written[0] == written[1]
    assert [one["rate"] for one in json.loads(written[0])["probes"]] == [4.0, 400.0]
    assert "overload" in (out / "console").read_text(encoding="utf-8")
    page = (out / "load.html").read_text(encoding="utf-8")
    for key in ("plot-ttft", "plot-tpot", "plot-served", "plot-tokens", "plot-hits"):
        assert key in page


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rates": []}, "rates must be a list"), ({"rates": [0]}, "rates must be finite"), ({"rates": "4"}, "rates must")],
)
def test_rates_that_are_none_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        LoadCurve(**settings)


def test_a_window_and_a_rate_are_needed():
    with pytest.raises(ConfigError, match=r"task\.window_s must be >= 1 \[s\], got 0"):
        Prober(compose([]), 0.0)
    with pytest.raises(ConfigError, match="scenario=benchmark has no rate to change"):
        Prober(compose(["scenario=benchmark"]), 60.0)

"""The report in a real browser without network, in light and dark, and as text."""

import json
import re

import pytest

from sim.metrics import Slo, measure, summary
from sim.report.page import report_page
from sim.report.verdict import verdict
from tests.sim.report.browser import CHROMIUM, Browser
from tests.sim.tiny_run import tiny_run

SLO = Slo(ttft_ms=40, tpot_ms=6, classes={"code": {"e2el_ms": 150}})
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/setup_chromium.sh as root")


def page_of(result, slo=SLO):
    measures = measure(result, slo)
    return report_page(result, slo, measures, summary(result, slo, measures))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(tiny_run(seed=4, n_requests=80, n_replicas=2, preempts=0.1, n_refused=2).result))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def figures(text):
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S).group(1))


EXPECTED = {
    "cdf-ttft", "cdf-tpot", "cdf-itl", "cdf-e2el", "kv", "batch", "queue", "tokens", "preemptions", "hits", "traffic",
    "memory", "capacity", "gantt", "found", "link-use", "iteration",
}  # fmt: skip


def test_a_full_report_has_every_chart(page):
    assert {figure["id"].removeprefix("plot-") for figure in figures(page.read_text())} == EXPECTED


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_charts_are_drawn_without_network_or_console_errors(page, browser, scheme):
    browser.open(page, scheme)
    assert browser.n_drawn() == len(EXPECTED)
    assert browser.evaluate("document.documentElement.dataset.scheme") == scheme
    assert browser.problems == []
    assert browser.requests == []


@needs_browser
def test_charts_follow_when_the_reader_switches_to_dark(page, browser):
    browser.open(page, "light")
    curve = "getComputedStyle(document.querySelector('#plot-cdf-ttft .lines path.js-line')).stroke"
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(f"[{curve}, {paper}].join()")
    browser.set_scheme("dark")
    browser.wait_for("document.documentElement.dataset.scheme === 'dark'")
    dark = browser.evaluate(f"[{curve}, {paper}].join()")
    assert light == "rgb(37, 102, 207),rgb(246, 247, 249)"
    assert dark == "rgb(110, 168, 255),rgb(16, 21, 28)"


@needs_browser
def test_no_other_script_runs_and_nothing_is_fetched(page, browser):
    browser.open(page)
    assert browser.evaluate("window.ran") is None
    browser.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    )
    assert browser.evaluate("window.ran") is None
    stopped_by = browser.evaluate(
        "new Promise((done) => { document.addEventListener('securitypolicyviolation',"
        " (event) => done(event.effectiveDirective));"
        " fetch('https://example.org/').catch(() => setTimeout(done, 500)); })"
    )
    assert stopped_by == "connect-src"  # by the page's own policy, not by the missing network
    browser.problems.clear()  # the two attempts above are noted there
    browser.requests.clear()


@needs_browser
def test_a_phone_does_not_scroll_sideways(page, browser):
    browser.send("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.send("Emulation.clearDeviceMetricsOverride")


@needs_browser
def test_on_a_phone_no_number_is_broken_and_no_legend_is_cut(page, browser):
    browser.send("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    cells = "[...document.querySelectorAll('main > section > .card td')]"
    lines = (
        "(cell) => { const r = document.createRange(); r.selectNodeContents(cell); return r.getClientRects().length; }"
    )
    broken = f"{cells}.filter((cell) => /^[\\d,.]+$/.test(cell.textContent) && ({lines})(cell) > 1)"
    assert browser.evaluate(f"{broken}.map((cell) => cell.textContent)") == []
    bars = (
        "[...document.querySelectorAll('.legend .scrollbar')].filter((bar) => bar.getBoundingClientRect().height > 0)"
    )
    assert browser.evaluate(f"{bars}.map((bar) => bar.closest('.plot').id)") == []
    browser.send("Emulation.clearDeviceMetricsOverride")


def test_settings_are_shown_as_text_and_never_run(page):
    text = page.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#39;never runs&#39;)&lt;/script&gt;" in text


def test_plotly_is_in_the_page_once_and_nothing_points_outside(page):
    text = page.read_text()
    assert text.count("* plotly.js v") == 1
    assert len(text.encode()) < 6_000_000
    ours = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert re.findall(r'(?:src|href)="(?!#|data:)', ours) == []


def test_the_page_is_built_for_everybody(page):
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.S)
    assert '<html lang="en">' in text
    assert re.search(r"<title>[^<]+</title>", text)
    assert text.count("<main>") == text.count("<h1>") == 1
    blocks = re.findall(r"<figure.*?</figure>", text, re.S)
    assert len(blocks) == len(EXPECTED)
    for block in blocks:
        assert re.search(r"<figcaption>[^<]+</figcaption>", block), block[:80]
        assert re.search(r'role="img" aria-label="[^"]+"', block), block[:80]
        assert re.search(r"<details>.*<thead>.*<tbody>.*<td", block, re.S), block[:80]


def test_warnings_objectives_and_provenance_are_said(page):
    text = page.read_text()
    assert "2 requests could never be served and were refused." in text
    assert "a p99 needs at least 1,000" in text
    assert "objective 40 ms" in text
    assert "requests met TTFT ≤ 40 ms, TPOT ≤ 6 ms (code: TTFT ≤ 40 ms, TPOT ≤ 6 ms, E2EL ≤ 150 ms)." in text
    assert "Requests of the class code are judged by another objective." in text
    assert "H200 SXM data sheet" in text
    assert "exceed the model&#39;s maximum" in text


def test_what_is_one_replicas_is_said_to_be(page):
    text = page.read_text()
    assert re.search(r"while working, of [\d.]+ GiB in each of 2 replicas", text)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.S)
    assert sum("Per replica: the average of 2, the extremes of any." in caption for caption in captions) == 2
    alone = page_of(tiny_run(seed=4).result)
    assert "in each of" not in alone
    assert "Per replica: the average" not in alone


def test_preemptions_are_told_as_often_as_they_were_and_of_whose_share():
    run = tiny_run(seed=4, preempts=0.1).result
    numbers = summary(run, Slo())
    numbers["kvtwin"]["preemptions"] = 1
    assert "The KV cache ran full: running requests were preempted once." in verdict(numbers)[1]
    numbers["kvtwin"]["counts"]["code_requests"] = 20
    numbers["kvtwin"]["preemptions"] = 3
    assert "A class's share of the KV cache ran full: running requests were preempted 3 times." in verdict(numbers)[1]


def test_curves_have_few_points_and_end_at_the_longest():
    run = tiny_run(seed=2, n_requests=3_000, rate_per_s=60)
    drawn = {figure["id"]: figure["traces"][0] for figure in figures(page_of(run.result))}
    for key in ("ttft", "tpot", "itl", "e2el"):
        curve = drawn[f"plot-cdf-{key}"]
        assert 100 < len(curve["x"]) <= 2_100, key
        assert curve["x"] == sorted(curve["x"])
        assert curve["y"][-1] == 100
    longest = (run.result.requests.column("finish_ns") - run.result.requests.column("arrival_ns")).max() / 1e6
    assert drawn["plot-cdf-e2el"]["x"][-1] == pytest.approx(longest, rel=1e-4)


def test_plotly_accepts_every_chart(page):
    import plotly.graph_objects as go

    css = re.search(r"<style>(.*?)</style>", page.read_text(), re.S).group(1)
    known = dict(re.findall(r"(--[a-z-]+): ([^;]+);", css))

    def coloured(value):
        if isinstance(value, str):
            return known[value] if value.startswith("--") else value
        if isinstance(value, list):
            return [coloured(item) for item in value]
        return {key: coloured(item) for key, item in value.items()} if isinstance(value, dict) else value

    for figure in figures(page.read_text()):
        go.Figure(data=coloured(figure["traces"]), layout=coloured(figure["layout"]))


def test_a_run_that_served_nobody_still_has_a_report():
    text = page_of(tiny_run(n_requests=0, n_refused=3).result)
    assert "No request was served." in text


def test_a_cache_smaller_than_memory_shows_what_was_left_unused():
    run = tiny_run()
    smaller = dict(run.result.memory) | {"KV cache": 1e9}
    text = page_of(tiny_run(memory=smaller).result)
    capacity = next(f for f in figures(text) if f["id"] == "plot-capacity")["traces"][0]
    assert capacity["x"][-2:] == ["left unused", "KV cache"]
    assert sum(capacity["y"][:-1]) == pytest.approx(capacity["y"][-1], abs=0.01)

"""Every page in a real browser, offline: light, dark, wide and narrow, by keyboard, and what axe-core finds in it."""

from pathlib import Path

import pytest
from rich.console import Console

from scenarios.describe import describe_task
from sim.config import compose, make
from sim.explain import Explain
from sim.hit_rate import HitRate
from sim.memory import Memory
from sim.metrics import Slo, measure, summary
from sim.report import write
from sim.report.compare import compare
from sim.report.crossover import map_page
from sim.report.intervals import Interval, interval_page
from sim.report.page import report_page
from sim.report.rates import rate_page
from tests.sim.report.browser import CHROMIUM, Browser
from tests.sim.report.test_crossover_map import POINTS
from tests.sim.tiny_run import tiny_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run tests/setup_chromium.sh as root")
SLO = Slo(ttft_ms=40, tpot_ms=6, classes={"code": {"e2el_ms": 150}})
QUIET = Console(quiet=True)
WIDTHS = (1400, 400)


def report(folder: Path) -> Path:
    run = tiny_run(seed=4, n_requests=80, n_replicas=2, preempts=0.1, n_refused=2).result
    measures = measure(run, SLO)
    page = folder / "report.html"
    page.write_text(report_page(run, SLO, measures, summary(run, SLO, measures)))
    return page


def comparison(folder: Path, n: int = 4) -> Path:
    for i in range(n):
        config = {
            "scenario": {"_target_": "chatbot"},
            "cache": {"_target_": f"a.{'PSDQ'[i % 4]}Cache", "block_tokens": i},
        }
        write(tiny_run(seed=i, n_requests=120, config=config).result, SLO, folder / str(i))
    compare(folder, folder)
    return folder / "compare.html"


def comparison_of_many(folder: Path) -> Path:
    return comparison(folder, 13)


def hit_rate(folder: Path) -> Path:
    scenario = make(compose(["scenario=chatbot", "scenario.n_sessions=40"])["scenario"], "scenario")
    HitRate(["lru", "fifo"], [100, 400], block_tokens=16)(scenario=scenario, seed=0, out=folder, console=QUIET)
    return folder / "hit_rate.html"


def memory(folder: Path) -> Path:
    Memory(["paged", "static"])(config=compose(["task=memory"]), out=folder, console=QUIET)
    return folder / "memory.html"


def description(folder: Path) -> Path:
    scenario = make(compose(["scenario=chatbot", "scenario.n_sessions=40"])["scenario"], "scenario")
    describe_task(scenario=scenario, config=compose([]), seed=0, out=folder, console=QUIET)
    return folder / "describe.html"


def intervals(folder: Path) -> Path:
    page = folder / "intervals.html"
    page.write_text(interval_page([Interval("mean_ttft_ms", 20.0, 19.0, 22.0)], "a model", 20))
    return page


def load(folder: Path) -> Path:
    from sim.probe import judged

    page = folder / "load.html"
    probes = [judged(tiny_run(rate_per_s=r, n_requests=60).result, SLO, r, 4.0) for r in (10.0, 20.0)]
    page.write_text(rate_page(probes, "a model over the rate", ["No rate overloads it."]))
    return page


def swap_map(folder: Path) -> Path:
    page = folder / "map.html"
    page.write_text(map_page(POINTS))
    return page


def explanation(folder: Path) -> Path:
    config = compose(["task=explain", "scenario=chatbot", "scenario.rate=50"])
    scenario = make(config["scenario"], "scenario")
    Explain(slots=4096)(config=config, scenario=scenario, out=folder, console=QUIET)
    return folder / "explain.html"


PAGES = (explanation, report, comparison, comparison_of_many, hit_rate, memory, description, intervals, load, swap_map)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("make_page", PAGES, ids=lambda of: of.__name__)
def test_a_page_is_whole_readable_and_quiet_in_light_and_dark_wide_and_narrow(make_page, browser, tmp_path):
    page = make_page(tmp_path)
    browser.problems.clear()
    for width in WIDTHS:
        browser.size(width)
        for scheme in ("light", "dark"):
            browser.open(page, scheme)
            assert browser.n_drawn() == browser.evaluate("document.querySelectorAll('.plot').length"), (width, scheme)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, "scrolls sideways"
            assert browser.axe() == [], (width, scheme)
    assert browser.evaluate("document.querySelector('.verdict').textContent.trim().length") > 20, (
        "the answer comes first"
    )
    assert "−0.0 %" not in browser.evaluate("document.body.innerText")
    assert browser.problems == []
    assert browser.requests == []


def test_on_a_phone_the_first_column_stays_while_the_keyboard_scrolls_the_others(browser, tmp_path):
    page = comparison_of_many(tmp_path)
    browser.size(400)
    browser.open(page)
    area = "document.querySelector('#table .scroll')"
    for _ in range(60):
        browser.press("Tab")
        if browser.evaluate(f"document.activeElement === {area}"):
            break
    assert browser.evaluate(f"document.activeElement === {area}"), "the table cannot be reached by keyboard"
    left = f"{area}.querySelector('tbody th').getBoundingClientRect().left"
    before = browser.evaluate(left)
    for _ in range(8):
        browser.press("ArrowRight")
    browser.wait_for(f"{area}.scrollLeft > 100")
    assert browser.evaluate(left) == before
    last = browser.evaluate(
        f"(() => {{ {area}.scrollLeft = 1e6; const r = [...{area}.querySelectorAll('thead th')].at(-1)"
        f".getBoundingClientRect(); return r.right <= innerWidth; }})()"
    )
    assert last, "the last column is cut off"

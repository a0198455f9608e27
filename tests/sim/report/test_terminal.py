"""What a run says on the terminal."""

from io import StringIO

from rich.console import Console

from sim import simulate
from sim.metrics import Slo, summary
from sim.report import table
from sim.report.words import percent
from tests.sim.tiny_run import tiny_run

SHARED = "batching.forks_samples=true"  # as vLLM v0: answers share their prompt


def printed(renderable, width=100):
    console = Console(file=StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_tells_latencies_rates_memory_and_what_went_wrong():
    result = tiny_run(seed=3, n_requests=60, n_refused=2, preempts=0.1).result
    slo = Slo(ttft_ms=40)
    text, numbers = printed(table(result, slo)), summary(result, slo)
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("TTFT"))
    kinds = ("mean", "median", "p90", "p95", "p99")
    assert [float(cell) for cell in row[2:7]] == [round(numbers[f"{kind}_ttft_ms"], 1) for kind in kinds]
    for word in (
        "latency",
        "[ms]",
        "TPOT",
        "ITL",
        "E2EL",
        "60 completed, 2 refused",
        "within TTFT ≤ 40 ms",
        "prefix hit rate",
        "KV cache",
    ):
        assert word in text
    assert f"{numbers['kvtwin']['preemptions']}, of" in text
    assert "! 2 requests could never be served" in text


def test_a_class_with_objectives_of_its_own_is_named_beside_the_others():
    result = tiny_run(seed=3).result
    one, some, own = (
        printed(table(result, slo), width=200)
        for slo in (
            Slo(ttft_ms=40),
            Slo(ttft_ms=40, classes={"code": {"ttft_ms": 90}}),
            Slo(classes={"code": {"ttft_ms": 90}}),
        )
    )
    assert "within TTFT ≤ 40 ms " in one
    assert "within TTFT ≤ 40 ms (code: TTFT ≤ 90 ms)" in some
    assert "within the objectives of their class (code: TTFT ≤ 90 ms)" in own


def test_a_run_without_requests_or_objectives_has_dashes():
    text = printed(table(tiny_run(n_requests=0).result, Slo()))
    assert text.count("–") >= 20
    assert "no objective set" in text


def test_what_answers_to_one_prompt_share_is_told_where_there_are_several():
    few = ("scenario=synthetic", "scenario.n_requests=20", "scenario.rate=2")
    alone, several = (printed(table(simulate(*few, f"scenario.n_samples={n}", SHARED), Slo())) for n in (1, 4))
    assert "shared blocks" not in alone
    saved = summary(simulate(*few, "scenario.n_samples=4", SHARED), Slo())["kvtwin"]
    line = next(line for line in several.splitlines() if line.startswith("shared blocks"))
    assert f"save {percent(saved['kv']['saved_frac'])} of the slots; {saved['counts']['copied_blocks']} copied" in line

"""`task=describe` finds in the published traces what was published about them, to three digits."""

import json
import tracemalloc
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from scenarios.describe import capacity_tokens_per_s, describe, describe_task
from scenarios.distributions import UniformInteger
from scenarios.replay import Replay
from scenarios.reuse import reuse_stats
from scenarios.statistics import arrival_stats, correlation, dispersion_of, ks_distance, spread
from scenarios.traces.servegen import clients
from sim import simulate
from sim.config import compose, make
from sim.errors import ConfigError
from sim.metrics import Slo, summary

TRACES = Path(__file__).parents[3] / "shared" / "data" / "traces"
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"traces are not at {TRACES}")

# Rows, prompt p50 and p99, answer p50 and p99; then span [s] and rate [1/s] where the file has arrivals.
PUBLISHED = {
    "azure2023/AzureLLMInferenceTrace_conv.csv": (19_366, 1020, 4142, 129, 601, 3502, 5.53),
    "azure2023/AzureLLMInferenceTrace_code.csv": (8819, 1469, 7436, 13, 252, 3436, 2.57),
    "mooncake/conversation_trace.jsonl.gz": (12_031, 6909, 85_400, 350, 1119, 3537, 3.40),
    "mooncake/synthetic_trace.jsonl.gz": (3993, 11_587, 66_456, 69, 768, 1022, 3.91),
    "etalon/sharegpt_8k_filtered_stats_llama2_tokenizer.csv": (30_731, 1730, 7434, 415, 998),
    "etalon/bwb_stats_llama2_tokenizer_filtered_v2.csv": (33_768, 1037, 1800, 1601, 2533),
    "lengths/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv": (28_257, 2730, 3933, 167, 3271),
    "lengths/lmsys_05_lengths.csv": (1024, 17, 586, 117, 533),
    "lengths/creation_05_lengths.csv": (512, 309, 566, 1107, 2341),
    "claude_code/kct_prefix_tree.jsonl.gz": (46_218, 100_446, 505_791, 218, 3721),
}


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """What `task=describe` writes about a file, once a file."""
    found = {}

    def look(file):
        if file not in found:
            out = tmp_path_factory.mktemp("look")
            describe_task(scenario=Replay(str(TRACES / file)), seed=0, out=out, console=Console(quiet=True))
            page = (out / "describe.html").read_text()
            found[file] = json.loads((out / "describe.json").read_text()) | {"page": page[:20_000]}
        return found[file]

    return look


def digits(value):
    return pytest.approx(value, rel=0.0015, abs=0.5 if value > 100 else 0.006)


@needs_traces
@pytest.mark.parametrize("file", PUBLISHED)
def test_a_published_trace_has_its_published_statistics(file, looked_at):
    n, prompt_p50, prompt_p99, output_p50, output_p99, *arrivals = PUBLISHED[file]

    found = looked_at(file)

    assert found["n_requests"] == n
    assert (found["prompt"]["p50"], found["prompt"]["p99"]) == (digits(prompt_p50), digits(prompt_p99))
    assert found["output"]["p50"] == pytest.approx(output_p50, abs=0.51)
    assert found["output"]["p99"] == pytest.approx(output_p99, abs=0.55)
    if arrivals:
        assert found["arrivals"]["span_s"] == digits(arrivals[0])
        assert found["arrivals"]["rate_per_s"] == digits(arrivals[1])
    assert "plot-prompt" in found["page"]
    assert "plot-output" in found["page"]


@needs_traces
def test_azure_arrivals_have_their_published_burstiness(looked_at):
    conversation = looked_at("azure2023/AzureLLMInferenceTrace_conv.csv")
    code = looked_at("azure2023/AzureLLMInferenceTrace_code.csv")

    assert conversation["prompt"]["most"] == 14_050
    assert conversation["arrivals"]["gap_cv"] == pytest.approx(1.09, abs=0.005)
    assert code["arrivals"]["gap_cv"] == pytest.approx(13.2, abs=0.05)
    assert [round(x) for x in code["arrivals"]["dispersion"].values()] == [13, 71, 161]
    assert conversation["spearman"] == pytest.approx(0.07, abs=0.005)
    assert code["spearman"] == pytest.approx(-0.02, abs=0.005)
    assert conversation["fits"]["gap"][0][1] == pytest.approx(0.017, abs=0.0005)


@needs_traces
def test_mooncake_conversation_has_its_published_reuse(looked_at):
    found = looked_at("mooncake/conversation_trace.jsonl.gz")
    reuse, golden = found["reuse"], json.loads((TRACES / "mooncake" / "golden_hit_rates.json").read_text())

    assert found["arrivals"]["bucket_s"] == 3.0
    assert found["spearman"] == pytest.approx(0.07, abs=0.005)
    assert (reuse["n_pieces"], reuse["n_unique_pieces"]) == (288_500, 182_790)
    assert reuse["once_frac"] == pytest.approx(0.76, abs=0.005)
    assert reuse["common_tokens"] == 512
    assert reuse["child_frac"] == pytest.approx(0.387, abs=0.0005)
    assert [round(reuse["parent_gap_s"][p]) for p in ("p10", "p50", "p90", "p99")] == [42, 123, 483, 1477]
    assert (reuse["depth"]["p90"], reuse["depth"]["p99"]) == (4, 13)
    assert reuse["single_frac"] == pytest.approx(0.69, abs=0.005)
    assert (reuse["new_tokens"]["p50"], reuse["new_tokens"]["p90"]) == (829, 9741)
    assert reuse["ceiling_frac"] == pytest.approx(golden["conversation"]["infinite"]["token"], abs=1e-6)


@needs_traces
def test_agents_have_their_published_think_times_and_prefix_share(looked_at):
    found = looked_at("claude_code/kct_prefix_tree.jsonl.gz")

    assert [round(found["think_s"][p]) for p in ("p10", "p50", "p90", "p99")] == [4, 10, 163, 2949]
    assert 0.95 < found["reuse"]["ceiling_frac"] < 0.99
    assert found["arrivals"] is None, "its sessions have no common clock"
    assert found["n_empty"] == 27


@needs_traces
def test_long_answers_follow_long_prompts_as_published(looked_at):
    found = looked_at("etalon/bwb_stats_llama2_tokenizer_filtered_v2.csv")

    assert found["pearson"] == pytest.approx(0.785, abs=0.0005)


@needs_traces
def test_servegen_lists_its_clients(tmp_path):
    path = TRACES / "servegen" / "clients_summary.csv"
    console = Console(record=True, width=120, file=StringIO())

    describe_task(scenario=Replay(str(path)), seed=0, out=tmp_path, console=console)

    assert sum(len(group.gap_cv) for group in clients(str(path))) == 422
    assert "422" in console.export_text()


def test_statistics_of_a_stream_small_enough_to_check_by_hand():
    stats = arrival_stats(np.array([0, 1, 1, 4]) * 10**9)

    assert (stats.span_s, stats.rate_per_s) == (4.0, 1.0)
    assert stats.gap_cv == pytest.approx(np.std([1, 0, 3]) / (4 / 3))
    assert stats.dispersion[1.0] == pytest.approx(np.var([1, 2, 0, 0, 1]) / 0.8)
    assert arrival_stats(np.zeros(5, dtype=np.int64)) is None
    assert dispersion_of(np.array([0.0, 1.0, 2.0]), 1.0) == 0.0
    assert correlation(np.array([1, 2, 3]), np.array([2, 4, 9]))[1] == pytest.approx(1.0)
    assert correlation(np.array([1, 1]), np.array([2, 4])) is None
    assert spread(np.array([1, 2, 3])).p50 == 2.0
    assert ks_distance(np.array([1, 1, 1, 4]), UniformInteger(1, 4), step=1.0) == 0.5


def test_windows_without_arrivals_count_but_take_no_memory():
    draws = np.random.default_rng(3)
    at_s = np.cumsum(draws.exponential(40.0, 500))
    at_s -= at_s[0]
    stats = arrival_stats((at_s * 1e9).astype(np.int64))
    for window in (1.0, 10.0, 60.0):
        per_window = np.bincount((at_s // window).astype(np.int64))
        assert stats.dispersion[window] == pytest.approx(per_window.var() / per_window.mean())
    minutes = np.bincount((at_s // 60.0).astype(np.int64))[: int(at_s[-1] // 60)]
    assert stats.peak_over_mean == pytest.approx(minutes.max() / minutes.mean())

    tracemalloc.start()
    year = arrival_stats(np.array([0, 1, 10 * 365 * 86_400]) * 10**9)
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < 1_000_000
    assert year.peak_over_mean == pytest.approx(10 * 365 * 1_440)


def test_reuse_of_prompts_small_enough_to_check_by_hand():
    head, a, b = (0, 10), (1, 20), (2, 30)

    stats = reuse_stats([(head, a), (head, b), (head, a, (3, 5)), (head, (1, 8))], [30, 40, 35, 18], [0, 1, 3, 9])

    assert stats.common_tokens == 10
    assert stats.n_pieces == 9
    assert stats.n_unique_pieces == 4
    assert stats.ceiling_frac == (0 + 10 + 30 + 18) / 123
    assert stats.child_frac == 0.5
    assert (stats.depth.most, stats.single_frac) == (3.0, 0.5)
    assert stats.new_tokens.most == 5
    assert reuse_stats([None, None], [1, 2], [0, 1]) is None


def test_an_answer_has_been_seen_by_the_prompt_that_goes_on_from_it():
    asked, said, more = (1, 20), (2, 6), (3, 4)  # five of the answer's six tokens are ever read, and so cached

    stats = reuse_stats([(asked,), (asked, said, more)], [20, 30], [0, 1], [(2, 5), None])

    assert stats.ceiling_frac == (0 + 25) / 50
    assert (stats.new_tokens.most, stats.depth.most) == (5, 2)
    assert (stats.n_pieces, stats.n_unique_pieces, stats.once_frac) == (4, 3, 2 / 3)


def test_no_run_finds_more_of_its_prompts_than_describe_says_can_be_found(tmp_path):
    few = ("scenario=chatbot", "scenario.n_sessions=60")
    scenario = make(compose(list(few))["scenario"], "scenario")
    describe_task(scenario=scenario, seed=0, out=tmp_path, console=Console(quiet=True))
    at_most = json.loads((tmp_path / "describe.json").read_text())["reuse"]["ceiling_frac"]
    result = simulate(*few, "cache.block_tokens=1")

    found_frac = summary(result, Slo())["kvtwin"]["prefix_hit_frac"]

    assert found_frac == pytest.approx(at_most, abs=1e-9)


def test_offered_load_is_compared_with_the_arithmetic_of_the_hardware(tmp_path):
    config = compose(["scenario=synthetic"])
    scenario = make(config["scenario"], "scenario")
    model, hardware = make(config["model"], "model"), make(config["hardware"], "hardware")
    describe_task(scenario=scenario, seed=0, out=tmp_path, console=Console(quiet=True), config=config)

    load = json.loads((tmp_path / "describe.json").read_text())["load"]

    assert load["capacity_tokens_per_s"] == capacity_tokens_per_s(model, hardware.device, 1)
    assert load["capacity_tokens_per_s"] == pytest.approx(989e12 / (2 * 7.505e9), rel=0.001)  # but for the embeddings
    asked = load["new_prompt_tokens_per_s"] + load["output_tokens_per_s"]
    assert load["least_utilization_frac"] == pytest.approx(asked / load["capacity_tokens_per_s"])


def test_nothing_is_not_described():
    with pytest.raises(ConfigError, match="no requests to describe"):
        describe([])

"""Lengths of prompts and answers: bounded, joint where they should be, and close to the traces they stand for."""

from math import asin, pi, sqrt
from pathlib import Path

import numpy as np
import pytest

from scenarios.distributions import Gamma, LogNormalMixture
from scenarios.fits import FITS
from scenarios.lengths import Correlated, EmpiricalPairs, Independent, Nominal, whole_tokens
from scenarios.statistics import correlation, ks_distance
from scenarios.traces.detect import rows
from sim.errors import ConfigError

TRACES = Path(__file__).parents[3] / "shared" / "data" / "traces"
FILES = {
    "Azure 2023 conversation": "azure2023/AzureLLMInferenceTrace_conv.csv",
    "Azure 2023 code": "azure2023/AzureLLMInferenceTrace_code.csv",
    "Mooncake conversation": "mooncake/conversation_trace.jsonl.gz",
    "ShareGPT 8k": "etalon/sharegpt_8k_filtered_stats_llama2_tokenizer.csv",
    "arXiv summaries": "lengths/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
    "BWB translation": "etalon/bwb_stats_llama2_tokenizer_filtered_v2.csv",
}
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"traces are not at {TRACES}")

PROMPT, OUTPUT = Gamma(12.256, 25.11), LogNormalMixture([1.0], [6.9], [0.4])


def test_independent_lengths_are_independent():
    prompts, outputs = Independent(PROMPT, OUTPUT).pairs(np.random.default_rng(0), 20_000)

    pearson, spearman = correlation(prompts, outputs)

    assert abs(spearman) < 2.576 / sqrt(20_000)
    assert abs(pearson) < 2.576 / sqrt(20_000)


def test_correlated_lengths_have_the_stated_rank_correlation_and_unchanged_margins():
    lengths = Correlated(PROMPT, OUTPUT, rank_correlation=0.713)

    prompts, outputs = lengths.pairs(np.random.default_rng(1), 20_000)

    _, spearman = correlation(prompts, outputs)
    assert abs(spearman - 0.713) < 2.576 / sqrt(20_000)
    assert ks_distance(prompts, PROMPT, step=1.0) < 1.628 / sqrt(20_000)
    assert ks_distance(outputs, OUTPUT, step=1.0) < 1.628 / sqrt(20_000)
    assert 6 / pi * asin(0.5) == pytest.approx(1.0), "the formula's end point: full correlation stays full"


def test_nominal_lengths_reach_from_the_fraction_to_the_nominal_length():
    prompts, outputs = Nominal(1000, 50, 0.8).pairs(np.random.default_rng(2), 20_000)

    assert (prompts.min(), prompts.max()) == (800, 1000)
    assert (outputs.min(), outputs.max()) == (40, 50)
    fixed, _ = Nominal(1000, 50, 1.0).pairs(np.random.default_rng(2), 100)
    assert set(fixed.tolist()) == {1000}


def test_lengths_are_whole_and_bounded():
    assert whole_tokens(np.array([0.2, 1.5, 2.49, 99.0]), 50).tolist() == [1, 2, 2, 50]
    with pytest.raises(ConfigError, match="max_prompt_tokens must be a whole number from 1"):
        Independent(PROMPT, OUTPUT, max_prompt_tokens=0)


def test_empirical_pairs_keep_prompt_and_answer_together(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n1,20,2\n2,30,3\n")

    prompts, outputs = EmpiricalPairs(str(path)).pairs(np.random.default_rng(3), 500)

    assert np.array_equal(prompts, 10 * outputs)
    assert set(outputs.tolist()) == {1, 2, 3}


@needs_traces
@pytest.mark.parametrize("name", FILES)
def test_published_fits_are_as_far_from_their_traces_as_published(name):
    found = list(rows(str(TRACES / FILES[name])))
    columns = {
        "prompt": np.array([row.prompt_tokens for row in found]),
        "output": np.array([row.output_tokens for row in found]),
    }

    for fit in FITS:
        if fit.name == name and fit.quantity != "gap":
            assert ks_distance(columns[fit.quantity], fit.distribution, 1.0) == pytest.approx(fit.ks, abs=0.0006)


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: f"{fit.name} {fit.quantity}")
def test_samples_of_a_fit_lie_within_its_own_interval(fit):
    x = fit.distribution.draw(np.random.default_rng(4), 20_000)

    assert ks_distance(x, fit.distribution) < 1.628 / sqrt(20_000)

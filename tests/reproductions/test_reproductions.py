import numpy as np
import pytest
from rich.console import Console

from tests.reproductions import growth, paged_attention, parallel_sampling, placement, streaming
from tests.reproductions.__main__ import show
from tests.reproductions.row import Reproduction, Row, Skipped


@pytest.mark.parametrize(
    "reproduction",
    [*placement.reproductions(), *streaming.reproductions()],
    ids=lambda reproduction: reproduction.title,
)
def test_what_is_counted_by_hand_is_met(reproduction):
    assert all(row.is_met for row in reproduction.rows)


def test_closed_forms_of_growth_are_met():
    assert [row.what for row in growth.forms() if not row.is_met] == []


def test_the_pagedattention_tables_are_met():
    rows = [row for table in paged_attention.reproductions() for row in table.rows]
    assert [row.what for row in rows if not row.is_met] == []


def test_what_parallel_sampling_saves_is_the_published_range():
    rows = parallel_sampling.reproductions()[0].rows
    assert [row.what for row in rows] == ["2 answers", "6 answers"]
    assert all(row.is_met for row in rows), [row.difference for row in rows]


def test_lengths_have_the_published_means_and_stay_below_the_maximum():
    prompts, answers = paged_attention.sharegpt_lengths()
    assert prompts.mean() == pytest.approx(161.31, rel=2e-3)
    assert answers.mean() == pytest.approx(337.99, rel=2e-3)
    assert (prompts + answers).max() < 2048


def test_a_cut_distribution_is_recovered_from_what_was_kept():
    drawn = 700.0 * np.random.default_rng(0).weibull(1.2, 40_000)
    shape, scale = paged_attention.cut_weibull(drawn[drawn <= 1024.0], 1024)
    assert (shape, scale) == pytest.approx((1.2, 700.0), rel=0.05)


@pytest.mark.skipif(not growth.LENGTHS.exists(), reason=f"{growth.LENGTHS} is not there")
def test_the_shape_of_answers_is_that_of_the_public_file():
    answers = np.loadtxt(growth.LENGTHS, delimiter=",", skiprows=1, usecols=1)
    assert answers.max() == 1024
    assert paged_attention.cut_weibull(answers, 1024)[0] == pytest.approx(paged_attention.ANSWER_SHAPE, abs=2e-3)


@pytest.mark.skipif(not growth.LENGTHS.exists(), reason=f"{growth.LENGTHS} is not there")
def test_answers_cut_at_1024_tokens_are_why_the_file_itself_batches_more():
    prompts, answers = growth.sharegpt()
    assert answers.std() / answers.mean() == pytest.approx(0.61, abs=0.01)
    pow2, oracle = (
        paged_attention.saturated(paged_attention.CACHES[name], prompts[::2], answers[::2]).batched
        for name in ("Orca (Pow2)", "Orca (Oracle)")
    )
    assert (pow2, oracle) == pytest.approx((10.4, 16.3), rel=0.03)


def test_a_row_out_of_tolerance_is_shown_and_returned():
    console = Console(record=True, width=140)
    near, far, text = Row("near", 1.0, 1.01, 0.02), Row("far", 1.0, 1.03, 0.02), Row("text", "a-b", "a-c")
    assert show([Reproduction("title", "source", [near, far, text])], console) == [far, text]
    printed = console.export_text()
    assert printed.count("MISSED") == 2
    assert printed.count("met") == 1
    assert "+0.03000" in printed


def test_a_table_that_cannot_be_made_says_why():
    console = Console(record=True, width=140)
    assert show([Reproduction("title", "source", Skipped("no data"))], console) == []
    assert "SKIPPED title: no data" in console.export_text()

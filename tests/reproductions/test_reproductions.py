import pytest
from rich.console import Console

from tests.reproductions import growth, placement
from tests.reproductions.__main__ import show
from tests.reproductions.row import Reproduction, Row, Skipped


@pytest.mark.parametrize("reproduction", placement.reproductions(), ids=lambda reproduction: reproduction.title)
def test_what_is_counted_by_hand_is_met(reproduction):
    assert all(row.is_met for row in reproduction.rows)


def test_closed_forms_of_growth_are_met():
    assert [row.what for row in growth.forms() if not row.is_met] == []


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

"""Memory below the device, as a report shows it."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from sim import simulate
from sim.metrics import Slo, measure, summary
from sim.record import PREEMPTION_COLUMNS, TRANSFER_COLUMNS, Table
from sim.report import table
from sim.report.links import link_uses
from sim.report.terminal import fact_rows
from sim.report.tier_figures import hits_by_tier, tiers_section
from tests.sim.tiny_run import table as table_of
from tests.sim.tiny_run import tiny_run


def result_of(*transfers, n_replicas=1, end_ns=100):
    """A run of 100 ns with transfers of (replica, link, start, end, bytes)."""
    moved = Table(TRANSFER_COLUMNS)
    for row in transfers:
        moved.add(*row, 1)
    result = tiny_run(n_requests=0, preempts=0.1, n_replicas=n_replicas).result
    return replace(result, transfers=moved, end_ns=end_ns)


def test_bytes_are_spread_over_their_transfer_and_overlaps_count_once_as_use():
    """Bins of 20 ns. 40 bytes from 10 to 50, and 10 bytes from 30 to 40 inside: the link is in use from 10 to 50."""
    down, up = link_uses(result_of((0, 0, 10, 50, 40), (0, 0, 30, 40, 10)), np.linspace(0, 100, 6))
    assert down.bytes_per_s.tolist() == pytest.approx(np.array([10, 30, 10, 0, 0]) / 20e-9)
    assert down.busy_fracs.tolist() == [0.5, 1.0, 0.5, 0.0, 0.0]
    assert (down.name, down.n_transfers, down.n_bytes, down.busy_frac) == ("to dram", 2, 50, 0.4)
    assert (up.n_transfers, up.busy_frac, up.bytes_per_s.sum()) == (0, 0.0, 0.0)
    assert np.isnan(up.p50_ms)


def test_links_of_several_replicas_are_averaged_in_use_and_added_in_traffic():
    (down, _) = link_uses(result_of((0, 0, 0, 100, 50), (1, 0, 0, 50, 50), n_replicas=2), np.array([0.0, 100.0]))
    assert down.busy_fracs.tolist() == [0.75]
    assert down.bytes_per_s.tolist() == pytest.approx([100 / 100e-9])


def test_what_ends_after_the_run_is_shown_as_far_as_the_run_goes():
    (down, _) = link_uses(result_of((0, 0, 50, 150, 100)), np.array([0.0, 100.0]))
    assert down.bytes_per_s.tolist() == pytest.approx([50 / 100e-9])
    assert down.busy_fracs.tolist() == [0.5]
    assert down.n_bytes == 100


@pytest.fixture(scope="module")
def section():
    result = tiny_run(seed=4, n_requests=80, n_replicas=2, preempts=0.1).result
    return result, tiers_section(result, summary(result, Slo(), measure(result, Slo()))["kvtwin"])


def test_the_share_of_each_tier_and_what_was_computed_make_all_prompts(section):
    result, shown = section
    found = next(figure for figure in shown.figures if figure.id == "found")
    n_tokens = [int(row[1].replace(",", "")) for row in found.rows]
    assert [row[0] for row in found.rows] == ["device memory", "dram", "computed"]
    assert n_tokens[:2] == [1_400, 600], "of two replicas"
    assert sum(n_tokens) == result.requests.column("prompt_tokens").sum()


def test_the_tables_name_tiers_links_and_what_the_preempted_did(section):
    result, shown = section
    tiers, links, preempted, prefetched = shown.tables
    assert [row[0] for row in tiers.rows] == ["device memory", "dram"]
    assert tiers.rows[1][1:4] == ("32,000", "3,200", "600")
    assert [row[:2] for row in links.rows] == [("to dram", "8"), ("from dram", "8")]
    is_swap = result.preemptions.column("is_swap")
    assert [row[1] for row in preempted.rows] == [*(str((is_swap == kind).sum()) for kind in (1, 0)), "12"]
    assert prefetched.rows[0][1] == "18"
    assert "8,000 loaded" in preempted.rows[0][3]


def test_who_is_preempted_again_before_its_next_token_counts_and_is_no_part_of_the_average():
    spells = [
        {"request_id": 1, "preempted_ns": 0, "next_token_ns": -1, "is_swap": 1},
        {"request_id": 1, "preempted_ns": 10**6, "next_token_ns": 4 * 10**6, "is_swap": 1},
    ]
    result = tiny_run(preempts=0.1).result
    ours = summary(result, Slo())["kvtwin"]
    shown = tiers_section(replace(result, preemptions=table_of(PREEMPTION_COLUMNS, spells)), ours)
    preempted = next(table for table in shown.tables if table.title == "Preempted sequences")
    assert preempted.rows[0][:3] == ("loaded from below (swap)", "2", "3.00 ms")
    assert preempted.rows[1][:3] == ("computed again", "0", "–")


def test_a_run_without_tiers_has_no_such_section():
    result = tiny_run().result
    assert tiers_section(result, summary(result, Slo())["kvtwin"]) is None


def test_tiers_come_in_their_order_whatever_else_is_counted():
    counts = {"a": 1, "hit_tokens_nvme": 3, "hit_tokens_device": 1, "evicted_blocks": 2}
    assert list(hits_by_tier({"counts": counts})) == ["device", "nvme"]
    assert hits_by_tier({"counts": {"hit_tokens_device": 4}}) == {}


def test_a_tier_below_one_classs_share_is_shown_and_what_the_others_found_was_in_device_memory():
    result = simulate(
        "scenario=mixed_sessions", "scenario.n_requests=60", "classify=true", "cache=by_class",
        "hardware.kv_blocks=20000",
    )  # fmt: skip
    numbers = summary(result, Slo())
    found = hits_by_tier(numbers["kvtwin"])
    assert list(found) == ["device", "dram"]
    assert found["dram"] == numbers["kvtwin"]["counts"]["long_document_hit_tokens_dram"] > 0
    assert sum(found.values()) == result.requests.column("cached_tokens").sum()
    shown = tiers_section(result, numbers["kvtwin"])
    assert [row[0] for row in shown.tables[0].rows] == ["device memory", "dram"]
    assert "% in dram" in dict(fact_rows(numbers))["found by tier"]


def test_the_terminal_says_what_was_found_where():
    result = tiny_run(seed=4, n_requests=80, preempts=0.1).result
    console = Console(file=StringIO(), width=160)
    console.print(table(result, Slo()))
    text = console.file.getvalue()
    n_prompt = result.requests.column("prompt_tokens").sum()
    assert f"{100 * 700 / n_prompt:.1f} % in device memory, {100 * 300 / n_prompt:.1f} % in dram" in text
    away = result.preemptions
    n_again = (away.column("lost_tokens") - away.column("found_tokens")).sum()
    assert f"came back by swap, 4,000 tokens loaded, {n_again:,} tokens computed again" in text

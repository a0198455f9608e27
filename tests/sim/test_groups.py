"""Numbers by class and by tenant, and who starved."""

import numpy as np
import pytest

from scenarios.export import export_csv, export_mooncake
from sim import simulate
from sim.metrics import Slo, measure, summary
from sim.report.page import report_page
from sim.request import Request
from tests.sim.serving import asked

RUN = ("scenario=tenants", "scenario.n_requests=400", "batching.max_num_seqs=8")
SLO = Slo(ttft_ms=500.0)


@pytest.fixture(scope="module")
def result():
    return simulate(*RUN)


def test_tenants_add_up_to_all_and_what_starved_is_counted_by_hand(result):
    numbers = summary(result, SLO)
    tenants = numbers["kvtwin"]["tenants"]
    assert set(tenants) == {"greedy", "steady", "small"}
    for key, total in (
        ("completed", numbers["completed"]),
        ("goodput", numbers["request_goodput"]),
        ("output_tokens", numbers["total_output_tokens"]),
    ):
        assert sum(of[key] for of in tenants.values()) == pytest.approx(total)
    requests = result.requests
    queue_ms = (requests.column("scheduled_ns") - requests.column("arrival_ns")) / 1e6
    of_small = np.array([result.tenants[result.tenant_of[i]] == "small" for i in requests.column("id").tolist()])
    small = tenants["small"]
    assert small["completed"] == of_small.sum()
    assert small["starved"] == (queue_ms[of_small] > 500.0).sum() > 0
    typical_ms = float(np.median(queue_ms[of_small]))
    half = summary(result, Slo(ttft_ms=typical_ms))["kvtwin"]["tenants"]["small"]
    assert half["starved"] == of_small.sum() // 2, "who waits as long as allowed has not lost yet"
    assert small["longest_queue_ms"] == queue_ms[of_small].max()
    (said,) = [line for line in numbers["kvtwin"]["warnings"] if line.startswith("Starved")]
    assert f"{small['starved']} of {small['completed']} requests of small" in said


def test_the_page_has_a_table_of_tenants(result):
    page = report_page(result, SLO, measure(result, SLO), summary(result, SLO))
    assert "By tenant" in page
    assert "greedy" in page


def test_without_objectives_nobody_starves_and_without_tenants_there_are_none(result):
    assert all(
        of["starved"] is None and of["attainment_frac"] is None
        for of in summary(result, Slo())["kvtwin"]["tenants"].values()
    )
    plain = simulate("scenario=synthetic", "scenario.n_requests=20")
    assert (plain.tenants, dict(plain.tenant_of), summary(plain, SLO)["kvtwin"]["tenants"]) == ((), {}, {})


def test_refused_requests_count_against_their_tenant():
    whose = simulate(*RUN, "hardware.kv_blocks=60")  # 960 tokens: longer ones are refused
    tenants = summary(whose, SLO)["kvtwin"]["tenants"]
    assert sum(of["failed"] for of in tenants.values()) == len(whose.refused) > 0
    assert all(of["attainment_frac"] <= of["completed"] / (of["completed"] + of["failed"]) for of in tenants.values())


@pytest.mark.parametrize("kind", [("csv", export_csv), ("jsonl", export_mooncake)])
def test_tenants_survive_a_file(kind, tmp_path):
    from scenarios.replay import Replay

    suffix, export = kind
    listed = [asked(0, 0, 4, 1, tenant="a"), asked(1, 10, 4, 1), asked(2, 20, 4, 1, tenant="b c")]
    path = tmp_path / f"traffic.{suffix}"
    with path.open("w") as file:
        export(listed, file)
    replayed: list[Request] = list(Replay(str(path)).requests(0))
    assert [request.tenant for request in replayed] == ["a", "", "b c"]


@pytest.mark.parametrize("scenario", ["synthetic", "chatbot", "mixed_sessions"])
def test_a_scenario_gives_its_requests_a_tenant(scenario):
    parts = "scenario.parts.short_chat.tenant" if scenario == "mixed_sessions" else "scenario.tenant"
    size = {"synthetic": "n_requests", "chatbot": "n_sessions", "mixed_sessions": "n_requests"}[scenario]
    result = simulate(f"scenario={scenario}", f"{parts}=acme", f"scenario.{size}=40")
    assert result.tenants == ("acme",)
    if scenario != "mixed_sessions":
        assert len(result.tenant_of) == len(result.requests)

"""A split fleet from the command line to the page: what its pools have of their own, and what is said of them."""

import gzip
import json

import numpy as np
import pytest

from sim.config import compose
from sim.errors import ConfigError
from sim.metrics import Slo, measure, summary
from sim.metrics.pools import STAGES, stages
from sim.record import Result
from sim.report.compare import COLUMNS
from sim.report.pools import hand_over_ms, pool_rows, pools_section
from sim.report.trace import trace_json
from sim.run import run, simulate
from sim.spec import Disaggregated, LinkSpec, Pool

BRIEF = ("scenario=synthetic", "scenario.rate=20", "scenario.n_requests=120", "cost=roofline", "fleet=pd")


@pytest.fixture(scope="module")
def split() -> Result:
    return simulate(*BRIEF, "replicas=2", "fleet.decode.hardware.kv_blocks=700", "fleet.prefill.hardware=h100")


def test_a_pool_has_the_runs_settings_and_its_own_on_top():
    config = compose(
        [*BRIEF, "batching.max_num_seqs=99", "fleet.prefill.hardware=h100", "fleet.decode.batching.max_num_seqs=7"]
    )
    prefill, decode = (config["fleet"][pool].get("own", {}) for pool in ("prefill", "decode"))
    assert prefill["hardware"]["device"]["name"].startswith("NVIDIA H100")
    assert "batching" not in prefill
    assert decode["batching"]["max_num_seqs"] == 7
    assert config["batching"]["max_num_seqs"] == 99
    assert "hardware" not in decode


def test_each_pool_is_built_of_its_own(split):
    prefill, decode = split.pools
    assert (prefill.name, prefill.replicas, decode.name, decode.replicas) == ("prefill", (0, 1), "decode", (2, 3))
    assert decode.capacity_tokens == 700 * 16
    assert prefill.device.startswith("NVIDIA H100")
    assert decode.device.startswith("NVIDIA H200")
    assert split.n_replicas == split.n_devices == 4


def test_tensor_parallel_of_a_pool_counts_its_accelerators():
    result = simulate(*BRIEF, "scenario.n_requests=5", "fleet.decode.hardware.tensor_parallel=2")
    assert result.n_devices == 3


def test_all_ranks_of_a_replica_send_their_part_of_the_kv():
    """131,072 B a token, whichever share of it an accelerator holds."""
    result = simulate(*BRIEF, "scenario.n_requests=5", "fleet.prefill.hardware.tensor_parallel=2")
    n_bytes, n_tokens = (int(result.handovers.column(name).sum()) for name in ("n_bytes", "n_tokens"))
    assert n_bytes == 131_072 * n_tokens > 0


def test_prompts_are_computed_in_one_pool_and_answers_in_the_other(split):
    prefill, decode = split.pools
    in_prefill = np.isin(split.iterations.column("replica"), prefill.replicas)
    assert not split.iterations.column("decode_seqs")[in_prefill].any()
    assert not split.iterations.column("joined_seqs")[in_prefill].any(), "they go on elsewhere"
    n_single = int((split.requests.column("output_tokens") == 1).sum())
    assert len(split.handovers) == len(split.requests) - n_single
    assert set(split.handovers.column("replica").tolist()) == set(decode.replicas)


def test_stages_add_up_to_the_whole_answer(split):
    found = stages(split)
    whole = sum(found.ms[name] for name, _, _ in STAGES)
    ids = split.handovers.column("request_id")[split.handovers.column("next_token_ns") >= 0]
    at = {one: i for i, one in enumerate(split.requests.column("id").tolist())}
    rows = split.requests.rows()[[at[one] for one in ids.tolist()]]
    columns = split.requests.columns
    e2el_ms = (rows[:, columns.index("finish_ns")] - rows[:, columns.index("arrival_ns")]) / 1e6
    assert whole == pytest.approx(e2el_ms)
    assert all((values >= 0).all() for values in found.ms.values())


def test_gaps_between_tokens_are_as_many_as_tokens_less_one_of_each_answer(split):
    measures = measure(split, Slo())
    requests = split.requests
    assert measures.itl_ps.size == int((requests.column("output_tokens") - requests.column("n_samples")).sum())
    mean_ps, _ = measures.itl_ps.mean_std()
    span_ns = (requests.column("finish_ns") - requests.column("first_token_ns")).sum()
    assert mean_ps * measures.itl_ps.size == pytest.approx(1e3 * span_ns, rel=1e-6)


def test_the_summary_says_how_busy_each_pool_was_and_what_went_over(split):
    ours = summary(split, Slo())["kvtwin"]
    assert ours["hand_over"]["n"] == len(split.handovers)
    assert ours["hand_over"]["bytes"] == ours["hand_over"]["tokens"] * 131_072
    assert ours["hand_over"]["bytes"] == ours["transferred_bytes"]["hand-over, out"]
    assert ours["pools"]["prefill"]["decoded_tokens"] == 0
    assert 0 < ours["pools"]["decode"]["busy_frac"] <= 1
    assert ours["pools"]["decode"]["peak_held_frac"] <= 1


def test_the_page_and_the_terminal_show_pools_stages_and_links(split):
    ours = summary(split, Slo())["kvtwin"]
    section = pools_section(split, ours)
    assert [table.title for table in section.tables] == ["Pools", "A request's way, stage by stage", "Links"]
    assert [row[0] for row in section.tables[0].rows] == ["prefill", "decode"]
    assert [name for name, _ in pool_rows(ours)] == ["prefill pool", "decode pool", "hand-overs"]


def test_runs_are_compared_by_what_a_hand_over_takes(split):
    numbers = summary(split, Slo())
    per_stage = numbers["kvtwin"]["hand_over"]["stages_ms"]
    whole = sum(per_stage[name]["mean"] for name in ("memory", "link", "next_token"))
    assert hand_over_ms(numbers) == pytest.approx(whole)
    assert hand_over_ms({"kvtwin": {}}) is None
    assert "hand-over, mean [ms]" in [column.heading for column in COLUMNS]


def test_the_timeline_shows_the_hand_over_between_prompt_and_answer(split):
    events = json.loads(gzip.decompress(trace_json(split)))["traceEvents"]
    phases = [event["name"] for event in events if event.get("cat") == "request" and event["ph"] == "b"]
    assert phases.count("hand-over") == len(split.handovers)


def test_where_nothing_is_split_nothing_is_said_of_pools():
    result = simulate("scenario=synthetic", "scenario.n_requests=5", "cost=roofline")
    ours = summary(result, Slo())["kvtwin"]
    assert "pools" not in ours
    assert pool_rows(ours) == []
    assert pools_section(result, ours) is None


def test_a_slow_link_shows_in_the_hand_over_and_not_in_the_first_token():
    fast, slow = (simulate(*BRIEF, f"fleet.link.bytes_per_s={rate}") for rate in (1e12, 1e9))
    assert slow.requests.column("first_token_ns").sum() == fast.requests.column("first_token_ns").sum()
    assert stages(slow).ms["link"].mean() > 50 * stages(fast).ms["link"].mean()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("fleet.prefill.hardware=h100",), "fleet.prefill.hardware needs a fleet with a prefill pool: fleet=pd"),
        (("fleet=pd", "fleet.prefill.hardware=h1000"), "fleet.prefill: hardware=h1000 is not a choice"),
        (("fleet=pd", "fleet.prefill.batching.max_seqs=1"), "fleet.prefill: batching.max_seqs is not a setting"),
        (("fleet=pd", "fleet.decode.batching=static"), "fleet.decode.batching must be chunked or continuous"),
        (("fleet=pd", "fleet.link.bytes_per_s=0"), "fleet.link.bytes_per_s must be >= 1 and finite, got 0"),
        (("fleet=pd", "fleet.link.latency_s=-1"), r"fleet.link.latency_s must be >= 0 and finite \[s\], got -1"),
        (("fleet=pd", "fleet.local_tokens=-1"), r"fleet.local_tokens must be >= 0 \[tokens\], got -1"),
        (("fleet=pd", "fleet.decode.replicas=0"), "replicas must be a whole number >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused_with_key_value_and_range(overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(compose(["scenario=synthetic", *overrides]))


def test_a_fleet_of_ones_own_is_made_of_the_same_parts():
    spec = Disaggregated(Pool(2), Pool(3), LinkSpec(1e9, is_per_accelerator=False))
    assert (spec.link.rate_of(8), LinkSpec(1e9).rate_of(8)) == (1e9, 8e9)

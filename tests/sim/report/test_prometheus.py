"""What a Prometheus server would have seen: read back by its own client, and counted from the facts one by one."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sim import simulate
from sim.errors import ConfigError
from sim.metrics import Slo
from sim.metrics.watch import scrapes
from sim.record import Result, iteration_ends_ns
from sim.report import write
from sim.report.prometheus import openmetrics

TIGHT = (
    "scenario=synthetic",
    "scenario.rate=40",
    "scenario.n_requests=250",
    "hardware.kv_blocks=700",
    "cache.reserves_prompt=false",
    "replicas=2",
)
EVERY_S = 0.7


@pytest.fixture(scope="module")
def result() -> Result:
    """Two replicas that preempt."""
    found = simulate(*TIGHT)
    assert len(found.preemptions) > 10
    return found


def read(text: str) -> dict[str, list]:
    """Families by name, checked by Prometheus's own parser: grammar, order of times, bounds of buckets and their sums.

    It takes the second time of a histogram for a duplicate of the first, though the standard allows many: so histograms
    are read scrape by scrape, the rest in one.
    """
    lines = text.splitlines(keepends=True)
    assert lines[-1] == "# EOF\n"
    is_histogram = [any(f"{part}{{" in line for part in ("_bucket", "_count", "_sum")) for line in lines]
    rest = "".join(line for line, skip in zip(lines, is_histogram, strict=True) if not skip)
    found = {family.name: family.samples for family in text_string_to_metric_families(rest)}
    heads = [line for line in lines if line.startswith("#")]
    by_stamp: dict[str, list[str]] = {}
    for line, one in zip(lines, is_histogram, strict=True):
        if one:
            by_stamp.setdefault(line.split(" ")[-1], []).append(line)
    for scrape in by_stamp.values():
        names = {line.partition("{")[0].rpartition("_")[0] for line in scrape}
        for name in sorted(names):
            mine = [line for line in heads if f" {name} " in line] + [line for line in scrape if line.startswith(name)]
            (family,) = text_string_to_metric_families("".join([*mine, "# EOF\n"]))
            assert family.type == "histogram"
            found[name] = [*found.get(name, []), *family.samples]
    return found


def test_the_text_is_openmetrics_to_prometheuss_own_parser(result):
    seen = scrapes(result, EVERY_S)
    found = read("".join(openmetrics(result, seen)))
    n_times = len(seen.times_ns)
    for kind in (seen.gauges, seen.counters):
        assert all(len(found[f"vllm:{name}"]) == 2 * n_times for name in kind), "two engines, each at each time"
    for name, observed in seen.histograms.items():
        assert len(found[f"vllm:{name}"]) == 2 * n_times * (len(observed.bounds_s) + 3)
    served = [sample.value for sample in found["vllm:request_success"] if sample.labels["engine"] == "1"]
    assert served[-1] == (result.requests.column("replica") == 1).sum()
    assert found["vllm:generation_tokens"][0].name == "vllm:generation_tokens_total"


@pytest.mark.parametrize("every_s", [EVERY_S, 0.013])
def test_every_number_is_what_the_facts_say_at_that_moment(result, every_s):
    seen = scrapes(result, every_s)
    rows = [dict(zip(result.requests.columns, row, strict=True)) for row in result.requests.rows().tolist()]
    for at in np.linspace(0, len(seen.times_ns) - 1, 9).astype(int):
        now = seen.times_ns[at]
        for replica in range(2):
            mine = [row for row in rows if row["replica"] == replica]
            in_system = sum(row["arrival_ns"] <= now < row["finish_ns"] for row in mine)
            running, waiting = (seen.gauges[f"num_requests_{name}"][replica, at] for name in ("running", "waiting"))
            assert running + waiting == in_system
            unscheduled = sum(row["arrival_ns"] <= now < row["scheduled_ns"] for row in mine)
            assert waiting >= unscheduled
            counted = {name: values[replica, at] for name, values in seen.counters.items()}
            assert counted["prompt_tokens"] == sum(row["prompt_tokens"] for row in mine if row["first_token_ns"] <= now)
            assert counted["request_success"] == sum(row["finish_ns"] <= now for row in mine)
            ttft = seen.histograms["time_to_first_token_seconds"]
            came = [row["first_token_ns"] - row["arrival_ns"] for row in mine if row["first_token_ns"] <= now]
            for bucket, bound_s in enumerate(ttft.bounds_s):
                assert ttft.counts[replica, at, bucket] == sum(ns <= bound_s * 1e9 for ns in came)
            assert ttft.counts[replica, at, -1] == len(came)
            assert ttft.sums_s[replica, at] == pytest.approx(sum(came) / 1e9)


def test_tokens_are_counted_when_their_iteration_ends(result):
    """Each iteration's end, one by one: decoded tokens, beside those that prompts' last iterations gave."""
    seen = scrapes(result, 0.05)
    iterations = result.iterations
    n = iterations.column("n_steps")
    ends_ns, whose = iteration_ends_ns(iterations), np.repeat(iterations.column("replica"), n)
    tokens = np.repeat(iterations.column("decode_seqs"), n)
    for at in (3, 77, len(seen.times_ns) // 2, -1):
        now = seen.times_ns[at]
        decoded = tokens[ends_ns <= now].sum()
        first = (result.requests.column("first_token_ns") <= now).sum()
        back = result.preemptions
        resumed = (back.column("last_token_ns") >= 0) & (back.column("next_token_ns") >= 0)
        again = (resumed & (back.column("next_token_ns") <= now)).sum()
        assert seen.counters["generation_tokens"][:, at].sum() == decoded + first + again
    assert seen.counters["generation_tokens"][:, -1].sum() == result.requests.column("output_tokens").sum()
    assert set(whose.tolist()) == {0, 1}


def test_an_iteration_that_ends_as_somebody_asks_counts(result):
    """Asked at the very end of a decode iteration, and a nanosecond earlier: its tokens are between the two."""
    iterations = result.iterations
    n = iterations.column("n_steps")
    tokens = np.repeat(iterations.column("decode_seqs") * (iterations.column("joined_seqs") == 0), n)
    ends_ns = iteration_ends_ns(iterations)
    for number in np.flatnonzero((tokens > 1) & (ends_ns - result.start_ns > result.duration_ns // 2))[:3]:
        since_ns = int(ends_ns[number] - result.start_ns)
        at, before = (
            scrapes(result, ns / 1e9).counters["generation_tokens"][:, 0].sum() for ns in (since_ns, since_ns - 1)
        )
        assert at - before >= tokens[number]


def test_counters_never_fall_and_shares_are_shares(result):
    seen = scrapes(result, 0.02)
    for values in seen.counters.values():
        assert (np.diff(values, axis=1) >= 0).all()
    usage = seen.gauges["kv_cache_usage_perc"]
    assert 0.9 < usage.max() <= 1.0
    assert (usage >= 0).all()
    assert (usage[:, -1] == 0).all(), "all has been given back"
    assert all((gauge[:, -1] == 0).all() for name, gauge in seen.gauges.items() if name.startswith("num_"))
    assert seen.counters["num_preemptions"][:, -1].sum() == len(result.preemptions)
    assert all(b - a == 20_000_000 for a, b in pairwise(seen.times_ns.tolist()))


def test_files_are_written_where_asked_for_and_read_back(result, tmp_path):
    write(result, Slo(), tmp_path / "without", which="summary")
    assert not list((tmp_path / "without").glob("metrics*"))
    write(result, Slo(), tmp_path / "with", which="summary", scrape_s=1.0)
    text = (tmp_path / "with" / "metrics.om.txt").read_text()
    assert "vllm:num_requests_running" in read(text)
    table = pq.read_table(tmp_path / "with" / "metrics.parquet").to_pandas()
    seen = scrapes(result, 1.0)
    assert len(table) == 2 * len(seen.times_ns)
    assert table["vllm:num_requests_running"].tolist() == seen.gauges["num_requests_running"].reshape(-1).tolist()
    again = tmp_path / "again"
    write(result, Slo(), again, which="summary", scrape_s=1.0)
    assert (again / "metrics.om.txt").read_text() == text


def test_far_too_often_is_refused(result):
    with pytest.raises(ConfigError, match=r"task\.scrape_s=1e-09 asks 2 replicas"):
        scrapes(result, 1e-9)


def test_a_run_that_served_nobody_has_no_scrapes():
    nobody = simulate("scenario=synthetic", "scenario.n_requests=3", "hardware.kv_blocks=2")
    assert not len(nobody.requests)
    text = "".join(openmetrics(nobody, scrapes(nobody, 1.0)))
    assert not any(read(text).values())

"""What a run leaves on disk."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256

import numpy as np
import pyarrow.parquet as pq
import pytest

from sim import simulate
from sim.metrics import Slo, summary
from sim.metrics.queue import queue
from sim.record import ITERATION_COLUMNS, REQUEST_COLUMNS
from sim.report import write
from sim.report.files import config_hash, replacing
from sim.report.pauses import pauses
from sim.report.trace import trace_json
from tests.sim.tiny_run import table, tiny_run

SLO = Slo(ttft_ms=40, tpot_ms=6)
NAMES = {"report.html", "summary.json", "requests.parquet", "iterations.parquet", "trace.json.gz", "manifest.json"}


@pytest.fixture(scope="module")
def run():
    return tiny_run(seed=4, n_requests=60, n_replicas=2, preempts=0.1, n_refused=2)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return write(run.result, SLO, tmp_path_factory.mktemp("runs") / "new" / "folder")


def test_a_run_leaves_its_six_files_and_nothing_else(folder):
    assert {path.name for path in folder.iterdir()} == NAMES


def test_the_summary_file_is_the_summary(folder, run):
    written = json.loads((folder / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary(run.result, SLO)))


@pytest.mark.parametrize("cache", ["paged", "static"])
def test_every_number_of_the_summary_follows_from_the_requests_file(cache, tmp_path):
    """Recomputed from ``requests.parquet`` as vllm/benchmarks/serve.py does from its clients' notes."""
    result = simulate(
        "scenario=chatbot", "scenario.n_sessions=80", "scenario.rate=6", "replicas=2", "hardware.kv_blocks=18000",
        f"cache={cache}", seed=5,
    )  # fmt: skip
    slo = Slo(ttft_ms=30, tpot_ms=5.6)
    write(result, slo, tmp_path)
    numbers = json.loads((tmp_path / "summary.json").read_text())
    table = pq.read_table(tmp_path / "requests.parquet")
    rows = {name: np.array(table.column(name).to_pylist(), dtype=float) for name in table.column_names[:10]}
    arrival, first, finish = (rows[f"{name}_ns"] / 1e6 for name in ("arrival", "first_token", "finish"))
    n_in, n_out = rows["prompt_tokens"], rows["output_tokens"]
    several = n_out > 1
    latencies = {
        "ttft": first - arrival,
        "tpot": (finish - first)[several] / (n_out - 1)[several],
        "e2el": finish - arrival,
    }
    expected = {
        "duration": (finish.max() - arrival.min()) / 1e3,
        "completed": len(arrival),
        "failed": 0,
        "total_input_tokens": n_in.sum(),
        "total_output_tokens": n_out.sum(),
    }
    meets = (first - arrival <= 30) & ((finish - first) / np.maximum(n_out - 1, 1) <= 5.6)
    for name, amount in (
        ("request_throughput", len(arrival)),
        ("request_goodput", meets.sum()),
        ("output_throughput", n_out.sum()),
        ("total_token_throughput", (n_in + n_out).sum()),
    ):
        expected[name] = amount / expected["duration"]
    for name, values in latencies.items():
        kinds = {"mean": values.mean(), "std": values.std(), "median": np.median(values)}
        kinds |= {f"p{q}": np.percentile(values, q) for q in (90, 95, 99)}
        expected |= {f"{kind}_{name}_ms": value for kind, value in kinds.items()}
    expected["max_concurrent_requests"] = max(((arrival <= at) & (finish > at)).sum() for at in arrival)
    expected["mean_itl_ms"] = (finish - first).sum() / (n_out - 1).sum()
    assert 0 < meets.sum() < len(meets)
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    from_tokens = {f"{kind}_itl_ms" for kind in ("std", "median", "p90", "p95", "p99")} | {"max_output_tokens_per_s"}
    assert numbers.keys() - expected.keys() == from_tokens | {"kvtwin"}


def test_requests_are_read_back_as_they_were(folder, run):
    table = pq.read_table(folder / "requests.parquet")
    rows = sorted(run.result.requests.frame().to_dict("records"), key=lambda row: row["id"])
    for name in ("id", "replica", "arrival_ns", "first_token_ns", "finish_ns", "output_tokens", "n_preemptions"):
        assert table.column(name).to_pylist() == [row[name] for row in rows], name
    assert table.column("session_id").to_pylist() == [None if i % 3 else i for i in range(60)]
    assert table.column("slo_class").to_pylist() == [["", "code"][i % 2] for i in range(60)]
    ttft = [(row["first_token_ns"] - row["arrival_ns"]) / 1e6 for row in rows]
    assert table.column("ttft_ms").to_pylist() == ttft
    one_token = [row["output_tokens"] == 1 for row in rows]
    assert any(one_token)
    assert [value is None for value in table.column("tpot_ms").to_pylist()] == one_token
    tpot = table.column("tpot_ms").to_pylist()
    is_good = [t <= 40 and (p is None or p <= 6) for t, p in zip(ttft, tpot, strict=True)]
    assert table.column("is_good").to_pylist() == is_good
    assert 0 < sum(is_good) < 60


def test_iterations_are_read_back_as_they_were(folder, run):
    table = pq.read_table(folder / "iterations.parquet")
    assert tuple(table.column_names) == run.result.iterations.columns
    assert np.array_equal(np.stack([c.to_numpy() for c in table.columns], axis=1), run.result.iterations.rows())


def test_the_manifest_names_the_configuration_and_the_hash_of_every_file(folder, run):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert manifest["config"]["scenario"]["rate"] == 20.0
    assert manifest["seed"] == 4
    assert manifest["config_sha256"] == config_hash(run.result.config)
    assert manifest["files"] == {
        name: sha256((folder / name).read_bytes()).hexdigest() for name in NAMES - {"manifest.json"}
    }
    assert {"kvtwin", "numpy", "pyarrow", "plotly", "python"} <= set(manifest["versions"])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    a, b, c = (
        write(tiny_run(seed=s, preempts=0.1).result, SLO, tmp_path / n) for s, n in ((1, "a"), (1, "b"), (2, "c"))
    )
    for name in NAMES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for name in NAMES:
        assert (a / name).read_bytes() != (c / name).read_bytes(), name


def test_a_configuration_is_named_whatever_the_order_of_its_keys():
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_what_fails_half_way_leaves_nothing_of_itself(tmp_path, run):
    write(run.result, SLO, tmp_path)
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write(run.result, SLO, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}


def test_a_file_is_replaced_only_when_written_to_its_end(tmp_path):
    (tmp_path / "kept").write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(tmp_path / "kept") as path:
        path.write_text("half, then what is no text: \ud800", encoding="utf-8")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "old")]


def events(result, **options):
    return json.loads(gzip.decompress(trace_json(result, **options)))["traceEvents"]


def test_the_trace_has_every_iteration_and_every_phase_of_every_request(run):
    found = Counter(event["ph"] for event in events(run.result))
    assert found == {
        "M": 4,
        "X": len(run.result.iterations),
        "C": 2 * (len(run.result.iterations) + len(pauses(run.result).begin_ns))
        + sum(len(queue(run.result, replica).length) for replica in range(2)),
        "b": 3 * len(run.result.requests),
        "e": 3 * len(run.result.requests),
    }


def test_the_traces_queue_adds_up_to_all_waiting():
    result = tiny_run(seed=4, n_requests=60).result
    shown = [(event["ts"], event["args"]["waiting"]) for event in events(result) if event["name"] == "queue"]
    times_us, waiting = np.array(shown).T
    waited_ns = result.requests.column("scheduled_ns") - result.requests.column("arrival_ns")
    assert (np.diff(times_us) * waiting[:-1]).sum() == pytest.approx(waited_ns.sum() / 1e3)
    assert waiting[-1] == 0


def test_counters_fall_to_nothing_while_a_replica_has_nothing_to_do():
    """Two requests of 1 us, 8 us apart: the second finds 5 tokens of what the first has left."""
    rows = [{"n_steps": 1, "first_ps": 10**6, "decode_seqs": 3, "held_tokens": 40, "live_tokens": 40, "idle_tokens": 2}]
    rows.append(rows[0] | {"start_ns": 9_000, "idle_tokens": 30})
    served = [{"first_token_ns": 1_000, "finish_ns": 1_000}]
    served.append({"scheduled_ns": 9_000, "first_token_ns": 10_000, "finish_ns": 10_000, "cached_tokens": 5})
    facts = {"iterations": table(ITERATION_COLUMNS, rows), "requests": table(REQUEST_COLUMNS, served)}
    shown = [e for e in events(replace(tiny_run().result, **facts, config={}, end_ns=10_000)) if e["ph"] == "C"]
    shown.sort(key=lambda event: event["ts"])
    slots = [(int(e["ts"]), *e["args"].values()) for e in shown if e["name"] == "KV slots"]
    assert slots == [(0, 40, 2), (1, 0, 35), (9, 40, 30)]
    assert [(int(e["ts"]), *e["args"].values()) for e in shown if e["name"] == "requests"] == [(0, 3), (1, 0), (9, 3)]


def test_overlapping_requests_are_asynchronous_events_that_open_and_close(run):
    spans = [event for event in events(run.result) if event["ph"] in "be"]
    for event in spans:
        assert {"id", "cat", "pid", "ts", "name"} <= set(event)
    begun = {(e["id"], e["name"]): e["ts"] for e in spans if e["ph"] == "b"}
    ended = {(e["id"], e["name"]): e["ts"] for e in spans if e["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert all(begun[key] <= ended[key] for key in begun)


def test_times_of_the_trace_are_microseconds(run):
    slices = [event for event in events(run.result) if event["ph"] == "X" and event["pid"] == 1]
    rows = run.result.iterations.frame()
    rows = rows[rows["replica"] == 1]
    assert [s["ts"] for s in slices] == pytest.approx((rows["start_ns"] - run.result.start_ns) / 1e3, abs=1e-3)
    n, first, growth = (rows[name].to_numpy() for name in ("n_steps", "first_ps", "growth_ps"))
    assert [s["dur"] for s in slices] == pytest.approx((n * first + n * (n - 1) // 2 * growth) / 1e6, abs=1e-3)


READERS = {
    "exact": lambda us: 1000 * Fraction(str(us)),
    "cut": lambda us: int(1000.0 * us),
    "rounded": lambda us: round(1000.0 * us),
}


@pytest.mark.parametrize("read_ns", READERS.values(), ids=READERS)
def test_no_slice_overlaps_the_next_one_however_its_times_are_read(read_ns):
    """Perfetto drops those that do."""
    slices = [event for event in events(tiny_run(seed=5, n_requests=300).result) if event["ph"] == "X"]
    starts, lengths = ([read_ns(event[name]) for event in slices] for name in ("ts", "dur"))
    gaps = [after - start - length for start, length, after in zip(starts, lengths, starts[1:], strict=False)]
    assert min(gaps) >= 0
    assert 0 <= np.median(gaps) <= 1, "one follows on the other"


def test_a_long_run_is_cut_to_its_beginning(run):
    shown = events(run.result, max_events=300)
    assert 200 < len(shown) <= 300 + 4
    whole = [event["ts"] for event in events(run.result) if event["ph"] == "X"]
    kept = [event["ts"] for event in shown if event["ph"] == "X"]
    assert kept == whole[: len(kept)]

import csv
import gc
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import kernels
import kernels.__main__ as command
from kernels.correctness import Check
from kernels.speed import Speed

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NEVER = float("inf")


def rows_of(path):
    with path.open() as file:
        assert file.readline().startswith("# device "), "the machine stands above the rows"
        return list(csv.DictReader(file))


def test_the_package_is_ours():
    assert Path(kernels.__file__).parent == ROOT / "kernels"


def test_a_cpu_rehearses_every_check_and_timing_and_leaves_no_results(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    results = ROOT / "kernels/RESULTS.md"
    before = results.read_bytes() if results.exists() else None
    done = subprocess.run(
        [sys.executable, "-m", "kernels", "--device", "cpu", "--out", str(tmp_path)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert "a rehearsal, no results" in done.stdout
    proven, timed = rows_of(tmp_path / "correctness.csv"), rows_of(tmp_path / "speed.csv")
    assert len(proven) > 60
    assert {row["passed"] for row in proven} == {"yes"}
    assert len(timed) > 40
    assert {row["convention"] for row in timed} == {"rehearsal"}
    assert {row["verdict"] for row in timed} == {""}
    assert not (tmp_path / "RESULTS.md").exists()
    assert (results.read_bytes() if results.exists() else None) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_so():
    assert command.main([]) == 2


def test_a_wrong_kernel_a_crash_and_a_lack_of_time_are_all_written_down(tmp_path, monkeypatch):
    found = [
        Check("good", "", lambda: (0.1, 0.2)),
        Check("bad", "", lambda: (0.3, 0.2)),
        Check("nan", "", lambda: (float("nan"), 0.2)),
        Check("crash", "", lambda: 1 / 0),
    ]
    monkeypatch.setattr(command, "checks", lambda *_, **__: found)
    in_time, late = (command.Rows(tmp_path / name, command.CHECK_COLUMNS, {"device": "x"}) for name in ("a", "b"))
    command.prove(None, CPU, in_time, NEVER)
    command.prove(None, CPU, late, time.monotonic() - 1)
    in_time.close()
    late.close()
    assert [row["passed"] for row in rows_of(tmp_path / "a")] == ["yes", "NO", "NO", "NO"]
    assert "ZeroDivisionError" in rows_of(tmp_path / "a")[3]["remark"]
    assert {row["passed"] for row in rows_of(tmp_path / "b")} == {"skipped"}


def test_timings_that_crash_or_find_no_time_are_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "jobs", lambda *_, **__: [lambda: 1 / 0] * 3)
    rows = command.Rows(tmp_path / "a", command.SPEED_COLUMNS, {"device": "x"})
    command.tabulate(None, CPU, rows, NEVER)
    rows.close()
    late = command.Rows(tmp_path / "b", command.SPEED_COLUMNS, {"device": "x"})
    command.tabulate(None, CPU, late, time.monotonic() - 1)
    late.close()
    assert [row["kernel"] for row in rows_of(tmp_path / "a")] == ["failed"] * 3
    assert [(row["kernel"], row["case"]) for row in rows_of(tmp_path / "b")] == [("skipped", "3 timings, out of time")]


@pytest.mark.parametrize(
    ("kernel", "case", "rate", "must", "verdict"),
    [
        ("prefill_attention", "8k", 300.0, 300.0, "met"),
        ("prefill_attention", "8k", 299.0, 300.0, "missed"),
        ("prefill_attention", "8k", 299.0, None, ""),
        ("decode_attention", "floor, 1 x 16", 0.1, 16.0, "met"),
        ("kv_copy", "blocks", 320.0, 0.75, "met"),
        ("kv_copy", "blocks", 280.0, 0.75, "missed"),
    ],
)
def test_a_bar_is_a_rate_a_floor_in_us_or_a_share_of_the_copy_ceiling(kernel, case, rate, must, verdict):
    speed = Speed(kernel, case, 12.0, rate, "TFLOP/s", must, "graph", {"flash": 14.0})
    row = command.judge(speed, {"TFLOP/s": 400.0})
    assert row["verdict"] == verdict
    assert row["of_ceiling_frac"] == rate / 400.0
    assert row["flash_us"] == 14.0


def test_the_report_counts_what_passed_and_escapes_nothing_into_the_table():
    proven = [dict.fromkeys(command.CHECK_COLUMNS, "a|b") | {"passed": x} for x in ("yes", "NO")]
    text = command.report({"device": "a GPU"}, proven, [dict.fromkeys(command.SPEED_COLUMNS, 1.23456)])
    assert "1 of 2 passed" in text
    assert "* device: a GPU" in text
    assert "| 1.23 |" in text
    assert "a|b" not in text


def test_a_check_that_takes_the_device_is_written_down_and_a_new_process_goes_on_after_it(tmp_path, monkeypatch):
    found = [
        Check("good", "", lambda: (0.1, 0.2)),
        Check("fatal", "", lambda: 1 / 0),
        Check("other", "", lambda: (0.1, 0.2)),
    ]
    ceiling, timing = (
        Speed(name, "", 1.0, rate, "TB/s", None, "graph", {}) for name, rate in (("ceiling", 4.0), ("x", 2.0))
    )
    started = []

    class Replaced(BaseException):
        """What exec does: nothing after it runs."""

    def execv(path, arguments):
        started.append(arguments)
        raise Replaced

    monkeypatch.setattr(command, "checks", lambda *_, **__: iter(found))
    monkeypatch.setattr(command, "jobs", lambda *_, **__: iter([lambda: ceiling, lambda: 1 / 0, lambda: timing]))
    monkeypatch.setattr(command, "is_lost", lambda _: True)
    monkeypatch.setattr(command.os, "execv", execv)
    with pytest.raises(Replaced):
        command.main(["--device", "cpu", "--out", str(tmp_path)])
    assert [row["kernel"] for row in rows_of(tmp_path / "correctness.csv")] == ["good", "fatal"]
    with pytest.raises(Replaced):
        command.main(started[0][3:])
    assert command.main(started[1][3:]) == 1
    assert [row["passed"] for row in rows_of(tmp_path / "correctness.csv")] == ["yes", "NO", "yes"]
    timed = rows_of(tmp_path / "speed.csv")
    assert [row["kernel"] for row in timed] == ["ceiling", "failed", "x"]
    assert timed[2]["of_ceiling_frac"] == "0.5"
    assert 400.0 < float(started[1][started[1].index("--budget-s") + 1]) <= 440.0


def test_a_run_that_goes_on_keeps_rows_and_tries_again_what_was_skipped_or_cut_off(tmp_path):
    rows = command.Rows(tmp_path / "a", command.CHECK_COLUMNS, {"device": "x"})
    rows.add(kernel="k", case="a, b", error=0.25, passed="yes")
    rows.add(kernel="k", case="c", passed="skipped")
    rows.close()
    with (tmp_path / "a").open("a") as file:
        file.write("k,half a l")
    rows = command.Rows(tmp_path / "a", command.CHECK_COLUMNS, {"device": "x"}, is_continued=True)
    rows.add(kernel="k", case="c", passed="NO")
    rows.close()
    assert [(row["case"], row["passed"]) for row in rows_of(tmp_path / "a")] == [("a, b", "yes"), ("c", "NO")]
    assert rows.rows[0]["error"] == 0.25


def test_no_garbage_is_collected_while_a_graph_is_captured(monkeypatch):
    from kernels.timing import capturing

    seen = []
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext(seen.append(graph)))
    with capturing("graph"):
        seen.append(gc.isenabled())
    assert seen == ["graph", False]
    assert gc.isenabled()

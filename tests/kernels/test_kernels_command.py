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
from kernels.results import CHECK_COLUMNS, SPEED_COLUMNS, report, write_results
from kernels.rows import Rows, read_rows
from kernels.speed import Speed
from kernels.watch import Watch

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
    in_time, late = (Rows(tmp_path / name, CHECK_COLUMNS, {"device": "x"}) for name in ("a", "b"))
    watch = Watch(tmp_path / "begun")
    command.prove(None, CPU, in_time, NEVER, watch)
    command.prove(None, CPU, late, time.monotonic() - 1, watch)
    in_time.close()
    late.close()
    assert [row["passed"] for row in rows_of(tmp_path / "a")] == ["yes", "NO", "NO", "NO"]
    assert "ZeroDivisionError" in rows_of(tmp_path / "a")[3]["remark"]
    assert {row["passed"] for row in rows_of(tmp_path / "b")} == {"skipped"}


def test_timings_that_crash_or_find_no_time_are_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "jobs", lambda *_, **__: [lambda: 1 / 0] * 3)
    rows = Rows(tmp_path / "a", SPEED_COLUMNS, {"device": "x"})
    command.tabulate(None, CPU, rows, NEVER, Watch(tmp_path / "begun"))
    rows.close()
    late = Rows(tmp_path / "b", SPEED_COLUMNS, {"device": "x"})
    command.tabulate(None, CPU, late, time.monotonic() - 1, Watch(tmp_path / "begun"))
    late.close()
    assert [row["kernel"] for row in rows_of(tmp_path / "a")] == ["failed"] * 3
    assert [(row["kernel"], row["case"]) for row in rows_of(tmp_path / "b")] == [("skipped", "3 timings, out of time")]


@pytest.mark.parametrize(
    ("case", "rate", "must", "verdict"),
    [
        ("8k", 152.1, 0.38, "met"),
        ("8k", 151.9, 0.38, "missed"),
        ("8k", 1.0, None, ""),
        ("floor, 1 x 17", 0.1, 16.0, "met"),
        ("floor, 1 x 17", 900.0, 11.0, "missed"),
    ],
)
def test_a_bar_is_a_share_of_what_was_measured_at_best_or_the_floors_time(case, rate, must, verdict):
    speed = Speed("prefill_attention", case, 12.0, rate, "TFLOP/s", must, "graph")
    row = command.judge(speed, {"TFLOP/s": 400.0})
    assert row["verdict"] == verdict
    assert row["of_ceiling_frac"] == rate / 400.0
    assert command.judge(speed, {})["verdict"] in ("", verdict), "without a ceiling nothing is said, but of the floor"
    assert command.judge(speed._replace(convention="rehearsal"), {"TFLOP/s": 400.0})["verdict"] == ""


def test_whatever_a_rival_does_our_row_is_kept(tmp_path, monkeypatch):
    def fails():
        raise AttributeError("no such backend")

    ours = Speed("x", "", 1.0, 2.0, "TB/s", None, "graph", fails, "a remark")
    told = ours._replace(rivals=lambda: {"flash": 14.0})
    monkeypatch.setattr(command, "jobs", lambda *_, **__: iter([lambda: ours, lambda: told]))
    rows = Rows(tmp_path / "a", SPEED_COLUMNS, {"device": "x"})
    command.tabulate(None, CPU, rows, NEVER, Watch(tmp_path / "begun"))
    rows.close()
    first, second = rows_of(tmp_path / "a")
    assert (first["time_us"], first["flash_us"]) == ("1.0", "")
    assert first["remark"] == "a remark; rivals: AttributeError: no such backend"
    assert (second["flash_us"], second["cudnn_us"]) == ("14.0", "")
    monkeypatch.setattr(command, "is_lost", lambda _: True)
    rows = Rows(tmp_path / "b", SPEED_COLUMNS, {"device": "x"})
    with pytest.raises(command.DeviceLostError):
        command.tabulate(None, CPU, rows, NEVER, Watch(tmp_path / "begun"))
    rows.close()
    assert [row["time_us"] for row in rows_of(tmp_path / "b")] == ["1.0"]


def test_the_report_counts_what_passed_and_escapes_nothing_into_the_table():
    proven = [dict.fromkeys(CHECK_COLUMNS, "a|b") | {"passed": x} for x in ("yes", "NO")]
    text = report({"device": "a GPU"}, proven, [dict.fromkeys(SPEED_COLUMNS, 1.23456)])
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
        Speed(name, "", 1.0, rate, "TB/s", None, "graph") for name, rate in (("ceiling", 4.0), ("x", 2.0))
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
    rows = Rows(tmp_path / "a", CHECK_COLUMNS, {"device": "x"})
    rows.add(kernel="k", case="a, b", error=0.25, passed="yes")
    rows.add(kernel="k", case="c", passed="skipped")
    rows.close()
    with (tmp_path / "a").open("a") as file:
        file.write("k,half a l")
    rows = Rows(tmp_path / "a", CHECK_COLUMNS, {"device": "x"}, is_continued=True)
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


DIES = """
import os, signal, sys, time
import kernels.__main__ as command
from kernels import watch
from kernels.correctness import Check
from kernels.speed import Speed

def hang():
    time.sleep(60)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

good = Check("good", "", lambda: (0.1, 0.2))
ways = {"hang": hang, "die": die}
bad = ways[sys.argv[1]]
timing = Speed("x", "", 1.0, 2.0, "TB/s", None, "graph")
command.checks = lambda *_, **__: iter([good, Check("bad", "", bad), good])
command.jobs = lambda *_, **__: iter([lambda: timing, bad, lambda: timing])
watch.Watch.__init__.__defaults__ = (1.0,)
sys.exit(command.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("way", "said"), [("hang", "hung for 1 s"), ("die", "the process was ended in it")])
def test_what_hangs_or_is_killed_is_written_down_by_the_next_process_which_goes_on_after_it(tmp_path, way, said):
    options = ["--device", "cpu", "--out", str(tmp_path)]
    for n, expected in enumerate((2, 2, 0)):
        more = ["--continue"] if n else []
        done = subprocess.run(
            [sys.executable, "-c", DIES, way, *options, *more], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode in (1, -9)) == (expected == 2 or done.returncode == 1), done.stderr
        if n == 0:
            assert [row["kernel"] for row in rows_of(tmp_path / "correctness.csv")] == ["good"]
    proven, timed = rows_of(tmp_path / "correctness.csv"), rows_of(tmp_path / "speed.csv")
    assert [(row["kernel"], row["passed"]) for row in proven] == [("good", "yes"), ("bad", "NO"), ("good", "yes")]
    assert [row["kernel"] for row in timed] == ["x", "failed", "x"]
    assert said in proven[1]["remark"]
    assert said in timed[1]["case"]
    assert not list(tmp_path.glob("*.begun"))


def test_a_full_disk_takes_no_row_away(tmp_path):
    """The limit on a file's size stands in for it: writing fails in the middle of a row."""
    run = f"""
import resource, sys
import kernels.__main__ as command
from kernels.correctness import Check
command.checks = lambda *_, **__: iter([Check("k", "c" * 200, lambda: (0.1, 0.2))] * 50)
command.jobs = lambda *_, **__: iter([])
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, -1))
sys.exit(command.main(["--device", "cpu", "--out", {str(tmp_path)!r}, *sys.argv[1:]]))
"""
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "the rows before it are kept" in done.stdout
    before = read_rows(tmp_path / "correctness.csv")[1]
    assert 5 < len(before) < 20
    again = subprocess.run(
        [sys.executable, "-c", run, "--continue"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 3, again.stderr
    assert read_rows(tmp_path / "correctness.csv")[1][: len(before)] == before


def test_results_are_written_later_from_whatever_rows_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "HERE", tmp_path / "HERE.md")
    assert command.main(["--results", "--out", str(tmp_path)]) == 2
    rows = Rows(tmp_path / "speed.csv", SPEED_COLUMNS, {"device": "NVIDIA X", "driver_version": "1; 2"})
    rows.add(kernel="decode_attention", case="one", time_us=12.5)
    rows.close()
    assert command.main(["--results", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert "* device: NVIDIA X" in text
    assert "| 12.5 |" in text
    assert "0 of 0 passed" in text
    assert (tmp_path / "HERE.md").read_text() == text
    rehearsed = Rows(tmp_path / "speed.csv", SPEED_COLUMNS, {"device": "CPU rehearsal"})
    rehearsed.add(kernel="x")
    rehearsed.close()
    assert write_results(tmp_path) is None


def test_a_share_of_the_checks_is_compiled_and_not_compared():
    from kernels import reference
    from kernels.correctness import checks
    from kernels.warm import compile_all, launching_only

    asked = []

    def counted(name):
        def kernel(*_, **__):
            asked.append(name)

        return kernel

    names = [name for name, kernel in vars(reference).items() if callable(kernel) and not name.startswith("_")]
    counting = type("Ops", (), {})()
    vars(counting).update({name: counted(name) for name in names})
    ops = launching_only(counting)
    found = list(checks(ops, CPU, is_tiny=True))
    assert compile_all(check.run for check in found) == len(found) == len(asked)
    assert {"prefill_attention", "decode_attention", "kv_copy", "rope", "quant_decode_attention"} <= set(asked)

"""From measuring this machine's CPU to simulating with the profile just made, on the command line."""

import json
from pathlib import Path

import pytest

from calibration.__main__ import main
from calibration.bench import gather, run_bench
from calibration.cpu import CpuBench
from calibration.measurements import frame, read_measurements, write_measurements
from calibration.points import Point, cpu_points, decode, point
from sim.errors import ProfileError
from sim.profile import read_profile


class FewPoints:
    """A bench whose times follow a formula; one point fails."""

    device = "CPU test"
    convention = "computed"
    subject = {"dtype": "fp32", "kv_dtype": "fp32"}  # noqa: RUF012
    versions = {"torch": "none"}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[str] = []

    def points(self) -> list[Point]:
        return [p for p in cpu_points() if p.operation == "decode_attention"]

    def comes_first(self, at: Point) -> bool:
        return False

    def seconds(self, at: Point) -> float:
        self.asked.append(at.key)
        if at["decode_seqs"] == 16 and at["decode_longest_tokens"] == 512:
            raise MemoryError("too little memory")
        return 1e-6 + 1e-9 * at["decode_total_tokens"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cpu")
    assert main(["step=measure", "device=cpu", f"out={folder}"]) == 0
    assert main(["step=fit", f"measurements={folder}", "compare=false"]) == 0
    return folder


def test_a_profile_measured_here_is_simulated_with(measured, capsys):
    from sim.run import simulate

    result = simulate(
        "model=gpt2",
        "cost=calibrated",
        f"cost.profile={measured / 'profile.json'}",
        "hardware=cpu",
        "scenario.n_sessions=5",
    )
    assert len(result.requests) > 0
    assert result.end_ns > 0
    model = result.config["model"]
    assert (model["weight_dtype"], model["kv_dtype"]) == ("fp32", "fp32"), "as it was measured"


def test_a_number_format_that_was_set_goes_before_the_profiles(measured):
    from sim.run import simulate

    chosen = ("model=gpt2", "cost=calibrated", f"cost.profile={measured / 'profile.json'}", "hardware=cpu")
    with pytest.raises(ProfileError, match=r"with dtype fp32, got bf16|not measured in bf16"):
        simulate(*chosen, "model.weight_dtype=bf16", "model.kv_dtype=bf16")


def test_measurements_carry_convention_versions_and_repeats(measured):
    read = read_measurements(measured)
    assert read.device.startswith("CPU")
    assert "torch" in read.provenance
    assert set(read.provenance["repeats_differ_by"]) == {"decode_attention", "batched_prefill_attention", "gemm"}
    assert (read.rows["seconds"] > 0.0).all()
    assert len(read.rows) == len(cpu_points())


def test_the_report_is_one_page_that_needs_no_network(measured):
    assert main(["step=report", f"measurements={measured}"]) == 0
    text = (measured / "report.html").read_text(encoding="utf-8")
    assert "Errors of the served times" in text
    assert "Times never seen are " in text
    assert text.count("<figure") >= 3
    assert text.count("* plotly.js v") == 1
    assert "−0.0 %" not in text
    assert "default-src 'none'" in text


def test_show_and_list_print_errors_and_provenance(measured, capsys):
    assert main(["step=show", f"profile={measured / 'profile.json'}"]) == 0
    shown = capsys.readouterr().out
    assert "decode_seqs: 1 to 16" in shown
    assert "measurements_sha256" in shown
    assert main(["step=list"]) == 0
    listed = capsys.readouterr().out
    assert "h200/published" in listed
    assert "batched_prefill_attention_fp8" in listed


def test_measurements_changed_by_hand_are_refused(tmp_path, measured, capsys):
    for name in ("measurements.csv", "measurements.json"):
        (tmp_path / name).write_bytes((measured / name).read_bytes())
    (tmp_path / "measurements.csv").write_bytes((measured / "measurements.csv").read_bytes()[:-40])
    assert main(["step=fit", f"measurements={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "altered or cut off" in message
    assert "Traceback" not in message


def test_a_profile_of_other_measurements_is_not_reported_on(tmp_path, measured, capsys):
    rows = read_measurements(measured)
    from dataclasses import replace

    write_measurements(replace(rows, rows=rows.rows.iloc[:-1]), tmp_path)
    assert main(["step=report", f"measurements={tmp_path}", f"profile={measured / 'profile.json'}"]) == 2
    assert "fitted to measurements of sha256" in capsys.readouterr().err


def test_a_folder_where_a_file_is_to_go_and_the_other_way_round_are_one_line(tmp_path, measured, capsys):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    assert main(["step=fit", f"measurements={measured}", "compare=false", f"out={folder}"]) == 2
    assert capsys.readouterr().err == f"calibration: {folder}: Is a directory\n"
    assert sorted(tmp_path.iterdir()) == [file, folder], "nothing half-written is left"
    assert main(["step=measure", "device=cpu", f"out={file}"]) == 2
    assert capsys.readouterr().err == f"calibration: {file}: File exists\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["step=fit"], "measurements must be given"),
        (["step=fly"], "fly"),
        (["step=fit", "measurments=x"], "did you mean measurements?"),
        (["step=fit", "measurements=/nowhere"], "run step=measure or step=import first"),
        (["step=import", "source=magic", "path=x"], "source must be one of aiconfigurator, llmservingsim"),
        (["step=import", "source=aiconfigurator", "path=/nowhere"], "no such folder"),
        (["step=import", "source=llmservingsim", "path=/nowhere"], "meta.yaml: missing"),
        (["step=show", "profile=nothing"], "no such profile"),
        (["step=measure", "device=tpu"], "device must be cuda or cpu, got 'tpu'"),
        (["step=measure", "device=cpu", "minutes=0"], "minutes must be > 0"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_a_failing_point_is_recorded_and_the_rest_goes_on(tmp_path):
    bench = FewPoints()
    result = run_bench(bench, tmp_path, minutes=1.0, seed=0)
    assert len(result.rows) == len(bench.points()) - 1
    assert any("MemoryError: too little memory" in note for note in result.notes)


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path):
    first, second = FewPoints(), FewPoints()
    times = iter([0.0] * 30 + [1e9] * 10_000)
    run_bench(first, tmp_path, minutes=1.0, seed=0, clock=lambda: next(times))
    with (tmp_path / "timings.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"pass": 1, "key": "half a li')
    result = run_bench(second, tmp_path, minutes=1.0, seed=0)
    total = 2 * len(first.points())
    assert len(first.asked) < total
    assert len(first.asked) + len(second.asked) == total + 2  # and a sentinel each
    assert result.provenance["repeats_differ_by"] == {"decode_attention": 0.0}


def test_ctrl_c_ends_in_one_line_and_keeps_what_was_timed(tmp_path, capsys, monkeypatch):
    command = ["step=measure", "device=cpu", f"out={tmp_path}"]
    times, n_timed = CpuBench.seconds, []

    def interrupted(self, point):
        if len(n_timed) == 4:
            raise KeyboardInterrupt
        n_timed.append(point)
        return times(self, point)

    monkeypatch.setattr(CpuBench, "seconds", interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("calibration: stopped; what step=measure timed is kept")
    timed = (tmp_path / "timings.jsonl").read_text(encoding="utf-8")
    assert json.dumps(n_timed[-1].key) in timed


def test_timings_of_another_device_are_not_mixed_in(tmp_path):
    (tmp_path / "timings.jsonl").write_text(json.dumps({"device": "NVIDIA H200"}) + "\n", encoding="utf-8")
    with pytest.raises(ProfileError, match="timings of 'NVIDIA H200', this machine is 'CPU test'"):
        run_bench(FewPoints(), tmp_path, minutes=1.0, seed=0)


class Drifting(FewPoints):
    """Each point takes 10 us at first and 30 us afterwards; the sentinel, timed in between, does not count."""

    def seconds(self, at: Point) -> float:
        n_before = self.asked.count(at.key)
        self.asked.append(at.key)
        return 30e-6 if n_before else 10e-6

    def points(self) -> list[Point]:
        return super().points()[:3]


def test_a_points_time_is_the_mean_of_its_passes(tmp_path):
    run_bench(Drifting(), tmp_path, minutes=1.0, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()[1:]]
    by_key: dict[str, list[float]] = {}
    for row in rows:
        if row["pass"] >= 0:
            by_key.setdefault(row["key"], []).append(row["seconds"])
    gathered = gather(tmp_path)
    assert len(by_key) == 3
    assert {len(seconds) for seconds in by_key.values()} == {2}
    assert sorted(gathered.rows["seconds"]) == pytest.approx(sorted(sum(two) / 2 for two in by_key.values()))
    assert 20e-6 in [pytest.approx(seconds) for seconds in gathered.rows["seconds"]]


def test_nothing_timed_is_an_error(tmp_path):
    with pytest.raises(ProfileError, match="nothing was timed"):
        run_bench(FewPoints(), tmp_path, minutes=0.0, seed=0, clock=iter(range(10**6)).__next__)


def test_a_table_written_is_the_table_read(tmp_path, measured):
    again = read_measurements(measured)
    write_measurements(again, tmp_path)
    assert (tmp_path / "measurements.csv").read_bytes() == (measured / "measurements.csv").read_bytes()


def test_a_column_outside_the_schema_is_refused():
    with pytest.raises(ValueError, match="no such columns: speed"):
        frame("gemm", speed=1.0)


def test_points_are_told_apart_by_their_columns_alone():
    assert decode(2, 16, head_dim=64).key == decode(2, 16, head_dim=64).key != decode(2, 17, head_dim=64).key
    assert point("gemm", m=1, n=2).key == point("gemm", n=2, m=1).key


def test_a_fitted_profile_says_how_far_repeats_differ(measured):
    profile = read_profile(measured / "profile.json")
    assert all(form["error"]["repeat_floor"] >= 0.0 for form in profile.operations.values())

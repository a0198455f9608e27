"""A visit to a GPU rehearsed on a CPU, a fault injected at each stage: what was measured before stays, and is used."""

import json
import sys
from pathlib import Path

import pytest

from calibration import gpu_slot
from calibration.bench import ENDED, gather, read_timings
from calibration.points_gpu import TINY, gpu_points
from kernels.rows import read_rows
from sim.profile import read_profile

FAULTY = Path(__file__).with_name("faulty.py")


def visit(folder: Path, monkeypatch, *faults: str, minutes: float = 5.0) -> int:
    real = gpu_slot.stages

    def faulty(out, device):
        def through(commands):
            return lambda seconds: [
                [sys.executable, str(FAULTY), str(folder), ",".join(faults) or "-", *command[2:]]
                for command in commands(seconds)
            ]

        return [stage._replace(commands=through(stage.commands)) for stage in real(out, device)]

    monkeypatch.setattr(gpu_slot, "stages", faulty)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    code = gpu_slot.main(["--out", str(folder), "--device", "cpu", "--minutes", f"{minutes}"])
    monkeypatch.setattr(gpu_slot, "stages", real)
    return code


def test_every_kind_of_fault_at_every_stage_costs_its_own_point_and_no_other(tmp_path, monkeypatch, capsys):
    stages = ("compiling", "calibration", "kernels")
    faults = [f"{stage}-{way}" for stage in stages for way in ("fails", "hangs", "dies")]
    faults.remove("compiling-hangs")  # a stage of its own below
    code = visit(tmp_path, monkeypatch, *faults, "finish-dies")
    said = capsys.readouterr().out
    assert code == 1, said
    assert "--finish" in said
    assert all((tmp_path / fault).exists() for fault in faults), said

    _, rows = read_timings(tmp_path / "calibration" / "timings.jsonl")
    wrong = [row["error"] for row in rows if "error" in row]
    assert sorted(wrong) == ["RuntimeError: injected", "hung for 2 s", ENDED]
    keys = {json.loads(row["key"])[0] for row in rows if "seconds" in row}
    assert len(keys) >= len({at.operation for at in gpu_points(TINY)}) - 1
    timed = {row["key"] for row in rows if "seconds" in row and row["pass"] >= 0}
    assert len(timed) >= len(gpu_points(TINY)) - 1, "but for the point that hung, all have been timed at least once"

    _, checked = read_rows(tmp_path / "kernels" / "correctness.csv")
    assert [row["passed"] for row in checked] == ["NO", "NO", "NO", *["yes"] * 5]
    assert len(read_rows(tmp_path / "kernels" / "speed.csv")[1]) == 4

    assert not (tmp_path / "calibration" / "profile.json").exists(), "making it was killed"
    assert gpu_slot.main(["--out", str(tmp_path), "--finish"]) == 0
    profile = read_profile(tmp_path / "calibration" / "profile.json")
    assert {"decode_attention", "batched_prefill_attention", "gemm", "link"} <= set(profile.operations)
    assert any("hung" in note for note in gather(tmp_path / "calibration").notes)


def test_a_full_disk_and_a_compilation_that_hangs_leave_what_was_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_slot, "GRACE_S", 0.5)
    monkeypatch.setattr(gpu_slot, "COMPILING_FRAC", 0.1)
    assert visit(tmp_path, monkeypatch, "compiling-hangs", "disk-full", minutes=2.5) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "compiling: out of time" in said
    assert "calibration: exit 4" in said
    log = tmp_path / "calibration" / "timings.jsonl"
    _, rows = read_timings(log)
    assert len(rows) > 20
    assert not log.read_bytes().endswith(b"\n"), "the disk was full in the middle of a row"
    operations = set(gather(tmp_path / "calibration").rows["operation"])
    assert operations
    read_profile(tmp_path / "calibration" / "profile.json")
    assert visit(tmp_path, monkeypatch, minutes=5.0) == 0, "with room again, the same command goes on in the folder"
    _, more = read_timings(log)
    assert more[: len(rows)] == rows
    assert {row["key"] for row in more} >= {at.key for at in gpu_points(TINY)}


def test_points_that_profiles_need_come_first(tmp_path):
    import torch

    from calibration.bench import time_points
    from calibration.gpu import GpuBench

    class Notes(GpuBench):
        def seconds(self, at):
            return 1e-5

    bench = Notes(torch.device("cpu"))
    time_points(bench, tmp_path, 5.0, 0)
    _, rows = read_timings(tmp_path / "timings.jsonl")
    first = [json.loads(row["key"])[0] for row in rows if row["pass"] == 0]
    needed = [bench.comes_first(at) for at in bench.points()]
    assert 0 < sum(needed) < len(needed)
    n_needed = sum(needed)
    later = {at.operation for at, is_needed in zip(bench.points(), needed, strict=True) if not is_needed}
    assert set(first[n_needed:]) == later
    assert not later & set(first[:n_needed])


def test_without_a_gpu_the_visit_says_so(tmp_path, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_slot.main(["--out", str(tmp_path)]) == 2
    assert "no GPU here" in capsys.readouterr().err
    assert gpu_slot.main(["--out", str(tmp_path), "--finish"]) == 1
    assert "run step=measure first" in capsys.readouterr().out


@pytest.mark.parametrize("batch", [20, 40, 50, 72, 100, 160])
def test_batches_between_powers_of_two_are_in_the_grid(batch):
    from calibration.points_gpu import GPU

    found = {
        at["decode_longest_tokens"]
        for at in gpu_points(GPU)
        if at.operation == "decode_attention" and at["decode_seqs"] == batch
    }
    assert {1024, 4096} <= found


def test_prompts_and_decoding_of_one_point_share_a_pool():
    """Two pools of 34 GB do not fit on 80 GB."""
    import torch

    from calibration.gpu import GpuBench

    launches = GpuBench(torch.device("cpu"))._launches
    for at in gpu_points(TINY):
        if at.operation == "mixed_launches":
            launches.free()
            asked = []
            draw = launches._random
            launches._random = lambda *shape, asked=asked, draw=draw: (asked.append(shape), draw(*shape))[1]
            launches.of(at)
            launches._random = draw
            assert len([shape for shape in asked if len(shape) == 4]) == 2, "keys and values, once"

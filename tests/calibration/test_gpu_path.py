"""The GPU's path from points to a simulation, rehearsed on a CPU with the references."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibration.__main__ import main
from calibration.bench import LostError, gather, time_points
from calibration.copies import fit_copy, fit_link
from calibration.fit import fit_profile
from calibration.gpu import GpuBench
from calibration.gpu_slot import MINUTES, TIMING_FRAC
from calibration.measurements import frame, read_measurements
from calibration.points_gpu import BLOCK_TOKENS, GPU, SERVED_FROM, TINY, gpu_points, read_batch, write_batch
from calibration.proof import prove
from calibration.split import SEED
from calibration.unequal import UNEQUAL, batch_of, kept_out
from kernels import reference
from sim.config import compose, make
from sim.cost.calibrated import CalibratedOperations
from sim.profile import read_profile
from sim.step import Chunk

BANDWIDTH, FLOOR_S = 1e12, 5e-6
BESIDE = ("transfer_beside_decode", "decode_beside_transfer")


class FormulaBench(GpuBench):
    """The rehearsal's points with times of a simple machine, so that what is fitted is known."""

    def seconds(self, at):
        columns = dict(at.columns)
        entry = 2 * columns.get("n_kv_heads", 0) * columns.get("head_dim", 0) * 2
        seconds = FLOOR_S
        if at.operation in BESIDE:
            slower = 1.0 + 0.25 * ("h2d" in columns["detail"]) if columns["detail"] != "none" else 1.0
            alone = (
                columns["bytes"] if at.operation == "transfer_beside_decode" else columns["decode_total_tokens"] * entry
            )
            return slower * (FLOOR_S + alone / BANDWIDTH)
        if at.operation in ("host_call", "graph_launch"):
            return FLOOR_S
        if at.operation in ("append", "block_copy", "transfer"):
            return FLOOR_S + columns["bytes"] / BANDWIDTH
        if at.operation == "block_transfer":
            return FLOOR_S + columns["bytes"] / BANDWIDTH + 2e-6 * columns["n"]
        if at.operation == "gemm":
            return FLOOR_S + 2.0 * columns["m"] * columns["n"] * columns["k"] / 1e12
        if "detail" in columns:
            chunks, decoding = read_batch(columns["detail"].partition(": ")[2] or columns["detail"])
        else:
            chunks = [Chunk(columns.get("new_tokens", 0), columns.get("context_tokens", 0))]
            chunks *= columns.get("prefill_seqs", 0)
            decoding = [columns.get("decode_longest_tokens", 0)] * columns.get("decode_seqs", 0)
        # a context costs half more
        pairs = sum(new * context * 1.5 + new * (new + 1) / 2 for new, context, _ in chunks)
        work = 4e-10 * pairs + sum(decoding) * entry / BANDWIDTH
        return seconds * (bool(chunks) + bool(decoding)) + work


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    time_points(GpuBench(torch.device("cpu")), folder, 5.0, 0)
    assert main(["step=import", "source=timings", f"path={folder}", f"out={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def formula(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formula")
    time_points(FormulaBench(torch.device("cpu")), folder, 5.0, 0)
    measured = gather(folder)
    return measured, fit_profile(measured, compare=False, say=lambda _: None)["operations"]


def test_every_kind_of_point_is_launched_and_equals_its_reference(rehearsed):
    lines = [json.loads(line) for line in (rehearsed / "timings.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["device"] == "rehearsal on a CPU"
    assert [line["error"] for line in lines[1:] if "error" in line] == []
    timed = {json.loads(line["key"])[0] for line in lines[1:]}
    assert timed == {at.operation for at in gpu_points(GPU)}


def test_a_rehearsal_is_fitted_and_simulated_with(rehearsed):
    from sim.run import simulate

    assert main(["step=fit", f"measurements={rehearsed}", "compare=false"]) == 0
    profile = read_profile(rehearsed / "profile.json")
    assert {*UNEQUAL, "append", "block_copy", "link", "beside"} <= set(profile.operations)
    assert main(["step=report", f"measurements={rehearsed}"]) == 0
    result = simulate(
        "model=gpt2",
        "cost=calibrated",
        f"cost.profile={rehearsed / 'profile.json'}",
        "hardware.device.name=rehearsal",
        "scenario.n_sessions=3",
    )
    assert result.end_ns > 0


def test_a_kernel_that_errs_is_never_timed(tmp_path):
    wrong = {
        name: getattr(reference, name) for name in ("prefill_attention", "kv_append", "kv_copy", "decode_attention")
    }

    def off(q, k, v, table, plan, **more):
        return reference.decode_attention(q, k, v, table, plan, **more).mul_(1.05)

    bench = GpuBench(torch.device("cpu"), SimpleNamespace(**(wrong | {"decode_attention": off})))
    one_of_each = {at.operation: at for at in bench.points()}
    bench.points = lambda: list(one_of_each.values())
    time_points(bench, tmp_path, 5.0, 0)
    measured = gather(tmp_path)
    assert "decode_attention" not in set(measured.rows["operation"])
    assert "mixed_launches" not in set(measured.rows["operation"])
    assert "batched_prefill_attention" in set(measured.rows["operation"])
    assert any("differs from the reference by 0.0" in note for note in measured.notes)


def test_timings_made_without_pandas_or_hydra_are_read_here(tmp_path):
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(('pandas', 'hydra', 'omegaconf', 'simpy', 'scipy', 'rich')))"
    )
    options = ["--out", str(tmp_path), "--device", "cpu", "--minutes", "0.03"]
    run = f"; from calibration.gpu import main; sys.exit(main({options!r}))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", blocked + run], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert main(["step=import", "source=timings", f"path={tmp_path}", f"out={tmp_path}"]) == 0
    assert 0 < len(read_measurements(tmp_path).rows) <= len(gpu_points(TINY))


def test_without_a_gpu_the_entry_says_so(tmp_path, capsys, monkeypatch):
    from calibration.gpu import main as gpu_main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_main(["--out", str(tmp_path)]) == 2
    assert "no GPU here" in capsys.readouterr().err
    assert main(["step=import", "source=timings", f"path={tmp_path}", "out=x"]) == 2
    assert "run step=measure first" in capsys.readouterr().err


def test_a_cached_context_is_told_as_measured_not_as_modelled(formula):
    error = formula[1]["cached_prefill_attention"]["error"]
    assert error["held_out"]["n"] > 1
    assert error["held_out"]["mape"] < 0.5 * error["compared"]["as_modelled_without_measurement"]["mape"]


def test_a_third_of_the_unequal_batches_is_kept_out_of_the_fit(formula):
    measured, operations = formula
    for name in ("ragged_decode_attention", "mixed_launches", "varlen_prefill_attention"):
        rows = measured.of(name)
        test = kept_out(name, rows, SEED)
        assert 0 < test.sum() < len(rows) / 1.5
        shuffled = kept_out(name, rows.iloc[::-1], SEED)
        assert (test == shuffled[::-1]).all()
        assert operations[name]["error"]["held_out"]["n"] == test.sum()


def test_bandwidth_latency_and_the_cost_of_a_piece_are_found_again(formula):
    link = formula[1]["link"]
    for path in link["paths"].values():
        assert path["bytes_per_s"] == pytest.approx(BANDWIDTH, rel=0.02)
        assert path["latency_s"] == pytest.approx(FLOOR_S, rel=0.02)
    for method in link["blocks"].values():
        assert method["per_piece_s"] == pytest.approx(2e-6, rel=0.02)
    assert link["error"]["held_out"]["mape"] < 0.02
    for name in ("append", "block_copy"):
        assert formula[1][name]["error"]["held_out"]["mape"] < 0.02


def test_what_transfers_and_decoding_do_to_one_another_is_found_again(formula):
    found = formula[1]["beside"]
    assert found["transfer_slower_by_not_served"] == {"both pinned": 1.0, "d2h pinned": 1.0, "h2d pinned": 1.25}
    assert found["decode_slower_by_not_served"] == {"both pinned": 1.0, "d2h pinned": 1.0, "h2d pinned": 1.25}
    assert found["error"]["held_out"]["n"] == 3 * 3
    assert found["error"]["held_out"]["mape"] < 1e-6


def test_work_beside_a_transfer_is_launched_first_and_lasts_longer():
    bench = GpuBench(torch.device("cpu"))
    done = []
    for at in bench.points():
        if at.operation in BESIDE:
            launched = bench._launches.of(at)
            assert (launched.beside is None) == (at["detail"] == "none")
            bench.time(launched._replace(run=lambda _: done.append("timed"), beside=lambda: done.append("beside")))
    assert done == ["beside", "timed"] * (9 + 4)
    largest = max((at for at in gpu_points(GPU) if at.operation == BESIDE[0]), key=lambda at: at["bytes"])
    n_launches = 8 + int(largest["bytes"] / 10e9 / 5e-4)
    read_bytes = largest["decode_total_tokens"] * 2 * largest["n_kv_heads"] * largest["head_dim"] * 2
    assert n_launches * read_bytes / 4.8e12 > 2.0 * largest["bytes"] / 50e9  # at the data sheet's best, twice the copy


def test_the_grid_takes_less_than_eight_minutes_by_the_data_sheet():
    """Half of an H200's peaks; 60 ms a point for plans, data, captures and `do_bench`; what is long runs nine times."""
    total_s = first_pass_s = 40.0  # compiling and proving
    for at in gpu_points(GPU):
        columns = dict(at.columns)
        entry = 2 * columns.get("n_kv_heads", 0) * columns.get("head_dim", 0) * 2
        chunks, decoding, pool = [], columns.get("decode_total_tokens", 0), 0
        if "detail" in columns and "@" in columns["detail"]:
            chunks = read_batch(columns["detail"].partition(": ")[2] or columns["detail"])[0]
        elif "prefill_seqs" in columns:
            chunks = [Chunk(columns["new_tokens"], columns.get("context_tokens", 0))] * columns["prefill_seqs"]
        pairs = sum(new * context + new * new / 2 for new, context, _ in chunks)
        seconds = (4 * columns.get("n_heads", 0) * columns.get("head_dim", 0) * pairs) / 495e12
        seconds += 2.0 * columns.get("m", 0) * columns.get("n", 0) * columns.get("k", 0) / 495e12
        seconds += decoding * entry / 2.4e12
        if "transfer" in at.operation:
            seconds += columns["bytes"] / (3e9 if "pageable" in columns["detail"] else 25e9)
            if "each" in columns["detail"]:
                seconds += 1e-5 * columns["n"]
            seconds *= 13 / 9  # launches
        lens = columns.get("decode_longest_tokens", 0) * columns.get("decode_seqs", 0)
        pool = max(6e8, lens * entry) + columns.get("bytes", 0)
        once_s = 0.06 + 9 * seconds + pool / 1e12
        total_s += 2 * once_s
        first_pass_s += once_s * (at.operation in SERVED_FROM)
    assert total_s < 8 * 60, total_s
    assert total_s > 3 * 60, "the grid is worth its time"
    assert first_pass_s < 0.9 * 60 * MINUTES * TIMING_FRAC, "what profiles need is timed once in a slot's share of it"


def test_copies_and_appends_are_served_as_fitted(formula, tmp_path):
    from calibration.fit import write_profile

    measured, _ = formula
    write_profile(fit_profile(measured, compare=False, say=lambda _: None), tmp_path / "profile.json")
    profile = read_profile(tmp_path / "profile.json")
    config = compose(["model=gpt2"])
    model, device = make(config["model"], "model"), make(config["hardware"], "hardware").device
    served = CalibratedOperations(profile, model, device)
    assert served.copy_s(1e6, 0.0) == pytest.approx(FLOOR_S + 1e6 / BANDWIDTH, rel=0.05)
    assert served.copy_s(0.0, 1e9) == pytest.approx(FLOOR_S + 1e9 / BANDWIDTH, rel=0.05)
    without = CalibratedOperations(
        type(profile)(
            **{
                **{name: getattr(profile, name) for name in profile.__slots__},
                "operations": {name: form for name, form in profile.operations.items() if name != "append"},
            }
        ),
        model,
        device,
    )
    added = served.prefill_attention_s((Chunk(64, 0),)) - without.prefill_attention_s((Chunk(64, 0),))
    row_bytes = 2.0 * 12 * 64 * 2.0
    assert added == pytest.approx(model.n_layers * (FLOOR_S + 64 * row_bytes / BANDWIDTH), rel=0.05)


def test_the_proof_of_a_profile_covers_unequal_batches(formula, tmp_path):
    from calibration.fit import write_profile

    measured, operations = formula
    write_profile(fit_profile(measured, compare=False, say=lambda _: None), tmp_path / "profile.json")
    proofs = {proof.name: proof for proof in prove(read_profile(tmp_path / "profile.json"), measured)}
    for name in UNEQUAL:
        found, said = proofs[name].held_out, operations[name]["error"]["held_out"]
        assert found["n"] == said["n"]
        assert found["mape"] == pytest.approx(said["mape"], abs=1e-3)


def test_a_fit_of_a_straight_line_leaves_nothing_over():
    n_bytes = np.geomspace(1e3, 1e9, 9)
    rows = frame("append", bytes=n_bytes, seconds=FLOOR_S + n_bytes / BANDWIDTH)
    assert fit_copy(rows)["error"]["held_out"]["mape"] < 0.01
    wobbly = rows.assign(seconds=rows["seconds"] * np.where(np.arange(9) % 2, 1.2, 0.8))
    assert fit_copy(wobbly)["error"]["held_out"]["mape"] > 0.1
    link = fit_link(rows.assign(detail="h2d pinned"), rows.iloc[:0])
    assert set(link["paths"]) == {"h2d pinned"}


def test_the_grid_has_every_kind_and_fits_the_device():
    points = gpu_points(GPU)
    counts = Counter(at.operation for at in points)
    for heads in GPU.heads:
        of = Counter(at.operation for at in points if heads.items() <= dict(at.columns).items())
        assert of["ragged_decode_attention"] >= 60
        assert min(of["varlen_prefill_attention"], of["mixed_launches"]) >= 40
    assert counts["windowed_decode_attention"] > 0 < counts["windowed_prefill_attention"]
    assert len({at.key for at in points}) == len(points)
    for at in points:
        if at.operation in ("ragged_decode_attention", "mixed_launches"):
            lens = read_batch(at["detail"])[1]
            columns = -(-max(lens) // BLOCK_TOKENS)
            pool_bytes = len(lens) * columns * BLOCK_TOKENS * at["n_kv_heads"] * at["head_dim"] * 4
            assert pool_bytes < 80e9


def test_a_batch_written_is_the_batch_read():
    chunks, decoding = [Chunk(512, 4096), Chunk(64, 0)], [100, 2000]
    assert read_batch(write_batch(chunks, decoding)) == (chunks, decoding)
    assert read_batch(write_batch([], decoding)) == ([], decoding)
    assert read_batch(write_batch(chunks, [])) == (chunks, [])
    equal = SimpleNamespace(detail="", new_tokens=7, context_tokens=9, prefill_seqs=2)
    assert batch_of(equal) == ((Chunk(7, 9), Chunk(7, 9)), [])


def test_rows_of_block_tables_start_alike_at_any_length():
    """Triton compiles a kernel anew for another alignment of a pointer or a stride."""
    launches = GpuBench(torch.device("cpu"))._launches
    launches._pool_bytes = 1 << 26
    for lens in ([16], [100, 70], [1000] * 3):
        k, _, tables = launches._cache(2, 64, lens)
        columns = -(-max(lens) // BLOCK_TOKENS)
        assert len(tables) == 20
        assert {table.stride(0) % 16 for table in tables} == {0}
        assert {(table.data_ptr() - tables[0].data_ptr()) % 64 for table in tables} == {0}
        ids = torch.stack(tables).flatten()
        assert len(ids) == 20 * len(lens) * columns
        assert len(ids.unique()) == len(ids)
        assert 0 <= int(ids.min()) <= int(ids.max()) < len(k)


def test_what_is_proven_on_a_gpu_is_both_cut_and_whole():
    from calibration.gpu import PROOF_LENS, PROOF_WHOLE
    from kernels.decode_plan import plan_decode

    for heads in GPU.heads:
        shape = {**heads, "device": "cpu", "n_programs": 2 * 132}
        assert plan_decode([*PROOF_LENS, 0], **shape).is_split
        assert not plan_decode(PROOF_WHOLE, **shape).is_split
    assert {-(-max(lens) // BLOCK_TOKENS) % 16 for lens in (PROOF_LENS, PROOF_WHOLE)} == {0}


class LosesItsDevice(FormulaBench):
    """Two points take the device; nothing is answered after one of them."""

    def __init__(self, fatal):
        super().__init__(torch.device("cpu"))
        self.fatal, self.asked, self.is_lost = fatal, [], False

    def seconds(self, at):
        assert not self.is_lost, "nobody asks a lost device"
        self.asked.append(at.key)
        if at.key in self.fatal:
            self.is_lost = True
            raise LostError("AcceleratorError: an illegal memory access was encountered")
        return super().seconds(at)


def test_a_run_goes_on_after_points_that_took_the_device_and_tries_no_third_of_their_kind(tmp_path):
    points = gpu_points(TINY)
    ragged = [at.key for at in points if at.operation == "ragged_decode_attention"]
    benches = []
    for n_lost in range(3):
        benches.append(LosesItsDevice(set(ragged)))
        if n_lost < 2:
            with pytest.raises(LostError, match="illegal memory access"):
                time_points(benches[-1], tmp_path, 5.0, 0)
        else:
            time_points(benches[-1], tmp_path, 5.0, 0)
    asked = [key for bench in benches for key in bench.asked]
    assert sum(key in ragged for key in asked) == 2
    measured = gather(tmp_path)
    assert set(measured.rows["operation"]) == {at.operation for at in points} - {"ragged_decode_attention"}
    assert measured.provenance["n_points_timed"] == len(points) - len(ragged)
    assert sum("illegal memory access" in note for note in measured.notes) == 2


def test_a_lost_device_is_told_from_a_point_that_failed(monkeypatch):
    import calibration.gpu

    def fails(at):
        raise RuntimeError("CUDA error\nand much advice")

    bench = GpuBench(torch.device("cpu"))
    monkeypatch.setattr(bench, "prove", fails)
    with pytest.raises(RuntimeError, match="much advice"):
        bench.seconds(bench.points()[0])
    monkeypatch.setattr(calibration.gpu, "is_lost", lambda _: True)
    monkeypatch.setattr(bench._launches, "free", None)  # a lost device gives nothing back
    with pytest.raises(LostError, match=r"^RuntimeError: CUDA error$"):
        bench.seconds(bench.points()[0])


def test_the_entry_goes_on_in_a_new_process_with_the_minutes_left(tmp_path, monkeypatch):
    import calibration.gpu

    def loses(*_):
        raise LostError("RuntimeError: x")

    started = []
    monkeypatch.setattr(calibration.gpu, "time_points", loses)
    monkeypatch.setattr(calibration.gpu.os, "execv", lambda path, command: started.append(command))
    options = ["--out", str(tmp_path), "--device", "cpu", "--seed", "3"]
    assert calibration.gpu.main([*options, "--minutes", "0.1"]) == 3
    assert started == []
    calibration.gpu.main([*options, "--minutes", "5"])
    [command] = started
    assert command[1:3] == ["-m", "calibration.gpu"]
    again = dict(zip(command[3::2], command[4::2], strict=True))
    assert 4.0 < float(again.pop("--minutes")) <= 5.0
    assert again == {"--out": str(tmp_path), "--device": "cpu", "--seed": "3"}


def test_what_a_run_cut_off_leaves_is_fitted_and_served(tmp_path):
    """Matrix shapes that lack token counts are told by the surface, since curves share their counts."""
    from calibration.fit import write_profile
    from calibration.gemms import shipped_shapes, whole_curves
    from sim.config import conf_dir
    from sim.cost.dense import gemm_curve

    class Cut(FormulaBench):
        def points(self):
            grid = GPU._replace(n_ragged=12, n_varlen=12, n_mixed=12, heads=GPU.heads[:1])
            points = gpu_points(grid)
            drawn = np.random.default_rng(0).random(len(points)) < 0.7
            return [at for at, is_drawn in zip(points, drawn, strict=True) if is_drawn]

    time_points(Cut(torch.device("cpu")), tmp_path, 5.0, 0)
    measured = gather(tmp_path)
    shapes = shipped_shapes(conf_dir())
    content = fit_profile(measured, compare=False, say=lambda _: None)
    write_profile(content, tmp_path / "profile.json")
    gemm = read_profile(tmp_path / "profile.json").operations["gemm"]
    kept = gemm["curves"]["seconds"]
    assert {len(curve) for curve in kept.values()} == {len(gemm["curves"]["m"])}
    assert 0 < len(kept) == len(whole_curves(measured.of("gemm"), shapes))
    for n, k in shapes & set(GPU.matrices):
        measured_s = FLOOR_S + 2.0 * 16 * n * k / 1e12
        assert gemm_curve(gemm, n, k, 2.0, 0.0)(16) == pytest.approx(measured_s, rel=0.25)

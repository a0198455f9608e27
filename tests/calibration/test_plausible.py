"""Imported times are checked against the data sheet: a column in another unit is refused, of every operation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.importers.aiconfigurator import TABLES, import_aiconfigurator
from calibration.measurements import Measurements, frame
from calibration.plausible import CHECKS, data_sheet, plausible
from sim.errors import ProfileError

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "published_kernels"
SHAPE = {"d_model": 4096, "d_ff": 14336, "vocab": 128_256, "tensor_parallel": 1}
HEADS = {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128}
PROMPT = {"prefill_seqs": 1, "new_tokens": 16_384, "seconds": 3.4e-3} | HEADS
GOOD = {
    # about what an H200 reaches
    "gemm": frame("gemm", m=8192, n=8192, k=8192, seconds=1.6e-3),
    "layer": frame("layer", detail="gate_up_proj", new_tokens=8192, seconds=2.6e-3),
    "batched_prefill_attention": frame("batched_prefill_attention", **PROMPT),
    "prefill_attention": frame("prefill_attention", **PROMPT),
    "decode_attention": frame(
        "decode_attention", decode_seqs=256, decode_total_tokens=1 << 19, seconds=5.3e-4, **HEADS
    ),
    "sequence_layer": frame("sequence_layer", detail="lm_head", decode_seqs=1, seconds=2.5e-4),
    "all_reduce": frame("all_reduce", devices=8, bytes=1 << 27, seconds=5.62e-4),
}


def h200(*rows) -> Measurements:
    return Measurements("NVIDIA H200", "a test", "none", {}, SHAPE, (), pd.concat(rows, ignore_index=True))


def test_every_check_lets_pass_what_the_device_reaches_and_has_rows_to_judge_here():
    assert {check.operation for check in CHECKS} == set(GOOD)
    assert len(plausible(h200(*GOOD.values())).rows) == len(GOOD)


@pytest.mark.parametrize("operation", GOOD)
@pytest.mark.parametrize("factor", [0.4, 8.0])
def test_times_in_another_unit_are_refused(operation, factor):
    wrong = GOOD[operation].assign(seconds=GOOD[operation]["seconds"] * factor)
    with pytest.raises(ProfileError, match=f"NVIDIA H200: {operation} of .* another unit"):
        plausible(h200(*(wrong if name == operation else rows for name, rows in GOOD.items())))


@pytest.mark.parametrize(("devices", "seconds"), [(2, 463e-6), (4, 609e-6)])
def test_messages_counted_in_elements_of_two_bytes_are_refused(devices, seconds):
    rows = frame("all_reduce", devices=devices, bytes=1 << 26, seconds=seconds)  # it was 2 ** 26 elements
    with pytest.raises(ProfileError, match="all_reduce of devices"):
        plausible(h200(rows))
    assert len(plausible(h200(rows.assign(bytes=1 << 27))).rows) == 1


def test_links_of_a_host_and_fp8_can_be_spared_and_are_named():
    slow = frame("all_reduce", devices=4, bytes=1 << 28, seconds=0.109)
    fast = GOOD["prefill_attention"].assign(kv_dtype="fp8", seconds=1e-6)
    kept = plausible(replace(h200(GOOD["gemm"].assign(seconds=5e-3), slow, fast), device="NVIDIA L40S"))
    assert kept.rows["operation"].tolist() == ["gemm"]
    assert [note.split(" reaches")[0] for note in kept.notes] == [
        "left out: prefill_attention of kv_dtype fp8",
        "left out: all_reduce of devices 4, detail ",
    ]


def test_a_device_without_a_data_sheet_is_said_to_be_unchecked():
    assert "unchecked" in plausible(replace(h200(GOOD["gemm"]), device="Somebody's board")).notes[-1]
    assert data_sheet("NVIDIA H200").name == "NVIDIA H200 SXM"


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """A fiftieth of the published H200 tables, in the tree they are distributed in, as two versions."""
    folder, root = PUBLISHED / "h200_sxm", tmp_path_factory.mktemp("data") / "h200_sxm"
    if not folder.is_dir():
        pytest.skip(f"the published tables are not at {folder}: their layout cannot be made")
    for ending, framework, _ in TABLES.values():
        (file,) = folder.glob(f"*_{framework}_*_{ending}")
        table = pd.read_parquet(file)
        table = table[table["window_size"] == 0] if "window_size" in table.columns else table
        table = table[np.arange(len(table)) % 50 == 0] if len(table) > 1000 else table
        for version in ("0.14.0", "0.24.0") if framework == "vllm" else ("2.29.2",):
            place = root / ending.split("_")[0] / framework / version
            place.mkdir(parents=True, exist_ok=True)
            gone = ["window_size", "device"] if version == "0.14.0" else []
            table.drop(columns=gone, errors="ignore").to_parquet(place / ending)
    return root


def test_the_layout_the_tables_are_distributed_in_is_walked(distributed):
    newer = import_aiconfigurator(distributed, "0.24")
    assert newer.provenance["vllm"] == "0.24.0"
    assert newer.provenance["nccl"] == "2.29.2"
    older = import_aiconfigurator(distributed, "0.14")  # no window column, the device named by NCCL's table alone
    assert older.device == "NVIDIA H200"
    assert len(older.of("gemm")) == len(newer.of("gemm")) > 1000
    with pytest.raises(ProfileError, match=r"give version=, one of 0\.14\.0, 0\.24\.0; got none"):
        import_aiconfigurator(distributed)
    with pytest.raises(ProfileError, match=r"got 0\.19"):
        import_aiconfigurator(distributed, "0.19")


def test_all_reduces_of_eight_h200_move_what_their_links_can(distributed):
    rows = import_aiconfigurator(distributed, "0.24").of("all_reduce")
    for detail in ("vllm_custom", "nccl"):
        row = rows[(rows["detail"] == detail) & (rows["devices"] == 8) & (rows["bytes"] == 1 << 28)].iloc[0]
        assert 400e9 < 2 * 7 / 8 * row["bytes"] / row["seconds"] < 480e9


def test_a_folder_without_tables_says_which_are_missing(tmp_path):
    with pytest.raises(ProfileError, match=r"\*context_attention_perf\.parquet, .*\*nccl_perf\.parquet, got none"):
        import_aiconfigurator(tmp_path)

"""What the compiler makes of the kernels for GPUs that are not here. The numbers gate the design, not the speed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a minute: every kernel is compiled for three architectures

ROOT = Path(__file__).parents[2]
KIND = re.compile("prefill|decode|quant_decode")
SHARED_BYTES = {90: 232448, 80: 166912, 89: 101376}  # per program: CUDA C++ Programming Guide, table of capabilities


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ahead_of_time.py"))],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_architecture_is_compiled(variants):
    assert {v["sm"] for v in variants} == {90, 80, 89}
    assert len(variants) >= 40


def test_every_kernel_fits_its_shared_memory(variants):
    assert [v for v in variants if v["shared_bytes"] > SHARED_BYTES[v["sm"]]] == []


def test_no_kernel_spills_registers(variants):
    assert [v for v in variants if v["spilled_bytes"]] == []


def test_prefill_uses_the_tensor_cores_of_its_generation(variants):
    prefills = [v for v in variants if v["kernel"].startswith("prefill")]
    assert [v for v in prefills if v["sm"] == 90 and not v["wgmma"]] == []
    assert [v for v in prefills if v["sm"] != 90 and not v["mma"]] == []


def test_keys_and_values_are_copied_asynchronously(variants):
    attention = [v for v in variants if v["kernel"].startswith(("prefill", "decode", "quant_decode"))]
    few = {"prefill": 24, "decode": 24, "quant_decode": 16}
    bare = [v for v in attention if v["cp_async"] < few[KIND.match(v["kernel"])[0]]]
    assert bare == []


def test_decode_keeps_a_whole_pipeline_in_flight(variants):
    hopper = [v for v in variants if v["kernel"].startswith("decode") and v["sm"] == 90 and v["args"][0] == 128]
    tile_bytes = 2 * 64 * 128 * 2  # keys and values of 64 positions, bf16
    assert len(hopper) == 6
    assert [v for v in hopper if v["shared_bytes"] < 2 * tile_bytes] == []


def test_moving_kernels_use_wide_loads(variants):
    moving = ("append", "copy", "rms_norm", "silu_mul", "rope", "norms", "quantise", "reduce")
    assert {v["kernel"] for v in variants} >= set(moving)
    assert [v for v in variants if v["kernel"] in moving and not v["wide_loads"]] == []


SM_BYTES = {90: 233472, 80: 167936, 89: 102400}  # shared memory of a multiprocessor: the same table
RESERVED_BYTES, SM_REGISTERS, REGISTER_UNIT = 1024, 65536, 8  # of each program; allocated by eights a thread


def test_as_many_decode_programs_are_planned_as_a_multiprocessor_holds(variants):
    from kernels.configs import DECODE, RESIDENT

    assert set(RESIDENT) == set(DECODE)
    for (arch, width), told in RESIDENT.items():
        sm, n_threads = int(arch[3:]), 32 * DECODE[arch, width].n_warps
        of = [v for v in variants if v["sm"] == sm and v["kernel"].startswith("decode") and v["args"][0] == width]
        held = [
            min(
                SM_BYTES[sm] // (v["shared_bytes"] + RESERVED_BYTES),
                SM_REGISTERS // (-(-v["registers"] // REGISTER_UNIT) * REGISTER_UNIT * n_threads),
            )
            for v in of
        ]
        assert set(held) == {told}, (arch, width)

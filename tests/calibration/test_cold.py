"""Decode times that were measured warm in L2 are brought to memory: by both rates, found in the table."""

from itertools import product

import numpy as np
import pytest

from calibration.cold import CACHE_BYTES, brought_to_memory
from calibration.measurements import frame

WARM, COLD, FLOOR_S = 1 / 6e12, 1 / 4e12, 10e-6  # [s/B]
TOKEN_BYTES = 2 * 2 * 8 * 128


def measured(cache_bytes: float):
    """One head shape, as a device would show it whose cache holds so many bytes over the replays."""
    n, tokens = (
        np.array(x) for x in zip(*product((1, 2, 4, 8, 16, 32, 64, 512), (2, 512, 1024, 2048, 4096, 8192)), strict=True)
    )
    read = n * tokens * TOKEN_BYTES
    rows = frame(
        "decode_attention",
        decode_seqs=n,
        decode_total_tokens=n * tokens,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        seconds=FLOOR_S + np.where(read <= cache_bytes, WARM, COLD) * read,
    )
    return rows, read


@pytest.mark.parametrize("architecture", CACHE_BYTES)
def test_rows_that_fit_into_the_cache_take_what_their_bytes_take_from_memory(architecture):
    rows, read = measured(CACHE_BYTES[architecture])
    cold, said = brought_to_memory(rows, architecture)
    assert cold["seconds"].to_numpy() == pytest.approx(FLOOR_S + COLD * read, rel=1e-3)
    assert "corrected to memory" in said
    assert "from 6 to 4 TB/s" in said


def test_a_device_that_was_measured_cold_is_left_as_it_is():
    rows, _ = measured(0.0)
    cold, said = brought_to_memory(rows, "sm_90")
    assert cold["seconds"].to_numpy() == pytest.approx(rows["seconds"].to_numpy(), rel=1e-6)
    assert "from 4 to 4 TB/s" in said or "as measured" in said


def test_an_unknown_cache_is_said_to_be_unknown():
    rows, _ = measured(50e6)
    cold, said = brought_to_memory(rows, "gfx942")
    assert cold is rows
    assert "nothing is known of gfx942" in said

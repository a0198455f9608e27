"""Token counts that do the same work: the scatter among them goes, the steps between them stay."""

import numpy as np
import pytest

from calibration.gemms import fit_grid
from calibration.measurements import frame
from calibration.stairs import TILES, settled, stairs, tile_of, unseen
from sim.cost.grid import MatrixGrid, unpacked
from sim.profile import read_profile, shipped_profiles

WIDE = [1, *range(2, 18), 32, 33, 48, 49, 64, 65, 128, 129, 256, 257, 512]
FEW = [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 512]
N, K = np.array([1024.0, 2048.0, 4096.0, 8192.0]), np.array([512.0, 1024.0, 2048.0, 4096.0])


def staircase(m, tile):
    """Seconds of a device that multiplies whole tiles, and reads the matrix once: one step a tile."""
    return 5e-6 * (1.0 + 0.3 * np.ceil(np.asarray(m) / tile))


def table(counts, tile, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    times = staircase(counts, tile)[:, None, None] * (N / 1024.0)[None, :, None] * (K / 512.0)[None, None, :]
    return MatrixGrid(np.array(counts, dtype=float), N, K, times * np.exp(noise * rng.standard_normal(times.shape)))


def test_a_stair_ends_where_a_tile_does_and_a_single_row_is_on_none():
    assert stairs(np.array([1.0, 2.0, 16.0, 17.0, 32.0, 33.0, 300.0]), 16) == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("tile", TILES)
def test_without_scatter_nothing_moves_and_every_step_stays(tile):
    exact = table(WIDE, tile)
    grid = settled(exact, tile)
    assert grid.seconds[np.searchsorted(grid.m, exact.m)] == pytest.approx(exact.seconds)


@pytest.mark.parametrize("tile", [8, 16])
def test_scatter_is_averaged_away_where_counts_do_the_same_work(tile):
    exact, noisy = table(WIDE, tile), table(WIDE, tile, noise=0.03)
    grid = settled(noisy, tile)
    off = np.log(grid.seconds[np.searchsorted(grid.m, exact.m)] / exact.seconds)
    first = (exact.m >= 2) & (exact.m <= 16)
    assert np.abs(off[first]).mean() < 0.5 * np.abs(np.log(noisy.seconds / exact.seconds)[first]).mean()


def test_a_time_that_is_twice_its_neighbours_is_a_hiccup():
    exact = table(WIDE, 16)
    hit = exact.seconds.copy()
    hit[5, 0, 0] *= 2.0  # among sixteen
    hit[np.searchsorted(exact.m, 33), 1, 1] *= 2.0  # and one of two
    grid = settled(MatrixGrid(exact.m, N, K, hit), 16)
    assert grid.seconds[np.searchsorted(grid.m, exact.m)] == pytest.approx(exact.seconds)


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_a_step_that_no_count_stands_beside_is_where_the_tile_ends(tile):
    """Of 21 counts none is 65, so the line from 64 to 80 would hide the step."""
    grid = settled(table(FEW, tile), tile)
    counts = np.array([m for m in range(2, 193) if any(-(-m // tile) == -(-one // tile) for one in FEW[1:])])
    assert len(counts) > 140
    assert np.interp(counts, grid.m, grid.seconds[:, 0, 0]) == pytest.approx(staircase(counts, tile))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("counts", [WIDE, FEW])
def test_the_tile_is_found_from_the_times_alone(counts, tile):
    found = tile_of(table(counts, tile, noise=0.005, seed=tile))
    # Steps past 16 are measured on both sides in the one table; in the other each stair of 8 or 16 has one count.
    alike = [16, 32, 64, 128] if counts is WIDE else [8, 16]
    assert found == tile or {found, tile} <= set(alike)


def test_a_count_made_forgotten_is_told_without_its_own_time():
    grid = table(WIDE, 16)
    absurd = grid.seconds.copy()
    at = 7
    absurd[at] *= 100.0
    told = dict(unseen(MatrixGrid(grid.m, N, K, absurd), 16))
    assert told[at] == pytest.approx(grid.seconds[at])
    assert not {int(np.searchsorted(grid.m, m)) for m in (16, 17, 32, 33, 64, 65)} & told.keys(), "beside a step"


def test_shapes_that_were_not_measured_stay_so():
    grid = table(WIDE, 16)
    grid.seconds[:, 3, 3] = np.nan
    assert np.isnan(settled(grid, 16).seconds[:, 3, 3]).all()
    assert not np.isnan(settled(grid, 16).seconds[:, 2, 3]).any()


def test_a_fit_keeps_the_stairs_and_says_which_tile_it_found():
    grid = table(WIDE, 8, noise=0.01)
    at = np.array([(i, j, k) for i in range(len(grid.m)) for j in range(4) for k in range(4)])
    rows = frame(
        "gemm", seconds=grid.seconds[tuple(at.T)], m=grid.m[at[:, 0]], n=N[at[:, 1]], k=K[at[:, 2]], dtype="bf16"
    )
    form = fit_grid(rows, {(2048, 1024)})
    assert form["tile_tokens"] == 8
    assert form["error"]["held_out_tokens_of_shipped_models"]["mape"] < 0.015
    kept = unpacked(form["grid"])
    assert kept.along(2048, 1024)[kept.m == 9] > 1.15 * kept.along(2048, 1024)[kept.m == 8]


@pytest.mark.parametrize(
    ("name", "operation", "most"),
    [
        *((f"{device}/published", name, 0.03) for device in ("h100", "h200") for name in ("gemm", "gemm_fp8")),
        ("b200/published", "gemm", 0.03),
        ("b200/published", "gemm_fp8", 0.07),  # of single times that are twice their neighbours'; its median 2 %
        ("l40s/published", "gemm", 0.08),
        ("l40s/published", "gemm_fp8", 0.08),
        ("a100-80g/published", "gemm", 0.085),  # 21 counts
    ],
)
def test_shipped_profiles_tell_token_counts_never_seen(name, operation, most):
    found = read_profile(shipped_profiles()[name]).operation(operation)["error"]["held_out_tokens_of_shipped_models"]
    assert found["n"] > 500
    assert found["mape"] <= most
    assert found["median"] <= 0.06

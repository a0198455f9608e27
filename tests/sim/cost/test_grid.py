"""Matrix products on a grid: measured shapes are served as measured, steps and all, others by those around them."""

import numpy as np
import pytest

from sim.cost.dense import gemm_curve
from sim.cost.grid import MatrixGrid, grid_of, unpacked
from sim.errors import ProfileError

M, N, K = np.array([16.0, 17.0, 32.0, 64.0]), np.array([1024.0, 4096.0, 8192.0]), np.array([1024.0, 2048.0])
STEPS = np.array([106e-6, 154e-6, 139e-6, 121e-6])  # over 16, 17, 32 and 64 tokens, of fp8


@pytest.fixture
def grid() -> MatrixGrid:
    """Times in proportion to n and k, with the steps of a measured shape along m."""
    return MatrixGrid(M, N, K, STEPS[:, None, None] * (N / 8192.0)[None, :, None] * (K / 2048.0)[None, None, :])


def test_a_measured_shape_keeps_its_steps(grid):
    assert grid.along(8192, 2048) == pytest.approx(STEPS)
    form = {"grid": grid.packed(), "standard_error": {"knots_s": [1e-6], "log_sd": [0.0]}}
    curve = gemm_curve(form, 8192, 2048, 1.0, 0.0)
    assert [curve(m) for m in (16, 17, 32, 64)] == pytest.approx(STEPS.tolist(), rel=6e-4)
    assert curve(24) == pytest.approx((154e-6 * 8 + 139e-6 * 7) / 15, rel=6e-4)  # between two counts a straight line


def test_a_shape_off_the_grid_is_told_by_its_neighbours_along_both_axes_with_their_steps(grid):
    assert grid.along(6000, 1500) == pytest.approx(STEPS * 6000 / 8192 * 1500 / 2048)


def test_wider_and_deeper_matrices_are_pieces_of_those_measured(grid):
    assert grid.along(16_384, 2048) == pytest.approx(2 * STEPS)
    assert grid.along(12_288, 2048) == pytest.approx(2 * STEPS * 6144 / 8192)
    assert grid.along(8192, 6144) == pytest.approx(3 * STEPS)
    assert grid.along(512, 2048) == pytest.approx(STEPS * 1024 / 8192)  # narrower ones are no faster


def test_what_was_not_measured_is_told_by_smaller_pieces(grid):
    grid.seconds[:, 2, 1] = np.nan  # too large for somebody's memory
    assert grid.along(8192, 2048) == pytest.approx(2 * STEPS * 4096 / 8192)
    nothing = MatrixGrid(M, N, K, np.full_like(grid.seconds, np.nan))
    with pytest.raises(ProfileError, match="near 4096 x 2048 were not measured"):
        nothing.along(4096, 2048)


def test_a_grid_packed_is_the_grid_within_a_twentieth_of_a_percent(grid):
    grid.seconds[:, 0, 0] = np.nan
    read = unpacked(grid.packed())
    assert np.isnan(read.seconds[:, 0, 0]).all()
    assert np.nanmax(np.abs(read.seconds / grid.seconds - 1.0)) < 6e-4
    with pytest.raises(ProfileError, match="24 times, its axes have 4 x 3 x 3"):
        unpacked(grid.packed() | {"k": [1.0, 2.0, 3.0]})


def test_a_grid_is_made_of_rows_in_any_order_and_the_mean_of_repeats():
    m, n, k = (np.array(x, dtype=float) for x in ([2, 1, 1], [8, 8, 8], [4, 4, 4]))
    made = grid_of(m, n, k, np.array([5e-6, 1e-6, 3e-6]))
    assert made.seconds[:, 0, 0] == pytest.approx([2e-6, 5e-6])


def test_a_shape_forgotten_is_not_among_those_it_is_told_by(grid):
    assert grid.without(i=1).n.tolist() == [1024, 8192]
    assert grid.without(j=0).k.tolist() == [2048]

"""The Gaussian process of log residuals: its gradient, what it learns, what a few inducing points keep of it."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from calibration.gp import condense, learn, spread, surprise
from sim.cost.surface import matern32


def wave(n: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Residuals that change along the first axis and not along the second."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 10.0, (n, 2))
    return x, np.sin(x[:, 0]) + noise * rng.normal(size=n)


def test_the_gradient_of_the_likelihood_is_that_of_its_value():
    x, y = wave(50, 0.1)
    squared = np.stack([(column[:, None] - column[None, :]) ** 2 for column in x.T])
    theta = np.array([0.3, 0.9, 0.4, -3.0])
    numeric = approx_fprime(theta, lambda at: surprise(at, squared, y)[0], 1e-6)
    assert surprise(theta, squared, y)[1] == pytest.approx(numeric, rel=1e-4)


def test_an_axis_that_says_nothing_gets_a_long_scale_and_noise_is_told_from_signal():
    process = learn(*wave(300, 0.1), np.random.default_rng(1))
    assert process.length_scales[1] > 4.0 * process.length_scales[0]
    assert process.noise == pytest.approx(0.1**2, rel=0.5)


def test_a_tenth_of_the_points_tells_what_all_do():
    x, y = wave(400, 0.01)
    process = learn(x[:300], y[:300], np.random.default_rng(1))
    chosen, weights = condense(process, x[:300], y[:300], 30)
    told = matern32(x[300:] / process.length_scales, x[chosen] / process.length_scales) @ weights
    assert np.abs(told - y[300:]).max() < 0.1


def test_points_that_fill_a_space_reach_its_corners():
    x = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
    assert set(spread(x, 4)) == {0, 1, 3, 4}

"""A Gaussian process over log residuals, for tens of thousands of points: numpy and scipy, one core, seconds.

Hyperparameters maximise the likelihood of a random few hundred points; then all training points are projected on
inducing points spread over the shapes (the "subset of regressors"). Rasmussen and Williams, Gaussian Processes for
Machine Learning, 2006, eq. 5.8 and 8.14.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.cost.surface import matern32

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

JITTER = 1e-5  # of the variance, on the diagonal of inducing points: keeps the solve well-posed


@dataclass(frozen=True, slots=True)
class Process:
    """Hyperparameters: one length scale per axis, variance of the residual, variance of the noise."""

    length_scales: Array
    variance: float
    noise: float


def spread(x: Array, n_points: int, first: int = 0) -> Indices:
    """Indices of points that fill the space of ``x``, shape (n, d): each the farthest from all chosen before it."""
    n_points = min(n_points, len(x))
    chosen = np.empty(n_points, dtype=np.intp)
    distance = np.full(len(x), np.inf)
    at = first
    for i in range(n_points):
        chosen[i] = at
        distance = np.minimum(distance, ((x - x[at]) ** 2).sum(1))
        at = int(distance.argmax())
    return chosen


def surprise(theta: Array, squared: Array, y: Array) -> tuple[float, Array]:
    """Negative log likelihood of residuals, up to a constant, and its gradient.

    Parameters
    ----------
    theta : array
        Logarithms of the length scales, of the variance and of the noise, shape (d + 2,).
    squared : array
        Squared differences of the points along each axis, (d, n, n).
    y : array
        Residuals, (n,).

    References
    ----------
    Rasmussen and Williams, 2006, eq. 2.30 and 5.9.
    """
    from scipy.linalg import lapack

    variance, noise = np.exp(theta[-2]), np.exp(theta[-1])
    shares = squared * np.exp(-2.0 * theta[:-2])[:, None, None]
    distance = np.sqrt(3.0 * shares.sum(0))
    decay = np.exp(-distance)
    correlation = (1.0 + distance) * decay
    covariance = variance * correlation
    covariance[np.diag_indices(len(y))] += noise + JITTER * variance
    root, failed = lapack.dpotrf(covariance, lower=True)
    if failed:
        return 1e10, np.zeros_like(theta)
    inverse, _ = lapack.dpotri(root, lower=True)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse @ y
    rest = inverse - np.outer(weights, weights)
    slope = 1.5 * variance * rest * decay
    gradient = np.empty_like(theta)
    gradient[:-2] = np.tensordot(shares, slope, axes=2)
    gradient[-2] = 0.5 * variance * ((rest * correlation).sum() + JITTER * np.trace(rest))
    gradient[-1] = 0.5 * noise * np.trace(rest)
    return float(0.5 * y @ weights + np.log(np.diag(root)).sum()), gradient


def learn(x: Array, y: Array, rng: np.random.Generator, n_points: int = 400) -> Process:
    """Hyperparameters that make a random ``n_points`` of the residuals ``y`` (n,) at ``x`` (n, d) most likely."""
    from scipy.optimize import minimize

    some = rng.choice(len(x), min(n_points, len(x)), replace=False)
    x, y, n_axes = x[some], y[some], x.shape[1]
    squared = np.stack([(column[:, None] - column[None, :]) ** 2 for column in x.T])
    spread_y = max(float(y.var()), 1e-6)
    start = np.concatenate([np.full(n_axes, np.log(3.0)), [np.log(spread_y), np.log(spread_y / 30.0)]])
    bounds = [(-1.5, 3.5)] * n_axes + [(np.log(spread_y) - 3, np.log(spread_y) + 3), (np.log(1e-6), np.log(spread_y))]
    theta = minimize(
        surprise, start, (squared, y), method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 30}
    ).x
    return Process(np.exp(theta[:n_axes]), float(np.exp(theta[-2])), float(np.exp(theta[-1])))


def condense(process: Process, x: Array, y: Array, n_points: int) -> tuple[Indices, Array]:
    """Which of the points serve as inducing points, and their weights.

    The mean at new points is ``matern32(new / length_scales, x[chosen] / length_scales) @ weights``.
    """
    from scipy.linalg import cho_factor, cho_solve

    scaled = x / process.length_scales
    chosen = spread(scaled, n_points)
    inner = matern32(scaled[chosen], scaled[chosen]) + JITTER * np.eye(len(chosen))
    gram = (process.noise / process.variance) * inner
    right = np.zeros(len(chosen))
    for i in range(0, len(scaled), 4096):
        cross = matern32(scaled[i : i + 4096], scaled[chosen])
        gram += cross.T @ cross
        right += cross.T @ y[i : i + 4096]
    weights: Array = cho_solve(cho_factor(gram, lower=True), right)
    return chosen, weights

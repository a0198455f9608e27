"""A replica that runs one sequence at a time is the single server of queueing theory.

Pollaczek (1930), Khinchine (1932): with Poisson arrivals at rate ``r`` and service times S the mean wait is
``W = r E[S^2] / (2 (1 - r E[S]))``. Accepted inside the 99 % confidence interval of independent replications.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from sim.batching import Chunked
from sim.request import Request, stream
from tests.sim.serving import LinearCost, Listed, serve

STEP_NS = 1_000_000
N_REPLICATIONS, N_CUSTOMERS = 12, 2_500
T_995 = 3.106  # quantile of Student's t with N_REPLICATIONS - 1 = 11 degrees of freedom, two-sided 99 %

Draw = Callable[[np.random.Generator, int], np.ndarray]


def mean_wait_ns(load: float, mean_service_ns: float, draw: Draw, seed: int, is_prompt: bool) -> float:
    """Mean time from arrival to admission of customers whose service takes the drawn number of steps or tokens."""
    rng = stream(seed, "queue")
    at_ns = np.cumsum(rng.exponential(mean_service_ns / load, N_CUSTOMERS)).astype(int).tolist()
    sizes = draw(rng, N_CUSTOMERS).tolist()
    listed = [Request(i, at_ns[i], *((size, 1, 1) if is_prompt else (1, size, size))) for i, size in enumerate(sizes)]
    cost = LinearCost(1, per_prompt_ps=1_000 * STEP_NS) if is_prompt else LinearCost(1_000 * STEP_NS)
    house = serve(Listed(listed), scheduler=partial(Chunked, 1 << 20, 1), cost=lambda: cost)
    rows = house.recorder.requests
    return float((rows.column("scheduled_ns") - rows.column("arrival_ns")).mean())


LAWS: dict[str, tuple[Draw, float, float]] = {
    # sizes, and their first two moments
    "M/D/1": (lambda rng, n: np.full(n, 3), 3.0, 9.0),
    "M/G/1 geometric, memoryless as M/M/1": (lambda rng, n: rng.geometric(0.2, n), 5.0, (2 - 0.2) / 0.2**2),
    "M/G/1 uniform": (lambda rng, n: rng.integers(1, 9, n), 4.5, float(np.mean(np.arange(1, 9) ** 2))),
}


@pytest.mark.parametrize(
    ("law", "load", "is_prompt"),
    [
        ("M/D/1", 0.8, True),
        ("M/D/1", 0.5, False),
        ("M/G/1 geometric, memoryless as M/M/1", 0.8, False),
        ("M/G/1 geometric, memoryless as M/M/1", 0.5, True),
        ("M/G/1 uniform", 0.7, False),
    ],
)
def test_mean_wait_is_pollaczek_and_khinchines(law, load, is_prompt):
    draw, mean, square = LAWS[law]
    rate = load / (mean * STEP_NS)
    expected_ns = rate * square * STEP_NS**2 / (2 * (1 - load))
    waits = [mean_wait_ns(load, mean * STEP_NS, draw, seed, is_prompt) for seed in range(N_REPLICATIONS)]
    half_width = T_995 * np.std(waits, ddof=1) / np.sqrt(N_REPLICATIONS)
    assert half_width < 0.2 * expected_ns, "the test could not tell a wrong law"
    assert abs(np.mean(waits) - expected_ns) < half_width

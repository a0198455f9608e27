"""A replica that runs one sequence at a time is the single server of queueing theory.

Pollaczek (1930), Khinchine (1932): with Poisson arrivals at rate ``r`` and service times S the mean wait is
``W = r E[S^2] / (2 (1 - r E[S]))``. Accepted inside the 99 % confidence interval of independent replications.
"""

from collections.abc import Callable
from functools import partial
from math import factorial

import numpy as np
import pytest

from sim.batching import Chunked
from sim.request import Request, stream
from sim.router import PowerOfTwo, Random, Router
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


def many_servers(
    load: float, seed: int, n_customers: int, seats: int, replicas: int, router: Callable[[], Router], steps: int
) -> tuple[float, float]:
    """Mean wait and mean time in the system of all but a first fifth, whose service is geometric [service times]."""
    rng = stream(seed, "queue")
    gaps = rng.exponential(steps * STEP_NS / (load * seats * replicas), n_customers)
    at_ns, sizes = np.cumsum(gaps).astype(int).tolist(), rng.geometric(1 / steps, n_customers).tolist()
    listed = [Request(i, at_ns[i], 1, size, size) for i, size in enumerate(sizes)]
    cost = LinearCost(1_000 * STEP_NS)
    how = {"scheduler": partial(Chunked, 1 << 20, seats), "cost": lambda: cost, "replicas": replicas, "router": router}
    requests = serve(Listed(listed), **how).recorder.requests
    late = requests.column("id") >= n_customers // 5
    arrival, begin, end = (requests.column(f"{name}_ns")[late] for name in ("arrival", "scheduled", "finish"))
    return float((begin - arrival).mean()) / (steps * STEP_NS), float((end - arrival).mean()) / (steps * STEP_NS)


def interval(values: list[float], quantile: float) -> tuple[float, float]:
    """Mean, and half the width of its 99 % confidence interval."""
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / np.sqrt(len(values))


@pytest.mark.parametrize(("seats", "load"), [(2, 0.7), (5, 0.8)])
def test_places_in_a_batch_are_the_servers_of_one_queue(seats, load):
    """M/M/c: where an iteration takes as long whatever the batch, the mean wait is Erlang's (1917), C / (c - a)."""
    offered = seats * load
    last = offered**seats / factorial(seats) / (1 - load)
    erlang_c = last / (sum(offered**k / factorial(k) for k in range(seats)) + last)
    waits = [many_servers(load, seed, 4_000, seats, 1, Random, 200)[0] for seed in range(N_REPLICATIONS)]
    mean, half_width = interval(waits, T_995)
    assert half_width < 0.25 * erlang_c / (seats - offered)
    assert abs(mean - erlang_c / (seats - offered)) < half_width


def test_replicas_chosen_at_random_are_queues_apart_and_the_better_of_two_is_the_supermarket():
    """Poisson arrivals that are split at random stay Poisson: 1 / (1 - load) service times in the system.

    Of the less loaded of two: the sum of ``load ** (2 ** i - 2)`` over i from 1 on (Mitzenmacher 2001), for infinitely
    many replicas; with 16 it is a few percent more.
    """
    n_replications, t_995 = 8, 3.499  # 7 degrees of freedom
    load, how = 0.7, {"n_customers": 4_000, "seats": 1, "replicas": 16, "steps": 20}
    supermarket = sum(load ** (2**i - 2) for i in range(1, 8))
    for router, expected, more in ((Random, 1 / (1 - load), 0.0), (PowerOfTwo, supermarket, 0.06)):
        times = [
            many_servers(load, seed, router=partial(router, seed=seed), **how)[1] for seed in range(n_replications)
        ]
        mean, half_width = interval(times, t_995)
        assert half_width < 0.2 * expected
        assert -half_width < mean - expected < half_width + more * expected, (router, mean, expected)

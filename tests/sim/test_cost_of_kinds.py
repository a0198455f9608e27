"""What a model's kinds cost the simulator: calls a request, which no neighbour on the machine changes."""

import cProfile
import pstats

import pytest

from sim.config import compose
from sim.run import run


def calls(model: str, n_requests: int, *overrides: str) -> int:
    config = compose(
        ["scenario=bench", "hardware=h200", f"model={model}", f"scenario.n_requests={n_requests}", *overrides]
    )
    profile = cProfile.Profile()
    profile.runcall(run, config)
    return pstats.Stats(profile).total_calls


def calls_a_request(model: str, *overrides: str) -> float:
    return (calls(model, 400, *overrides) - calls(model, 100, *overrides)) / 300


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("qwen3-30b-a3b", ()),
        ("qwen3.5-35b-a3b", ("hardware.tensor_parallel=2",)),
        ("gpt-oss-20b", ()),
        ("llama-3.1-8b", ("hardware.pipeline_parallel=2",)),
    ],
)
def test_a_request_costs_at_most_half_as_much_again_as_on_a_dense_model(model, overrides):
    assert calls_a_request(model, *overrides) < 1.5 * calls_a_request("llama-3.1-8b")

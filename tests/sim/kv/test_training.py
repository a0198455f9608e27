"""What training takes, held to the formulas of the papers that they come from."""

import pytest

from sim.build import Builder
from sim.config import compose
from sim.kv.footprint import generation_flops, generation_seconds
from sim.kv.training import training


def spec(*overrides):
    return Builder(compose(list(overrides)))


@pytest.mark.parametrize("tensor_parallel", [1, 4])
def test_a_layer_of_the_published_shape_takes_the_published_bytes(tensor_parallel):
    model, s = spec("model=gpt2").model, 1024
    h, a, n_layers, t = 768, 12, 12, tensor_parallel
    ends = s * (h + 4 * (h + 50257) / t)
    found = training(model, s, t).activations
    assert found["none"] == pytest.approx(n_layers * s * h * (10 + 24 / t + 5 * a * s / (h * t)) + ends)
    assert found["scores"] == pytest.approx(n_layers * s * h * (10 + 24 / t) + ends)
    assert found["layers"] == pytest.approx(n_layers * 2 * s * h + ends)


def test_adam_takes_sixteen_bytes_a_parameter_and_two_are_left_when_the_rest_is_in_host_memory():
    model = spec("model=gpt2").model
    one = training(model, 8)
    assert one.parameters + one.gradients + one.optimizer == 16 * model.n_params
    assert one.total("layers", is_offloaded=True) == 2 * model.n_params + one.activations["layers"]
    assert training(model, 8, precision="fp32").parameters == 4 * model.n_params


def test_of_kinds_that_nothing_is_published_of_nothing_is_said():
    assert training(spec("model=deepseek-v3").model, 8) is None


def test_a_window_bounds_what_the_scores_take():
    wide, narrow = (spec("model=mistral-7b", f"model.stack.0.attention.window={n}").model for n in (4096, 64))
    assert training(wide, 4096).activations["none"] > training(narrow, 4096).activations["none"]
    assert training(wide, 4096).activations["scores"] == training(narrow, 4096).activations["scores"]


def test_the_least_time_is_reading_weights_for_each_token_and_arithmetic_without_a_cache():
    made = spec("model=llama-3.1-8b", "hardware=h200")
    seconds, flops = generation_seconds(made.model, made.hardware, 8192), generation_flops(made.model, 8192)
    device = made.hardware.device
    weights_s = made.model.matrix_bytes() / device.bandwidth_bytes_per_s
    kv_s = made.model.kv_bytes_per_token() / device.bandwidth_bytes_per_s
    assert seconds["cached"] == pytest.approx(8192 * weights_s + kv_s * 8192 * 8193 / 2)
    assert seconds["recomputed"] == pytest.approx(flops["recomputed"] / device.peak_flops["bf16"], rel=0.02)
    eager_s = 4 * 2 * 32 * 32 * 8192**2 / device.bandwidth_bytes_per_s  # passes, bytes, layers, heads
    assert seconds["eager"] - seconds["prompt"] == pytest.approx(eager_s)

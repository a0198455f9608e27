"""How accelerators share a model: experts by number, what that holds, costs and refuses."""

from dataclasses import replace

import pytest

import sim
from sim.config import compose, make
from sim.cost import Roofline
from sim.errors import ConfigError
from sim.kv.capacity import kv_capacity, weights_bytes


def made(model: str, *overrides: str):
    config = compose([f"model={model}", *overrides])
    return make(config["model"], "model"), make(config["hardware"], "hardware")


def test_experts_by_number_take_as_many_bytes_as_by_width_where_they_share_out_evenly():
    model, _ = made("qwen3-30b-a3b")
    assert weights_bytes(model, 4, 4) == pytest.approx(weights_bytes(model, 4))
    uneven = replace(model, stack=[replace(model.stack[0], feed_forward=replace(model.stack[0].feed_forward, top_k=1,
                                                                                n_experts=9))])  # fmt: skip
    assert weights_bytes(uneven, 4, 4) > weights_bytes(uneven, 4)  # one rank has three of nine


def test_a_rank_of_experts_has_whole_ones_and_its_share_of_the_choices():
    model, _ = made("deepseek-v3")
    moe = model.stack[-1].feed_forward
    by_width, by_number = moe.shard(8), moe.shard(8, 8)
    wide, whole = (next(g for g in one.gemms(7168) if g.name == "experts_in") for one in (by_width, by_number))
    assert (wide.n_matrices, wide.outputs, wide.n_taken) == (256, 2 * 256, 8)
    assert (whole.n_matrices, whole.outputs, whole.n_taken) == (32, 2 * 2048, 1.0)
    assert wide.n_params == whole.n_params
    assert by_width.shared_d_ff == by_number.shared_d_ff == 256
    for n_tokens in (1, 16, 400):
        assert whole.n_touched(n_tokens) == pytest.approx(wide.n_touched(n_tokens) / 8)


@pytest.mark.parametrize("cost", ["roofline", "auto"])
def test_experts_by_number_read_the_same_weights_in_fewer_larger_products(cost):
    def seconds(expert_parallel: str, n_tokens: int) -> float:
        config = compose(
            ["model=deepseek-v3", f"cost={cost}", "hardware.tensor_parallel=8",
             f"hardware.expert_parallel={expert_parallel}"]
        )  # fmt: skip
        return make(config["cost"], "cost").operations.dense_s(n_tokens)

    for n_tokens in (1, 64):
        by_width, by_number = (seconds(how, n_tokens) for how in ("false", "true"))
        assert by_number != by_width
        assert by_number == pytest.approx(by_width, rel=0.45), n_tokens
    if cost == "auto":  # every rank goes over all tokens' choices: 1.667 ms for 0.695 by width, published at 2,048
        slower_s = seconds("true", 2_048) - seconds("false", 2_048)
        assert slower_s == pytest.approx(58 * (1.667e-3 - 0.695e-3), rel=0.02)


def test_a_run_shares_its_experts_by_number():
    short = ["scenario=chatbot", "scenario.n_sessions=3", "model=qwen3-30b-a3b", "hardware.tensor_parallel=2"]
    by_width = sim.simulate(*short)
    by_number = sim.simulate(*short, "hardware.expert_parallel=true")
    assert len(by_number.requests) == len(by_width.requests) > 0
    assert by_number.memory["weights"] == pytest.approx(by_width.memory["weights"])
    ends = [run.requests.column("finish_ns").tolist() for run in (by_width, by_number)]
    assert ends[0] != ends[1]


def test_experts_are_not_shared_where_there_are_none_or_too_few():
    model, hardware = made("llama-3.1-8b", "hardware.expert_parallel=true", "hardware.tensor_parallel=2")
    with pytest.raises(
        ConfigError, match=r"hardware\.expert_parallel must be false, model=llama-3\.1-8b has no experts"
    ):
        kv_capacity(model, hardware)
    model, hardware = made("mixtral-8x7b", "hardware.expert_parallel=true", "hardware.tensor_parallel=16")
    with pytest.raises(ConfigError, match="16 ranks are more than the 8 experts"):
        Roofline(model, hardware.device, 16, expert_parallel=True)

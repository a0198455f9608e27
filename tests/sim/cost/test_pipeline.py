"""Pipeline stages: what a round of several batches takes, beside one batch on all layers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sim
from sim.config import compose, make
from sim.cost import IterationCost, Pipeline
from sim.errors import ConfigError
from sim.kv.capacity import kv_capacity, weights_bytes
from sim.step import Chunk, StepShape
from sim.units import ps_from_s

BUDGET = 2_048
CONFIG = compose(["model=llama-3.1-70b", "cost=roofline", "hardware=h100", "hardware.tensor_parallel=4"])
MODEL, HARDWARE, PLAIN = (make(CONFIG[group], group) for group in ("model", "hardware", "cost"))
HOST = make(CONFIG["cost"]["host"], "cost.host")


def cost(stages: int, batch_tokens: int = BUDGET) -> IterationCost:
    pipeline = Pipeline(stages, HARDWARE.device, MODEL.d_model, batch_tokens)
    return IterationCost(PLAIN.operations, HOST, PLAIN.capture_sizes, pipeline=pipeline)


def hops_ps(stages: int, n_tokens: int) -> int:
    return ps_from_s(Pipeline(stages, HARDWARE.device, MODEL.d_model).hops_s(n_tokens))


def shape(chunks=(), batch=0, context=0, longest=0):
    chunks = tuple(Chunk(*chunk) for chunk in chunks)
    return StepShape(chunks, batch, context, longest, batch, 0, 0, 0)


def test_one_stage_is_none():
    one, none = cost(1), IterationCost(PLAIN.operations, HOST, PLAIN.capture_sizes)
    for asked in (shape(batch=7, context=900, longest=200), shape([(300, 0)], 7, 900, 200), shape([(9_000, 0)])):
        assert one.pace(asked) == none.pace(asked)


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("batch", [8, 64])
def test_a_round_lasts_as_long_as_one_batchs_share_through_all_stages(stages, batch):
    share, context = batch // stages, 1_000 * batch
    first, growth, _ = cost(stages).pace(shape(batch=batch, context=context, longest=1_000))
    alone, alone_growth, _ = cost(1).pace(shape(batch=share, context=context // stages, longest=1_000))
    assert first == pytest.approx(alone + hops_ps(stages, share), rel=1e-6)
    assert growth == pytest.approx(alone_growth, rel=1e-3)


def test_prompts_beside_decoding_sequences_go_with_one_batchs_share_of_them():
    beside = shape([(300, 0)], 64, 64_000, 1_000)
    alone = cost(1).pace(shape([(300, 0)], 16, 16_000, 1_000))[0]
    assert cost(4).pace(beside)[0] == pytest.approx(alone + hops_ps(4, 316), rel=1e-9)
    more = shape([(300, 0)], 64, 640_000, 10_000)
    assert cost(4).pace(more)[0] - cost(4).pace(beside)[0] == pytest.approx(
        cost(1).pace(shape([(300, 0)], 16, 160_000, 10_000))[0] - alone, rel=1e-9
    )


def test_a_lone_prompt_gains_nothing_and_pays_the_hops():
    alone = cost(1).pace(shape([(1_000, 0)]))[0]
    assert cost(4).pace(shape([(1_000, 0)]))[0] == alone + hops_ps(4, 1_000)
    assert (
        cost(4).pace(shape(batch=1, context=50, longest=50))[0]
        > cost(1).pace(shape(batch=1, context=50, longest=50))[0]
    )


def test_prompts_for_all_batches_take_the_time_of_the_fullest():
    full = cost(1).pace(shape([(BUDGET, 3 * BUDGET)]))[0] + hops_ps(4, BUDGET)
    assert cost(4).pace(shape([(BUDGET, 3 * BUDGET), *[(BUDGET, 0)] * 3]))[0] == full
    cut = cost(4).pace(shape([(4 * BUDGET, 0)]))[0]
    assert cut == full  # its last piece, after the three before it
    assert cut < 0.5 * cost(1).pace(shape([(4 * BUDGET, 0)]))[0]


@given(st.integers(1, 200), st.integers(1, 3_000), st.sampled_from([2, 3, 8]), st.integers(2, 60))
def test_a_run_of_rounds_is_the_series_of_its_single_rounds(batch, mean, stages, n_rounds):
    times = cost(stages)
    context = batch * mean
    first, growth, n = times.pace(shape(batch=batch, context=context, longest=mean))
    for i in range(min(n, n_rounds)):
        again = times.pace(shape(batch=batch, context=context + i * batch, longest=mean + i))[0]
        assert again == first + i * growth


def test_a_stage_holds_its_share_of_layers_weights_and_keys_and_values():
    stage = MODEL.stage(4)
    assert stage.n_layers == 20
    assert weights_bytes(stage, 4) == pytest.approx(weights_bytes(MODEL, 4) / 4, rel=0.05)
    one = kv_capacity(MODEL, HARDWARE)
    four = kv_capacity(MODEL, replace(HARDWARE, pipeline_parallel=4))
    assert four.bytes_per_token == one.bytes_per_token / 4
    assert four.n_tokens > 5 * one.n_tokens  # weights made room too
    with pytest.raises(ConfigError, match=r"hardware\.pipeline_parallel must be <= 80, the layers of llama-3\.1-70b"):
        MODEL.stage(81)


def test_a_refusal_names_the_fewest_ranks_and_the_fewest_stages():
    with pytest.raises(ConfigError, match=r"hardware\.tensor_parallel=2 or hardware\.pipeline_parallel=2 would do"):
        kv_capacity(MODEL, replace(HARDWARE, tensor_parallel=1))
    kv_capacity(MODEL, replace(HARDWARE, tensor_parallel=1, pipeline_parallel=2))
    kv_capacity(MODEL, replace(HARDWARE, tensor_parallel=2))
    big = make(compose(["model=llama-3.1-405b"])["model"], "model")
    with pytest.raises(
        ConfigError, match=r"pipeline_parallel=2\).*tensor_parallel=8 or hardware\.pipeline_parallel=16"
    ):
        kv_capacity(big, replace(HARDWARE, tensor_parallel=1, pipeline_parallel=2))


def test_stages_serve_more_at_once_and_no_single_request_sooner():
    load = ["scenario=synthetic", "scenario.n_requests=120", "model=llama-3.1-70b", "hardware.tensor_parallel=2"]
    load += ["scenario.rate=1000.0"]
    ends, firsts = [], []
    for stages in (1, 4):
        rows = sim.simulate(*load, f"hardware.pipeline_parallel={stages}").requests
        ends.append(int(rows.column("finish_ns").max()))
        alone = sim.simulate(*load, f"hardware.pipeline_parallel={stages}", "scenario.n_requests=1").requests
        firsts.append(int(alone.column("finish_ns")[0]))
    assert ends[1] < 0.7 * ends[0]
    assert firsts[0] <= firsts[1] < 1.1 * firsts[0]

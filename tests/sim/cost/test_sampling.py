"""What sampling takes: greedy beside measured samplers, others by their passes over the logits."""

from pathlib import Path

import numpy as np
import pytest

import sim
from sim.config import compose, make
from sim.errors import ConfigError

DATA = Path(__file__).parents[3] / "../shared/data"
MEASURED = [
    ("rtxpro6000", "llama-3.1-8b", "engine_runs/rtxpro6000_llama-3.1-8b_vllm-0.19/profile/tp1"),
    ("rtxpro6000", "qwen3-30b-a3b", "published_kernels/rtxpro6000_qwen3-30b-a3b_vllm-0.19/tp1"),
    ("rtx4090", "llama-3.1-8b", "engine_runs/rtx4090_llama-3.1-8b_vllm-0.19/profile/tp1"),
]


def operations(*overrides: str):
    return make(compose([*overrides])["cost"], "cost").operations


@pytest.mark.parametrize(("hardware", "model", "folder"), MEASURED)
def test_the_greedy_sampler_is_near_measured_ones_of_batches_beyond_the_cache(hardware, model, folder):
    pd = pytest.importorskip("pandas")
    path = DATA / folder / "per_sequence.csv"
    if not path.is_file():
        pytest.skip(f"published measurements are not here: {path}")
    rows = pd.read_csv(path)
    rows = rows[(rows["layer"] == "sampler") & (rows["sequences"] >= 128)]
    times = operations(f"model={model}", f"hardware={hardware}", "cost=roofline")
    slope = np.polyfit(rows["sequences"], 1e-6 * rows["time_us"], 1)[0]
    told = times.sampler_s(256, "greedy") - times.sampler_s(255, "greedy")
    assert told == pytest.approx(slope, rel=0.35)
    at_most = rows[rows["sequences"] == 256]["time_us"].iloc[0]
    assert 1e6 * times.sampler_s(256, "greedy") == pytest.approx(at_most, rel=0.65)


def test_what_grows_with_the_vocabulary_is_what_was_seen():
    """0.4 ms at 32 thousand words to 1 to 2 ms at 152 thousand, at full batches."""
    small, large = (
        operations(f"model={model}", "cost=roofline").sampler_s(256, "top_p") for model in ("llama-2-7b", "qwen3-8b")
    )
    assert small == pytest.approx(0.4e-3, rel=0.2)
    assert 1e-3 < large < 2e-3
    assert large > 4 * small


@pytest.mark.parametrize("cost", ["auto", "roofline", "calibrated"])
@pytest.mark.parametrize("hardware", ["h200", "rtxpro6000"])
def test_sampling_is_a_setting_of_every_cost_and_greedy_the_cheapest(cost, hardware):
    base = ("model=llama-3.1-8b", f"hardware={hardware}", f"cost={cost}")
    key = "cost.operations.sampling" if cost == "roofline" else "cost.sampling"
    seconds = [operations(*base, f"{key}={way}").sequences_s(64) for way in ("greedy", "random", "top_p")]
    assert seconds[0] == operations(*base).sequences_s(64)
    assert seconds == sorted(seconds)
    assert seconds[2] - seconds[0] > 3 * (seconds[1] - seconds[0])


def test_another_way_is_refused_and_a_run_with_top_p_takes_longer():
    with pytest.raises(ConfigError, match=r"cost\.sampling must be one of greedy, random, top_p, got 'beam'"):
        operations("cost.sampling=beam")
    short = ["scenario=chatbot", "scenario.n_sessions=4", "model=qwen3-8b"]
    ends = [
        sim.simulate(*short, f"cost.sampling={way}").requests.column("finish_ns").sum() for way in ("greedy", "top_p")
    ]
    assert ends[1] > ends[0]

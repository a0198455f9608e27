"""Every model that is shipped serves a chatbot's traffic on the fewest accelerators that hold it."""

import re

import pytest

import sim
from sim.config import conf_dir
from sim.errors import ConfigError
from sim.record import Result

MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
DEGREE = re.compile(r"hardware\.tensor_parallel=(\d+) (?:or \S+ )?would do")
SHORT = ["scenario=chatbot", "scenario.n_sessions=3"]


def served(model: str, *overrides: str) -> tuple[Result, int]:
    """A short run, and the tensor-parallel degree that it took."""
    try:
        return sim.simulate(*SHORT, f"model={model}", *overrides), 1
    except ConfigError as refused:
        degree = int(DEGREE.search(str(refused))[1])
    with pytest.raises(ConfigError, match="does not fit"):
        sim.simulate(*SHORT, f"model={model}", f"hardware.tensor_parallel={degree // 2}", *overrides)
    return sim.simulate(*SHORT, f"model={model}", f"hardware.tensor_parallel={degree}", *overrides), degree


@pytest.mark.parametrize("model", MODELS)
def test_every_model_serves_a_chatbot_on_the_fewest_h200_that_hold_it(model):
    result, degree = served(model)
    assert len(result.requests) + len(result.refused) >= 3
    assert len(result.requests) > 0
    weights = -result.memory["weights"] * degree
    assert weights > 0.4 * result.provenance["model"]["parameters"]
    assert result.provenance["model"]["active_parameters"] <= result.provenance["model"]["parameters"]


def test_the_page_says_what_the_model_is():
    result, _ = served("qwen3.5-35b-a3b")
    said = result.provenance["model"]
    assert said["parameters"] == 34_660_610_688
    assert said["kv_bytes_per_token"] == 10 * 2 * 2 * 256 * 2
    assert said["state_bytes_per_sequence"] == 30 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)


def test_a_model_with_few_active_parameters_decodes_faster_than_a_dense_one_of_its_size():
    sparse, dense = (served(name)[0].requests for name in ("qwen3-30b-a3b", "qwen3-32b"))
    per_token = [
        ((rows.column("finish_ns") - rows.column("first_token_ns")) / rows.column("output_tokens")).mean()
        for rows in (sparse, dense)
    ]
    assert per_token[0] < 0.6 * per_token[1]

"""Which models' times on which devices are measured, in part, estimated, or nothing fits."""

import json

import pytest
from rich.console import Console

from sim.config import compose
from sim.errors import ConfigError
from sim.task import do_task

SOME = ["task=coverage", "task.models=[llama-3.1-8b,qwen3.5-35b-a3b,deepseek-v3]", "task.hardware=[h200,h20,l40s]"]


def test_the_table_says_how_each_is_known_and_of_how_many(tmp_path):
    run(tmp_path, *SOME)
    rows = json.loads((tmp_path / "coverage.json").read_text())
    assert rows["llama-3.1-8b"] == {"format": "bf16", "on": {"h200": "m 1", "h20": "e 1", "l40s": "m 1"}}
    assert rows["qwen3.5-35b-a3b"]["on"]["h200"].startswith("p ")  # its states by the data sheet
    assert rows["deepseek-v3"] == {"format": "fp8_block", "on": {"h200": "m 8", "h20": "-", "l40s": "-"}}


def run(folder, *overrides):
    do_task(compose(overrides), folder, Console())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task.models=[llama-9]", "model=llama-9 is not a choice"),
        ("task.hardware=[tpu]", "hardware=tpu is not a choice"),
        ("task.weight_dtype=fp5", "task.weight_dtype must be one of fp32, bf16"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "task=coverage", setting)

"""A bundle's model is found by its published name among the data sheets."""

from pathlib import Path

import pytest

from calibration.importers.llmservingsim import published_shape
from sim.errors import ProfileError


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", (32, 8, 128, 4096, 14336, 128256)),
        ("meta-llama/Llama-3.1-70B-Instruct", (64, 8, 128, 8192, 28672, 128256)),
        ("Qwen/Qwen3-32B", (64, 8, 128, 5120, 25600, 151936)),
    ],
)
def test_every_model_with_a_data_sheet_can_be_imported(model: str, expected: tuple[int, ...]) -> None:
    spec = published_shape(model, Path("meta.yaml"))
    (layers,) = spec.stack
    shape = layers.attention.axes() | layers.feed_forward.axes() | {"d_model": spec.d_model, "vocab": spec.vocab}
    assert shape == dict(zip(("n_heads", "n_kv_heads", "head_dim", "d_model", "d_ff", "vocab"), expected, strict=True))


def test_a_model_without_one_is_named_with_those_that_have() -> None:
    with pytest.raises(ProfileError, match=r"model 'x/y' has no data sheet; there are .*Qwen/Qwen3-32B"):
        published_shape("x/y", Path("meta.yaml"))

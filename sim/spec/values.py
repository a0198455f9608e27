"""Values of a data sheet: number formats, and what is refused."""

from collections.abc import Iterable

from sim.errors import ConfigError

DTYPE_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,  # a scale a tensor or a channel
    "fp8_block": 1.0 + 4.0 / (128 * 128),  # a fp32 scale for each 128 x 128 (DeepSeek-V3, Qwen3-FP8)
    "int4": 0.5 + 2.0 / 128,  # a bf16 scale for each 128 (GPTQ and AWQ checkpoints)
    "int4_g32": 0.5 + 2.0 / 32,  # for each 32 (Kimi-K2.5)
    "mxfp4": 0.5 + 1.0 / 32,  # an 8-bit exponent for each 32 (OCP microscaling formats 1.0)
    "nvfp4": 0.5 + 1.0 / 16,  # a fp8 scale for each 16 (NVIDIA, TensorRT-LLM's NVFP4)
}
"""Bytes of one number, scales included [B]."""

KV_DTYPES = ("bf16", "fp8")
"""What KV is cached in whatever the weights are; a model that is served in fp16 or fp32 may cache in its own format."""

STATE_DTYPES = ("fp32", "bf16", "fp16")  # of recurrent states, which nobody keeps narrower
INTERCONNECTS = ("nvlink", "pcie")
COMPUTED_AS = {"fp8_block": "fp8", "int4": "bf16", "int4_g32": "bf16", "mxfp4": "bf16"}
"""What the tensor cores multiply where weights are stored in another format, widened as they are read.

Source: vLLM's Marlin kernels (weight-only int4 and mxfp4) on devices before Blackwell.
"""
ACTIVATION_BYTES = DTYPE_BYTES["bf16"]  # hidden states, queries and outputs are bf16 whatever the weights are


def as_given(value: object) -> str:
    """A wrong setting in a message: 1.0 reads 1, for where a float may be given compiled code knows no other number."""
    return f"{value:.12g}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def positive(owner: str, **values: float) -> None:
    """Refuse values that are not positive and finite, naming ``owner.key``."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{owner}.{key} must be a finite number > 0, got {as_given(value)}")


def whole(owner: str, **values: int) -> None:
    """Refuse values that are not whole numbers >= 1, naming ``owner.key``."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{owner}.{key} must be a whole number >= 1, got {value!r}")


def known(owner: str, among: Iterable[str], **values: str) -> None:
    """Refuse names that are not among those we know, naming ``owner.key``."""
    names = tuple(among)
    for key, value in values.items():
        if value not in names:
            raise ConfigError(f"{owner}.{key} must be one of {', '.join(names)}, got {value!r}")

"""Values of a data sheet: number formats, and what is refused."""

from sim.errors import ConfigError

DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0}
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


def known_dtype(owner: str, **values: str) -> None:
    """Refuse names of number formats that we do not know, naming ``owner.key``."""
    for key, value in values.items():
        if value not in DTYPE_BYTES:
            raise ConfigError(f"{owner}.{key} must be one of {', '.join(DTYPE_BYTES)}, got {value!r}")

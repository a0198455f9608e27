"""How long prompts and answers are, together.

Distributions are continuous and unbounded; tokens are whole and bounded. Both happen here, in one place, and
`token_moments` gives the exact mean and variance that rounding and bounding leave.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

import numpy as np

from scenarios.distributions import Distribution, Floats, Ints, is_number, require

MAX_TOKENS = 1 << 20  # a million tokens: the longest context that models are sold with


class Lengths(Protocol):
    """Lengths of prompts and of their answers."""

    def pairs(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """Prompt and output lengths [tokens], each of shape (n,) and at least 1."""
        ...


def whole_tokens(values: Floats, most: int) -> Ints:
    """Nearest whole numbers of tokens, at least 1 and at most ``most``."""
    return np.clip(np.rint(values), 1, most).astype(np.int64)


def token_moments(of: Distribution, most: int) -> tuple[float, float]:
    """Mean and variance of a length after rounding and bounding to 1..most.

    P(length >= k) = P(x > k - 1/2) for k in 2..most, and a non-negative whole number's moments are sums of such
    probabilities: E[N] = sum P(N >= k), E[N^2] = sum (2k - 1) P(N >= k).
    """
    k = np.arange(2, most + 1, dtype=np.float64)
    beyond = 1.0 - of.cdf(k - 0.5)
    mean = 1.0 + float(beyond.sum())
    second = 1.0 + float(((2 * k - 1) * beyond).sum())
    return mean, second - mean**2


def _require_bounds(max_prompt_tokens: int, max_output_tokens: int) -> None:
    for key, value in (("max_prompt_tokens", max_prompt_tokens), ("max_output_tokens", max_output_tokens)):
        is_allowed = isinstance(value, int) and 1 <= value <= MAX_TOKENS
        require(f"scenario.lengths.{key}", value, is_allowed, f"a whole number from 1 to {MAX_TOKENS} [tokens]")


@dataclass(frozen=True, slots=True)
class Independent:
    """Answers whose length says nothing about the prompt's, as in chat traces (rank correlation below .08)."""

    prompt: Distribution
    output: Distribution
    max_prompt_tokens: int = MAX_TOKENS
    max_output_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _require_bounds(self.max_prompt_tokens, self.max_output_tokens)

    def pairs(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """Prompt and output lengths [tokens]."""
        prompts = whole_tokens(self.prompt.draw(rng, n), self.max_prompt_tokens)
        return prompts, whole_tokens(self.output.draw(rng, n), self.max_output_tokens)


@dataclass(frozen=True, slots=True)
class Correlated:
    """Long prompts with long answers, as in translation and story writing.

    Both margins are drawn independently and then paired by the ranks of two correlated normal variables (Iman and
    Conover, 1982), so each margin stays exactly what it is. The rank correlation of the pairs is that of the normals,
    ``6 / pi * asin(rho / 2)``.
    """

    prompt: Distribution
    output: Distribution
    rank_correlation: float
    max_prompt_tokens: int = MAX_TOKENS
    max_output_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _require_bounds(self.max_prompt_tokens, self.max_output_tokens)
        is_allowed = is_number(self.rank_correlation, -1.0, 1.0)
        require("scenario.lengths.rank_correlation", self.rank_correlation, is_allowed, "between -1 and 1")

    def pairs(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """Prompt and output lengths [tokens]."""
        prompts = np.sort(self.prompt.draw(rng, n))
        outputs = np.sort(self.output.draw(rng, n))
        rho = 2 * np.sin(np.pi / 6 * self.rank_correlation)
        first = rng.standard_normal(n)
        second = rho * first + np.sqrt(1 - rho**2) * rng.standard_normal(n)
        prompts = prompts[np.argsort(np.argsort(first))]
        outputs = outputs[np.argsort(np.argsort(second))]
        return whole_tokens(prompts, self.max_prompt_tokens), whole_tokens(outputs, self.max_output_tokens)


@dataclass(frozen=True, slots=True)
class Nominal:
    """What load generators send: lengths uniform between ``low_frac`` of a nominal length and the nominal length.

    ``low_frac`` 1 gives equal lengths, which march in lock-step and double the time to first token of a saturated
    engine: jitter is part of the workload.
    """

    prompt_tokens: int
    output_tokens: int
    low_frac: float = 0.8

    def __post_init__(self) -> None:
        _require_bounds(self.prompt_tokens, self.output_tokens)
        is_allowed = is_number(self.low_frac, 0.0, 1.0) and self.low_frac > 0
        require("scenario.lengths.low_frac", self.low_frac, is_allowed, "above 0, at most 1")

    def pairs(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """Prompt and output lengths [tokens]."""
        prompts = rng.integers(ceil(self.low_frac * self.prompt_tokens), self.prompt_tokens + 1, n)
        return prompts, rng.integers(ceil(self.low_frac * self.output_tokens), self.output_tokens + 1, n)


@dataclass(slots=True)
class EmpiricalPairs:
    """Rows of a trace file drawn with replacement, prompt and answer together; read at the first use."""

    path: str
    format: str | None = None
    max_prompt_tokens: int = MAX_TOKENS
    max_output_tokens: int = MAX_TOKENS
    _rows: Ints | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_bounds(self.max_prompt_tokens, self.max_output_tokens)

    def pairs(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """Prompt and output lengths [tokens].

        Raises
        ------
        TraceError
            If the file cannot be read.
        """
        if self._rows is None:
            from scenarios.traces.detect import rows

            self._rows = np.array([(row.prompt_tokens, row.output_tokens) for row in rows(self.path, self.format)])
        drawn = self._rows[rng.integers(0, len(self._rows), n)]
        prompts = np.minimum(drawn[:, 0], self.max_prompt_tokens)
        return prompts, np.minimum(drawn[:, 1], self.max_output_tokens)

"""How a session's context grows from turn to turn: four patterns with the same mean, for comparing caches."""

from dataclasses import dataclass
from math import pi
from typing import Protocol

import numpy as np

from scenarios.distributions import Floats, Ints, is_number, require


class Growth(Protocol):
    """New text per turn, relative to its mean."""

    def factors(self, turn: Ints, rng: np.random.Generator) -> Floats:
        """One factor per turn number, with mean 1 over the pattern; shape as ``turn``."""
        ...


@dataclass(frozen=True, slots=True)
class Steady:
    """Every turn says as much as the last."""

    def factors(self, turn: Ints, rng: np.random.Generator) -> Floats:  # noqa: ARG002
        """Ones."""
        return np.ones(len(turn))


@dataclass(frozen=True, slots=True)
class Bursts:
    """Short turns, and every ``every``-th one long: a pasted file. The long ones carry ``share`` of all text."""

    every: int = 5
    share: float = 0.8

    def __post_init__(self) -> None:
        is_whole = isinstance(self.every, int) and self.every >= 2
        require("scenario.dialogue.growth.every", self.every, is_whole, "a whole number >= 2 [turns]")
        require("scenario.dialogue.growth.share", self.share, is_number(self.share, 0.0, 1.0), "between 0 and 1")

    def factors(self, turn: Ints, rng: np.random.Generator) -> Floats:  # noqa: ARG002
        """``share * every`` in long turns, the rest spread over the others."""
        short = (1 - self.share) * self.every / (self.every - 1)
        return np.where(turn % self.every == self.every - 1, self.share * self.every, short)


@dataclass(frozen=True, slots=True)
class Periodic:
    """A wave: more and less by ``amplitude`` over ``period`` turns."""

    period: int = 8
    amplitude: float = 0.8

    def __post_init__(self) -> None:
        is_whole = isinstance(self.period, int) and self.period >= 2
        require("scenario.dialogue.growth.period", self.period, is_whole, "a whole number >= 2 [turns]")
        is_allowed = is_number(self.amplitude, 0.0, 1.0)
        require("scenario.dialogue.growth.amplitude", self.amplitude, is_allowed, "between 0 and 1")

    def factors(self, turn: Ints, rng: np.random.Generator) -> Floats:  # noqa: ARG002
        """1 + amplitude * sin."""
        return 1 + self.amplitude * np.sin(2 * pi * turn / self.period)


@dataclass(frozen=True, slots=True)
class Random:
    """No memory at all: exponential factors, coefficient of variation 1."""

    def factors(self, turn: Ints, rng: np.random.Generator) -> Floats:
        """Independent exponentials of mean 1."""
        return rng.exponential(1.0, len(turn))

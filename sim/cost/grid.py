"""Matrix products measured on a whole grid of shapes: the measurements, and what lies between them.

A product's time is a staircase in every axis: the device computes whole tiles, and the library takes another kernel
where it holds that to be faster. Measured fp8 times of 51,200 x 8,192 are 106 us for 16 tokens, 154 for 17, 139 for 32
and 121 for 64. So steps are kept and nothing is made to rise: a shape that was measured is served by its own times, one
that was not by those of its neighbours along n and k at each token count, which share its steps. Calibration has taken
the scatter out of times that do the same work.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import ProfileError

Array = npt.NDArray[np.float64]

PER_E = 1_000
"""Times are kept as whole thousandths of the logarithm of their nanoseconds: 0.05 % off, where repeats differ by 2."""

NONE = -1  # where a shape was not measured
MOST_PIECES = 64  # that a matrix beyond the grid is cut into


@dataclass(frozen=True, slots=True)
class MatrixGrid:
    """Times of (m, k) x (k, n) over three ascending axes, NaN where not measured; (n_m, n_n, n_k)."""

    m: Array
    n: Array
    k: Array
    seconds: Array

    def along(self, n: float, k: float) -> Array:
        """Times of (m, k) x (k, n) at all token counts measured [s], (n_m,).

        Straight lines along n and along k between the shapes around it. A matrix wider or deeper than any is as many
        equal pieces as it takes; one narrower than any is taken for the narrowest.

        Raises
        ------
        ProfileError
            If nothing near the shape was measured.
        """
        for pieces in range(1, MOST_PIECES + 1):
            across = -(-n // self.n[-1]), -(-k // self.k[-1])
            across = (max(across[0], pieces), across[1]) if n >= k else (across[0], max(across[1], pieces))
            n_pieces, k_pieces = across
            between = self._between(n / n_pieces, k / k_pieces)
            if not np.isnan(between).any():
                result: Array = n_pieces * k_pieces * between
                return result
        raise ProfileError(f"matrix products near {n:g} x {k:g} were not measured")

    def _between(self, n: float, k: float) -> Array:
        i, a = place(self.n, n)
        j, b = place(self.k, k)
        total = np.zeros(len(self.m))
        for di, wi in ((0, 1.0 - a), (1, a)):
            for dj, wj in ((0, 1.0 - b), (1, b)):
                if wi * wj > 0.0:
                    total = total + wi * wj * self.seconds[:, i + di, j + dj]
        return total

    def without(self, i: int | None = None, j: int | None = None) -> "MatrixGrid":
        """The grid as if the i-th width, or the j-th depth, had not been measured."""
        widths, depths = (np.arange(len(axis)) != at for axis, at in ((self.n, i), (self.k, j)))
        return MatrixGrid(self.m, self.n[widths], self.k[depths], self.seconds[:, widths][:, :, depths])

    def packed(self) -> dict[str, Any]:
        """As a profile holds it."""
        logs = np.where(np.isnan(self.seconds), NONE, np.round(PER_E * np.log(self.seconds / 1e-9)))
        steps = np.diff(logs, axis=0, prepend=0.0).astype("<i2")  # of neighbours along m: most are small
        text = b64encode(zlib.compress(steps.tobytes(), 9)).decode()
        return {"m": self.m.tolist(), "n": self.n.tolist(), "k": self.k.tolist(), "thousandths_of_log_ns": text}


def place(axis: Array, x: float) -> tuple[int, float]:
    """Which node is below a coordinate, and its share of the way to the next; held at the ends."""
    i = int(np.clip(np.searchsorted(axis, x, "right") - 1, 0, max(0, len(axis) - 2)))
    if len(axis) == 1:
        return 0, 0.0
    return i, float(np.clip((x - axis[i]) / (axis[i + 1] - axis[i]), 0.0, 1.0))


def unpacked(form: Mapping[str, Any]) -> MatrixGrid:
    """The grid that a profile holds.

    Raises
    ------
    ProfileError
        If it holds another number of times than its axes say.
    """
    m, n, k = (np.array(form[axis], dtype=np.float64) for axis in ("m", "n", "k"))
    steps = np.frombuffer(zlib.decompress(b64decode(form["thousandths_of_log_ns"])), dtype="<i2")
    if steps.size != m.size * n.size * k.size:
        raise ProfileError(f"matrix products: {steps.size} times, its axes have {m.size} x {n.size} x {k.size}")
    logs = np.cumsum(steps.reshape(m.size, n.size, k.size).astype(np.int64), axis=0)
    seconds = np.where(logs == NONE, np.nan, 1e-9 * np.exp(np.maximum(logs, 0) / PER_E))
    return MatrixGrid(m, n, k, seconds)


def grid_of(m: Array, n: Array, k: Array, seconds: Array) -> MatrixGrid:
    """The grid of measured products, given one by one; the mean where one was measured twice."""
    counts, widths, depths = (np.unique(axis) for axis in (m, n, k))
    at = np.searchsorted(counts, m), np.searchsorted(widths, n), np.searchsorted(depths, k)
    total, count = (np.zeros((len(counts), len(widths), len(depths))) for _ in range(2))
    np.add.at(total, at, seconds)
    np.add.at(count, at, 1.0)
    with np.errstate(invalid="ignore"):
        return MatrixGrid(counts, widths, depths, total / count)

"""Statistics of huge populations that come as arithmetic series, without writing the members down.

A run of decode iterations produces, for each of ``weight`` sequences, the gaps ``first, first + growth, ...``: a
million requests make hundreds of millions of gaps but only millions of series. Sums over a series are closed forms.
Order statistics come from a radix select: the bits of a float64 >= 0, read as an integer, keep its order, so the
member of a given rank is found digit by digit, counting members per digit and keeping only the series that can still
contain it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.record import Ints

Floats = npt.NDArray[np.float64]
Uints = npt.NDArray[np.uint64]

DIGITS = ((63, 44), (44, 32), (32, 20), (20, 8), (8, 0))
"""Bit ranges of the digits, high to low. The first splits values 0.4 % apart, fine enough that most series fall whole
into one digit and coarse enough that its histogram fits a cache."""
EXPANDED_MEMBERS = 1 << 20  # written down at a time: bounds memory, not results


@dataclass(frozen=True, slots=True)
class Series:
    """Rows of arithmetic series: row i stands for ``weight[i]`` times ``first[i] + k * growth[i]``, ``k < n[i]``.

    All arrays int64 of shape (n_rows,); every member must be >= 0.
    """

    first: Ints
    growth: Ints
    n: Ints
    weight: Ints

    def __len__(self) -> int:
        return len(self.first)

    def pick(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> "Series":
        """Some of the rows."""
        return Series(self.first[rows], self.growth[rows], self.n[rows], self.weight[rows])

    def bounds(self) -> tuple[Ints, Ints]:
        """Smallest and largest member of each row."""
        last = self.first + (self.n - 1) * self.growth
        return np.minimum(self.first, last), np.maximum(self.first, last)

    def members(self) -> Iterator[tuple[Ints, Ints]]:
        """(values, weights) of all members, a bounded number at a time; equal members of a row count once."""
        flat = self.growth == 0
        n = np.where(flat, 1, self.n)
        weight = np.where(flat, self.weight * self.n, self.weight)
        stops = np.cumsum(n)
        start = 0
        while start < len(n):
            done = stops[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(stops, done + EXPANDED_MEMBERS, side="right")))
            part = n[start:stop]
            k = np.arange(stops[stop - 1] - done) - np.repeat(stops[start:stop] - part - done, part)
            yield (
                np.repeat(self.first[start:stop], part) + k * np.repeat(self.growth[start:stop], part),
                np.repeat(weight[start:stop], part),
            )
            start = stop


@dataclass(frozen=True, slots=True)
class Population:
    """A pooled population, in parts of bounded size."""

    parts: tuple[Series, ...]

    @property
    def size(self) -> int:
        """Number of members."""
        return sum(int(np.sum(part.n * part.weight)) for part in self.parts)

    def mean(self) -> float:
        """Arithmetic mean; NaN when empty."""
        total = 0.0
        for part in self.parts:
            n, weight = part.n.astype(np.float64), part.weight
            total += float(np.sum(weight * (n * part.first + part.growth * (n * (n - 1) / 2))))
        return total / self.size if self.size else float("nan")

    def std(self) -> float:
        """Standard deviation as numpy's, without Bessel's correction; NaN when empty."""
        mean, total = self.mean(), 0.0
        for part in self.parts:
            n, growth = part.n.astype(np.float64), part.growth.astype(np.float64)
            off = part.first - mean
            squares = n * off**2 + off * growth * n * (n - 1) + growth**2 * (n - 1) * n * (2 * n - 1) / 6
            total += float(np.sum(part.weight * squares))
        return float(np.sqrt(max(total, 0.0) / self.size)) if self.size else float("nan")

    def percentiles(self, q: Sequence[float]) -> Floats:
        """Percentiles with linear interpolation, equal to ``np.percentile`` of all members written down.

        Parameters
        ----------
        q : sequence of float
            0 to 100 [%].

        Returns
        -------
        array, shape (len(q),)
            NaN when empty.
        """
        if not self.size:
            return np.full(len(q), np.nan)
        position = np.asarray(q, dtype=np.float64) / 100 * (self.size - 1)
        lower = np.floor(position).astype(np.int64)
        upper = np.minimum(lower + 1, self.size - 1)
        ranks, place = np.unique(np.concatenate([lower, upper]), return_inverse=True)
        low, high = np.split(self.order_statistics(ranks)[place], 2)
        t = position - lower
        step = high - low  # interpolated from the nearer end, as numpy does
        return np.where(t < 0.5, low + step * t, high - step * (1 - t))

    def order_statistics(self, ranks: Ints) -> Floats:
        """The members of given ranks in ascending order, rank 0 the smallest. Shape of ``ranks``."""
        parts = self.parts
        left = ranks.astype(np.int64)  # rank among the members that share the digits found so far
        prefix = np.zeros(len(ranks), dtype=np.uint64)
        for above, below in DIGITS:
            targets, target_of = np.unique(prefix, return_inverse=True)
            counts = np.zeros((len(targets), 1 << (above - below)), dtype=np.int64)
            parts = tuple(_count(part, targets, above, below, counts) for part in parts)
            cumulated = np.cumsum(counts, axis=1)
            for i, target in enumerate(target_of):
                digit = int(np.searchsorted(cumulated[target], left[i], side="right"))
                left[i] -= cumulated[target, digit] - counts[target, digit]
                prefix[i] = (int(prefix[i]) << (above - below)) | digit
        return prefix.view(np.float64)


def _bits(values: Ints) -> Uints:
    """Bits of the values as float64: unsigned integers in the same order."""
    return values.astype(np.float64).view(np.uint64)


def _count(part: Series, targets: Uints, above: int, below: int, counts: Ints) -> Series:
    """Add the members under each target to its digit's count; returns the rows that have any."""
    low, high = (_bits(bound) for bound in part.bounds())
    n_digits = counts.shape[1]

    def add(bits: Uints, weights: Ints) -> None:
        target = np.searchsorted(targets, bits >> np.uint64(above))
        target[target == len(targets)] = 0
        hit = targets[target] == bits >> np.uint64(above)
        digit = (bits >> np.uint64(below)).astype(np.int64) & (n_digits - 1)
        cell = (target * n_digits + digit)[hit]
        if len(cell):
            first = int(cell.min())
            found = np.bincount(cell - first, weights=weights[hit])  # float64 holds counts below 2**53 exactly
            counts.reshape(-1)[first : first + len(found)] += found.astype(np.int64)

    if above < DIGITS[0][0]:
        reaches = np.searchsorted(targets, high >> np.uint64(above), side="right") > np.searchsorted(
            targets, low >> np.uint64(above)
        )
        part, low, high = part.pick(reaches), low[reaches], high[reaches]
    whole = low >> np.uint64(below) == high >> np.uint64(below)
    add(low[whole], part.n[whole] * part.weight[whole])
    for values, weights in part.pick(~whole).members():
        add(_bits(values), weights)
    return part

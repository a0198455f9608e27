"""Statistics of huge populations that come as arithmetic series, without writing the members down.

A run of decode iterations produces, for each of ``weight`` sequences, the gaps ``first, first + growth, ...``: a
million requests make hundreds of millions of gaps but only millions of series. Sums over a series are closed forms.
Order statistics come from a radix select: the bits of a float64 >= 0, read as an integer, keep its order, so the
member of a given rank is found digit by digit from the top, counting members per digit and keeping only the series that
can still contain it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.record import Ints

Floats = npt.NDArray[np.float64]
Uints = npt.NDArray[np.uint64]

DIGIT_BITS = 11
"""Bits looked at together. 2,048 cells fit a cache; even when the largest member is 256 times the smallest, values
0.4 % apart differ in the first digit, and yet most series fall whole into one cell."""
PART_ROWS = 1 << 15
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


def merged(parts: Iterable[Series]) -> tuple[Series, ...]:
    """The same rows in fewer parts, `PART_ROWS` or a little more in each, and no empty one."""
    groups: list[list[Series]] = []
    room = 0
    for part in parts:
        if room <= 0 and len(part):
            groups.append([])
            room = PART_ROWS
        if len(part):
            groups[-1].append(part)
            room -= len(part)
    return tuple(
        Series(
            *(np.concatenate([getattr(part, name) for part in group]) for name in ("first", "growth", "n", "weight"))
        )
        for group in groups
    )


class Population:
    """A pooled population of ``size`` members, in parts of bounded size."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Iterable[Series]) -> None:
        self.parts = merged(parts)
        self.size = sum(int(np.sum(part.n * part.weight)) for part in self.parts)

    def mean_std(self) -> tuple[float, float]:
        """Arithmetic mean and standard deviation (as numpy's, without Bessel's correction); NaN when empty."""
        if not self.size:
            return float("nan"), float("nan")
        pivot = float(self.parts[0].first[0])  # near the mean, so that the squares lose no digits
        total = squares = 0.0
        for part in self.parts:
            n, growth, off = part.n.astype(np.float64), part.growth.astype(np.float64), part.first - pivot
            grown = growth * (n - 1)
            total += float(np.sum(part.weight * n * (off + grown / 2)))
            squares += float(np.sum(part.weight * n * (off * (off + grown) + grown * growth * (2 * n - 1) / 6)))
        mean = total / self.size
        return pivot + mean, float(np.sqrt(max(0.0, squares / self.size - mean**2)))

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
        origin, above = self._span()
        left = ranks.astype(np.int64)  # rank among the members that share the digits found so far
        prefix = np.zeros(len(ranks), dtype=np.uint64)
        while above:
            below = max(0, above - DIGIT_BITS)
            targets, target_of = np.unique(prefix, return_inverse=True)
            counts = np.zeros((len(targets), 1 << (above - below)), dtype=np.int64)
            parts = merged(_count(part, origin, targets, above, below, counts) for part in parts)
            cumulated = np.cumsum(counts, axis=1)
            for i, target in enumerate(target_of):
                digit = int(np.searchsorted(cumulated[target], left[i], side="right"))
                left[i] -= cumulated[target, digit] - counts[target, digit]
                prefix[i] = (int(prefix[i]) << (above - below)) | digit
            above = below
        return (prefix + origin).view(np.float64)

    def cdf(self) -> tuple[Floats, Floats]:
        """Points of the cumulative distribution, exact ones, at most 2,049 of them.

        Returns
        -------
        (values, fractions)
            ``fractions[i]`` of all members are smaller than ``values[i]``.
        """
        if not self.size:
            return np.zeros(0), np.zeros(0)
        origin, above = self._span()
        below = max(0, above - DIGIT_BITS)
        counts = np.zeros((1, 1 << (above - below)), dtype=np.int64)
        for part in self.parts:
            _count(part, origin, np.zeros(1, dtype=np.uint64), above, below, counts)
        cells = np.flatnonzero(counts[0])
        edges = np.unique(np.concatenate([cells, cells + 1]))
        values = (origin + (edges.astype(np.uint64) << np.uint64(below))).view(np.float64)
        smaller = np.concatenate([[0], np.cumsum(counts[0])])[edges]
        return values, smaller / self.size

    def _span(self) -> tuple[np.uint64, int]:
        """Bits of the smallest member, and how many bits the others' distance from it takes."""
        bounds = [part.bounds() for part in self.parts]
        ends = np.array([min(low.min() for low, _ in bounds), max(high.max() for _, high in bounds)])
        origin, last = _bits(ends)
        return origin, int(last - origin).bit_length()


def _bits(values: Ints) -> Uints:
    """Bits of the values as float64: unsigned integers in the same order."""
    return values.astype(np.float64).view(np.uint64)


def _count(part: Series, origin: np.uint64, targets: Uints, above: int, below: int, counts: Ints) -> Series:
    """Add the members under each target to the count of their digit; returns the rows that have any."""
    low, high = (_bits(bound) - origin for bound in part.bounds())
    up, down, mask = np.uint64(above), np.uint64(below), counts.shape[1] - 1

    def add(bits: Uints, weights: Ints) -> None:
        cell = (bits >> down).astype(np.int64) & mask
        if len(targets) > 1:
            cell += np.searchsorted(targets, bits >> up) * counts.shape[1]
        if len(cell):
            first = int(cell.min())
            totals = np.bincount(cell - first, weights=weights)  # whole numbers in float64 are exact below 2**53
            counts.reshape(-1)[first : first + len(totals)] += totals.astype(np.int64)

    is_first = not int(max(high.max() >> up, targets[-1]))  # the first digit: all members are under the one target
    if not is_first:
        reaches = np.searchsorted(targets, high >> up, side="right") > np.searchsorted(targets, low >> up)
        part, low, high = part.pick(reaches), low[reaches], high[reaches]
    is_whole = low >> down == high >> down
    add(low[is_whole], part.n[is_whole] * part.weight[is_whole])
    for values, weights in part.pick(~is_whole).members():
        bits = _bits(values) - origin
        if not is_first:
            nearest = np.minimum(np.searchsorted(targets, bits >> up), len(targets) - 1)
            is_under = targets[nearest] == bits >> up
            bits, weights = bits[is_under], weights[is_under]
        add(bits, weights)
    return part

"""Numbers by second, which take memory only for stretches of time in which something happens."""

import numpy as np

from sim.record import Ints

STRETCH = 1 << 12  # seconds kept together: 32 KiB


class Seconds:
    """Whole numbers by second. Two requests a year apart take two stretches, not a number for every second between."""

    __slots__ = ("_stretches",)

    def __init__(self) -> None:
        self._stretches: dict[int, Ints] = {}

    def add(self, second: Ints, values: Ints | None = None) -> None:
        """Add values (ones by default) at seconds >= 0, repeated ones included."""
        if not len(second):
            return
        stretch = second // STRETCH
        first, last = int(stretch.min()), int(stretch.max())
        if first == last:
            self._add(first, second, values)
            return
        order = np.argsort(stretch, kind="stable")
        stretch, second = stretch[order], second[order]
        values = None if values is None else values[order]
        begins = np.flatnonzero(np.append(True, stretch[1:] != stretch[:-1]))
        for begin, end in zip(begins, np.append(begins[1:], len(stretch)), strict=True):
            self._add(int(stretch[begin]), second[begin:end], None if values is None else values[begin:end])

    def _add(self, number: int, second: Ints, values: Ints | None) -> None:
        kept = self._stretches.get(number)
        if kept is None:
            kept = self._stretches[number] = np.zeros(STRETCH, dtype=np.int64)
        # float64 holds whole numbers below 2**53 exactly
        kept += np.bincount(second - number * STRETCH, weights=values, minlength=STRETCH).astype(np.int64)

    def most(self) -> int:
        """The largest number of any second, 0 where there is none."""
        return max((int(kept.max()) for kept in self._stretches.values()), default=0)

    def total(self) -> int:
        """Their sum."""
        return sum(int(kept.sum()) for kept in self._stretches.values())

    def first(self, n_seconds: int) -> Ints:
        """The first so many seconds, shape (n_seconds,)."""
        found = np.zeros(n_seconds, dtype=np.int64)
        for number, kept in self._stretches.items():
            at = number * STRETCH
            if at < n_seconds:
                found[at : at + STRETCH] = kept[: n_seconds - at]
        return found

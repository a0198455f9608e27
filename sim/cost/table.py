"""Tables of times on a grid, looked up without numpy: what an iteration's attention is told from.

Between the grid's nodes the logarithm of the time is linear on the simplices of a cell (a cell of d axes is cut along
its diagonal, d + 1 nodes decide): exact for products of powers, as monotone as its nodes, and d + 1 terms instead of
2^d. Outside the grid the nearest cell goes on.
"""

from collections.abc import Sequence
from math import exp, log2

import numpy as np
import numpy.typing as npt

from sim.errors import ProfileError

Array = npt.NDArray[np.float64]
Place = tuple[int, float]
"""Of a coordinate on an axis: how far into the table its node below is, and its share of the way to the next one."""


class Axis:
    """One axis of a table: nodes that lie evenly in ``log2(x + shift)``, so that a cell is found by arithmetic.

    Parameters
    ----------
    nodes : sequence of float
    shift : float
    stride : int
        Between neighbouring nodes in the flat table.
    is_clamped : bool
        Whether coordinates outside the nodes are taken for the outermost one.
    """

    __slots__ = ("_first", "_is_clamped", "_last", "_per_octave", "_shift", "_stride")

    def __init__(self, nodes: Sequence[float], shift: float, stride: int, is_clamped: bool = False) -> None:
        ends = log2(nodes[0] + shift), log2(nodes[-1] + shift)
        even = 2.0 ** np.linspace(*ends, len(nodes)) - shift
        if not np.allclose(nodes, even, rtol=1e-9, atol=1e-9):
            raise ProfileError(f"nodes of a table must lie evenly in log2(x + {shift:g}), got {list(nodes)[:4]}...")
        self._first, self._per_octave = ends[0], (len(nodes) - 1) / (ends[1] - ends[0])
        self._last, self._shift, self._stride, self._is_clamped = len(nodes) - 2, float(shift), stride, is_clamped

    def place(self, x: float) -> Place:
        """Where a coordinate lies."""
        return self.place_log(log2(x + self._shift))

    def place_log(self, log_x: float) -> Place:
        """Where a coordinate lies whose ``log2(x + shift)`` is known."""
        u = (log_x - self._first) * self._per_octave
        i = int(u) if u > 0.0 else 0
        if i > self._last:  # min(i, last) takes three times as long
            i = self._last
        u -= i
        if self._is_clamped:
            if u < 0.0:
                u = 0.0
            elif u > 1.0:
                u = 1.0
        return i * self._stride, u

    def places(self, most: int, least: float) -> list[Place]:
        """Where the whole numbers up to ``most`` lie, those below ``least`` taken for it."""
        return [self.place(max(float(x), least)) for x in range(most + 1)]


class Table:
    """Logarithms of times on a grid of any number of axes.

    Parameters
    ----------
    axes, shifts
        Nodes and shift of each axis, see `Axis`.
    logs : array
        Logarithms at the nodes, one dimension per axis.
    is_clamped : bool
        Whether the table goes on constant outside its grid: for corrections that have no physics to go by.
    """

    __slots__ = ("_logs", "axes")

    def __init__(
        self, axes: Sequence[Sequence[float]], shifts: Sequence[float], logs: Array, is_clamped: bool = False
    ) -> None:
        strides = [int(np.prod(logs.shape[i + 1 :])) for i in range(logs.ndim)]
        self.axes = [Axis(*axis, is_clamped) for axis in zip(axes, shifts, strides, strict=True)]
        self._logs: list[float] = logs.ravel().tolist()

    def log(self, *point: float) -> float:
        """Logarithm of the time at a point, one coordinate per axis."""
        at = 0
        steps = []
        for x, axis in zip(point, self.axes, strict=True):
            here, share = axis.place(x)
            at += here
            steps.append((share, axis._stride))
        steps.sort(reverse=True)
        logs = self._logs
        value = before = logs[at]
        for share, stride in steps:
            at += stride
            after = logs[at]
            value += share * (after - before)
            before = after
        return value

    def __call__(self, *point: float) -> float:
        """Time at a point [s]."""
        return exp(self.log(*point))


class Plane(Table):
    """A table of two axes: the same numbers, with all loops written out, since prompts ask it once each."""

    __slots__ = ("_stride", "_x", "_y")

    def __init__(self, axes: Sequence[Sequence[float]], shifts: Sequence[float], logs: Array) -> None:
        super().__init__(axes, shifts, logs)
        self._x, self._y = ((axis._shift, axis._first, axis._per_octave, axis._last) for axis in self.axes)
        self._stride = self.axes[0]._stride

    def log(self, *point: float) -> float:
        """Logarithm of the time at a point."""
        x, y = point
        shift, first, per_octave, last = self._x
        u = (log2(x + shift) - first) * per_octave
        i = int(u) if u > 0.0 else 0
        if i > last:
            i = last
        u -= i
        shift, first, per_octave, last = self._y
        v = (log2(y + shift) - first) * per_octave
        j = int(v) if v > 0.0 else 0
        if j > last:
            j = last
        v -= j
        logs, stride = self._logs, self._stride
        at = i * stride + j
        here, there = logs[at], logs[at + stride + 1]
        if u >= v:
            middle = logs[at + stride]
            return here + u * (middle - here) + v * (there - middle)
        middle = logs[at + 1]
        return here + v * (middle - here) + u * (there - middle)


class Space(Table):
    """A table of four axes, asked by places, with the sorting written out."""

    __slots__ = ("_strides",)

    def __init__(
        self, axes: Sequence[Sequence[float]], shifts: Sequence[float], logs: Array, is_clamped: bool = False
    ) -> None:
        super().__init__(axes, shifts, logs, is_clamped)
        self._strides = tuple(axis._stride for axis in self.axes)

    def between(self, at: int, a: float, b: float, c: float, d: float) -> float:
        """Logarithm of the time these shares into the cell that starts at ``at``."""
        step_a, step_b, step_c, step_d = self._strides
        if a < b:  # the largest share first: the simplex the point lies in
            a, b, step_a, step_b = b, a, step_b, step_a
        if c < d:
            c, d, step_c, step_d = d, c, step_d, step_c
        if a < c:
            a, c, step_a, step_c = c, a, step_c, step_a
        if b < d:
            b, d, step_b, step_d = d, b, step_d, step_b
        if b < c:
            b, c, step_b, step_c = c, b, step_c, step_b
        logs = self._logs
        here = logs[at]
        at += step_a
        first = logs[at]
        at += step_b
        second = logs[at]
        at += step_c
        third = logs[at]
        return here + a * (first - here) + b * (second - first) + c * (third - second) + d * (logs[at + step_d] - third)

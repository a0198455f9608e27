"""Token counts that do the same work in a matrix product, and the scatter of measurement taken out of their times.

A device multiplies whole tiles of rows: 17 tokens take as long as 32, where a tile has 16. So counts measured on one
stair are repeats of one measurement. They scatter: the residuals of one table are uncorrelated with those of another
device's (0.0 to 0.05 over 2 to 16 tokens), and on a B200 single fp8 times are twice their neighbours'. What stands on
one stair is therefore taken together, steps between stairs are kept, and where a table has a few counts only, the place
of a step that no count stands beside is the tile's.
"""

from collections.abc import Iterator
from dataclasses import replace
from warnings import catch_warnings, simplefilter

import numpy as np
import numpy.typing as npt

from sim.cost.grid import MatrixGrid

Array = npt.NDArray[np.float64]

TILES = (8, 16, 32, 64, 128)
"""Rows of a tile, or with the operands swapped its columns, of which a tensor core takes 8 at least.

Source: shapes of ``mma`` (m16n8k16) and ``wgmma`` (m64n8k16 to m64n256k16) in NVIDIA's PTX ISA.
"""

MOST_TOKENS = 256  # of stairs: beyond, how many tiles the device takes at once decides
FIRST_TOKENS = 2  # a single row is a matrix and a vector, another kernel
FAR_OFF = 4.0  # standard deviations of a pair's difference beyond which the slower one is taken for a hiccup
SD_PER_MAD = 1.4826  # of a normal distribution


def stairs(m: Array, tile: int) -> list[list[int]]:
    """Places in ``m`` of the counts on each stair, ascending; those before the first and past the last are on none.

    Examples
    --------
    >>> stairs(np.array([1.0, 2.0, 16.0, 17.0, 32.0, 512.0]), 16)
    [[1, 2], [3, 4]]
    """
    found: dict[int, list[int]] = {}
    for i, count in enumerate(m.tolist()):
        if FIRST_TOKENS <= count <= MOST_TOKENS:
            found.setdefault(-(-int(count) // tile), []).append(i)
    return list(found.values())


def level(m: Array, logs: Array) -> tuple[float, Array]:
    """The line of counts on one stair, for every shape: its slope per token, one for all shapes, and its height at 0.

    Medians over shapes and over counts, so that single times far off move nothing; of two counts that differ by far
    more than such pairs do, the faster one is taken. ``logs`` has shape (n_counts, ...).
    """
    flat = logs.reshape(len(m), -1)
    with catch_warnings():
        simplefilter("ignore", RuntimeWarning)  # shapes that were not measured
        if len(m) == 1:
            return 0.0, logs[0]
        middle = m.mean()
        rises = ((m - middle) @ (flat - flat.mean(0))) / ((m - middle) ** 2).sum()
        slope = float(np.nanmedian(rises))
        upright = flat - slope * m[:, None]
        heights = np.nanmedian(upright, axis=0)
        if len(m) == 2:
            apart = upright[1] - upright[0]
            far = FAR_OFF * SD_PER_MAD * np.nanmedian(np.abs(apart))
            heights = np.where(np.abs(apart) > far, upright.min(0), heights)
    return slope, heights.reshape(logs.shape[1:])


def settled(grid: MatrixGrid, tile: int) -> MatrixGrid:
    """The grid with times of one stair on its line, which reaches over the whole stair."""
    counts, times = grid.m.tolist(), list(grid.seconds)
    for places in stairs(grid.m, tile):
        slope, heights = level(grid.m[places], np.log(grid.seconds[places]))
        for i in places:
            times[i] = np.exp(heights + slope * grid.m[i])
        top = tile * -(-int(grid.m[places[-1]]) // tile)
        for end in (max(FIRST_TOKENS, top - tile + 1), top):
            if end not in grid.m[places]:
                counts.append(float(end))
                times.append(np.exp(heights + slope * end))
    order = np.argsort(counts)
    return replace(grid, m=np.array(counts)[order], seconds=np.array(times)[order])


def unseen(grid: MatrixGrid, tile: int) -> Iterator[tuple[int, Array]]:
    """Times of counts inside a stretch as the grid without them tells them: their place, and (n_n, n_k).

    Of two counts with nothing between, one on each side of a step, neither tells of the other; the first sixteen
    are on one stair.
    """
    measured = set(grid.m.tolist())
    for i in range(1, len(grid.m) - 1):
        count = grid.m[i]
        if count >= 16 and {count - 1.0, count + 1.0} & measured:
            continue
        rest = settled(MatrixGrid(np.delete(grid.m, i), grid.n, grid.k, np.delete(grid.seconds, i, axis=0)), tile)
        j = int(np.searchsorted(rest.m, count))
        share = (count - rest.m[j - 1]) / (rest.m[j] - rest.m[j - 1])
        yield i, (1.0 - share) * rest.seconds[j - 1] + share * rest.seconds[j]


def tile_of(grid: MatrixGrid) -> int:
    """The tile that tells counts of this table best which it is made to forget, one of five for all its shapes."""
    errors = {}
    for tile in TILES:
        off = [np.abs(told / grid.seconds[i] - 1.0).ravel() for i, told in unseen(grid, tile)]
        errors[tile] = float(np.nanmean(np.concatenate(off))) if off else 0.0
    return min(errors, key=lambda tile: errors[tile])

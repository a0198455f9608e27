"""Which measurements are kept out of the fit: chosen by a seed before anything is fitted, corners never among them."""

from collections.abc import Mapping
from zlib import crc32

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

HELD_OUT_FRAC = 0.2
SEED = 20_240_613


def held_out(
    name: str, shape: Mapping[str, Array], seed: int = SEED, frac: float = HELD_OUT_FRAC, whole: bool = False
) -> Flags:
    """Rows of an operation kept out of the fit, shape (n_rows,).

    A row is a corner, and stays in training, if every axis is at the least or greatest value it has in the table:
    a fit that has never seen the corners would extrapolate there. The choice depends on the seed, the operation's
    name and the shapes, not on the order of the rows. Rows of equal shape are drawn one by one, or together with
    ``whole``.
    """
    axes = sorted(shape)
    columns = np.stack([np.asarray(shape[axis], dtype=np.float64) for axis in axes], axis=1)
    order = np.lexsort(columns.T)
    draws = np.random.default_rng([seed, crc32(name.encode())]).random(len(columns))
    if whole:
        is_new = np.r_[True, (np.diff(columns[order], axis=0) != 0.0).any(1)]
        draws = draws[np.cumsum(is_new) - 1]
    draw = np.empty(len(columns))
    draw[order] = draws
    low, high = columns.min(0), columns.max(0)
    is_corner = ((columns == low) | (columns == high)).all(1)
    result: Flags = (draw < frac) & ~is_corner
    return result

"""Experts of a layer, measured over tokens for many shapes: the measurements themselves, and what lies between them.

    seconds = (sum over kinds of work of (work / rate)^p + floor^p)^(1/p) * exp(residual(shape, routing, tokens))

The roofline carries what tokens and routing ask of the kernel: experts touched, rows computed. The residual is kept as
it was measured, shape by shape, routing by routing and token count by token count, since kernels change their tiles
with all three. A shape that was measured is served by its own residuals; another one by those around it, weighted by a
Gaussian process over the shapes; token counts and routings between measured ones by straight lines.

Tables that are called balanced deal tokens out in turn, so that 16 tokens with 8 experts each touch all of 128. Tokens
that choose at random touch 82: served times are those of the work of `sim.spec.routing`, with the balanced residual.
"""

import zlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cost.surface import SoftRoofline, error_from, matern32, roofline_from
from sim.errors import ProfileError
from sim.spec.routing import even_load, rank_load
from sim.spec.values import ACTIVATION_BYTES

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TILE_ROWS = 64
"""Rows that a tile of grouped products has: each expert touched computes whole ones. Source: vLLM's fused_moe defaults
(BLOCK_SIZE_M 16 to 64); of no consequence where a rate for it is fitted."""

PER_E = 1_000  # residuals are kept as whole thousandths, 0.05 % off
KINDS = ("flops", "bytes", "padded_flops")


class ExpertShape(NamedTuple):
    """Experts of a layer and how ranks share them: by width (``tensor_ranks``), by number (``expert_ranks``)."""

    hidden: int
    width: int  # of one expert, whole
    top_k: int
    n_experts: int  # of all ranks
    tensor_ranks: int
    expert_ranks: int


def features(shapes: Sequence[ExpertShape]) -> Array:
    """Where shapes lie, in octaves: hidden width, a rank's width, choices, a rank's experts, all experts; (n, 5)."""
    rows = [(s.hidden, s.width / s.tensor_ranks, s.top_k, s.n_experts / s.expert_ranks, s.n_experts) for s in shapes]
    result: Array = np.log2(np.array(rows, dtype=np.float64).reshape(-1, 5))
    return result


def expert_work(shape: ExpertShape, load: Array, weight_bytes: float) -> dict[str, Array]:
    """Work of a gated layer's experts on one rank, of (choices, experts touched) a row; arrays (n,).

    Bytes: the weights of all experts touched, and what each choice reads and writes between its two products.
    """
    hidden, width = float(shape.hidden), shape.width / shape.tensor_ranks
    choices, touched = load[:, 0], load[:, 1]
    weights = 3.0 * hidden * width
    return {
        "flops": 2.0 * weights * choices,
        "bytes": weight_bytes * weights * touched + ACTIVATION_BYTES * choices * (2.0 * hidden + 3.0 * width),
        "padded_flops": 2.0 * weights * (choices + TILE_ROWS * touched),
    }


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """Log residuals of measured shapes, (n_shapes, n_routings, n_tokens), and how shapes near one another are alike."""

    shapes: tuple[ExpertShape, ...]
    skews: Array  # of the routings, ascending; 0: dealt out in turn
    tokens: Array  # ascending
    residuals: Array
    length_scales: Array  # of `features` [octaves]
    noise: float  # of residuals of one shape, over their variance

    def residual(self, shape: ExpertShape) -> Array:
        """Log residuals of a shape, (n_routings, n_tokens): its own, or those expected from the others."""
        if shape in self.shapes:
            own: Array = self.residuals[self.shapes.index(shape)]
            return own
        told: Array = expected(self, features([shape]))[0]
        return told

    def at(self, shape: ExpertShape, skew: float, n_tokens: Array) -> Array:
        """Log residual at token counts, between routings and counts on straight lines, held at the ends; (n,)."""
        each = self.residual(shape)
        by_tokens = np.stack([np.interp(np.log(n_tokens), np.log(self.tokens), row) for row in each])
        if len(self.skews) == 1:
            first: Array = by_tokens[0]
            return first
        skew = min(max(skew, float(self.skews[0])), float(self.skews[-1]))
        i = int(np.clip(np.searchsorted(self.skews, skew, "right") - 1, 0, len(self.skews) - 2))
        share = (skew - self.skews[i]) / (self.skews[i + 1] - self.skews[i])
        result: Array = (1.0 - share) * by_tokens[i] + share * by_tokens[i + 1]
        return result


def expected(table: ExpertTable, at: Array) -> Array:
    """Residuals at features by the process over shapes: their mean where none is near, (n, n_routings, n_tokens)."""
    known = features(table.shapes) / table.length_scales
    rows = table.residuals.reshape(len(table.shapes), -1)
    mean = rows.mean(0)
    gram = matern32(known, known) + table.noise * np.eye(len(known))
    weights = np.linalg.solve(gram, matern32(known, at / table.length_scales)).T
    told: Array = mean + weights @ (rows - mean)
    return told.reshape(len(at), *table.residuals.shape[1:])


def table_from(form: Mapping[str, Any]) -> ExpertTable:
    """The table that an operation of a profile holds.

    Raises
    ------
    ProfileError
        If it holds another number of residuals than its axes say.
    """
    shapes = tuple(ExpertShape(*row) for row in form["shapes"])
    skews, tokens = (np.array(form[axis], dtype=np.float64) for axis in ("skews", "tokens"))
    size = (len(shapes), len(skews), len(tokens))
    steps = np.frombuffer(zlib.decompress(b64decode(form["thousandths_of_log"])), dtype="<i2")
    if steps.size != int(np.prod(size)):
        raise ProfileError(f"experts: {steps.size} residuals, the axes have {' x '.join(map(str, size))}")
    residuals = np.cumsum(steps.reshape(size).astype(np.int64), axis=2) / PER_E
    return ExpertTable(
        shapes, skews, tokens, residuals, np.array(form["length_scales"], dtype=np.float64), float(form["noise"])
    )


@dataclass(frozen=True, slots=True)
class ExpertTimes:
    """Time of a layer's experts against the tokens that its ranks share [s]."""

    line: SoftRoofline
    table: ExpertTable
    shape: ExpertShape
    weight_bytes: float
    skew: float = 0.0
    factor: float = 1.0  # of all times: an error of the fit

    def __call__(self, n_tokens: Array) -> Array:
        """Of token counts >= 0; none at 0 tokens."""
        counts = np.maximum(n_tokens, 1.0)
        work = expert_work(self.shape, self._load(counts), self.weight_bytes)
        seconds = self.line.seconds(work) * np.exp(self.table.at(self.shape, self.skew, counts))
        result: Array = np.where(n_tokens > 0, self.factor * seconds, 0.0)
        return result

    def _load(self, counts: Array) -> Array:
        """(choices, experts touched) of counts; under a power law told at some of them, on straight lines between."""
        shape = self.shape
        if not self.skew:
            choices = counts * shape.top_k / shape.expert_ranks
            touched = shape.n_experts * (1.0 - (1.0 - shape.top_k / shape.n_experts) ** counts) / shape.expert_ranks
            return np.stack([choices, touched], axis=1)
        most = max(float(counts.max()), float(self.table.tokens[-1]))
        knots = np.unique(np.round(np.concatenate([self.table.tokens, np.geomspace(1.0, most, 64)])))
        told = rank_loads(shape, self.skew, knots)
        return np.stack([np.interp(counts, knots, column) for column in told.T], axis=1)


def rank_loads(shape: ExpertShape, skew: float, counts: Array) -> Array:
    """`rank_load` of each of the counts, (n, 2)."""
    rows = [rank_load(int(n), shape.top_k, shape.n_experts, shape.expert_ranks, skew) for n in counts.tolist()]
    return np.array(rows, dtype=np.float64)


def measured_loads(shape: ExpertShape, skew: float, counts: Array) -> Array:
    """What tables measured of a routing, (n, 2): a skew of 0 deals tokens out in turn there."""
    if skew:
        return rank_loads(shape, skew, counts)
    rows = [even_load(int(n), shape.top_k, shape.n_experts, shape.expert_ranks) for n in counts.tolist()]
    return np.array(rows, dtype=np.float64)


def expert_times(
    form: Mapping[str, Any], shape: ExpertShape, weight_bytes: float, skew: float = 0.0, z: float = 0.0
) -> ExpertTimes:
    """Times of experts of a shape from an operation of a profile, off by ``z`` standard errors."""
    line, table = roofline_from(form), table_from(form)
    factor = float(np.exp(z * error_from(form).log_sd[0]))
    return ExpertTimes(line, table, shape, weight_bytes, skew, factor)

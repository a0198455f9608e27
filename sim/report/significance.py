"""How sure a difference between two runs is that served the same requests.

Requests that follow one another are not independent: a queue reaches from one to the next. So a run is cut into blocks
of consecutive requests, and blocks are drawn again, with repetition, as often as there are (block bootstrap: Künsch,
"The jackknife and the bootstrap for general stationary observations", Annals of Statistics 17, 1989). What a number
becomes by that tells how far it may be off. Runs of the same requests draw the same blocks, so what both share cancels.
What the random numbers of another seed would bring is not in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

N_BLOCKS, N_DRAWS = 20, 400
ENDS = (1.59, 98.41)
"""Percentiles between which 95 % lie: of few blocks wider than 2.5 to 97.5, by the quantile 2.093 of Student's t with
19 degrees of freedom and the factor of 20/19 in the variance (Hesterberg, "What teachers should know about the
bootstrap", The American Statistician 69, 2015: expanded percentiles)."""
FEWEST = 5 * N_BLOCKS  # requests; a smaller block says nothing
COLUMNS = ("arrival_ns", "ttft_ms", "tpot_ms", "is_good", "cached_tokens", "prompt_tokens")
QUANTILES = {"ttft_p50": ("ttft_ms", 0.5), "ttft_p99": ("ttft_ms", 0.99), "tpot_p50": ("tpot_ms", 0.5)}
QUANTILES["tpot_p99"] = ("tpot_ms", 0.99)
SHARES = {"within": ("is_good", ""), "hits": ("cached_tokens", "prompt_tokens")}
"""Numbers that are made of requests: quantiles, and sums over sums, over the number of requests where none is named."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference or a ratio, and where it lies at 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What the requests of one run say, in order of their arrival."""

    values: Mapping[str, Floats]
    _known: dict[str, tuple[float, Floats]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.values["prompt_tokens"])

    def statistic(self, name: str) -> tuple[float, Floats]:
        """A number of all requests, and of each draw of blocks: shape (N_DRAWS,)."""
        if name not in self._known:
            block = np.arange(len(self)) * N_BLOCKS // len(self)
            if name in SHARES:
                part, whole = SHARES[name]
                sums = np.bincount(block, self.values[part], N_BLOCKS)
                of = np.bincount(block, self.values[whole] if whole else None, N_BLOCKS)
                with np.errstate(divide="ignore", invalid="ignore"):
                    self._known[name] = float(sums.sum() / of.sum()), (DRAWS @ sums) / (DRAWS @ of)
            else:
                key, share = QUANTILES[name]
                is_known = ~np.isnan(self.values[key])
                order = np.argsort(self.values[key][is_known])
                self._known[name] = _quantiles(self.values[key][is_known][order], block[is_known][order], share)
        return self._known[name]


def _quantiles(values: Floats, block: npt.NDArray[np.int64], share: float) -> tuple[float, Floats]:
    """A quantile of sorted values, and of each draw of blocks."""
    if not len(values):
        return float("nan"), np.full(N_DRAWS, np.nan)
    found = np.empty(N_DRAWS)
    for i, times in enumerate(DRAWS):
        reached = np.cumsum(times[block])
        found[i] = values[min(len(values) - 1, int(np.searchsorted(reached, share * reached[-1])))]
    return float(np.quantile(values, share)), found


def _draws() -> Floats:
    """How often each block is drawn, shape (N_DRAWS, N_BLOCKS); the same in every process."""
    drawn = np.random.default_rng(20).multinomial(N_BLOCKS, np.full(N_BLOCKS, 1.0 / N_BLOCKS), N_DRAWS)
    return drawn.astype(np.float64)


DRAWS = _draws()


def read_samples(folder: Path) -> Samples | None:
    """The requests of a finished run; None where it wrote its summary alone, or has too few."""
    import pyarrow.parquet as pq

    path = folder / "requests.parquet"
    if not path.is_file():
        return None
    table = pq.read_table(path, columns=list(COLUMNS))
    if len(table) < FEWEST:
        return None
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS}
    order = np.argsort(columns["arrival_ns"], kind="stable")
    return Samples({name: columns[name][order].astype(np.float64) for name in COLUMNS[1:]})


def difference(one: Samples, other: Samples, name: str) -> Interval | None:
    """A number of one run less that of another; None where either has none."""
    return _interval(one, other, name, lambda a, b: a - b)


def ratio(one: Samples, other: Samples, name: str) -> Interval | None:
    """A number of one run over that of another; None where either has none, or is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(one, other, name, lambda a, b: a / b)


def _interval(one: Samples, other: Samples, name: str, join: Callable[[Floats, Floats], Floats]) -> Interval | None:
    (a, drawn_a), (b, drawn_b) = one.statistic(name), other.statistic(name)
    if len(one) != len(other):  # not the same requests: nothing cancels
        drawn_b = np.roll(drawn_b, 1)
    drawn, value = join(drawn_a, drawn_b), float(join(np.array(a), np.array(b)))
    if not np.isfinite(value) or not np.isfinite(drawn).all():
        return None
    low, high = np.percentile(drawn, ENDS)
    return Interval(value, min(value, float(low)), max(value, float(high)))

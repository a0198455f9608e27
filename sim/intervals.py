"""How sure a prediction is: one traffic served with kernel times off by what the profile does not know."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.errors import ConfigError
from sim.report.intervals import METRICS, SHARE, Interval, interval_table, write_intervals
from sim.report.page import name_of

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Intervals:
    """The task ``intervals``.

    A profile knows how far its formulas are off kernels that they were not fitted to. In each draw every operation's
    times are off by one draw of that standard error, the same in all iterations; the traffic is the same in all draws.
    What the profile's measurements themselves are off, and the host's time, is not in it.

    Parameters
    ----------
    n_draws : int
        Simulations with drawn times, at least 5; an interval spans their 5th to 95th percentile.
    """

    n_draws: int = 20

    def __post_init__(self) -> None:
        if self.n_draws < 5:
            raise ConfigError(f"task.n_draws must be >= 5, got {self.n_draws}")

    def __call__(self, *, config: Mapping[str, Any], out: Path, console: "Console") -> None:
        """Serve the traffic with every draw, write ``intervals.json`` and ``intervals.html`` into ``out``, print both.

        Raises
        ------
        ConfigError
            If the iteration times are from a data sheet, which knows no standard errors.
        """
        cost = config["cost"]
        if "sample" not in cost:
            raise ConfigError("task=intervals needs a profile's standard errors: take cost=auto or cost=calibrated")
        best = numbers_of({**config, "cost": {**cost, "sample": False}})
        draws = [
            numbers_of({**config, "cost": {**cost, "sample": True, "seed": config["seed"] + i}})
            for i in range(self.n_draws)
        ]
        found = intervals(best, draws)
        write_intervals(found, name_of(config), self.n_draws, out)
        console.print(interval_table(found, self.n_draws))
        console.print(f"Page: {out / 'intervals.html'}", soft_wrap=True)


def numbers_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of one run."""
    from sim.config import make, trusted_packages
    from sim.metrics import summary
    from sim.run import run

    return summary(run(config), make(config["slo"], "slo", trusted_packages(config)))


def intervals(best: Mapping[str, Any], draws: list[dict[str, Any]]) -> list[Interval]:
    """The metrics that every run has, each with where it lies between the draws' percentiles."""
    found = []
    for key in METRICS:
        drawn = [draw[key] for draw in draws]
        if best[key] is not None and None not in drawn:
            low, high = np.percentile(drawn, SHARE)
            found.append(Interval(key, float(best[key]), float(low), float(high)))
    return found

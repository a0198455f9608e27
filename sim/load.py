"""The task ``load``: one configuration at several rates, in one job."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError
from sim.probe import Prober
from sim.report.page import name_of
from sim.report.rates import in_words, rate_table, write_rates

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class LoadCurve:
    """Latency, throughput, goodput and hit rate over the offered rate.

    Parameters
    ----------
    rates : sequence of float
        In place of ``scenario.rate`` [1/s].
    window_s : float
        How long traffic is offered, see `sim.probe` [s].
    """

    rates: Sequence[float]
    window_s: float = 120.0

    def __post_init__(self) -> None:
        if isinstance(self.rates, str) or not isinstance(self.rates, Sequence) or not self.rates:
            raise ConfigError(f"rates must be a list of at least one, for example rates=[2,5,10], got {self.rates!r}")
        for one in self.rates:
            if type(one) not in (int, float) or not 0.0 < one < float("inf"):
                raise ConfigError(f"rates must be finite numbers > 0 [1/s], got {one!r}")

    def __call__(self, *, config: Mapping[str, Any], out: Path, console: "Console") -> None:
        """Offer every rate, print the table, write ``load.json`` and ``load.html`` into ``out``."""
        probe = Prober(config, self.window_s)
        probes = [probe(float(one)) for one in sorted(set(self.rates))]
        heading = f"Load curve: {name_of(config)}"
        write_rates(probes, "load", heading, out, {"seed": config["seed"]}, [in_words(probes)])
        console.print(rate_table(probes, heading))
        console.print(in_words(probes), soft_wrap=True, highlight=False)
        console.print(f"Page: {out / 'load.html'}", soft_wrap=True)

"""ServeGen's table of clients: how each of them sends, not a trace of requests.

A client's coefficient of variation is one number here, a mean over its windows. What is published of single windows
(rate-weighted, half below 1.0 to 2.0 by category and a tenth above 4.9 to 27) cannot be had from it: percentiles over
clients, however weighted, are others (1.4 to 2.5 and 6.4 to 19.8, each client counted once).

References
----------
Xiang et al., "ServeGen: workload characterization and generation of LLM serving in production", arXiv:2505.09999
"""

from dataclasses import dataclass

import numpy as np

from scenarios.distributions import Floats
from scenarios.traces.row import seconds
from scenarios.traces.table import Table
from scenarios.traces.text import Reading, head
from sim.units import NS_PER_S

HEADER = ("category", "client", "mean_rate", "rate_weighted_cv")


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of one category."""

    category: str
    rate_per_s: Floats  # mean arrivals of each, shape (n_clients,)
    gap_cv: Floats  # coefficient of variation of its gaps, over its windows weighted by rate; NaN where unknown


def is_clients(path: str) -> bool:
    """Whether a file is such a table."""
    return set(HEADER) <= set(head(path).partition("\n")[0].rstrip("\r").split(","))


def clients(path: str) -> list[Clients]:
    """The table, category by category in the order of the file."""
    table = Table(path, Reading(), HEADER)
    found: dict[str, list[tuple[float, float]]] = {}
    for category, _, rate, cv in table.rows():
        rate_per_s = seconds(rate, "mean_rate", table.place) / NS_PER_S
        is_unknown = cv in ("", "nan")
        gap_cv = float("nan") if is_unknown else seconds(cv, "rate_weighted_cv", table.place) / NS_PER_S
        found.setdefault(category, []).append((rate_per_s, gap_cv))
    return [Clients(name, *np.array(values).T) for name, values in found.items()]

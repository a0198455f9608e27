"""Recorded and simulated side by side: latencies of the same requests, their statistics, and how far off they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.engine_run import EngineRun
from calibration.prediction import Predicted
from sim.metrics.latency import e2el_ms, tpot_ms, ttft_ms
from sim.record import Ints
from sim.units import NS_PER_S

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

STATISTICS: dict[str, Callable[[Floats], float]] = {
    "mean": lambda x: float(np.mean(x)),
    **{f"p{q}": (lambda x, q=q: float(np.percentile(x, q))) for q in (50, 90, 95, 99)},  # type: ignore[misc]
}
METRICS = ("ttft", "tpot", "e2el")
MEAN_TOLERANCE_FRAC, PERCENTILE_TOLERANCE_FRAC = 0.05, 0.08  # beyond these a prediction has failed


def latencies(since_ns: Ints, first_ns: Ints, last_ns: Ints, output_tokens: Ints) -> dict[str, Floats]:
    """TTFT, TPOT and E2EL of every request [ms]; TPOT is NaN where there was one token."""
    return {
        "ttft": ttft_ms(since_ns, first_ns),
        "tpot": tpot_ms(first_ns, last_ns, output_tokens),
        "e2el": e2el_ms(since_ns, last_ns),
    }


def recorded_latencies(run: EngineRun, since: str = "queued") -> dict[str, Floats]:
    """As recorded, from ``queued`` or ``arrival`` on."""
    start = run.queued_ns if since == "queued" else run.arrival_ns
    return latencies(start, run.first_token_ns, run.last_token_ns, run.output_tokens)


def predicted_latencies(run: EngineRun, predicted: Predicted, since: str = "queued") -> dict[str, Floats]:
    """As simulated, from ``queued`` or ``arrival`` on."""
    start = predicted.queued_ns if since == "queued" else run.arrival_ns
    return latencies(start, predicted.first_token_ns, predicted.last_token_ns, run.output_tokens)


@dataclass(frozen=True, slots=True)
class Line:
    """One statistic, recorded and simulated."""

    metric: str
    statistic: str
    unit: str
    real: float
    simulated: float

    @property
    def error_frac(self) -> float:
        """Simulated over recorded, less one."""
        return self.simulated / self.real - 1.0

    @property
    def tolerance_frac(self) -> float:
        """What the error may be."""
        return PERCENTILE_TOLERANCE_FRAC if self.statistic.startswith("p") else MEAN_TOLERANCE_FRAC

    @property
    def is_met(self) -> bool:
        """Whether it is within the tolerance."""
        return abs(self.error_frac) <= self.tolerance_frac


def compare(run: EngineRun, predicted: Predicted, which: Bools | None = None, since: str = "queued") -> list[Line]:
    """Statistics of TTFT, TPOT and E2EL over some of the requests, and throughput over all of them."""
    which = np.ones(len(run), dtype=np.bool_) if which is None else which
    real, simulated = recorded_latencies(run, since), predicted_latencies(run, predicted, since)
    lines = []
    for metric in METRICS:
        x, y = real[metric][which], simulated[metric][which]
        known = ~np.isnan(x)
        if not known.any():
            continue
        for name, statistic in STATISTICS.items():
            lines.append(Line(metric, name, "ms", statistic(x[known]), statistic(y[known])))
    real_rate, simulated_rate = (
        float(run.output_tokens.sum()) * NS_PER_S / float(last.max())
        for last in (run.last_token_ns, predicted.last_token_ns)
    )
    lines.append(Line("throughput", "mean", "tok/s", real_rate, simulated_rate))
    return lines


def summary(columns: Mapping[str, list[Line]]) -> list[dict[str, Any]]:
    """Lines of several predictions as plain rows, for JSON."""
    return [
        {
            "prediction": name,
            "metric": line.metric,
            "statistic": line.statistic,
            "unit": line.unit,
            "real": line.real,
            "simulated": line.simulated,
            "error_frac": line.error_frac,
        }
        for name, lines in columns.items()
        for line in lines
    ]

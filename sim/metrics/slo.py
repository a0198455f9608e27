"""Latency objectives: what a request must meet to count as good."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from sim.errors import ConfigError

LIMITS = ("ttft_ms", "tpot_ms", "e2el_ms")  # the names `vllm bench serve --goodput` knows


@dataclass(frozen=True, slots=True)
class Slo:
    """Upper limits on one request's latencies [ms]; ``None`` sets no limit.

    ``classes`` overrides limits for requests of a named class, for example ``{"code": {"ttft_ms": 200}}``.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None
    classes: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        _check("slo", {name: getattr(self, name) for name in LIMITS})
        for name, limits in self.classes.items():
            _check(f"slo.classes.{name}", limits)

    def limits(self, slo_class: str = "") -> dict[str, float | None]:
        """Limits of one class of requests, by name in `LIMITS` [ms].

        Examples
        --------
        >>> Slo(ttft_ms=500, classes={"batch": {"ttft_ms": None}}).limits("batch")["ttft_ms"] is None
        True
        """
        return {name: getattr(self, name) for name in LIMITS} | dict(self.classes.get(slo_class, {}))

    @property
    def is_set(self) -> bool:
        """Whether anything is limited at all."""
        everything = [self.limits(), *(self.limits(name) for name in self.classes)]
        return any(limit is not None for limits in everything for limit in limits.values())


def _check(owner: str, limits: Mapping[str, float | None]) -> None:
    for key, value in limits.items():
        if key not in LIMITS:
            near = get_close_matches(key, LIMITS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{owner}.{key} is not an objective, did you mean {owner}.{near}?")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < value < float("inf")):
            raise ConfigError(f"{owner}.{key} must be a finite number > 0 [ms] or null, got {value!r}")

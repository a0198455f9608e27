"""Cost models: how long an engine iteration takes."""

from sim.cost.host import HostCost
from sim.cost.iteration import DecodeCurve, IterationCost, Operations

__all__ = ["DecodeCurve", "HostCost", "IterationCost", "Operations"]

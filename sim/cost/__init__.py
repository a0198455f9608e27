"""Cost models: how long an engine iteration takes."""

from sim.cost.host import HostCost
from sim.cost.iteration import IterationCost
from sim.cost.operations import DecodeCurve, Operations
from sim.cost.pipeline import Pipeline
from sim.cost.roofline import Efficiency, Roofline

__all__ = ["DecodeCurve", "Efficiency", "HostCost", "IterationCost", "Operations", "Pipeline", "Roofline"]

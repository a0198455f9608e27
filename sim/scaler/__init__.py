"""Scalers: how many replicas there are."""

from sim.scaler.contract import Fixed, Scaler, StartUp
from sim.scaler.proportional import Proportional, QueueLength, TargetUtilisation
from sim.scaler.scaling import Scaling
from sim.scaler.schedule import Schedule

__all__ = [
    "Fixed",
    "Proportional",
    "QueueLength",
    "Scaler",
    "Scaling",
    "Schedule",
    "StartUp",
    "TargetUtilisation",
]

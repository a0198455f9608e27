"""Data sheets: what a model is a stack of, and the hardware under it. Facts made once from configuration."""

from sim.spec.dense import Dense
from sim.spec.gqa import Gqa
from sim.spec.hardware import DeviceSpec, HardwareSpec
from sim.spec.kinds import Attention, FeedForward, Gemm
from sim.spec.model import Layers, ModelSpec
from sim.spec.values import ACTIVATION_BYTES, DTYPE_BYTES, as_given, known_dtype, positive, whole

__all__ = [
    "ACTIVATION_BYTES",
    "DTYPE_BYTES",
    "Attention",
    "Dense",
    "DeviceSpec",
    "FeedForward",
    "Gemm",
    "Gqa",
    "HardwareSpec",
    "Layers",
    "ModelSpec",
    "as_given",
    "known_dtype",
    "positive",
    "whole",
]

"""Data sheets: what a model is a stack of, and the hardware under it. Facts made once from configuration."""

from sim.spec.dense import Dense
from sim.spec.engine import BatchLimit, EngineSpec
from sim.spec.fleet import POOLS, Aggregated, Disaggregated, FleetSpec, LinkSpec, Pool
from sim.spec.frontend import FrontendSpec
from sim.spec.gqa import Gqa
from sim.spec.hardware import DeviceSpec, HardwareSpec
from sim.spec.kinds import Attention, FeedForward, Gemm
from sim.spec.linear_attention import LinearAttention
from sim.spec.mla import Mla
from sim.spec.model import Layers, ModelSpec
from sim.spec.moe import Moe
from sim.spec.values import ACTIVATION_BYTES, COMPUTED_AS, DTYPE_BYTES, as_given, known, positive, whole

__all__ = [
    "ACTIVATION_BYTES",
    "COMPUTED_AS",
    "DTYPE_BYTES",
    "POOLS",
    "Aggregated",
    "Attention",
    "BatchLimit",
    "Dense",
    "DeviceSpec",
    "Disaggregated",
    "EngineSpec",
    "FeedForward",
    "FleetSpec",
    "FrontendSpec",
    "Gemm",
    "Gqa",
    "HardwareSpec",
    "Layers",
    "LinearAttention",
    "LinkSpec",
    "Mla",
    "ModelSpec",
    "Moe",
    "Pool",
    "as_given",
    "known",
    "positive",
    "whole",
]

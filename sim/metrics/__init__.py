"""Metrics: pure functions of a run's facts, named and defined as ``vllm bench serve`` does."""

from sim.metrics.slo import Slo
from sim.metrics.summary import Measures, measure, summary, to_json

__all__ = ["Measures", "Slo", "measure", "summary", "to_json"]

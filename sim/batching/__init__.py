"""Schedulers: what the next iteration computes."""

from sim.batching.chunked import Chunked
from sim.batching.continuous import Continuous
from sim.batching.queue import Fcfs, Ranked
from sim.batching.request_level import RequestLevel

__all__ = ["Chunked", "Continuous", "Fcfs", "Ranked", "RequestLevel"]

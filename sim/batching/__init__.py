"""Schedulers: what the next iteration computes."""

from sim.batching.aged import Aged
from sim.batching.chunked import Chunked
from sim.batching.continuous import Continuous
from sim.batching.fair import FairShare
from sim.batching.queue import Fcfs, Ranked
from sim.batching.request_level import RequestLevel

__all__ = ["Aged", "Chunked", "Continuous", "FairShare", "Fcfs", "Ranked", "RequestLevel"]

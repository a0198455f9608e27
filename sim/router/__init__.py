"""Routers: where a request is served."""

from sim.router.affinity import PrefixAffinity, SessionAffinity
from sim.router.contract import ARRIVAL, Router
from sim.router.events import CacheEvents
from sim.router.load import KVUsage, LeastLoaded, PowerOfTwo
from sim.router.prefixes import Prefixes, Probe
from sim.router.sent import Sent
from sim.router.unaware import Random, RoundRobin
from sim.router.weighted import Weighted

__all__ = [
    "ARRIVAL",
    "CacheEvents",
    "KVUsage",
    "LeastLoaded",
    "PowerOfTwo",
    "PrefixAffinity",
    "Prefixes",
    "Probe",
    "Random",
    "RoundRobin",
    "Router",
    "Sent",
    "SessionAffinity",
    "Weighted",
]

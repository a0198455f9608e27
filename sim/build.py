"""Where a configuration becomes the parts of a simulation: the one place that builds objects.

Imports of numpy and SimPy stand in the functions that use them, so that ``--help`` answers at once.
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from sim.check import as_written, check, unknown
from sim.config import make
from sim.errors import ConfigError

if TYPE_CHECKING:
    from sim.clock import Clock
    from sim.engine import Replica
    from sim.kv.cache import KVCache
    from sim.kv.capacity import KVCapacity
    from sim.record import Recorder
    from sim.router import Traffic
    from sim.step import CostModel

REQUIRED = {
    "model", "hardware", "cost", "scenario", "cache", "eviction", "preemption", "batching", "queue", "router", "slo",
    "task", "seed", "replicas", "trusted_packages",
}  # fmt: skip
OPTIONAL = {"tiers", "classify", "experiment", "choices"}
OF_TASKS = {"policies", "capacity_blocks", "dir"}  # what conf/task/ sets beside them
MAX_REPLICAS = 4096  # engine instances in one process; each is built from the configuration


def check_run(config: Mapping[str, Any]) -> None:
    """Refuse top-level keys that do not exist, parts that name no class, and counts below one."""
    for key, part in config.items():
        if key not in REQUIRED | OPTIONAL | OF_TASKS:
            raise ConfigError(unknown(key, sorted(REQUIRED | OPTIONAL | OF_TASKS)))
        if isinstance(part, Mapping) and "_target_" not in part and key != "choices":
            raise ConfigError(f"{key}._target_ must be given")
    for key in sorted(REQUIRED - config.keys()):
        raise ConfigError(f"{key} must be given, it was taken out of the configuration")
    for key, least, most in (("seed", 0, (1 << 63) - 1), ("replicas", 1, MAX_REPLICAS)):
        value = config[key]
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(f"{key} must be a whole number from {least} to {most}, got {as_written(value)}")
    trusted = config["trusted_packages"]
    if not isinstance(trusted, list) or not all(isinstance(name, str) for name in trusted):
        raise ConfigError(f"trusted_packages must be a list of names, got {trusted!r}")


@cache
def contracts() -> dict[str, type]:
    """What the class that a group names must be able to do."""
    from sim.batching.plan import Scheduler
    from sim.batching.queue import Queue
    from sim.kv.cache import KVCache
    from sim.kv.eviction import Evictor
    from sim.kv.preemption import Preemption
    from sim.kv.tiers import Tiers
    from sim.metrics import Slo
    from sim.request import Scenario
    from sim.router import Router
    from sim.spec import HardwareSpec, ModelSpec
    from sim.step import CostModel

    return {
        "model": ModelSpec, "hardware": HardwareSpec, "cost": CostModel, "scenario": Scenario, "cache": KVCache,
        "eviction": Evictor, "preemption": Preemption, "tiers": Tiers, "batching": Scheduler, "queue": Queue,
        "router": Router, "slo": Slo,
    }  # fmt: skip


class Builder:
    """Makes the parts of a run from its configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.trusted = tuple(config["trusted_packages"])
        self.model = self("model")
        self.hardware = self("hardware")

    def __call__(self, group: str, **given: Any) -> Any:
        """The object that a group of the configuration describes."""
        return make(self.config[group], group, self.trusted, contracts()[group], **given)

    @property
    def max_batched_tokens(self) -> int:
        """Tokens of the largest iteration, vLLM's default for schedulers without a budget [tokens]."""
        n_tokens: int = self.config["batching"].get("max_num_batched_tokens", 8192)
        return n_tokens

    def capacity(self) -> "KVCapacity":
        """KV slots of one replica, derived from the device's memory or given."""
        from sim.cost.iteration import CAPTURE_SIZES
        from sim.kv.capacity import kv_capacity

        for group in ("batching", "cache", "cost"):
            check(self.config[group], group, self.trusted)
        batching = self.config["batching"]
        most_seqs = batching.get("max_num_seqs") or batching.get("max_batch_size")
        captured = self.config["cost"].get("capture_sizes", CAPTURE_SIZES)
        return kv_capacity(
            self.model,
            self.hardware,
            block_tokens=self.config["cache"].get("block_tokens", 16),
            max_batched_tokens=self.max_batched_tokens,
            max_seqs=most_seqs or 256,
            n_graphs=len(captured),
        )

    def replica(
        self,
        index: int,
        capacity: "KVCapacity",
        env: "Clock",
        cost: "CostModel",
        recorder: "Recorder",
        traffic: "Traffic",
    ) -> "Replica":
        """One replica, with a scheduler, a queue and a cache of its own."""
        from sim.engine import Replica

        return Replica(
            env,
            index,
            self("batching"),
            self("queue"),
            self.cache(capacity, env, cost, recorder, index),
            cost,
            recorder,
            traffic.ended if traffic.is_closed_loop else None,
            self.model.max_len,
        )

    def cache(
        self, capacity: "KVCapacity", env: "Clock", cost: "CostModel", recorder: "Recorder", replica: int
    ) -> "KVCache":
        """One replica's KV cache, of the given capacity, with an eviction order of its own."""
        from sim.kv.site import Site

        site = Site(
            env,
            cost,
            recorder,
            replica,
            self.model,
            self.hardware,
            capacity,
            eviction=self("eviction"),
            below=self("tiers") if self.config.get("tiers") else None,
            preemption=self("preemption"),
            max_batched_tokens=self.max_batched_tokens,
        )
        cache: KVCache = make(
            self._swapping(),
            "cache",
            self.trusted,
            contracts()["cache"],
            site=site,
        )
        return cache

    def _swapping(self) -> dict[str, Any]:
        """The cache's configuration, able to do what ``preemption`` asks.

        A paged cache that swaps is a hierarchical one that saves only what it preempts, and lets iterations wait for
        the copies both ways: vLLM v0's swap space.
        """
        node: dict[str, Any] = self.config["cache"]
        choices = self.config.get("choices", {})
        kind, chosen = str(node["_target_"]), str(self.config["preemption"]["_target_"])
        if chosen.endswith(".Recompute"):
            return node
        name = choices.get("preemption", chosen)
        if kind == "sim.kv.by_class.CacheByClass":
            return node  # those of its caches that can, do
        if kind not in ("sim.kv.paged.PagedCache", "sim.kv.hierarchical.HierarchicalCache"):
            raise ConfigError(
                f"preemption={name} needs blocks that can go down: cache=paged or cache=hierarchical, "
                f"got cache={choices.get('cache', kind)}"
            )
        if not self.config.get("tiers"):
            raise ConfigError(
                f"preemption={name} needs memory below the device: tiers=dram or tiers=dram_nvme, got none"
            )
        if kind == "sim.kv.hierarchical.HierarchicalCache":
            return node
        saving = {"write": "preempted", "load": "never", "overlap": False, "prefetch": 0}
        return {**node, "_target_": "sim.kv.hierarchical.HierarchicalCache", **saving}

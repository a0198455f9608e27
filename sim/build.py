"""Where a configuration becomes the parts of a simulation: the one place that builds objects.

Imports of numpy and SimPy stand in the functions that use them, so that ``--help`` answers at once.
"""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.check import PACKAGES, as_written, find, unknown
from sim.config import choices_of, conf_dir, make, trusted_packages
from sim.errors import ConfigError
from sim.spec.fleet import POOLS
from sim.units import LAST_NS, NS_PER_S

if TYPE_CHECKING:
    from sim.batching.plan import Scheduler
    from sim.clock import Clock
    from sim.engine import NextPool, Replica
    from sim.fleet import Fleet
    from sim.kv.cache import KVCache
    from sim.kv.capacity import KVCapacity
    from sim.kv.tiers import Tier
    from sim.record import Recorder
    from sim.router import Router
    from sim.spec import FleetSpec
    from sim.step import CostModel
    from sim.traffic import Traffic

NUMBERS = {
    "seed": (0, (1 << 63) - 1),
    "replicas": (1, 4096),
    "replications": (1, 1000),
}  # each replica is built from the configuration
SECONDS = {"stop_s": (1e-9, True), "warmup_s": (0.0, False)}  # the least, and whether null is one
OPTIONAL = {*SECONDS, "tiers", "classify", "experiment", "choices", "trusted_packages", "replications"}


def check_run(config: Mapping[str, Any]) -> None:
    """Refuse top-level keys that do not exist, whole groups that are no parts, and counts below one.

    Raises
    ------
    ConfigError
    """
    required = {*contracts(), *NUMBERS, "task"} - OPTIONAL
    known = required | OPTIONAL
    for key in config.keys() - known - _of_task(config):
        raise ConfigError(unknown(key, sorted(known)))
    for key in sorted(required - config.keys()):
        raise ConfigError(f"{key} must be given, it was taken out of the configuration")
    for key in sorted({*contracts(), "task"} & config.keys()):
        part = config[key]
        if not isinstance(part, Mapping) and not (part is None and key in OPTIONAL):
            raise ConfigError(f"{key} must be one of {', '.join(choices_of(key))}, got {as_written(part)}")
    for key, (least, most) in NUMBERS.items():
        value = config.get(key, 1)
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(f"{key} must be a whole number from {least} to {most}, got {as_written(value)}")
    for key, (least_s, may_be_none) in SECONDS.items():
        value = config.get(key, None if may_be_none else 0.0)
        is_time = type(value) in (int, float) and least_s <= value < LAST_NS / NS_PER_S
        if not is_time and not (value is None and may_be_none):
            words = " or null" if may_be_none else ""
            raise ConfigError(f"{key} must be a number >= {least_s:g} [s]{words}, got {as_written(value)}")
    if type(config.get("classify", False)) is not bool:
        raise ConfigError(f"classify must be true or false, got {as_written(config['classify'])}")
    trusted_packages(config)


def _of_task(config: Mapping[str, Any]) -> set[str]:
    """What the YAML of the run's task sets beside the groups."""
    import yaml  # type: ignore[import-untyped]

    path = conf_dir() / "task" / f"{config.get('choices', {}).get('task')}.yaml"
    return set(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else set()


@cache
def contracts() -> dict[str, Any]:
    """What the class that a group names must be able to do; of a cache and an order of eviction, what makes one."""
    from sim.batching.plan import Scheduler
    from sim.batching.queue import Queue
    from sim.kv.cache import KVCache
    from sim.kv.eviction import Evictor
    from sim.kv.preemption import Preemption
    from sim.kv.tiers import Tiers
    from sim.metrics import Slo
    from sim.request import Scenario
    from sim.router import Router
    from sim.scaler import Scaler
    from sim.spec import EngineSpec, FleetSpec, FrontendSpec, HardwareSpec, ModelSpec
    from sim.step import CostModel

    return {
        "engine": EngineSpec,
        "frontend": FrontendSpec,
        "model": ModelSpec,
        "hardware": HardwareSpec,
        "cost": CostModel,
        "scenario": Scenario,
        "cache": Callable[..., KVCache],
        "eviction": Callable[[int], Evictor],
        "preemption": Preemption,
        "tiers": Tiers,
        "batching": Scheduler,
        "queue": Queue,
        "router": Router,
        "fleet": FleetSpec,
        "scaler": Scaler,
        "slo": Slo,
    }


class MadePool(NamedTuple):
    """Replicas that do the same part of a request, and the builder that makes them."""

    name: str
    builder: "Builder"
    fleet: "Fleet"
    n_replicas: int  # at the start
    capacity: "KVCapacity"


class Builder:
    """Makes the parts of a run from its configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.trusted = trusted_packages(config)
        self.pool: str | None = None
        self.stores: dict[str, Tier] = {}  # memory that all replicas share
        self.model = self("model")
        self.hardware = self("hardware")
        self.engine = self("engine")

    def __call__(self, group: str, **given: Any) -> Any:
        """The object that a group of the configuration describes."""
        return make(self.config[group], self._path(group), self.trusted, contracts()[group], **given)

    def _path(self, group: str) -> str:
        """Where a group stands in the configuration."""
        return group if self.pool is None else f"fleet.{self.pool}.{group}"

    @cached_property
    def fleet(self) -> "FleetSpec":
        """How the fleet is divided."""
        node = dict(self.config["fleet"])
        for pool in POOLS:
            if isinstance(node.get(pool), Mapping):
                node[pool] = {key: value for key, value in node[pool].items() if key != "own"}
        spec: FleetSpec = make(node, "fleet", self.trusted, contracts()["fleet"])
        return spec

    def pools(
        self, env: "Clock", recorder: "Recorder", traffic: Callable[[], "Traffic"]
    ) -> tuple[list["MadePool"], "Router"]:
        """The pools of the fleet, without replicas yet, and who places arriving requests in the first of them."""
        from sim.fleet import Fleet
        from sim.handover import HandOvers, LocalIfShort
        from sim.spec import Disaggregated

        def note(index: int, event: int) -> None:
            recorder.fleet.add(env.now_ns, index, event)

        def pool(
            name: str, n_replicas: int, of: Builder, beside: "Fleet | None" = None, then: "NextPool | None" = None
        ) -> MadePool:
            capacity = of.capacity()
            fleet = Fleet(
                lambda index: of.replica(index, capacity, env, of.cost, recorder, traffic(), then), note, beside
            )
            return MadePool(name, of, fleet, n_replicas, capacity)

        spec = self.fleet
        if not isinstance(spec, Disaggregated):
            return [pool("", self.config["replicas"], self)], self("router")
        prefill, decode = (self.of(name) for name in POOLS)
        for one in (prefill, decode):
            if one.scheduler.returns_together:
                raise ConfigError(
                    f"fleet=pd hands sequences over one by one: {one._path('batching')} must be chunked or continuous, "
                    "got one whose answers return together"
                )
        answers = pool("decode", spec.decode.replicas, decode)
        ranks = prefill.hardware.n_devices, decode.hardware.n_devices
        hand_overs = HandOvers(env, recorder, spec.link, ranks, decode("router"), answers.fleet)
        prompts = pool("prefill", spec.prefill.replicas, prefill, answers.fleet, hand_overs)
        router = prefill("router")
        if spec.local_tokens:
            router = LocalIfShort(spec.local_tokens, router, decode("router"), answers.fleet)
        return [prompts, answers], router

    def of(self, pool: str) -> "Builder":
        """The builder of a pool: what it has of its own in place of the run's."""
        own = self.config["fleet"][pool].get("own", {})
        builder = Builder({**self.config, **own})
        builder.pool, builder.stores = pool, self.stores
        if "cost" in self.__dict__ and not {"cost", "hardware"} & own.keys():  # given, or made already
            builder.cost = self.cost
        return builder

    @cached_property
    def scheduler(self) -> "Scheduler":
        """One of the replicas' schedulers, to ask for its budget."""
        scheduler: Scheduler = self("batching")
        return scheduler

    @cached_property
    def cost(self) -> "CostModel":
        """The iteration times of all replicas."""
        cost: CostModel = self("cost")
        return cost

    def capacity(self) -> "KVCapacity":
        """KV slots of one replica, derived from the device's memory or given."""
        from sim.kv.capacity import kv_capacity

        return kv_capacity(
            self.model,
            self.hardware,
            block_tokens=self._cache_class().capacity_block_tokens(self.config["cache"]),
            max_batched_tokens=self.scheduler.most_tokens,
            max_seqs=self.scheduler.most_seqs,
            n_graphs=len(self.cost.capture_sizes),
        )

    def replica(
        self,
        index: int,
        capacity: "KVCapacity",
        env: "Clock",
        cost: "CostModel",
        recorder: "Recorder",
        traffic: "Traffic",
        next_pool: "NextPool | None" = None,
    ) -> "Replica":
        """One replica, with a scheduler, a queue and a cache of its own; it may compute prompts alone."""
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
            next_pool=next_pool,
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
            max_batched_tokens=self.scheduler.most_tokens,
            chunk_tokens=self.scheduler.chunk_tokens,
            stores=self.stores,
        )
        cache: KVCache = make(
            self._swapping(),
            self._path("cache"),
            self.trusted,
            contracts()["cache"],
            site=site,
        )
        return cache

    def _cache_class(self) -> "type[KVCache]":
        """The class of its caches, to ask what it makes of settings; of a function that makes one, the contract."""
        from sim.kv.cache import KVCache

        target = str(self.config["cache"].get("_target_"))
        found = find(target, f"{self._path('cache')}._target_", (*PACKAGES, *self.trusted))
        return found if isinstance(found, type) and issubclass(found, KVCache) else KVCache

    def _swapping(self) -> Mapping[str, Any]:
        """The cache's configuration, able to do what ``preemption`` asks."""
        node, choices = self.config["cache"], self.config.get("choices", {})
        if not self("preemption").needs_below:
            return node  # type: ignore[no-any-return]
        name = choices.get("preemption", self.config["preemption"]["_target_"])
        able = self._cache_class().swapping(node)
        if able is None:
            raise ConfigError(
                f"preemption={name} needs blocks that can go down: cache=paged or cache=hierarchical, "
                f"got cache={choices.get('cache', node['_target_'])}"
            )
        if not self.config.get("tiers") and "write" in able:
            raise ConfigError(
                f"preemption={name} needs memory below the device: tiers=dram or tiers=dram_nvme, got none"
            )
        return able

"""The task ``explain``: a few requests on a small memory, every iteration looked at, to draw what a cache does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.build import Builder
from sim.errors import ConfigError
from sim.kv.drawing import IDLE, Map, holdings, unit_tokens
from sim.report.explain import Explained, Frame, explain_table, write_explained
from sim.report.page import name_of
from sim.request import Request, Scenario
from sim.run import check_conservation

if TYPE_CHECKING:
    from rich.console import Console

    from sim.clock import Clock
    from sim.engine import Replica
    from sim.record import Recorder


@dataclass(frozen=True, slots=True)
class Explain:
    """A small run, drawn.

    Parameters
    ----------
    requests : int
        The first of the scenario's that are served; turns that would follow do not come.
    slots : int
        KV slots of the device, so few that they fill [tokens].
    iterations : int
        Most that are looked at: a run that takes more is refused.
    """

    requests: int = 12
    slots: int = 8192
    iterations: int = 20_000

    def __post_init__(self) -> None:
        for key, least in (("requests", 1), ("slots", 64), ("iterations", 1)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                raise ConfigError(f"task.{key} must be a whole number >= {least}, got {value!r}")

    def __call__(self, *, config: Mapping[str, Any], scenario: Scenario, out: Path, console: "Console") -> None:
        """Serve, print what happened step by step, write ``explain.json`` and ``explain.html`` into ``out``."""
        found = self.watched(config, scenario)
        write_explained(found, out)
        console.print(explain_table(found))
        console.print(f"Page: {out / 'explain.html'}", soft_wrap=True)

    def watched(self, config: Mapping[str, Any], scenario: Scenario) -> Explained:
        """Serve, and look at the memory after every iteration.

        Raises
        ------
        ConfigError
            If it takes too many iterations, or the cache is one that cannot be drawn.
        """
        from sim.clock import Clock
        from sim.fleet import Fleet
        from sim.record import Recorder
        from sim.traffic import Traffic

        small = shrunk(config, self.slots)
        made = Builder(small)
        capacity, env, recorder = made.capacity(), Clock(), Recorder()
        fleet = Fleet(lambda index: made.replica(index, capacity, env, made.cost, recorder, traffic))
        traffic = Traffic(env, First(scenario, self.requests), small["seed"], made("router"), fleet)
        replica = fleet.add()
        replica.max_steps = 1  # no iteration without an event: each is looked at
        traffic.start()
        frames = list(self._frames(env, replica, recorder))
        check_conservation(fleet.replicas, traffic.n_arrived, recorder)
        size = unit_tokens(replica.kv)
        return Explained(
            name=name_of(small),
            cache=str(small.get("choices", {}).get("cache", "cache")),
            unit_tokens=size,
            n_units=capacity.n_tokens // size,
            frames=frames,
            requests=recorder.requests.rows().tolist(),
            columns=recorder.requests.columns,
            refusals=dict(recorder.refusals),
        )

    def _frames(self, env: "Clock", replica: "Replica", recorder: "Recorder") -> Iterator[Frame]:
        kv, ledger, n_rows = replica.kv, replica.ledger, 0
        drawn = Map(int(kv.capacity_tokens) // unit_tokens(kv))
        column = {name: i for i, name in enumerate(recorder.iterations.columns)}
        while env.peek() < float("inf"):
            env.step()
            if len(recorder.iterations) == n_rows:
                continue
            n_rows = len(recorder.iterations)
            if n_rows > self.iterations:
                raise ConfigError(
                    f"task.iterations must be >= what the traffic takes, more than {self.iterations}: ask for fewer "
                    "task.requests"
                )
            row = recorder.iterations.rows()[-1].tolist()
            running = [*ledger, *replica.batch.partial]
            held = holdings(kv, running, ledger)
            owners = drawn.place(held)
            yield Frame(
                end_s=env.now_ns / 1e9,
                n_decoding=row[column["decode_seqs"]],
                prompt_tokens=row[column["prefill_tokens"]],
                n_waiting=len(replica.batch.waiting),
                running=tuple(sequence.request.id for sequence in running),
                owners=owners,
                tables={one.request.id: drawn.table_of(held, one.request.id) for one in running},
                found={one.request.id: int(one.cached_tokens or 0) for one in running},
                n_held=int(kv.held_tokens) // unit_tokens(kv),
                n_idle=sum(one.n_units for one in held if one.owner == IDLE),
                counts=dict(replica.counts()),
            )


class First:
    """The first requests of a scenario, and none that follow from them."""

    def __init__(self, scenario: Scenario, n_requests: int) -> None:
        self._scenario, self._n_requests = scenario, n_requests

    def requests(self, seed: int) -> Iterator[Request]:
        """In order of arrival."""
        return islice(self._scenario.requests(seed), self._n_requests)


def shrunk(config: Mapping[str, Any], slots: int) -> dict[str, Any]:
    """The configuration on a memory of so many slots; extents of one length take a quarter of them."""
    block_tokens = int(config["cache"].get("block_tokens", 16))
    small = {**config, "hardware": {**config["hardware"], "kv_blocks": max(1, slots // block_tokens)}, "replicas": 1}
    reservation = config["cache"].get("reservation")
    if isinstance(reservation, Mapping) and "max_len" in reservation:
        most = min(int(reservation["max_len"]), slots // 4)
        small["cache"] = {**config["cache"], "reservation": {**reservation, "max_len": most}}
    return small

"""A simulation from its configuration to its facts: build the parts, let them run, check that nothing was lost."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from sim.build import Builder, check_run
from sim.check import is_compiled
from sim.config import compose
from sim.errors import ConfigError, InvariantError
from sim.override import given
from sim.units import ns_from_s

if TYPE_CHECKING:
    from rich.console import Console

    from sim.clock import Clock
    from sim.engine import Replica
    from sim.record import Recorder, Result, Table
    from sim.request import Scenario
    from sim.spec import ModelSpec
    from sim.step import CostModel

TOO_LONG = "iterations take longer than 106 days, 2**63 ps: look for a unit in hardware, cost and model"


def simulate(*overrides: str, **choices: Any) -> "Result":
    """Simulate, and return the facts.

    Parameters
    ----------
    overrides : str
        As on the command line: ``"cache=static"``, ``"scenario.rate=3"``.
    choices : Any
        The same as Python values, which never pass through text: ``cache="static", replicas=2, seed=1``,
        ``**{"scenario.path": Path("my trace.csv"), "scenario.time_range": (0, 10)}``.

    Returns
    -------
    Result
        Tables of facts; ``result.requests.frame()`` is a pandas DataFrame.

    Raises
    ------
    ConfigError
        In one line, naming the key, the value and what is allowed.
    """
    return run(compose([*overrides, *(given(key, value) for key, value in choices.items())]))


def run(
    config: Mapping[str, Any],
    scenario: "Scenario | None" = None,
    console: "Console | None" = None,
    cost: "CostModel | None" = None,
) -> "Result":
    """Build what a composed configuration describes, and run it until everybody is served.

    Parameters
    ----------
    config : mapping
        From `sim.config.compose`.
    scenario : Scenario or None
        Traffic to serve in place of the configuration's.
    console : Console or None
        Where a long run shows its progress.
    cost : CostModel or None
        Iteration times in place of the configuration's.
    """
    from sim.clock import Clock
    from sim.record import PoolFacts, Recorder, Result
    from sim.request import stages_of
    from sim.scaler import Fixed, Scaling
    from sim.traffic import Traffic

    check_run(config)
    made = Builder(config)
    if cost is not None:
        made.cost = cost
    scenario = scenario or made("scenario")
    env = Clock()
    recorder = Recorder()
    pools, router = made.pools(env, recorder, lambda: traffic)
    first = pools[0]
    traffic = Traffic(env, scenario, config["seed"], router, first.fleet, made("frontend").added_ns)
    for pool in pools:
        for _ in range(pool.n_replicas):
            pool.fleet.add()
    replicas = first.fleet.replicas
    scaler = made("scaler")
    if len(pools) > 1 and not isinstance(scaler, Fixed):
        raise ConfigError("a scaler starts and stops replicas of one kind: fleet=aggregated, or scaler=none")
    traffic.start()
    if traffic.next_ns is not None and not isinstance(scaler, Fixed):
        weights_bytes = -first.capacity.terms["weights"] * made.hardware.n_devices
        Scaling(env, scaler, first.fleet, traffic.is_over, weights_bytes).start(traffic.next_ns)
    stop_ns = None
    if config.get("stop_s") is not None and traffic.next_ns is not None:
        stop_ns = traffic.next_ns + ns_from_s(float(config["stop_s"]))
    with frozen_heap(), progress(recorder, console), interruptible(env):
        try:
            env.run(stop_ns)
        except (OverflowError, ValueError) as error:
            if isinstance(error, OverflowError) or "to i64" in str(error):  # of the facts
                raise ConfigError(TOO_LONG) from None
            raise
    n_unfinished = 0
    if stop_ns is not None and env.peek() < float("inf"):  # stopped on the way: in a queue, a batch or on a link
        for replica in replicas:
            replica.settle(stop_ns)
        n_unfinished = traffic.n_arrived - len(recorder.requests) - len(recorder.refused)
    else:
        check_conservation(replicas, traffic.n_arrived, recorder)
    check_durations(recorder.iterations)
    costs = {id(pool.builder.cost): pool.builder.cost for pool in pools}
    requests, notes = recorder.requests, getattr(scenario, "notes", None)
    end_ns = int(requests.column("finish_ns").max()) if len(requests) else 0
    if n_unfinished and stop_ns is not None and end_ns:
        end_ns = stop_ns
    return Result(
        requests,
        recorder.iterations,
        recorder.preemptions,
        recorder.transfers,
        recorder.refused,
        recorder.refusals,
        tuple(recorder.slo_classes),
        tuple(recorder.links),
        n_replicas=len(replicas),
        n_devices=sum(len(pool.fleet.members) * pool.builder.hardware.n_devices for pool in pools),
        capacity_tokens=max(pool.fleet.members[0].kv.capacity_tokens for pool in pools),
        kv_bytes_per_token=first.capacity.bytes_per_token * first.builder.hardware.n_devices,
        end_ns=end_ns,
        seed=config["seed"],
        config=config,
        memory=first.capacity.terms,
        counts=tuple(replica.counts() for replica in replicas),
        provenance=provenance(env, [*costs.values()], made.model) | ({"notes": list(notes)} if notes else {}),
        handovers=recorder.handovers,
        pools=tuple(
            PoolFacts(
                pool.name,
                tuple(replica.index for replica in pool.fleet.members),
                pool.builder.hardware.device.name,
                pool.builder.hardware.n_devices,
                pool.fleet.members[0].kv.capacity_tokens,
            )
            for pool in pools
        ),
        fleet=recorder.fleet,
        stages=stages_of(scenario),
        n_unfinished=n_unfinished,
        tenants=tuple(recorder.tenants),
        tenant_of=recorder.tenant_of,
    )


def provenance(env: "Clock", costs: "list[CostModel]", model: "ModelSpec") -> dict[str, Any]:
    """Where the numbers come from: the model, the cost's profile, versions, and what the simulation took."""
    extrapolated = sum(cost.n_extrapolated() for cost in costs)
    reached = dict.fromkeys(words for cost in costs if cost.n_extrapolated() for words in cost.extrapolations())
    return {
        "model": {
            "source": model.source,
            "parameters": model.n_params,
            "active_parameters": model.n_active_params,
            "kv_bytes_per_token": model.kv_bytes_per_token(),
            "state_bytes_per_sequence": model.state_bytes_per_seq(),
        },
        "cost": costs[0].provenance or {"source": "data sheet (roofline)"},
        "extrapolated_runs": extrapolated,
        "extrapolated": [*reached],
        "simpy_events": next(env._eid),
        "versions": versions(),
    }


@cache
def versions() -> Mapping[str, str]:
    """Of kvtwin, and of the packages that a run's numbers rest on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("kvtwin", "simpy", "numpy", "hydra-core")}


def check_conservation(replicas: "list[Replica]", n_arrived: int, recorder: "Recorder") -> None:
    """After the last event everybody is served or refused, and all memory is given back.

    Raises
    ------
    InvariantError
    """
    n_ended = len(recorder.requests) + len(recorder.refused)
    if n_ended != n_arrived:
        raise InvariantError(f"{n_arrived} requests arrived, but {n_ended} were served or refused")
    for replica in replicas:
        if replica.kv.held_tokens or replica.ledger.members or replica.batch.partial or replica.handed_over:
            raise InvariantError(f"replica {replica.index} still holds {replica.kv.held_tokens} KV slots after the end")


def check_durations(iterations: "Table") -> None:
    """Every run of iterations lasts for a time that 64 bits hold, as all metrics assume.

    Raises
    ------
    ConfigError
    """
    n, first_ps, growth_ps = (iterations.column(name).astype(float) for name in ("n_steps", "first_ps", "growth_ps"))
    if (n * (first_ps + (n - 1.0) / 2.0 * growth_ps)).max(initial=0.0) >= 2.0**63:
        raise ConfigError(TOO_LONG)


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Switch the cycle collector off while a simulation runs: it makes no cycles, and scanning them costs a tenth."""
    import gc

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def interruptible(env: "Clock") -> Iterator[None]:
    """Let Ctrl-C end a compiled simulation between two events; plain Python can be interrupted anywhere.

    Python looks for signals while it multiplies large integers too. An exception there is none that mypyc expects: it
    takes it for a lack of memory and aborts the process.
    """
    import signal
    from threading import current_thread, main_thread

    is_ours = current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours or not is_compiled("sim.engine"):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: env.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def progress(recorder: "Recorder", console: "Console | None") -> Iterator[None]:
    """Count served requests on a terminal while a run takes longer than a second."""
    if console is None or not console.is_terminal:
        yield
        return
    from threading import Event, Thread

    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    over = Event()

    def show() -> None:
        if over.wait(1.0):
            return
        columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} requests served"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            served = bar.add_task("served", total=None)
            while not over.wait(0.2):
                bar.update(served, completed=len(recorder.requests))

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

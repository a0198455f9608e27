"""Where a configuration becomes a simulation: the one place that builds objects, and the command line.

Imports of what is heavy stand in the functions that use them, so that ``--help`` answers at once.
"""

import os
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError, InvariantError, SimError

if TYPE_CHECKING:
    from rich.console import Console

    from sim.clock import Clock
    from sim.engine import Replica
    from sim.kv.cache import KVCache
    from sim.kv.capacity import KVCapacity
    from sim.record import Recorder, Result, Table
    from sim.request import Scenario
    from sim.step import CostModel

KEYS = {
    "model", "hardware", "cost", "scenario", "cache", "eviction", "batching", "queue", "router", "slo", "task",
    "preemption",
    "experiment", "tiers", "policies", "capacity_blocks", "dir", "choices", "seed", "replicas", "trusted_packages",
    "classify",
}  # fmt: skip


GIVEN = {
    "model", "hardware", "cost", "scenario", "cache", "eviction", "batching", "queue", "router", "slo", "task", "seed",
    "replicas", "trusted_packages",
}  # fmt: skip
TOO_LONG = "iterations take longer than 106 days, 2**63 ps: look for a unit in hardware, cost and model"
MAX_REPLICAS = 4096  # engine instances in one process; each is built from the configuration


def simulate(*overrides: str, **choices: Any) -> "Result":
    """Simulate, and return the facts.

    Parameters
    ----------
    overrides : str
        As on the command line: ``"cache=static"``, ``"scenario.rate=3"``.
    choices : Any
        The same for keys that are Python names: ``cache="static", replicas=2, seed=1``.

    Returns
    -------
    Result
        Tables of facts; ``result.requests.frame()`` is a pandas DataFrame.

    Raises
    ------
    ConfigError
        In one line, naming the key, the value and what is allowed.
    """
    from sim.config import compose

    return run(compose([*overrides, *(f"{key}={value}" for key, value in choices.items())]))


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
    from sim.engine import Replica
    from sim.record import Recorder, Result
    from sim.router import Traffic

    check_run(config)
    made = Builder(config)
    scenario = scenario or made("scenario")
    capacity = made.capacity()
    cost = cost or made("cost")
    env = Clock()
    recorder = Recorder()
    is_open_loop = bool(getattr(scenario, "is_open_loop", False))
    traffic = Traffic(env, scenario, config["seed"], made("router"), is_open_loop)
    replicas = [
        Replica(
            env,
            index,
            made("batching"),
            made("queue"),
            made.cache(capacity, env, cost, recorder, index),
            cost,
            recorder,
            traffic.next_arrival_ns if is_open_loop else env.next_ns,
            None if is_open_loop else traffic.ended,
            made.model.max_len,
        )
        for index in range(config["replicas"])
    ]
    traffic.start(replicas)
    with frozen_heap(), progress(recorder, console), interruptible(env):
        try:
            env.run()
        except struct.error:  # a number of the facts has more than 64 bits
            raise ConfigError(TOO_LONG) from None
    check_conservation(replicas, traffic.n_arrived, recorder)
    check_durations(recorder.iterations)
    requests = recorder.requests
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
        n_devices=len(replicas) * made.hardware.tensor_parallel,
        capacity_tokens=replicas[0].kv.capacity_tokens,
        kv_bytes_per_token=capacity.bytes_per_token * made.hardware.tensor_parallel,
        end_ns=int(requests.column("finish_ns").max()) if len(requests) else 0,
        seed=config["seed"],
        config=config,
        memory=capacity.terms,
        counts=tuple(replica.counts() for replica in replicas),
        provenance=made.provenance(env, cost),
    )


def check_run(config: Mapping[str, Any]) -> None:
    """Refuse top-level keys that do not exist, parts that name no class, and counts below one."""
    from sim.config import as_written, unknown

    for key, part in config.items():
        if key not in KEYS:
            raise ConfigError(unknown(key, sorted(KEYS)))
        if isinstance(part, Mapping) and "_target_" not in part and key != "choices":
            raise ConfigError(f"{key}._target_ must be given")
    for key in sorted(GIVEN - config.keys()):
        raise ConfigError(f"{key} must be given, it was taken out of the configuration")
    for key, least, most in (("seed", 0, (1 << 63) - 1), ("replicas", 1, MAX_REPLICAS)):
        value = config[key]
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(f"{key} must be a whole number from {least} to {most}, got {as_written(value)}")
    trusted = config["trusted_packages"]
    if not isinstance(trusted, list) or not all(isinstance(name, str) for name in trusted):
        raise ConfigError(f"trusted_packages must be a list of names, got {trusted!r}")


class Builder:
    """Makes the parts of a run from its configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.trusted = tuple(config["trusted_packages"])
        self.model = self("model")
        self.hardware = self("hardware")

    def __call__(self, group: str, **given: Any) -> Any:
        """The object that a group of the configuration describes."""
        from sim.config import make

        return make(self.config[group], group, self.trusted, **given)

    def capacity(self) -> "KVCapacity":
        """KV slots of one replica, derived from the device's memory or given."""
        from sim.config import check
        from sim.cost.iteration import CAPTURE_SIZES
        from sim.kv.capacity import kv_capacity

        batching = self.config["batching"]
        for group in ("batching", "cache", "cost"):
            check(self.config[group], group, self.trusted)
        most_seqs = batching.get("max_num_seqs") or batching.get("max_batch_size")
        captured = self.config["cost"].get("capture_sizes", CAPTURE_SIZES)
        return kv_capacity(
            self.model,
            self.hardware,
            block_tokens=self.config["cache"].get("block_tokens", 16),
            max_batched_tokens=batching.get("max_num_batched_tokens", 8192),
            max_seqs=most_seqs or 256,
            n_graphs=len(captured),
        )

    def cache(
        self, capacity: "KVCapacity", env: "Clock", cost: "CostModel", recorder: "Recorder", replica: int
    ) -> "KVCache":
        """One replica's KV cache, of the given capacity, with an eviction order of its own."""
        from sim.config import make

        cache: KVCache = make(
            self._swapping("cache"),
            "cache",
            self.trusted,
            preemption=self("preemption"),
            max_batched_tokens=self.config["batching"].get("max_num_batched_tokens", 8192),
            host_bytes_per_s=self.hardware.device.host_link_bytes_per_s,
            capacity_tokens=capacity.n_tokens,
            eviction=self("eviction"),
            window_tokens=self.model.window,
            model_max_len=self.model.max_len,
            element_bits=8.0 * self.model.kv_bytes,
            kv_bytes_per_token=capacity.bytes_per_token,
            env=env,
            cost=cost,
            tiers=self("tiers") if self.config.get("tiers") else None,
            recorder=recorder,
            replica=replica,
        )
        return cache

    def _swapping(self, group: str) -> dict[str, Any]:
        """The cache's configuration, able to do what ``preemption`` asks.

        A paged cache that swaps is a hierarchical one that saves only what it preempts, and lets iterations wait for
        the copies both ways: vLLM v0's swap space.
        """
        node: dict[str, Any] = self.config[group]
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
                f"got cache={choices.get(group, kind)}"
            )
        if not self.config.get("tiers"):
            raise ConfigError(
                f"preemption={name} needs memory below the device: tiers=dram or tiers=dram_nvme, got none"
            )
        if kind == "sim.kv.hierarchical.HierarchicalCache":
            return node
        saving = {"write": "preempted", "load": "never", "overlap": False, "prefetch": 0}
        return {**node, "_target_": "sim.kv.hierarchical.HierarchicalCache", **saving}

    def provenance(self, env: "Clock", cost: "CostModel") -> dict[str, Any]:
        """Where the numbers come from: the cost's profile, versions, and what the simulation took."""
        from importlib.metadata import version

        operations = getattr(cost, "operations", None)
        extrapolated = getattr(cost, "extrapolated_runs", 0) + getattr(operations, "extrapolated_runs", 0)
        return {
            "cost": getattr(cost, "provenance", None) or {"source": "data sheet (roofline)"},
            "extrapolated_runs": extrapolated,
            "simpy_events": next(env._eid),
            "versions": {name: version(name) for name in ("kvtwin", "simpy", "numpy", "hydra-core")},
        }


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
        if replica.kv.held_tokens or replica.ledger.members or replica.batch.partial:
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

    from sim.config import is_compiled

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


def run_and_report(*, config: Mapping[str, Any], out: Path, console: "Console") -> None:
    """Simulate, write the results into ``out``, print one table."""
    import json

    from sim.config import make
    from sim.metrics import measure
    from sim.report import write
    from sim.report.terminal import table_of

    slo = make(config["slo"], "slo")
    result = run(config, console=console)
    if not len(result.requests):
        reasons = sorted(set(result.refusals.values()))
        console.print(f"No request was served: {reasons[0] if reasons else 'the scenario has none'}.")
    measures = measure(result, slo)
    write(result, slo, out, measures)
    console.print(table_of(json.loads((out / "summary.json").read_text(encoding="utf-8"))))
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def do_task(config: Mapping[str, Any], out: Path, console: "Console") -> None:
    """Carry out ``task=``: whatever it names is called with those of the run's parts that it asks for."""
    import inspect

    from sim.config import make

    check_run(config)
    trusted = tuple(config["trusted_packages"])
    task = make(config["task"], "task", trusted)
    takes = inspect.signature(task).parameters
    offered = {"config": config, "seed": config["seed"], "out": out, "console": console}
    if "scenario" in takes:
        offered["scenario"] = make(config["scenario"], "scenario", trusted)
    task(**{key: value for key, value in offered.items() if key in takes})


HELP = """\
kvtwin: which KV cache, which policy, which hardware and how many, for my traffic and my objectives?

Usage: python -m sim [choice=name ...] [setting=value ...]        (or: kvtwin ...)

Choices (folders of conf/)
{choices}

Examples
  python -m sim scenario=chatbot                             simulate, print a table, write a report
  python -m sim scenario=replay scenario.path=trace.csv      replay a trace
  python -m sim -m scenario=chatbot cache=static,paged       compare: a sweep over all combinations
  python -m sim scenario.rate=3 replicas=2 slo.ttft_ms=500   change any setting
  python -m sim scenario=chatbot --cfg job                   show every setting, and simulate nothing
  python -m sim --hydra-help                                 what else the command line can do
"""


def help_text() -> str:
    """Usage, and every choice there is. Read from the folders: Hydra's own help parses all files, for a second."""
    from sim.config import choices_of, conf_dir

    lines = []
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        if names := choices_of(folder.name):
            lines.append(f"  {folder.name:<12} {', '.join(names)}")
    return HELP.format(choices="\n".join(lines))


def main() -> None:
    """The command line: Hydra's overrides and multirun; whatever the user got wrong is one line and exit code 2."""
    if "--help" in sys.argv or "-h" in sys.argv:
        try:
            print(help_text(), flush=True)
        except BrokenPipeError:  # `| head` has seen enough; what is left to flush goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    arguments = sys.argv[1:]
    try:
        failed = run_sweep(arguments) if any(map(is_hydras, arguments)) else run_once(arguments)
    except Exception as error:
        if isinstance(error, InvariantError) or not _is_users(error):
            raise
        from sim.config import explain

        overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
        print(f"kvtwin: {explain(error, overrides)}", file=sys.stderr)
        failed = True
    if failed:
        sys.exit(2)


def is_hydras(argument: str) -> bool:
    """Whether an argument asks for what Hydra's own command line does: sweeps, showing the configuration, plugins."""
    return argument.startswith(("-", "hydra", "+hydra", "~hydra")) and not argument.startswith("hydra.run.dir=")


def run_once(overrides: list[str]) -> bool:
    """One run. Composing it here takes half as long as Hydra's own command line, which does so twice."""
    from rich.console import Console

    from sim.config import compose_run

    with frozen_heap():
        config, out = compose_run(overrides)
        with output_folder(shown(out)) as folder:
            do_task(config, folder, Console())
    return False


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """Made before anything runs, so that a place nobody can write to is found at once; unmade if nothing is written."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"hydra.run.dir must be a folder to write to, got {str(out)!r}: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise ConfigError(f"hydra.run.dir must be a folder to write to, got {str(out)!r}: no permission")
    try:
        yield out
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def shown(path: Path) -> Path:
    """A path from where one stands, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def run_sweep(arguments: list[str]) -> bool:
    """Hydra's own command line; whether a job failed, and none is left half-done."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us instead of being printed with a traceback
    import hydra
    from omegaconf import OmegaConf

    from sim.config import RUN_ID, conf_dir, plain

    OmegaConf.register_new_resolver("run_id", lambda: RUN_ID, replace=True)
    jobs: list[bool] = []

    def job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from rich.console import Console

        hydra_config = HydraConfig.get()
        out = shown(Path(hydra_config.runtime.output_dir))
        jobs.append(False)
        try:
            do_task(plain(cfg, hydra_config), out, Console())
            jobs[-1] = True
        except InvariantError:
            raise  # a bug of ours: the traceback is wanted
        except SimError as error:  # not raised: Hydra would add a line of its own, and end a sweep
            which = f"job {hydra_config.job.num}: " if hydra_config.mode is RunMode.MULTIRUN else ""
            print(f"kvtwin: {which}{error}", file=sys.stderr)
            if out.is_dir() and not any(out.iterdir()):
                out.rmdir()

    version = {} if hydra.__version__ >= "1.4" else {"version_base": "1.3"}
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    with swept_folder(arguments) if is_sweep else nullcontext() as sweep:
        if is_sweep:  # wherever it stood: Hydra's parser wants all settings in a row
            sys.argv[1:] = ["-m", *(one for one in arguments if one not in ("-m", "--multirun"))]
        hydra.main(config_path=str(conf_dir()), config_name="config", **version)(job)()
        if sweep and not jobs and not any(path.is_dir() for path in sweep.iterdir()):  # nor in processes of their own
            asked = " ".join(one for one in arguments if not one.startswith("hydra."))
            raise ConfigError(f"nothing to sweep over in {asked}: give values separated by commas")
    return not all(jobs)


@contextmanager
def swept_folder(arguments: list[str]) -> Iterator[Path]:
    """Names the folder of a sweep; one none of whose points left anything is unmade."""
    from sim.config import compose_run

    given = [argument for argument in arguments if argument.startswith("hydra.sweep.dir=")]
    if not given:
        run_dir = compose_run([])[1]
        given = [f"hydra.sweep.dir={run_dir}-sweep"]
        arguments.append(given[0])
    sweep = Path(given[-1].partition("=")[2])
    made = [path for path in (sweep, *sweep.parents) if not path.exists()]
    try:
        yield sweep
    finally:
        if sweep.is_dir() and {path.name for path in sweep.iterdir()} <= {"multirun.yaml"}:
            (sweep / "multirun.yaml").unlink(missing_ok=True)
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _is_users(error: BaseException) -> bool:
    """Whether an exception says something about the user's input: ours, Hydra's, or the file system's."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    is_about_choices = isinstance(error, ValueError) and str(error).startswith("Config group override")
    return is_about_choices or isinstance(error, SimError | HydraException | OmegaConfBaseException | OSError)

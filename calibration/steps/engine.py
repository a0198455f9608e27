"""``step=engine``: measure an engine, fit, serve, simulate, and compare with what was just served."""

import sys
import time
from collections.abc import Mapping
from collections.abc import Sequence as Row
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.errors import ConfigError

if TYPE_CHECKING:
    from calibration.engine.decoder import Decoder
    from calibration.engine.memory import Sequence
    from sim.request import Request

METRICS = ("ttft", "tpot", "e2el")
LOAD_FRAC = 0.5  # of the rate at which the simulated engine would never be idle: queues stay short, errors stay visible
FOR_ALL = ("slo=none", "cost=calibrated", "batching.plans_ahead=false", "cost.capture_sizes=[]", "router=round_robin")


class Told(NamedTuple):
    """What clients saw [s]."""

    ttft: float
    tpot: float
    e2el: float


def engine(
    device: str,
    clock: str,
    model: Row[str],
    caches: Mapping[str, Row[str]],
    settings: Row[str],
    requests: int,
    host_gib: float,
    weights: str | None,
    out: str,
    seed: int,
) -> None:
    """Close the loop with an engine of our own: its kernels are measured, and it is predicted, cache by cache.

    Parameters
    ----------
    device : str
        cuda or cpu.
    clock : str
        wall, or cpu: this thread's processor time in place of it, where neighbours take the processor away.
    model, settings : list of str
        Overrides of the simulator's configuration, for the model, and for memory and batching.
    caches : mapping
        Name of a cache -> its overrides.
    requests : int
        Served with each cache, twice: the two differ by what the machine does beside.
    host_gib : float
        Host memory below the device, for a cache that has it.
    weights : str, optional
        Folder of safetensors; random weights without.
    out : str
        Folder: measurements, the profile, and a recorded run a cache that ``step=validate`` reads.

    Raises
    ------
    ConfigError
        If the engine does not do what is asked for.
    """
    from rich.console import Console

    from calibration.engine.build import device_of
    from calibration.engine.clocks import clock_of
    from calibration.engine.decoder import Decoder
    from calibration.engine.measure import Shapes, measure, measure_host
    from calibration.engine.traffic import conversations
    from calibration.fit import fit_profile, write_profile
    from calibration.measurements import read_measurements, write_measurements
    from sim.config import compose, make

    if requests < 1:
        raise ConfigError(f"requests must be >= 1, got {requests}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    begun_s, folder = time.monotonic(), Path(out)
    if not host_gib > 0.0:
        raise ConfigError(f"host_gib must be > 0, got {host_gib}")
    base = compose([*model, *settings, *FOR_ALL])
    spec = make(base["model"], "model")
    decoder = Decoder(
        spec, device_of(device), spec.kv_dtype, seed, Path(weights) if weights else None, clock_of(clock, device)
    )
    batching = base["batching"]
    shapes = Shapes(spec.max_len, batching["max_num_seqs"], batching["max_num_batched_tokens"])
    say = console.print
    say(f"{spec.name}: {spec.n_params / 1e6:.1f} M parameters on {device}, by the {clock} clock; measuring")
    write_measurements(measure(decoder, shapes), folder)
    host = measure_host(decoder, shapes)
    terms = {name: getattr(host, name) for name in ("base_s", "per_seq_s", "per_finished_s")}
    say(f"host: {', '.join(f'{name} {value:.3g}' for name, value in terms.items())}")
    profile = folder / "profile.json"
    write_profile(fit_profile(read_measurements(folder), compare=False, say=say), profile)
    fitted = [f"cost.profile={profile.as_posix()}", "cost.host.scheduling=sync"]
    fitted += [f"cost.host.{name}={value}" for name, value in terms.items()]
    fitted += [f"hardware.device.name={device_name(folder)}"]
    common = [*model, *settings, *FOR_ALL, *fitted]
    say(f"measured and fitted after {time.monotonic() - begun_s:.0f} s")

    most = spec.max_len - 1
    at_once = conversations(requests, 1e9, most, seed)
    rate = LOAD_FRAC * requests / simulated(configuration(common, "paged", caches, host_gib), at_once, folder)[1]
    traffic = conversations(requests, rate, most, seed)
    say(f"{requests} requests at {rate:.3g}/s, {LOAD_FRAC:.0%} of what the simulation says it can do")
    rows = []
    for name in caches:
        config = configuration(common, name, caches, host_gib)
        told = [served(config, decoder, traffic, folder / name / str(n)) for n in (1, 2)]
        rows.append((name, told, simulated(config, traffic, folder)[0]))
        say(line(*rows[-1]), soft_wrap=True)
    say(table(rows))
    say(f"{time.monotonic() - begun_s:.0f} s in all; recorded runs for step=validate in {folder}")


def configuration(common: Row[str], name: str, caches: Mapping[str, Row[str]], host_gib: float) -> dict[str, Any]:
    """Of the simulator and of the engine alike."""
    from sim.config import compose

    config = compose([*common, f"cache={name}", *caches.get(name, ())])
    config["tiers"]["levels"][0]["capacity_gib"] = host_gib
    return config


def device_name(folder: Path) -> str:
    """As the profile has it, in quotes for an override."""
    from calibration.measurements import read_measurements

    return f'"{read_measurements(folder).device}"'


def served(config: Mapping[str, Any], decoder: "Decoder", traffic: Row["Request"], folder: Path) -> Told:
    """Serve the traffic in real time, and write down the run."""
    import gc

    from calibration.engine.build import engine_of
    from calibration.engine.record import write_run
    from calibration.engine.traffic import sequence_of

    one = engine_of(config, decoder)
    sequences = [sequence_of(request, decoder.model.vocab) for request in traffic]
    gc.collect()
    start_ns = decoder.clock.now_ns()
    done = one.serve(sequences)
    write_run(folder, one, done, start_ns, {"device_name": config["hardware"]["device"]["name"]})
    return told_of(done, start_ns)


def told_of(done: Row["Sequence"], start_ns: int) -> Told:
    """Mean latencies."""
    import numpy as np

    arrival = np.array([start_ns + one.request.arrival_ns for one in done], dtype=np.int64)
    first, last = (np.array([getattr(one, name) for one in done]) for name in ("first_token_ns", "last_token_ns"))
    return means(first - arrival, last - arrival, np.array([one.n_generated for one in done]))


def simulated(config: dict[str, Any], traffic: Row["Request"], folder: Path) -> tuple[Told, float]:
    """Mean latencies as simulated, and when the last answer was given [s]."""
    from calibration.engine.traffic import Listed
    from sim.run import run
    from sim.units import NS_PER_S

    if config["cache"]["_target_"].endswith("HierarchicalCache"):
        level = config["tiers"]["levels"][0]
        level |= measured_link(folder)
    result = run(config, Listed(traffic))
    if result.refusals:
        number, reason = next(iter(result.refusals.items()))
        raise ConfigError(f"request {number} is refused by the simulation: {reason}")
    arrival, first, last = (result.requests.column(name) for name in ("arrival_ns", "first_token_ns", "finish_ns"))
    n_out = result.requests.column("output_tokens")
    return means(first - arrival, last - arrival, n_out), result.end_ns / NS_PER_S


def measured_link(folder: Path) -> dict[str, float]:
    """Rates of the link to host memory, as measured."""
    import json

    paths = json.loads((folder / "profile.json").read_text(encoding="utf-8"))["operations"]["link"]["paths"]
    up, down = paths["h2d pinned"], paths["d2h pinned"]
    return {
        "read_bytes_per_s": up["bytes_per_s"],
        "write_bytes_per_s": down["bytes_per_s"],
        "latency_s": max(up["latency_s"], down["latency_s"]),
        "piece_s": 0.0,
    }


def means(to_first: Any, to_last: Any, n_out: Any) -> Told:
    """Of all requests; time per output token of those with more than one."""
    from sim.units import NS_PER_S

    many = n_out > 1
    per_token = (to_last - to_first)[many] / (n_out[many] - 1)
    return Told(*(float(x.mean()) / NS_PER_S for x in (to_first, per_token, to_last)))


Line = tuple[str, list[Told], Told]


def line(name: str, told: list[Told], simulated: Told) -> str:
    """A cache's errors in words."""
    errors = (f"{metric.upper()} {getattr(simulated, metric) / mean(told, metric) - 1.0:+z.1%}" for metric in METRICS)
    return f"{name}: {', '.join(errors)}"


def mean(told: list[Told], metric: str) -> float:
    """Of the runs of one cache [s]."""
    return float(sum(getattr(one, metric) for one in told)) / len(told)


def table(rows: list[Line]) -> Any:
    """Served, simulated, the error, and by how much the two runs that were served differ."""
    from rich.table import Table

    shown = Table(title="Served and simulated, means [ms]", title_justify="left")
    shown.add_column("cache")
    for metric in METRICS:
        for column in (f"{metric.upper()} served", "simulated", "error", "noise"):
            shown.add_column(column, justify="right")
    for name, told, simulated in rows:
        cells = [name]
        for metric in METRICS:
            served, expected = mean(told, metric), getattr(simulated, metric)
            noise = getattr(told[1], metric) / getattr(told[0], metric) - 1.0
            cells += [
                f"{1e3 * served:,.2f}",
                f"{1e3 * expected:,.2f}",
                f"{expected / served - 1.0:+z.1%}",
                f"{noise:+z.1%}",
            ]
        shown.add_row(*cells)
    return shown

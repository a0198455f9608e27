"""A look at traffic before simulating it: what `task=describe` prints, writes and draws."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scenarios.distributions import Distribution, Floats, Ints
from scenarios.fits import FITS
from scenarios.replay import Replay
from scenarios.reuse import ReuseStats, reuse_stats
from scenarios.statistics import ArrivalStats, Spread, arrival_stats, correlation, ks_distance, spread
from scenarios.traces.claude_code import think_times_s
from scenarios.traces.detect import detect
from scenarios.traces.row import Row
from scenarios.traces.servegen import clients, is_clients
from scenarios.walk import idle_server, walk
from sim.errors import ConfigError
from sim.request import Request, Scenario
from sim.spec import DeviceSpec, ModelSpec
from sim.units import NS_PER_S


class FitDistance(NamedTuple):
    """How far a quantity is from a published fit."""

    name: str
    ks: float
    published_ks: float  # of the trace that the fit was made for


@dataclass(frozen=True, slots=True)
class Load:
    """What the traffic asks for, per second, and what the hardware's arithmetic allows at the very most."""

    prompt_tokens_per_s: float
    output_tokens_per_s: float
    new_prompt_tokens_per_s: float  # with an endless prefix cache
    capacity_tokens_per_s: float | None  # peak FLOP/s over 2 FLOP per parameter and token; attention comes on top
    least_utilization_frac: float | None  # of that capacity, even if every shared prefix is found


@dataclass(frozen=True, slots=True)
class Description:
    """Traffic in numbers. Lengths in tokens; percentiles of the requests, unweighted."""

    n_requests: int
    n_sessions: int | None
    n_empty: int  # without prompt or answer: in the trace, but not to be served
    total_prompt_tokens: int
    total_output_tokens: int
    prompt: Spread
    output: Spread
    pearson: float | None  # of prompt and output lengths
    spearman: float | None
    arrivals: ArrivalStats | None
    think_s: Spread | None
    reuse: ReuseStats | None
    load: Load | None
    fits: dict[str, tuple[FitDistance, ...]]  # by quantity, the nearest first


@dataclass(frozen=True, slots=True)
class Look:
    """Traffic as arrays, each of shape (n_requests,), in order of arrival."""

    arrival_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints


def describe(
    requests: Iterable[Request | Row],
    think_s: Floats | None = None,
    capacity_tokens_per_s: float | None = None,
    has_one_clock: bool = True,
) -> tuple[Description, Look]:
    """Statistics of requests in order of arrival.

    Parameters
    ----------
    requests : iterable of Request or Row
    think_s : array or None
        Times between answers and next turns, where they are known [s].
    capacity_tokens_per_s : float or None
        Most tokens that one replica can compute [tokens/s].
    has_one_clock : bool
        Whether arrival times of different sessions can be compared.

    Raises
    ------
    ConfigError
        If there is nothing to describe.
    """
    held = list(requests)
    if not held:
        raise ConfigError("scenario: no requests to describe")
    arrival_ns, prompts, outputs = np.array([(r.arrival_ns, r.prompt_tokens, r.output_tokens) for r in held]).T
    arrivals = arrival_stats(arrival_ns) if has_one_clock and len(held) > 1 else None
    # the last token of an answer is sampled and never read: no cache holds it
    answers = [None if r.output_id is None else (r.output_id, r.output_tokens - 1) for r in held]
    reuse = reuse_stats([r.content for r in held], prompts.tolist(), arrival_ns.tolist(), answers)
    related = correlation(prompts, outputs)
    load = None
    if arrivals is not None:
        shared_frac = reuse.ceiling_frac if reuse else 0.0
        offered = float(prompts.sum()) / arrivals.span_s
        answered = float(outputs.sum()) / arrivals.span_s
        new = offered * (1 - shared_frac)
        used = None if capacity_tokens_per_s is None else (new + answered) / capacity_tokens_per_s
        load = Load(offered, answered, new, capacity_tokens_per_s, used)
    gaps_s = np.diff(arrival_ns) / NS_PER_S if arrivals is not None else np.empty(0)
    quantities = {"prompt": (prompts, 1.0), "output": (outputs, 1.0), "gap": (gaps_s, 0.0)}
    sessions = {r.session_id for r in held}
    return Description(
        len(held),
        None if sessions == {None} else len(sessions),
        int(((prompts < 1) | (outputs < 1)).sum()),
        int(prompts.sum()),
        int(outputs.sum()),
        spread(prompts),
        spread(outputs),
        related[0] if related else None,
        related[1] if related else None,
        arrivals,
        spread(think_s) if think_s is not None and len(think_s) else None,
        reuse,
        load,
        {name: distances(values, name, step) for name, (values, step) in quantities.items() if len(values)},
    ), Look(arrival_ns, prompts, outputs)


def distances(values: Floats | Ints, quantity: str, step: float) -> tuple[FitDistance, ...]:
    """Distance of samples to every published fit of their quantity, the nearest first."""
    found = [
        FitDistance(fit.name, ks_distance(values, fit.distribution, step), fit.ks)
        for fit in FITS
        if fit.quantity == quantity
    ]
    return tuple(sorted(found, key=lambda fit: fit.ks))


def nearest(description: Description, quantity: str) -> tuple[str, Distribution] | None:
    """The published fit that comes nearest, by name and as a distribution."""
    if not description.fits.get(quantity):
        return None
    name = description.fits[quantity][0].name
    return name, next(fit.distribution for fit in FITS if fit.name == name and fit.quantity == quantity)


def capacity_tokens_per_s(model: ModelSpec, device: DeviceSpec, n_devices: int, dtype: str = "bf16") -> float:
    """Tokens that a replica's peak arithmetic allows, attention left out [tokens/s].

    Peak FLOP/s / (2 * parameters that a token is multiplied with).

    An upper bound: a real engine stays below it.

    References
    ----------
    Kaplan et al., "Scaling laws for neural language models", 2020: 2 FLOP per parameter and token in a forward pass.
    """
    return n_devices * device.flops_per_s(dtype) / (2 * model.n_active_params)


def describe_task(
    *,
    scenario: Scenario,
    seed: int,
    out: Path,
    console: Any,
    config: Mapping[str, Any] | None = None,
    first_token_s: float = 0.1,
    per_token_s: float = 0.01,
) -> None:
    """Print the statistics of a scenario's traffic; write ``describe.json`` and ``describe.html``.

    Parameters
    ----------
    first_token_s, per_token_s : float
        Where clients wait for answers, an idle server gives them: its time to the first token, and from one token to
        the next [s].
    """
    from scenarios.describe_page import client_table, page, tables

    if isinstance(scenario, Replay) and Path(scenario.path).is_file() and is_clients(scenario.path):
        console.print(client_table(clients(scenario.path)))
        return
    think_s, has_one_clock = None, True
    if isinstance(scenario, Replay):
        requests: Iterable[Request | Row] = scenario.rows(seed, is_served=False)
        if (scenario.format or detect(scenario.path)) == "claude_code":
            think_s = np.array(think_times_s(scenario.path, scenario.reading()))
            has_one_clock = scenario.sort
    else:
        requests = walk(scenario, seed, idle_server(first_token_s, per_token_s))
    description, look = describe(requests, think_s, _capacity(config), has_one_clock)
    for table in tables(description):
        console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    write(out / "describe.json", json.dumps(asdict(description), indent=1) + "\n")
    write(out / "describe.html", page(description, look))
    for note in getattr(scenario, "notes", ()):
        console.print(f"! {note}", markup=False, soft_wrap=True)
    console.print(f"Page: {out / 'describe.html'}", soft_wrap=True)


def write(path: Path, text: str) -> None:
    """A file, completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _capacity(config: Mapping[str, Any] | None) -> float | None:
    """From the model and the hardware of the run, where they are chosen."""
    if not config or "model" not in config or "hardware" not in config:
        return None
    from sim.config import make

    model, hardware = make(config["model"], "model"), make(config["hardware"], "hardware")
    dtype = getattr(model, "weight_dtype", "bf16")
    n_devices = hardware.tensor_parallel * int(config.get("replicas", 1))
    return capacity_tokens_per_s(model, hardware.device, n_devices, dtype)

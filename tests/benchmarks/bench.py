"""How fast the simulator is: ``make bench`` prints it and writes ``outputs/bench.json``, {name: {value, unit}}.

The workload of the field's comparisons: Poisson 8/s, prompts U(512, 1024), answers U(128, 256), Llama-3.1-8B, one
replica, times from the data sheet. Rates count everything a result needs but its files: traffic, simulation, and all
metrics with their percentiles. Each figure is the best of a few runs, each run in a process of its own. Where there is
a C compiler the hot loop is compiled (`make fast`); ``h200_100k_interpreted`` is the rate of the same source without.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASE = ("scenario=bench", "cost=roofline", "model=llama-3.1-8b")
H200, A100 = (*BASE, "hardware=h200"), (*BASE, "hardware=a100-80g")
REPETITIONS = 3


def simulate(overrides: tuple[str, ...], n_requests: int) -> dict[str, float]:
    """One run in this process, after a short one that imports and compiles what is needed."""
    import resource

    from sim import clock
    from sim.config import compose, make
    from sim.metrics import summary
    from sim.run import run

    clocks: list[clock.Clock] = []

    make_clock = clock.Clock

    def watched() -> clock.Clock:
        clocks.append(make_clock())
        return clocks[-1]

    clock.Clock = watched  # type: ignore[assignment, misc]
    run(compose([*overrides, "scenario.n_requests=100"]))
    config = compose([*overrides, f"scenario.n_requests={n_requests}"])
    slo = make(config["slo"], "slo")
    started_s = time.perf_counter()
    result = run(config)
    simulated_s = time.perf_counter() - started_s
    summary(result, slo)
    return {
        "n_served": len(result.requests),
        "simulated_s": simulated_s,
        "all_s": time.perf_counter() - started_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "n_events": next(clocks[-1]._eid),
        "n_iterations": int(result.iterations.column("n_steps").sum()),
    }


def measured(
    overrides: tuple[str, ...], n_requests: int, repetitions: int = REPETITIONS, *, as_source: bool = False
) -> dict[str, float]:
    """The best of a few runs, each in a fresh process; ``as_source``: of the source tree, whatever is installed."""
    command = [sys.executable, __file__, str(n_requests), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if as_source else None
    runs: list[dict[str, float]] = []
    for _ in range(repetitions):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(runs, key=lambda one: one["all_s"])


def command_line_s(*arguments: str, repetitions: int) -> float:
    """Seconds from calling the command to its end, the best of a few."""
    taken = []
    for _ in range(repetitions):
        started_s = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("kvtwin"), *arguments], capture_output=True, check=True)
        taken.append(time.perf_counter() - started_s)
    return min(taken)


def bare_timeouts_per_s(repetitions: int = 5) -> float:
    """How many timeouts a second a SimPy loop makes that does nothing else, the best of a few."""
    import simpy

    def wait(env: simpy.Environment) -> Generator[simpy.Event, Any, None]:
        while True:
            yield env.timeout(1)

    taken = []
    for _ in range(repetitions):
        env = simpy.Environment()
        env.process(wait(env))
        started_s = time.perf_counter()
        env.run(until=200_000)
        taken.append(time.perf_counter() - started_s)
    return 200_000 / min(taken)


def chunk_query_us(n_queries: int = 4000) -> float:
    """What the measured H200 profile takes for an iteration with a prompt piece it has never seen, the median."""
    from random import Random

    from sim.build import Builder
    from sim.config import compose
    from sim.units import FAR

    cost = Builder(compose(["cost=calibrated", "model=llama-3.1-8b", "hardware=h200"]))("cost")
    random, taken = Random(0), []
    for new in range(1, 2000):
        cost.pace((((new, 0, FAR),), 32, 32_000, 1_100, 32, 0.0, 0.0, 0))  # tables over the number of tokens are made
    for _ in range(n_queries):
        piece = (random.randrange(32, 2000), random.randrange(1, 8000), FAR)
        started_s = time.perf_counter()
        cost.pace(((piece,), 32, 32_000, 1_100, 32, 0.0, 0.0, 0))
        taken.append(time.perf_counter() - started_s)
    return sorted(taken)[n_queries // 2] * 1e6


def requests_per_s(run: dict[str, float]) -> float:
    """Requests served in a second of wall time."""
    return run["n_served"] / run["all_s"]


def figures() -> dict[str, tuple[float, str]]:
    """All figures: (value, unit) by name."""
    found: dict[str, tuple[float, str]] = {}

    def note(name: str, value: float, unit: str) -> None:
        found[name] = (value, unit)
        print(f"{name:32} {value:12,.3f} {unit}", flush=True)

    from sim import engine  # noqa: F401
    from sim.check import is_compiled

    timeouts_per_s = bare_timeouts_per_s()
    note("simpy_timeouts", timeouts_per_s, "timeouts/s, this machine's yardstick")
    base = measured(H200, 10_000, 5)
    note("h200_10k", requests_per_s(base), "requests/s")
    note("events_per_iteration", base["n_events"] / base["n_iterations"], "SimPy events")
    note("a100_10k", requests_per_s(measured(A100, 10_000, 5)), "requests/s")
    rate = requests_per_s(measured(H200, 100_000, 2))
    note("h200_100k", rate, "requests/s")
    note("timeouts_per_request", timeouts_per_s / rate, "bare SimPy timeouts that take as long")
    if is_compiled("sim.engine"):
        note("h200_100k_interpreted", requests_per_s(measured(H200, 100_000, 2, as_source=True)), "requests/s")
    million = measured(H200, 1_000_000, 1)
    note("h200_1m", requests_per_s(million), "requests/s")
    note("h200_1m_peak_mb", million["peak_mb"], "MiB")
    fleet = measured((*H200, "replicas=64", "scenario.rate=512"), 1_000_000, 1)
    note("h200_64x_1m", requests_per_s(fleet), "requests/s")
    note("h200_64x_1m_peak_mb", fleet["peak_mb"], "MiB")
    note("cost_of_64_replicas", requests_per_s(million) / requests_per_s(fleet), "x one replica's, a request")
    routed = measured((*H200, "replicas=64", "scenario.rate=512", "router=prefix_affinity"), 500_000, 1)
    note("h200_64x_500k_prefix_affinity", requests_per_s(routed), "requests/s")
    note("cost_of_64_routed", requests_per_s(million) / requests_per_s(routed), "x one replica's, a request")
    for n_requests in (10_000, 100_000):
        overloaded = measured((*H200, "scenario.rate=100"), n_requests, 2)
        note(f"h200_{n_requests // 1000}k_overloaded", requests_per_s(overloaded), "requests/s")
    for path in sorted((ROOT / "conf" / "cache").glob("*.yaml")):
        tagged = ("classify=true",) if path.stem == "by_class" else ()
        runs: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPETITIONS):  # side by side, for a machine is not always as fast
            for taken, overrides in zip(runs, ((f"cache={path.stem}", *tagged), ()), strict=True):
                taken.append(measured((*H200, *overrides), 10_000, 1)["simulated_s"])
        note(f"cost_of_{path.stem}", min(runs[0]) / min(runs[1]), "x paged")
    for name, model in (("experts", "qwen3-30b-a3b"), ("linear_attention", "qwen3.5-35b-a3b")):
        runs = ([], [])
        for _ in range(REPETITIONS):
            for taken, overrides in zip(runs, ((f"model={model}", "hardware.tensor_parallel=2"), ()), strict=True):
                taken.append(measured((*H200, *overrides), 10_000, 1)["simulated_s"])
        note(f"cost_of_{name}", min(runs[0]) / min(runs[1]), "x a dense model's")
    note("chunk_query_us", min(chunk_query_us() for _ in range(3)), "us")
    with tempfile.TemporaryDirectory() as folder:
        out = f"hydra.run.dir={folder}/${{run_id:}}"
        note("cli_100k_s", command_line_s(*H200, "scenario.n_requests=100000", out, repetitions=2), "s")
    note("help_s", command_line_s("--help", repetitions=5), "s")
    return found


def main() -> None:
    """Measure everything, or, with arguments, one run for the process that asked."""
    if len(sys.argv) > 1:
        print(json.dumps(simulate(tuple(sys.argv[2:]), int(sys.argv[1]))))
        return
    print(f"Python {platform.python_version()} on {platform.machine()}, {platform.system()}")
    report: dict[str, dict[str, Any]] = {
        name: {"value": value, "unit": unit} for name, (value, unit) in figures().items()
    }
    path = ROOT / "outputs" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

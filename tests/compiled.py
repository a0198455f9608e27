"""The compiled program against its source: every fact of every run must be the same, byte for byte.

``.fast/bin/python tests/compiled.py`` runs each configuration below, and parts in plain Python (`own_parts`), in
two processes of that environment, one of which finds the source tree first. `.ci/run` calls it.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import own_parts

ROOT = Path(__file__).parents[1]
TIGHT = ("scenario=synthetic", "scenario.rate=40", "scenario.n_requests=400", "hardware.kv_blocks=1500")
TALKS = ("scenario=chatbot", "scenario.n_sessions=150", "hardware.kv_blocks=3000")


def choices_of(group: str, *left_out: str) -> list[str]:
    """Names of the files in a folder of conf/, but for those that need more settings and have lines of their own."""
    return sorted({path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} - {*left_out})


CACHES = choices_of("cache", "static", "by_class")
RUNS = (
    *((*TIGHT, f"cache={cache}") for cache in CACHES),
    (*TIGHT, "cache=static", "cache.max_len=2048"),
    *((*TALKS, f"cache={cache}") for cache in CACHES),
    (*TALKS, "cache=static", "cache.max_len=8192"),
    *((*TALKS, f"eviction={eviction}") for eviction in choices_of("eviction", "belady")),
    *((*TIGHT, f"batching={batching}") for batching in choices_of("batching", "chunked")),
    *((*TIGHT, f"queue={queue}") for queue in choices_of("queue", "fcfs")),
    *((*TALKS, "replicas=3", f"router={router}") for router in choices_of("router", "round_robin")),
    *((*TIGHT, "cache=hierarchical", f"preemption={how}") for how in ("swap", "auto")),
    (*TALKS, "cache=by_class", "classify=true"),
    (*TIGHT, "scenario.n_samples=4"),
    (*TIGHT, "batching.plans_ahead=true", "replicas=3", "router=least_loaded"),
    (*TIGHT, "cost=roofline", "model=mistral-7b", "cost.host.scheduling=sync"),
    (*TIGHT, "batching.max_num_batched_tokens=300", "batching.max_num_seqs=200"),
)


def digests() -> dict[str, str]:
    """One number for all facts of each run."""
    from sim.config import compose
    from sim.run import run

    configs = {" ".join(overrides): compose([*overrides]) for overrides in RUNS}
    configs["parts of one's own"] = {**compose([*TIGHT, "hardware.kv_blocks=150"]), **own_parts.PARTS}
    found = {}
    for name, config in configs.items():
        result = run(config)
        facts = hashlib.sha256()
        for table in (result.requests, result.iterations, result.preemptions, result.transfers, result.refused):
            facts.update(table.rows().tobytes())
        facts.update(json.dumps([result.end_ns, result.refusals, result.counts], sort_keys=True).encode())
        found[name] = facts.hexdigest()
    return found


def interrupted() -> None:
    """Ctrl-C ends a run wherever it stands."""
    from sim.config import compose
    from sim.run import run

    config = compose(["scenario=synthetic", "scenario.n_requests=1000000"])
    for seconds in (1.0, 1.1, 1.2):
        Timer(seconds, signal.raise_signal, [signal.SIGINT]).start()
        try:
            run(config)
        except KeyboardInterrupt:
            continue
        raise SystemExit("Ctrl-C did not end the run")


def digests_in(path: str | None) -> dict[str, str]:
    """Those of a process that looks for the program in a folder first."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if path is None else {"PYTHONPATH": path}
    command = [sys.executable, __file__, "digests"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    compiled, found = json.loads(done.stdout)
    if compiled == (path is not None):
        raise SystemExit(f"the engine is {'' if compiled else 'not '}compiled where it should {'not ' * compiled}be")
    return found


def main() -> None:
    """Compare, or, with an argument, run for the process that asked."""
    if len(sys.argv) > 1:
        interrupted()
        found = digests()
        from sim.check import is_compiled

        print(json.dumps([is_compiled("sim.engine"), found]))
        return
    source, compiled = digests_in(str(ROOT)), digests_in(None)
    if other := [run for run in source if source[run] != compiled[run]]:
        raise SystemExit("compiled differs from its source:\n  " + "\n  ".join(other))
    print(f"compiled equals source in {len(source)} runs")


if __name__ == "__main__":
    main()

"""The compiled program against its source: every fact of every run must be the same, byte for byte.

``.fast/bin/python tests/compiled.py`` runs each configuration below, and parts in plain Python (`own_parts`), in
two processes of that environment, one of which finds the source tree first. In a third each command of the README is
given once, small, and results go through process pools. `.ci/run` calls it.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from typing import Any

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
    (*TIGHT, "fleet=pd", "replicas=2", "fleet.local_tokens=700", "fleet.prefill.batching=continuous"),
    (*TIGHT, "batching.max_num_batched_tokens=300", "batching.max_num_seqs=200"),
)

RECORDED = ROOT / "../shared/data/engine_runs/rtx4090_llama-3.1-8b_vllm-0.19"
MODEL = ROOT / "../shared/data/model_configs/Qwen--Qwen3-8B/config.json"
FEW = "scenario=chatbot scenario.n_sessions=20 hydra.run.dir=run"
COMMANDS = (
    f"sim {FEW}",
    f"sim {FEW} cache=static replicas=2",
    f"sim {FEW} scenario.n_samples=4",
    "sim scenario=replay scenario.path=trace.csv hydra.run.dir=run",
    f"sim {FEW} model={MODEL} hardware=h100",
    "sim -m scenario=chatbot scenario.n_sessions=20 cache=static,dynamic,paged hydra.sweep.dir=sweep",
    "sim scenario=long_document scenario.n_sessions=10 cache=hierarchical preemption=auto hydra.run.dir=run",
    "sim -m experiment=swap_or_recompute scenario.sessions_per_user=1 task.context_tokens=256 hydra.sweep.dir=map"
    " hardware.device.host_link_bytes_per_s=0.5e9,64e9",
    "sim task=describe scenario=replay scenario.path=trace.csv hydra.run.dir=run",
    "sim scenario=mixed scenario.n_requests=30 hydra.run.dir=first",
    "sim task=export scenario=mixed scenario.n_requests=30 task.run=first hydra.run.dir=run",
    f"sim task=intervals {FEW}",
    "sim task=hit_rate scenario=replay scenario.path=trace.csv hydra.run.dir=run",
    "sim task=memory model=llama-3.1-70b hydra.run.dir=run",
    f"sim task=load {FEW} rates=[5,20] task.window_s=5",
    f"sim task=capacity {FEW} task.window_s=5",
    "calibration step=list",
    "calibration step=show profile=h200/published",
    f"calibration step=validate run={RECORDED} out=validated",
    "calibration step=engine device=cpu",
    "calibration step=serve device=cpu",
    "kernels memory --device cpu",
    "calibration.gpu_slot --out slot",
    "sim --help",
    "sim --version",
    f"sim {FEW} --cfg job",
)
"""The README's commands on little traffic, in the order in which they leave each other files."""
NEED_DATA = {command for command in COMMANDS if str(ROOT / "../shared") in command}
NEED_TORCH = {
    command for command in COMMANDS if re.match("kernels|calibration.gpu_slot|.*step=(engine|serve)", command)
}


def digests() -> dict[str, str]:
    """One number for all facts of each run."""
    from sim.config import compose
    from sim.run import run

    configs = {" ".join(overrides): compose([*overrides]) for overrides in RUNS}
    configs["parts of one's own"] = {**compose([*TIGHT, "hardware.kv_blocks=150"]), **own_parts.PARTS}
    found = {}
    for name, config in configs.items():
        found[name] = facts_of(run(config))
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


def give_each_command() -> int:
    """Each command ends well, or, where it needs what a compiled environment lacks (torch), in one line. How many."""
    Path("trace.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},300,20\n" for i in range(30))
    )
    n_given = 0
    for command in COMMANDS:
        if command in NEED_DATA and not RECORDED.parent.is_dir():
            print(f"not given, {RECORDED.parent} is not there: {command}", file=sys.stderr)
            continue
        code, said, complaint = given(command)
        is_refusal = command in NEED_TORCH and code == 2 and complaint.count("\n") == 1
        if not is_refusal and (code or "Traceback" in complaint):
            raise SystemExit(f"{command}: exit code {code}\n{said[-2000:]}\n{complaint[-4000:]}")
        n_given += 1
    return n_given


def given(command: str) -> tuple[int, str, str]:
    """A command in this process: its exit code, what it printed, and what it complained of."""
    module, *arguments = shlex.split(command)
    said, complaint, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [module, *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0, said.getvalue(), complaint.getvalue()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return code, said.getvalue(), f"{complaint.getvalue()}{stop.code if isinstance(stop.code, str) else ''}"
    finally:
        sys.argv = before


def small(seed: int) -> Any:
    """A result, as whoever compares seeds in other processes asks for one."""
    import sim

    return sim.simulate("scenario=synthetic", "scenario.n_requests=20", seed=seed)


def send_results() -> list[str]:
    """Results leave the process they were made in, equal to those made here. How they went."""
    here = [facts_of(small(seed)) for seed in (1, 2)]
    ways = {
        "pickle": [pickle.loads(pickle.dumps(small(seed))) for seed in (1, 2)],
        "copy": [copy.deepcopy(small(seed)) for seed in (1, 2)],
    }
    for start in ("fork", "spawn"):
        with ProcessPoolExecutor(2, mp_context=get_context(start)) as pool:
            ways[f"a pool by {start}"] = list(pool.map(small, (1, 2)))
    with contextlib.suppress(ImportError):
        import joblib

        ways["joblib"] = joblib.Parallel(n_jobs=2)(joblib.delayed(small)(seed) for seed in (1, 2))
    with contextlib.suppress(ImportError):
        import ray

        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        ways["Ray"] = ray.get([ray.remote(small).remote(seed) for seed in (1, 2)])
        ray.shutdown()
    if other := [way for way, results in ways.items() if [facts_of(one) for one in results] != here]:
        raise SystemExit(f"a result changed on its way: {', '.join(other)}")
    return list(ways)


def facts_of(result: Any) -> str:
    """One number for all facts of a run."""
    facts = hashlib.sha256()
    for table in (
        result.requests,
        result.iterations,
        result.preemptions,
        result.transfers,
        result.refused,
        result.handovers,
    ):
        facts.update(table.rows().tobytes())
    facts.update(json.dumps([result.end_ns, result.refusals, result.counts], sort_keys=True).encode())
    return facts.hexdigest()


def commands() -> None:
    """Compiled, from an empty folder."""
    from sim.check import is_compiled

    if not is_compiled("sim.engine"):
        raise SystemExit("the engine is not compiled")
    n_given, ways = give_each_command(), send_results()
    print(f"{n_given} commands ended well compiled; results went by {', '.join(ways)}")


def environment_with(path: str | None) -> dict[str, str]:
    """That of a process which looks for the program in a folder first."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return environment if path is None else {**environment, "PYTHONPATH": path}


def digests_in(path: str | None) -> dict[str, str]:
    """Those of a process that looks for the program in a folder first."""
    environment = environment_with(path)
    command = [sys.executable, __file__, "digests"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    compiled, found = json.loads(done.stdout)
    if compiled == (path is not None):
        raise SystemExit(f"the engine is {'' if compiled else 'not '}compiled where it should {'not ' * compiled}be")
    return found


def main() -> None:
    """Compare, or, with an argument, run for the process that asked."""
    if sys.argv[1:] == ["commands"]:
        commands()
        return
    if len(sys.argv) > 1:
        interrupted()
        found = digests()
        from sim.check import is_compiled

        print(json.dumps([is_compiled("sim.engine"), found]))
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "commands"], env=environment_with(None), cwd=folder, check=True)
    source, compiled = digests_in(str(ROOT)), digests_in(None)
    if other := [run for run in source if source[run] != compiled[run]]:
        raise SystemExit("compiled differs from its source:\n  " + "\n  ".join(other))
    print(f"compiled equals source in {len(source)} runs")


if __name__ == "__main__":
    main()

"""The programs of a visit to a GPU with faults in them: ``faulty.py FOLDER FAULTS module options``.

FAULTS are words: what a stage does wrong, each once (a file in FOLDER remembers). Times are a formula's, at once.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

folder, faults, module, options = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3], sys.argv[4:]


def once(fault: str) -> bool:
    if fault not in faults or (folder / fault).exists():
        return False
    (folder / fault).touch()
    return True


def misbehave(where: str) -> None:
    if once(f"{where}-fails"):
        raise RuntimeError("injected")
    if once(f"{where}-hangs"):
        time.sleep(300)
    if once(f"{where}-dies"):
        os.kill(os.getpid(), signal.SIGKILL)


def end_soon() -> None:
    from kernels import watch

    watch.Watch.__init__.__defaults__ = (2.0,)


if "--warm" in options:
    misbehave("compiling")
    sys.exit(0)
if module == "calibration.gpu":
    from calibration import gpu

    end_soon()
    n_asked = [0]

    def seconds(self, at):
        n_asked[0] += 1
        if n_asked[0] > 10:
            misbehave("calibration")
        columns = dict(at.columns)
        work = columns.get("decode_total_tokens", 0) + columns.get("new_tokens", 0) * (
            columns.get("new_tokens", 0) + columns.get("context_tokens", 0)
        )
        return 5e-6 + 1e-9 * work + 1e-12 * columns.get("bytes", 0) + 1e-6 * columns.get("m", 0) * ("k" in columns)

    gpu.GpuBench.seconds = seconds
    if "disk-full" in faults:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
    sys.exit(gpu.main(options))
if module == "kernels":
    import kernels.__main__ as command
    from kernels.correctness import Check
    from kernels.speed import Speed

    end_soon()

    def check() -> tuple[float, float]:
        misbehave("kernels")
        return 0.1, 0.2

    timing = Speed("x", "", 1.0, 2.0, "TB/s", None, "graph")
    command.checks = lambda *_, **__: iter([Check("k", str(i), check) for i in range(8)])
    command.jobs = lambda *_, **__: iter([lambda: timing] * 4)
    sys.exit(command.main(options))
misbehave("finish")
sys.argv = [module, *options]
runpy.run_module(module, run_name="__main__")

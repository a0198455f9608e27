"""Our own kernels and torch's matrix products on a GPU: proven right first, then timed by `kernels.timing`.

``python -m calibration.gpu_slot`` is the whole visit to a GPU; this is one part of it.
``python -m calibration.gpu --out folder`` is the same as ``python -m calibration step=measure`` for a machine that has
torch, triton and numpy and nothing else: it leaves the timings, and ``step=import source=timings path=folder`` makes
the measurement table of them elsewhere.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

try:
    import torch
except ImportError:
    print("calibration.gpu: torch is not installed: pip install 'kvtwin[gpu]'", file=sys.stderr)
    sys.exit(2)

from calibration.bench import LostError, said_by, time_points
from calibration.gpu_launches import BF16, Launched, Launches
from calibration.points import Point
from calibration.points_gpu import GPU, SERVED_FROM, TINY, gpu_points
from kernels import correctness, reference
from kernels.operations import operations
from kernels.timing import COLD_BYTES, N_REPLAYS, behind_sleep, host_us, is_lost, launch_host_us, measure_us
from kernels.warm import compile_all, launching_only, share_of
from kernels.watch import end_in_order

PROOF_NEW, PROOF_LENS = [33, 1, 100], [33, 700, 1_270]  # a small ragged batch: tiles begun, split and skipped
PROOF_WHOLE = [250] * 40  # so many that no sequence is split; both as wide in blocks as tables that are timed
LEAST_MINUTES = 0.5  # a new process is not worth starting for less
LEAST_REPEATS, LONG_ENOUGH_S = 3, 1.0  # of a slow transfer: no more after so long


Variant = tuple[str, tuple[int, int], int, bool]  # kind of kernel, heads and KV heads, head_dim, behind a window


def variants(at: Point) -> list[Variant]:
    """Variants of our kernels that a point launches."""
    columns = dict(at.columns)
    if "n_heads" not in columns:  # torch's own, or host calls of what is proven elsewhere
        return []
    heads, width = (columns["n_heads"], columns["n_kv_heads"]), columns["head_dim"]
    kinds = [kind for kind in ("decode", "prefill") if kind in at.operation] or [at.operation]
    kinds = ["decode", "prefill"] if at.operation == "mixed_launches" else kinds
    return [(kind, heads, width, "window" in at.operation) for kind in kinds]


def kernels_on(device: torch.device) -> Any:
    """Our kernels on a GPU; on a CPU their references: an interpreted kernel in bf16 is neither right nor quick."""
    return operations(device) if device.type == "cuda" else reference


def proofs(
    ops: Any, device: torch.device, kind: str, heads: tuple[int, int], width: int, is_windowed: bool
) -> list[Callable[[], tuple[float, float]]]:
    """Comparisons of a variant with the reference; each gives the error and the most it may be."""
    span: dict[str, Any] = {"window": 200, "n_sinks": 4} if is_windowed else {}
    common = (ops, device)
    if kind == "decode":
        check = correctness.check_decode
        lens = ([*PROOF_LENS, 0], PROOF_WHOLE)
        return [partial(check, *common, BF16, one, heads, width, **span) for one in lens]
    if kind == "prefill":
        return [partial(correctness.check_prefill, *common, BF16, PROOF_NEW, PROOF_LENS, heads, width, **span)]
    if kind == "append":
        return [partial(correctness.check_append, *common, BF16, 256)]
    return [partial(correctness.check_copy, *common, 64)]


def compile_share(device: torch.device, ops: Any, index: int, number: int) -> int:
    """Compile the ``index``-th of ``number`` shares of all variants that are timed. Returns their number."""
    found = dict.fromkeys(v for at in gpu_points(GPU if device.type == "cuda" else TINY) for v in variants(at))
    launches = [proof for variant in found for proof in proofs(launching_only(ops), device, *variant)]
    return compile_all(launches[index::number])


class GpuBench:
    """Times points on the present GPU; ``cpu`` rehearses with the references at tiny sizes, and measures nothing.

    Parameters
    ----------
    device : torch.device
    ops : object, optional
        The kernels by name; None: `kernels_on` the device.
    """

    source = "kvtwin"

    def __init__(self, device: torch.device, ops: Any = None) -> None:
        self._is_real = device.type == "cuda"
        self._device, self._ops = device, ops or kernels_on(device)
        self._launches = Launches(self._ops, device)
        self._proven: dict[Variant, str] = {}  # variant -> what is wrong with it, empty if nothing
        self.subject: dict[str, Any] = {}
        self.device = torch.cuda.get_device_name(device) if self._is_real else "rehearsal on a CPU"
        self.convention = (
            "cold L2 cache, bf16, random data; below 100 us per launch in a CUDA graph of 20 on different blocks, "
            "median of 11 replays, the cache written over before each; above, median of do_bench; transfers between "
            "events behind a sleep of the device, so that it never waits for the host, after a flush of the cache, "
            "median of 11, of slow ones of 3 or more; host calls: what the host is busy with; "
            "attention without the append of new keys and values"
            if self._is_real
            else "references on a CPU, called once: no measurement of anything"
        )
        self.versions = {"torch": torch.__version__, "python": platform.python_version()}
        if not self._is_real:
            torch.set_num_threads(1)  # tiny tensors: threads would only wait for one another
        else:
            import triton

            self.versions |= {"triton": triton.__version__, "cuda": str(torch.version.cuda), **clocks()}
            self.versions |= {name: f"{value:.4g}" for name, value in self.ceilings().items()}

    def points(self) -> list[Point]:
        """What there is to time."""
        return gpu_points(GPU if self._is_real else TINY)

    def comes_first(self, at: Point) -> bool:
        """Whether iteration times stand on the point's operation."""
        return at.operation in SERVED_FROM

    def seconds(self, at: Point) -> float:
        """Time of one launch [s].

        Raises
        ------
        RuntimeError
            If the kernel's result is not the reference's.
        LostError
            If a kernel's error leaves nothing that could be timed after it.
        """
        try:
            self.prove(at)
            seconds = self.time(self._launches.of(at))
        except Exception as error:
            if is_lost(self._device):
                raise LostError(said_by(error)) from None
            self._launches.free()
            raise
        self._launches.free()
        return seconds

    def time(self, launched: Launched) -> float:
        """Time of one launch [s]."""
        if launched.is_capturable:
            return measure_us(launched.run, self._device, n_variants=launched.n_variants)[0] / 1e6
        if not self._is_real:
            if launched.beside is not None:
                launched.beside()
            return host_us(launched.run) / 1e6
        if launched.is_host_call:
            return launch_host_us(launched.run) / 1e6
        enough_s = time.monotonic() + LONG_ENOUGH_S
        flush = torch.empty(COLD_BYTES, dtype=torch.int8, device=self._device)
        side = torch.cuda.Stream()
        times = []
        host_s = host_us(launched.run) / 1e6  # a first one, which compiles and allocates
        for _ in range(N_REPLAYS + 1):  # the first one is slower and not counted
            start, end, over = (torch.cuda.Event(enable_timing=True) for _ in "seo")
            begun_s = time.perf_counter()
            flush.random_(-128, 127)
            behind_sleep(host_s)
            start.record()
            if launched.beside is not None:
                with torch.cuda.stream(side):
                    side.wait_event(start)  # both begin when the device wakes
                    launched.beside()
                    over.record()
            launched.run(0)
            end.record()
            host_s = time.perf_counter() - begun_s
            end.synchronize()
            if launched.beside is not None and over.query():
                raise RuntimeError("what was to run beside it ended first")
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
            if len(times) > LEAST_REPEATS and time.monotonic() > enough_s:
                break
        return float(median(times[1:]))

    def prove(self, at: Point) -> None:
        """Compare the variant of a kernel that a point takes with the reference, once, before it is timed.

        Raises
        ------
        RuntimeError
            If it differs by more than its gate.
        """
        for variant in variants(at):
            if variant not in self._proven:
                self._proven[variant] = self._wrong(*variant)
            if problem := self._proven[variant]:
                raise RuntimeError(f"{' '.join(str(x) for x in variant)}: {problem}")

    def _wrong(self, kind: str, heads: tuple[int, int], width: int, is_windowed: bool) -> str:
        for proof in proofs(self._ops, self._device, kind, heads, width, is_windowed):
            error, gate = proof()
            if not error <= gate:
                return f"differs from the reference by {error:.3g}, at most {gate:.3g} allowed"
        return ""

    def ceilings(self) -> dict[str, float]:
        """What the device can do at best: device copy, a large matrix product, the smallest kernel in a graph."""
        source = torch.randn(2**28, device=self._device)
        target = torch.empty_like(source)
        copy_us, _ = measure_us(lambda _: target.copy_(source), self._device)
        a, b = (torch.randn(8192, 8192, device=self._device, dtype=BF16) for _ in "ab")
        out = torch.empty_like(a)
        matmul_us, _ = measure_us(lambda _: torch.matmul(a, b, out=out), self._device)
        tiny = torch.zeros(1, device=self._device)
        smallest_us, _ = measure_us(lambda _: tiny.add_(1.0), self._device)
        return {
            "copy_bytes_per_s": 2e6 * source.nbytes / copy_us,
            "matmul_8k_flops_per_s": 2e6 * 8192.0**3 / matmul_us,
            "smallest_kernel_in_a_graph_s": smallest_us / 1e6,
        }


def clocks() -> dict[str, str]:
    """Driver, and clocks of multiprocessors and memory, asked of the driver; nothing where it does not answer."""
    asked = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm")
    try:
        done = subprocess.run(  # noqa: S603 nothing of the user's is in it
            ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.splitlines()[0].split(", ") if done.stdout else []
    return dict(zip(asked, values, strict=False))


def main(arguments: list[str]) -> int:
    """Time all points into a folder; 2 where there is no such device, 3 where it was lost and no time is left."""
    parser = argparse.ArgumentParser(prog="python -m calibration.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder; a run that was cut off goes on there")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu rehearses")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most; what has been timed by then is kept")
    parser.add_argument("--seed", type=int, default=0, help="order of the points")
    parser.add_argument("--warm", type=share_of, metavar="I/N", help="compile the I-th of N shares, and nothing else")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("calibration.gpu: torch sees no GPU here; --device cpu rehearses", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    if options.warm:
        print(f"{compile_share(device, kernels_on(device), *options.warm)} launches")
        return 0
    stop = time.monotonic() + 60.0 * options.minutes
    bench = GpuBench(device)
    try:
        n_timed = time_points(bench, options.out, options.minutes, options.seed)
    except LostError as lost:
        print(f"calibration.gpu: {lost}", file=sys.stderr, flush=True)
        left = (stop - time.monotonic()) / 60.0
        if left > LEAST_MINUTES:  # in place of this process, so that what it held on the device is free
            rest = ["--out", str(options.out), "--device", options.device, "--seed", str(options.seed)]
            rest += ["--minutes", f"{left:.3f}"]
            os.execv(sys.executable, [sys.executable, "-m", "calibration.gpu", *rest])  # noqa: S606 our own program
        return 3
    except OSError as error:
        print(f"calibration.gpu: {error.filename or options.out}: {error.strerror}; what was timed is kept", flush=True)
        return 4
    print(f"{n_timed} timings of {bench.device} in {options.out / 'timings.jsonl'}; next, where kvtwin is installed:")
    print(f"python -m calibration step=import source=timings path={options.out} out={options.out}")
    return 0


if __name__ == "__main__":
    end_in_order()  # here alone: a process that calls main has its own ways
    sys.exit(main(sys.argv[1:]))

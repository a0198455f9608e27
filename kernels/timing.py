"""How long a launch takes on a GPU, by one convention everywhere.

Short launches are timed inside a CUDA graph of several, each reading other memory so that the L2 cache is cold; long
ones by Triton's ``do_bench``, which clears the cache. Medians, because clocks and neighbours disturb upwards only.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

N_VARIANTS = 20  # launches in a graph, each to be given other data
N_REPLAYS = 11
LONG_US = 100.0  # from here on the cost of a launch no longer matters
COLD_BYTES = 300 << 20  # of memory the variants should spread over: six times the L2 cache of an H200


MOST_CLOCK_HZ = 2e9  # of multiprocessors, at most 1.98 GHz on an H100 or H200 (data sheets): a sleep is never shorter
LEAST_SLEEP_S, LONGEST_QUEUE_S = 5e-5, 2e-2


class DeviceLostError(RuntimeError):
    """A kernel has left the device in a state that refuses this process everything; a new one may go on."""


Launch = Callable[[int], object]
"""Launches the work on the i-th variant of its data, ``i`` in ``range(N_VARIANTS)``."""


def is_lost(device: torch.device) -> bool:
    """Whether an error was one that CUDA does not forgive, an illegal access say: every later call fails too."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Capture what is launched. Garbage waits: an older graph or kernel that is freed meanwhile ends the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            yield
    finally:
        if was_enabled:
            gc.enable()


def captured(launch: Launch, n_variants: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of ``n_variants`` launches, warmed up first: replaying it costs the host next to nothing."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(n_variants):
            launch(i)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capturing(graph):
        for i in range(n_variants):
            launch(i)
    return graph


def replays_us(graph: torch.cuda.CUDAGraph, n_replays: int) -> float:
    """Time of a graph, median of several replays, each with a cold cache [us].

    What all its launches read may fit into the L2 cache, and would be found there by the next replay: between two, the
    cache is written over. That takes the device long enough for the host to be ahead, so no replay waits for it.
    """
    flush = torch.empty(COLD_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(n_replays + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
        times.append((start, end))
    times[-1][1].synchronize()
    return float(statistics.median(start.elapsed_time(end) for start, end in times[1:])) * 1e3  # the first is slower


def graph_us(launch: Launch, n_variants: int = N_VARIANTS) -> float:
    """Time of one launch inside a CUDA graph of `N_VARIANTS`, the same data again where there are fewer [us]."""
    return replays_us(captured(lambda i: launch(i % n_variants), N_VARIANTS), N_REPLAYS) / N_VARIANTS


def behind_sleep(host_s: float) -> None:
    """Keep the device busy for about twice as long as the host will need to put work behind this.

    Work that cannot be captured is timed on the device only if the device never waits for the host in it.
    """
    torch.cuda._sleep(int((2.0 * host_s + LEAST_SLEEP_S) * MOST_CLOCK_HZ))


def launch_host_us(launch: Launch, n_launches: int = N_VARIANTS) -> float:
    """What the host is busy with for one launch, arguments checked, the device never waited for [us]."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        torch.cuda._sleep(int(LONGEST_QUEUE_S * MOST_CLOCK_HZ))
        start = time.perf_counter()
        for i in range(n_launches):
            launch(i)
        times.append((time.perf_counter() - start) / n_launches)
    torch.cuda.synchronize()
    return float(statistics.median(times)) * 1e6


def long_us(launch: Launch) -> float:
    """Time of one launch with a cleared cache, median [us]; of short ones, which are timed otherwise, a rough one.

    The launch is replayed from a graph: checking its arguments would otherwise keep the device waiting and be counted.
    """
    from triton.testing import do_bench

    graph = captured(launch, 1)
    rough_us = replays_us(graph, 1)
    if rough_us < LONG_US:
        return rough_us
    return float(do_bench(graph.replay, warmup=5, rep=25, return_mode="median")) * 1e3


def host_us(launch: Launch) -> float:
    """Time of one call on the host: rehearses a measurement where there is no GPU, and is no result [us]."""
    start = time.perf_counter()
    launch(0)
    return (time.perf_counter() - start) * 1e6


def measure_us(launch: Launch, device: torch.device, *, n_variants: int = N_VARIANTS) -> tuple[float, str]:
    """Time of one launch and the convention it was measured by: ``graph``, ``do_bench`` or ``rehearsal``."""
    if device.type != "cuda":
        return host_us(launch), "rehearsal"
    time_us = long_us(launch)
    return (time_us, "do_bench") if time_us >= LONG_US else (graph_us(launch, n_variants), "graph")

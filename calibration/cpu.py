"""Torch's kernels on the CPU, timed: so that the whole way from measuring to simulating runs without a GPU."""

import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from calibration.points import Point, cpu_points

LEAST_S = 5e-4  # of all repeats of a point: enough for the clock, short enough for hundreds of points
N_REPEATS = 5


class CpuBench:
    """Times points on one CPU thread, operands warm in the caches they fit into."""

    device = f"CPU {platform.machine()}"
    convention = "median of repeated calls of torch on one CPU thread, operands warm, fp32"
    subject = {"dtype": "fp32", "kv_dtype": "fp32"}  # noqa: RUF012 read only

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.versions = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
        self._torch = torch

    def points(self) -> list[Point]:
        """What there is to time."""
        return cpu_points()

    def comes_first(self, at: Point) -> bool:  # noqa: ARG002
        """All alike."""
        return True

    def seconds(self, at: Point) -> float:
        """Time of one call [s]."""
        call = getattr(self, f"_{at.operation}")(at)
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        n_inner = max(1, int(LEAST_S / N_REPEATS / once))
        times = []
        for _ in range(N_REPEATS):
            start = time.perf_counter()
            for _ in range(n_inner):
                call()
            times.append((time.perf_counter() - start) / n_inner)
        return median(times)

    def _decode_attention(self, at: Point) -> Callable[[], Any]:
        torch = self._torch
        q = torch.randn(at["decode_seqs"], at["n_heads"], 1, at["head_dim"])
        shape = (at["decode_seqs"], at["n_kv_heads"], at["decode_longest_tokens"], at["head_dim"])
        k, v = torch.randn(shape), torch.randn(shape)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def _batched_prefill_attention(self, at: Point) -> Callable[[], Any]:
        torch = self._torch
        shape = (at["prefill_seqs"], at["n_heads"], at["new_tokens"], at["head_dim"])
        q, k, v = torch.randn(shape), torch.randn(shape), torch.randn(shape)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def _gemm(self, at: Point) -> Callable[[], Any]:
        torch = self._torch
        a, b = torch.randn(at["m"], at["k"]), torch.randn(at["n"], at["k"])
        return lambda: torch.nn.functional.linear(a, b)

"""Our own kernels and torch's matrix products on a GPU, timed with a cold cache and without launch overhead.

Below 100 us a CUDA graph of 20 launches, each with another block table over one pool of keys and values larger than
the L2 cache, is replayed 11 times and the median taken; above, single launches are timed with events, the cache
flushed before each. Data are random, never zeros: zeros draw less power and run at higher clocks.
"""

import platform
import subprocess
from collections.abc import Callable
from statistics import median
from typing import Any

from calibration.points import Point
from calibration.points_gpu import gpu_points

POOL_BYTES = 600 * 2**20  # keys and values together, six times an H200's L2 cache
GRAPH_S = 100e-6  # shorter than this is timed inside a graph
N_LAUNCHES = 20
N_REPLAYS = 11
FLUSH_BYTES = 256 * 2**20
BLOCK_TOKENS = 16
RESERVE_BYTES = 4 * 2**30  # left free on the device

Launch = Callable[[int], Any]  # argument: which of the block tables


class GpuBench:
    """Times points on the present GPU."""

    convention = (
        "cold L2 cache; below 100 us median of 11 replays of a CUDA graph of 20 launches on different blocks, per "
        "launch; above, median of single launches between events after a flush; bf16, random data; decode attention "
        "without the append of new keys and values"
    )
    subject: dict[str, Any] = {}  # noqa: RUF012 read only

    def __init__(self) -> None:
        import torch
        import triton

        self._torch = torch
        self.device = torch.cuda.get_device_name()
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
        self.versions = {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": str(torch.version.cuda),
            "python": platform.python_version(),
            **clocks(),
        }
        self.versions |= {name: f"{value:.4g}" for name, value in self.ceilings().items()}
        self._pools: dict[tuple[int, int, int], Any] = {}

    def points(self) -> list[Point]:
        """What there is to time."""
        return gpu_points()

    def seconds(self, at: Point) -> float:
        """Time of one launch [s]."""
        launch, n_tables = getattr(self, f"_{at.operation}")(at)
        try:
            return self.time(launch, n_tables)
        finally:
            self._pools.clear()
            self._torch.cuda.empty_cache()

    def ceilings(self) -> dict[str, float]:
        """What the device can do at best: device copy, a large matrix product, an empty graph launch."""
        torch = self._torch
        source = torch.randn(2**28, device="cuda", dtype=torch.float32)
        target = torch.empty_like(source)
        copy_s = self.time(lambda _: target.copy_(source), 1)
        a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        out = torch.empty_like(a)
        matmul_s = self.time(lambda _: torch.matmul(a, a, out=out), 1)
        tiny = torch.zeros(1, device="cuda")
        return {
            "copy_bytes_per_s": 2.0 * source.nbytes / copy_s,
            "matmul_8k_flops_per_s": 2.0 * 8192.0**3 / matmul_s,
            "smallest_kernel_in_a_graph_s": self.time(lambda _: tiny.add_(1.0), 1),
        }

    def time(self, launch: Launch, n_tables: int) -> float:
        """Median time of a launch [s]: in a graph if it is short, alone if it is long."""
        torch = self._torch
        for i in range(min(3, n_tables)):
            launch(i)
        torch.cuda.synchronize()
        once = self.single(launch, n_tables, 3)
        return self.single(launch, n_tables, N_REPLAYS) if once >= GRAPH_S else self.graphed(launch, n_tables)

    def single(self, launch: Launch, n_tables: int, n: int) -> float:
        """Median of single launches between events, each after a flush of the cache [s]."""
        torch = self._torch
        times = []
        for i in range(n):
            self._flush.random_(-128, 127)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(i % n_tables)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return float(median(times))

    def graphed(self, launch: Launch, n_tables: int) -> float:
        """Median of replays of a graph of launches on different blocks, per launch [s]."""
        torch = self._torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            launch(0)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(N_LAUNCHES):
                launch(i % n_tables)
        times = []
        for _ in range(N_REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / N_LAUNCHES)
        return float(median(times))

    def pool(self, n_kv_heads: int, head_dim: int, least_tokens: int) -> tuple[Any, Any]:
        """Keys and values of at least `POOL_BYTES` and ``least_tokens``, (n_blocks, block_tokens, heads, head_dim)."""
        torch = self._torch
        block_bytes = 2 * BLOCK_TOKENS * n_kv_heads * head_dim * 2
        n_blocks = max(-(-POOL_BYTES // block_bytes), -(-least_tokens // BLOCK_TOKENS))
        free = torch.cuda.mem_get_info()[0] - RESERVE_BYTES
        if n_blocks * block_bytes > free:
            raise MemoryError(f"needs {n_blocks * block_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
        shape = (n_blocks, BLOCK_TOKENS, n_kv_heads, head_dim)
        key = (n_blocks, n_kv_heads, head_dim)
        if key not in self._pools:
            self._pools[key] = tuple(torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        k, v = self._pools[key]
        return k, v

    def tables(self, n_blocks: int, lens: list[int]) -> list[Any]:
        """Block tables of one batch, each of other random blocks: as many as the pool holds, at most 20."""
        torch = self._torch
        columns = -(-max(lens) // BLOCK_TOKENS)
        wanted = len(lens) * columns
        made: list[Any] = []
        for _ in range(min(N_LAUNCHES, max(1, n_blocks // wanted))):
            ids = torch.randperm(n_blocks, device="cuda")[:wanted] if not made else self._rest(made, n_blocks, wanted)
            made.append(ids.to(torch.int32).reshape(len(lens), columns).contiguous())
        return made

    def _rest(self, made: list[Any], n_blocks: int, wanted: int) -> Any:
        """Blocks that no table has yet."""
        torch = self._torch
        free = torch.ones(n_blocks, dtype=torch.bool, device="cuda")
        for table in made:
            free[table.flatten().long()] = False
        ids = free.nonzero().flatten()
        return ids[torch.randperm(len(ids), device="cuda")[:wanted]]

    def _decode(self, at: Point, lens: list[int]) -> tuple[Launch, int]:
        from kernels.decode_attention import decode_attention
        from kernels.decode_plan import plan_decode

        torch = self._torch
        heads, kv_heads, width = at["n_heads"], at["n_kv_heads"], at["head_dim"]
        columns = -(-max(lens) // BLOCK_TOKENS)
        k, v = self.pool(kv_heads, width, len(lens) * columns * BLOCK_TOKENS)
        tables = self.tables(len(k), lens)
        plan = plan_decode(lens, n_heads=heads, n_kv_heads=kv_heads, head_dim=width, device="cuda")
        q = torch.randn(len(lens), heads, width, device="cuda", dtype=torch.bfloat16)
        out = torch.empty_like(q)
        return lambda i: decode_attention(q, k, v, tables[i], plan, out=out, check_ids=False), len(tables)

    def _decode_attention(self, at: Point) -> tuple[Launch, int]:
        return self._decode(at, [at["decode_longest_tokens"]] * at["decode_seqs"])

    def _skewed_attention(self, at: Point) -> tuple[Launch, int]:
        """Some sequences at the longest context, the others equal, together the total."""
        n, total, longest = at["decode_seqs"], at["decode_total_tokens"], at["decode_longest_tokens"]
        n_long = max(1, n // 8)
        short = (total - n_long * longest) // (n - n_long)
        return self._decode(at, [longest] * n_long + [short] * (n - n_long))

    def _batched_prefill_attention(self, at: Point) -> tuple[Launch, int]:
        return self._prefill(at, 0)

    def _chunked_prefill_attention(self, at: Point) -> tuple[Launch, int]:
        return self._prefill(at, at["context_tokens"])

    def _prefill(self, at: Point, context: int) -> tuple[Launch, int]:
        from kernels.prefill_attention import prefill_attention
        from kernels.prefill_plan import plan_prefill

        torch = self._torch
        heads, kv_heads, width = at["n_heads"], at["n_kv_heads"], at["head_dim"]
        news = [at["new_tokens"]] * at["prefill_seqs"]
        lens = [context + new for new in news]
        columns = -(-max(lens) // BLOCK_TOKENS)
        k, v = self.pool(kv_heads, width, len(lens) * columns * BLOCK_TOKENS)
        tables = self.tables(len(k), lens)
        plan = plan_prefill(news, lens, n_heads=heads, n_kv_heads=kv_heads, head_dim=width, device="cuda")
        q = torch.randn(sum(news), heads, width, device="cuda", dtype=torch.bfloat16)
        out = torch.empty_like(q)
        return lambda i: prefill_attention(q, k, v, tables[i], plan, out=out, check_ids=False), len(tables)

    def _append(self, at: Point) -> tuple[Launch, int]:
        from kernels.kv_append import kv_append

        torch = self._torch
        kv_heads, width, n = at["n_kv_heads"], at["head_dim"], at["new_tokens"]
        k_cache, v_cache = self.pool(kv_heads, width, n)
        n_slots = len(k_cache) * BLOCK_TOKENS
        slots = [torch.randperm(n_slots, device="cuda")[:n] for _ in range(N_LAUNCHES)]
        k, v = (torch.randn(n, kv_heads, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        return lambda i: kv_append(k, v, k_cache, v_cache, slots[i], check_ids=False), N_LAUNCHES

    def _block_copy(self, at: Point) -> tuple[Launch, int]:
        """Blocks gathered from scattered places to scattered places of device memory."""
        from kernels.kv_copy import kv_copy

        torch = self._torch
        n = at["bytes"] // (BLOCK_TOKENS * at["n_kv_heads"] * at["head_dim"] * 2)
        source, target = self.pool(at["n_kv_heads"], at["head_dim"], n * BLOCK_TOKENS)
        rows = [tuple(torch.randperm(len(source), device="cuda")[:n] for _ in range(2)) for _ in range(N_LAUNCHES)]
        return lambda i: kv_copy(source, target, *rows[i], check_ids=False), N_LAUNCHES

    def _gemm(self, at: Point) -> tuple[Launch, int]:
        torch = self._torch
        m, n, k = at["m"], at["n"], at["k"]
        n_weights = max(1, min(N_LAUNCHES, POOL_BYTES // (2 * n * k)))  # other weights each time: a layer's are cold
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(n_weights)]
        out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        return lambda i: torch.mm(a, weights[i].t(), out=out), n_weights

    def _transfer(self, at: Point) -> tuple[Launch, int]:
        """One copy between host and device; ``detail`` says direction and kind of host memory."""
        torch = self._torch
        direction, memory = at["detail"].split("_")
        there = torch.empty(at["bytes"], dtype=torch.int8, device="cuda").random_(-128, 127)
        here = torch.empty(at["bytes"], dtype=torch.int8, pin_memory=memory == "pinned").random_(-128, 127)
        source, target = (here, there) if direction == "h2d" else (there, here)

        return lambda _: target.copy_(source, non_blocking=True), 1


def clocks() -> dict[str, str]:
    """Driver, and clocks of multiprocessors and memory, asked of the driver; nothing where it does not answer."""
    asked = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm")
    try:
        done = subprocess.run(  # noqa: S603 nothing of the user's is in it
            ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    values = done.stdout.splitlines()[0].split(", ") if done.stdout else []
    return dict(zip(asked, values, strict=False))

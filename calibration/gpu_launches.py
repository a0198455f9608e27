"""What is launched for a measured shape: random data on the device, and a function that launches the i-th variant.

Keys and values lie in one pool larger than the L2 cache; each variant has a block table of other blocks of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibration.points import Point, point
from calibration.points_gpu import BLOCK_TOKENS, read_batch
from kernels.decode_plan import plan_decode
from kernels.prefill_plan import plan_prefill
from kernels.timing import COLD_BYTES, N_VARIANTS, captured
from sim.step import Chunk

BF16 = torch.bfloat16
RESERVE_BYTES = 4 * 2**30  # left free on the device
TABLE_WIDTH = 16  # rows of block tables start at multiples of it, as engines' do: one compiled kernel for all lengths
SLOWEST_LINK_BYTES_PER_S, SHORTEST_DECODE_S = 10e9, 5e-4  # work beside a transfer is made to outlast it with these


class Launched(NamedTuple):
    """A launch, how many variants of its data there are, and whether a CUDA graph can hold it.

    ``beside`` is launched before it on another stream, and is to last longer. Of a host call, what is timed is how long
    the host is busy with it.
    """

    run: Callable[[int], Any]
    n_variants: int
    is_capturable: bool = True
    beside: Callable[[], Any] | None = None
    is_host_call: bool = False


class Launches:
    """Launches by operation of a measured point: methods are named as operations are."""

    def __init__(self, ops: Any, device: torch.device) -> None:
        self._ops, self._device = ops, device
        self._pool_bytes = 2 * COLD_BYTES if device.type == "cuda" else 0
        self._pools: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def of(self, at: Point) -> Launched:
        """The launch of a point."""
        launched: Launched = getattr(self, at.operation)(at)
        return launched

    def free(self) -> None:
        """Give the memory of all points back."""
        self._pools.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def decode_attention(self, at: Point) -> Launched:
        """Equal contexts."""
        return self._decode(at, [at["decode_longest_tokens"]] * at["decode_seqs"])

    def ragged_decode_attention(self, at: Point) -> Launched:
        """Unequal contexts."""
        return self._decode(at, read_batch(at["detail"])[1])

    def batched_prefill_attention(self, at: Point) -> Launched:
        """Equal prompts, nothing cached."""
        return self._prefill(at, [Chunk(at["new_tokens"], 0)] * at["prefill_seqs"])

    def cached_prefill_attention(self, at: Point) -> Launched:
        """Equal chunks after equal cached contexts."""
        return self._prefill(at, [Chunk(at["new_tokens"], at["context_tokens"])] * at["prefill_seqs"])

    def varlen_prefill_attention(self, at: Point) -> Launched:
        """Unequal chunks."""
        return self._prefill(at, read_batch(at["detail"])[0])

    def mixed_launches(self, at: Point) -> Launched:
        """Chunks, then decoding sequences: two launches, as an iteration makes them."""
        chunks, decoding = read_batch(at["detail"])
        widest = max(blocks_of([chunk.seen_tokens for chunk in chunks]), blocks_of(decoding))
        self._pool(at["n_kv_heads"], at["head_dim"], widest * BLOCK_TOKENS)  # one pool holds either
        prompts, decodes = self._prefill(at, chunks), self._decode(at, decoding)

        def run(i: int) -> None:
            prompts.run(i % prompts.n_variants)
            decodes.run(i % decodes.n_variants)

        return Launched(run, min(prompts.n_variants, decodes.n_variants))

    def windowed_decode_attention(self, at: Point) -> Launched:
        """Equal contexts behind a sliding window, with or without sinks."""
        span, _, lens = at["detail"].partition(": ")
        return self._decode(at, read_batch(lens)[1], **span_of(span))

    def windowed_prefill_attention(self, at: Point) -> Launched:
        """A prompt behind a sliding window, with or without sinks."""
        span, _, chunks = at["detail"].partition(": ")
        return self._prefill(at, read_batch(chunks)[0], **span_of(span))

    def append(self, at: Point) -> Launched:
        """New tokens' keys and values into random slots."""
        n, kv_heads, width = at["new_tokens"], at["n_kv_heads"], at["head_dim"]
        k_cache, v_cache = self._pool(kv_heads, width, n)
        slots = [self._permutation(len(k_cache) * BLOCK_TOKENS)[:n] for _ in range(N_VARIANTS)]
        k, v = (self._random(n, kv_heads, width) for _ in "kv")
        return Launched(lambda i: self._ops.kv_append(k, v, k_cache, v_cache, slots[i], check_ids=False), N_VARIANTS)

    def block_copy(self, at: Point) -> Launched:
        """Blocks from scattered places to scattered places of device memory."""
        n = at["n"]
        source, target = self._pool(at["n_kv_heads"], at["head_dim"], n * BLOCK_TOKENS)
        rows = [[self._permutation(len(source))[:n] for _ in "ft"] for _ in range(N_VARIANTS)]
        return Launched(lambda i: self._ops.kv_copy(source, target, *rows[i], check_ids=False), N_VARIANTS)

    def gemm(self, at: Point) -> Launched:
        """A matrix product with other weights each time: a layer's are never in the cache."""
        m, n, k = at["m"], at["n"], at["k"]
        n_weights = max(1, min(N_VARIANTS, self._pool_bytes // (2 * n * k)))
        a, out = self._random(m, k), torch.empty(m, n, device=self._device, dtype=BF16)
        weights = [self._random(n, k) for _ in range(n_weights)]
        return Launched(lambda i: torch.mm(a, weights[i % n_weights].t(), out=out), n_weights)

    def transfer(self, at: Point) -> Launched:
        """One copy between host and device, or one each way at the same time."""
        way, memory = at["detail"].split()
        pairs = []
        for one in ("h2d", "d2h") if way == "both" else (way,):
            here, there = self._host(at["bytes"], memory == "pinned"), self._random_bytes(at["bytes"])
            pairs.append((here, there) if one == "h2d" else (there, here))
        if way != "both" or self._device.type != "cuda":
            return Launched(lambda _: [to.copy_(at, non_blocking=True) for at, to in pairs], 1, False)
        side = torch.cuda.Stream()

        def run(_: int) -> None:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                pairs[1][1].copy_(pairs[1][0], non_blocking=True)
            pairs[0][1].copy_(pairs[0][0], non_blocking=True)
            torch.cuda.current_stream().wait_stream(side)

        return Launched(run, 1, False)

    def transfer_beside_decode(self, at: Point) -> Launched:
        """Copies between pinned memory and the device while sequences decode."""
        decodes = self.decode_attention(at)
        n_launches = 8 + int(at["bytes"] / SLOWEST_LINK_BYTES_PER_S / SHORTEST_DECODE_S)

        return self.transfer(at)._replace(beside=self._at_once(decodes, n_launches))

    def decode_beside_transfer(self, at: Point) -> Launched:
        """Decoding sequences while copies between pinned memory and the device run, or none."""
        decodes = self._at_once(self.decode_attention(at), 1)
        if at["detail"] == "none":
            return Launched(lambda _: decodes(), 1, False)
        copies = self.transfer(at)

        def copy() -> None:
            for _ in range(8):  # of a quarter of a gigabyte: tens of milliseconds, against one or two
                copies.run(0)

        return Launched(lambda _: decodes(), 1, False, copy)

    def host_call(self, at: Point) -> Launched:
        """Launches of a few sequences, arguments checked: what they cost the host."""
        shape: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64}
        batch = point("", **shape, new_tokens=8)
        small = self._random(16, 16)
        match at["detail"]:
            case "decode_attention":
                run = self._decode(batch, [64] * 8).run
            case "prefill_attention":
                run = self._prefill(batch, [Chunk(64, 0)]).run
            case "kv_append":
                run = self.append(batch).run
            case "mm":

                def run(_: int) -> Any:
                    return torch.mm(small, small)

            case _:

                def run(_: int) -> Any:
                    return small.add_(1.0)

        return Launched(run, 1, False, is_host_call=True)

    def graph_launch(self, at: Point) -> Launched:
        """A CUDA graph of the smallest kernels: what one replay costs the host, or takes the device."""
        small = self._random(1)
        replay = self._at_once(Launched(lambda _: small.add_(1.0), 1), at["n"])
        return Launched(lambda _: replay(), 1, False, is_host_call=at["detail"] == "host")

    def _at_once(self, launched: Launched, n_launches: int) -> Callable[[], Any]:
        """So many launches in one call that costs the host next to nothing: a CUDA graph, where there is one."""

        def launch(i: int) -> None:
            launched.run(i % launched.n_variants)

        def one_by_one() -> None:
            for i in range(n_launches):
                launch(i)

        if self._device.type != "cuda":
            return one_by_one
        replay: Callable[[], Any] = captured(launch, n_launches).replay
        return replay

    def block_transfer(self, at: Point) -> Launched:
        """Scattered pieces to or from pinned memory: a copy each, one kernel over the link, or gathered and copied.

        A piece is ``m`` blocks side by side, there are ``n`` pieces.
        """
        way, how = at["detail"].split()
        n, joined, ops = at["n"], at["m"], self._ops
        blocks, _ = self._pool(at["n_kv_heads"], at["head_dim"], n * joined * BLOCK_TOKENS)
        pool = blocks[: len(blocks) // joined * joined].view(-1, joined * BLOCK_TOKENS, *blocks.shape[2:])
        host = self._host(at["bytes"], True).view(BF16).view(n, *pool.shape[1:])
        scattered, straight = self._permutation(len(pool))[:n], torch.arange(n, device=self._device)
        ids = scattered.tolist()
        staging = torch.empty_like(pool[:n])

        def each(_: int) -> None:
            for i, row in enumerate(ids):
                here, there = (host[i], pool[row]) if way == "h2d" else (pool[row], host[i])
                there.copy_(here, non_blocking=True)

        def batched(_: int) -> None:
            if way == "h2d":
                ops.kv_copy(host, pool, straight, scattered, check_ids=False)
            else:
                ops.kv_copy(pool, host, scattered, straight, check_ids=False)

        def gathered(_: int) -> None:
            if way == "h2d":
                staging.copy_(host, non_blocking=True)
                ops.kv_copy(staging, pool, straight, scattered, check_ids=False)
            else:
                ops.kv_copy(pool, staging, scattered, straight, check_ids=False)
                host.copy_(staging, non_blocking=True)

        return Launched({"each": each, "batched": batched, "gathered": gathered}[how], 1, False)

    def _decode(self, at: Point, lens: list[int], **span: Any) -> Launched:
        heads, kv_heads, width = at["n_heads"], at["n_kv_heads"], at["head_dim"]
        k, v, tables = self._cache(kv_heads, width, lens)
        plan = plan_decode(lens, n_heads=heads, n_kv_heads=kv_heads, head_dim=width, device=self._device, **span)
        q = self._random(len(lens), heads, width)
        out, run = torch.empty_like(q), self._ops.decode_attention
        return Launched(
            lambda i: run(q, k, v, tables[i % len(tables)], plan, out=out, check_ids=False),
            min(N_VARIANTS, len(tables)),
        )

    def _prefill(self, at: Point, chunks: list[Chunk], **span: Any) -> Launched:
        heads, kv_heads, width = at["n_heads"], at["n_kv_heads"], at["head_dim"]
        news, lens = [chunk.new_tokens for chunk in chunks], [chunk.seen_tokens for chunk in chunks]
        k, v, tables = self._cache(kv_heads, width, lens)
        plan = plan_prefill(news, lens, n_heads=heads, n_kv_heads=kv_heads, head_dim=width, device=self._device, **span)
        q = self._random(sum(news), heads, width)
        out, run = torch.empty_like(q), self._ops.prefill_attention
        return Launched(
            lambda i: run(q, k, v, tables[i % len(tables)], plan, out=out, check_ids=False),
            min(N_VARIANTS, len(tables)),
        )

    def _cache(self, n_kv_heads: int, head_dim: int, lens: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Keys, values, and block tables of one batch that share no block: as many as the pool holds, at most 20."""
        columns = -(-max(lens) // BLOCK_TOKENS)
        wanted = len(lens) * columns
        k, v = self._pool(n_kv_heads, head_dim, wanted * BLOCK_TOKENS)
        n_tables = min(N_VARIANTS, len(k) // wanted)
        ids = self._permutation(len(k))[: n_tables * wanted].to(torch.int32)
        width = -(-columns // TABLE_WIDTH) * TABLE_WIDTH
        tables = torch.zeros(n_tables, len(lens), width, dtype=torch.int32, device=self._device)[:, :, :columns]
        tables.copy_(ids.view(n_tables, len(lens), columns))
        return k, v, list(tables)

    def _pool(self, n_kv_heads: int, head_dim: int, least_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of at least ``least_tokens``, (n_blocks, block_tokens, heads, head_dim)."""
        block_bytes = 2 * BLOCK_TOKENS * n_kv_heads * head_dim * 2
        n_blocks = max(-(-self._pool_bytes // block_bytes), -(-least_tokens // BLOCK_TOKENS))
        key = (n_kv_heads, head_dim)
        if key not in self._pools or len(self._pools[key][0]) < n_blocks:
            self._pools.pop(key, None)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # what a point that failed still held when its memory was given back
                free = torch.cuda.mem_get_info()[0] - RESERVE_BYTES
                if n_blocks * block_bytes > free:
                    raise MemoryError(f"needs {n_blocks * block_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
            shape = (n_blocks, BLOCK_TOKENS, n_kv_heads, head_dim)
            self._pools[key] = (self._random(*shape), self._random(*shape))
        return self._pools[key]

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device, dtype=BF16)

    def _random_bytes(self, n_bytes: int) -> Tensor:
        return torch.randint(-128, 127, (n_bytes,), dtype=torch.int8, device=self._device)

    def _host(self, n_bytes: int, is_pinned: bool) -> Tensor:
        """Random bytes in host memory, drawn on the device: a host draws a gigabyte in seconds."""
        memory = torch.empty(n_bytes, dtype=torch.int8, pin_memory=is_pinned and self._device.type == "cuda")
        return memory.copy_(self._random_bytes(n_bytes))

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, device=self._device)


def blocks_of(lens: list[int]) -> int:
    """Blocks of a batch whose block table is as wide as its longest sequence needs it.

    Examples
    --------
    >>> blocks_of([100, 17])
    14
    """
    return len(lens) * -(-max(lens, default=0) // BLOCK_TOKENS)


def span_of(text: str) -> dict[str, Any]:
    """Arguments of a plan.

    Examples
    --------
    >>> span_of("window 1024 sinks 4")
    {'window': 1024, 'n_sinks': 4}
    """
    words = text.split()
    names = {"window": "window", "sinks": "n_sinks"}
    return {names[name]: int(x) for name, x in zip(words[::2], words[1::2], strict=True)}

"""How fast the kernels are, beside torch's own attention on the same inputs and the device's measured ceilings."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.angles import cos_sin_table
from kernels.correctness import BLOCK_TOKENS, cache, error, quantise
from kernels.decode_plan import plan_decode
from kernels.dense import dense
from kernels.prefill_plan import plan_prefill
from kernels.timing import COLD_BYTES, N_VARIANTS, measure_us

BF16 = torch.bfloat16
PREFILL_MUST = 0.38  # of a large matrix product: 300 of the 770 to 798 TFLOP/s that H200 machines reach
LARGE_DECODE_MUST = 0.74  # of a copy in device memory, from 1 GB of keys and values on: 3.2 of 4.3 TB/s
DECODE_MUST = 0.47  # from 100 MB on: 2.0 of 4.3 TB/s
APPEND_MUST, COPY_MUST = 0.60, 0.75
FLOOR_MUST_US = 16.0
"""Bars: published kernels on an H200 reach more (FlashAttention 3 as in vLLM 0.24: 606 TFLOP/s and 4.0 TB/s). As shares
of what the same run measures at best they hold for an H100 too, whose memory is slower."""


class Speed(NamedTuple):
    """One timed launch."""

    kernel: str
    case: str
    time_us: float
    rate: float
    unit: str  # TFLOP/s or TB/s
    must: float | None  # the least share of the measured ceiling it should reach; of the floor, the most time [us]
    convention: str
    rivals: Callable[[], dict[str, float]] | None = None  # times torch's attention backends on the same inputs [us]
    remark: str = ""

    def verdict(self, of_ceiling_frac: float | None) -> str:
        """Whether the bar was met; empty where there is none, or nothing it could be told by, or in a rehearsal."""
        if self.must is None or self.convention == "rehearsal":
            return ""
        if self.case.startswith("floor"):
            return "met" if self.time_us <= self.must else "missed"
        if of_ceiling_frac is None:
            return ""
        return "met" if of_ceiling_frac >= self.must else "missed"


def copy_ceiling(device: torch.device, n_bytes: int) -> Speed:
    """Copy inside device memory, read plus write."""
    source = torch.randint(0, 100, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    time_us, how = measure_us(lambda _: target.copy_(source), device)
    return Speed("ceiling", f"copy {n_bytes >> 20} MiB", time_us, 2 * n_bytes / time_us / 1e6, "TB/s", None, how)


def matmul_ceiling(device: torch.device, n: int) -> Speed:
    """Square bf16 product on random data."""
    a, b = (torch.randn(n, n, device=device, dtype=BF16) for _ in "ab")
    time_us, how = measure_us(lambda _: a @ b, device)
    return Speed("ceiling", f"bf16 matmul {n}", time_us, 2 * n**3 / time_us / 1e6, "TFLOP/s", None, how)


def rivals_us(
    q: Tensor, k: Tensor, v: Tensor, truth: Tensor, device: torch.device, is_causal: bool
) -> dict[str, float]:
    """Torch's attention, by backend, on (n_seqs, heads, tokens, head_dim) [us]; without those that refuse or err."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    if device.type != "cuda":
        backends = {"math": SDPBackend.MATH}
    times: dict[str, float] = {}
    for name, backend in backends.items():

        def launch(_: int, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
                )

        try:
            if error(launch(0), truth) < 2e-2:
                times[name] = measure_us(launch, device)[0]
        except Exception as refusal:  # whatever is wrong with a rival, ours has been timed
            print(f"  torch {name}: {(str(refusal).splitlines() or [''])[0][:120]}", flush=True)
    return times


def prefill_speed(
    ops: Any,
    device: torch.device,
    n_new: int,
    context: int,
    heads: tuple[int, int],
    head_dim: int,
    must: float | None,
    window: int | None = None,
) -> Speed:
    """One prompt's chunk over paged blocks; 4 * head_dim operations a visible pair and head."""
    length = context + n_new
    k, v, table = cache([length], heads[1], head_dim, BF16, device)
    q = torch.randn(n_new, heads[0], head_dim, device=device, dtype=BF16)
    plan = plan_prefill(
        [n_new], [length], n_heads=heads[0], n_kv_heads=heads[1], head_dim=head_dim, device=device, window=window
    )
    out = torch.empty_like(q)

    def launch(_: int) -> Tensor:
        answer: Tensor = ops.prefill_attention(q, k, v, table, plan, out=out, check_ids=False)
        return answer

    time_us, how = measure_us(launch, device)

    def rivals() -> dict[str, float]:
        rows = (x[table[0].long()].flatten(0, 1)[:length] for x in (k, v))
        flat = [x.transpose(0, 1)[None].contiguous() for x in (q, *rows)]
        return rivals_us(flat[0], flat[1], flat[2], out.transpose(0, 1)[None], device, True)

    flops = 4 * head_dim * heads[0] * plan.visible_pairs()
    case = f"{n_new} new, {context} cached, {heads[0]}/{heads[1]} d{head_dim}" + (
        f", window {window}" if window else ""
    )
    return Speed(
        "prefill_attention",
        case,
        time_us,
        flops / time_us / 1e6,
        "TFLOP/s",
        must,
        how,
        rivals if context == 0 and window is None else None,
    )


def decode_speed(
    ops: Any,
    device: torch.device,
    kv_lens: list[int],
    heads: tuple[int, int],
    head_dim: int,
    must: float | None,
    *,
    bits: int = 16,
    label: str = "",
    has_rivals: bool = False,
    window: int | None = None,
) -> Speed:
    """One batch over paged blocks; bytes of the keys and values read (codes and params when quantised)."""
    element_bytes = 2.0 if bits == 16 else bits / 8 + 4 / head_dim
    token_bytes = 2 * heads[1] * head_dim * element_bytes
    n_columns = max(-(-length // BLOCK_TOKENS) for length in kv_lens)
    used = len(kv_lens) * n_columns
    n_blocks = used
    if device.type == "cuda":
        n_blocks = max(used, math.ceil(COLD_BYTES / (token_bytes * BLOCK_TOKENS)))
    k, v, _ = cache([n_blocks * BLOCK_TOKENS], heads[1], head_dim, BF16, device)
    tables = [
        torch.randperm(n_blocks, device=device)[:used].view(len(kv_lens), n_columns).int()
        for _ in range(N_VARIANTS if n_blocks * token_bytes * BLOCK_TOKENS < 4 * COLD_BYTES else 1)
    ]
    q = torch.randn(len(kv_lens), heads[0], head_dim, device=device, dtype=BF16)
    out = torch.empty_like(q)
    shape: dict[str, Any] = {"n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": head_dim, "device": device}
    plan = plan_decode(kv_lens, window=window, **shape)
    if bits < 16:
        quantised = [x for one in (k, v) for x in quantise(ops, one, bits)]

    def launch(i: int) -> Tensor:
        table = tables[i % len(tables)]
        answer: Tensor
        if bits < 16:
            answer = ops.quant_decode_attention(q, *quantised, table, plan, bits=bits, out=out, check_ids=False)
        else:
            answer = ops.decode_attention(q, k, v, table, plan, out=out, check_ids=False)
        return answer

    time_us, how = measure_us(launch, device)

    def rivals() -> dict[str, float]:
        launch(0)
        rows = (x[tables[0].long()].flatten(1, 2)[:, : kv_lens[0]] for x in (k, v))
        flat = [q[:, :, None], *(x.transpose(1, 2).contiguous() for x in rows)]
        return rivals_us(flat[0], flat[1], flat[2], out[:, :, None], device, False)

    n_bytes = plan.visible_tokens() * token_bytes
    lens = f"{len(kv_lens)} x {kv_lens[0]}" if len(set(kv_lens)) == 1 else f"{len(kv_lens)} ragged"
    case = f"{label}{lens}, {heads[0]}/{heads[1]} d{head_dim}, {n_bytes / 1e6:.1f} MB"
    if window:
        case += f", window {window}"
    kernel = "decode_attention" if bits == 16 else f"quant_decode_attention {bits} bits"
    remark = f"{len(plan.work)} pieces" if plan.is_split else "not split"
    return Speed(
        kernel, case, time_us, n_bytes / time_us / 1e6, "TB/s", must, how, rivals if has_rivals else None, remark
    )


def append_speed(ops: Any, device: torch.device, n_tokens: int, must: float | None) -> Speed:
    """New tokens' rows into random slots; bytes read and written."""
    n_slots = max(N_VARIANTS * n_tokens, COLD_BYTES // (8 * 128 * 2) if device.type == "cuda" else 0)
    k, v, _ = cache([n_slots], 8, 128, BF16, device)
    slots = torch.randperm(n_slots, device=device)[: N_VARIANTS * n_tokens].view(N_VARIANTS, n_tokens)
    new = torch.randn(N_VARIANTS, 2, n_tokens, 8, 128, device=device, dtype=BF16)

    def launch(i: int) -> None:
        ops.kv_append(new[i, 0], new[i, 1], k, v, slots[i], check_ids=False)

    time_us, how = measure_us(launch, device)
    n_bytes = 2 * 2 * n_tokens * 8 * 128 * 2
    return Speed("kv_append", f"{n_tokens} tokens, 8 x 128", time_us, n_bytes / time_us / 1e6, "TB/s", must, how)


def copy_speed(
    ops: Any, device: torch.device, n_blocks: int, must: float | None, *, row_tokens: int = BLOCK_TOKENS, host: str = ""
) -> Speed:
    """Random rows to random rows; bytes read and written on the device, or moved over the link."""
    source, target = (torch.ones(n_blocks, row_tokens, 8, 128, device=device, dtype=BF16) for _ in "st")
    if device.type == "cuda" and host:
        source, target = (
            x.cpu().pin_memory() if side == host else x for side, x in (("source", source), ("target", target))
        )
    from_rows, to_rows = (torch.randperm(n_blocks, device=device) for _ in "ft")
    time_us, how = measure_us(lambda _: ops.kv_copy(source, target, from_rows, to_rows, check_ids=False), device)
    n_bytes = (1 if host else 2) * n_blocks * row_tokens * 8 * 128 * 2
    case = f"{n_blocks} rows of {row_tokens} tokens" + (f", {host} in pinned memory" if host else "")
    return Speed("kv_copy", case, time_us, n_bytes / time_us / 1e6, "TB/s", must, how)


def quantise_speed(ops: Any, device: torch.device, n_tokens: int, bits: int) -> Speed:
    """A cache's keys into codes; bytes read and written."""
    k, _, _ = cache([n_tokens], 8, 128, BF16, device)
    codes, params = quantise(ops, k, bits)
    slots = torch.arange(n_tokens, device=device)
    rows = k[:-1].flatten(0, 1)[:n_tokens]
    time_us, how = measure_us(lambda _: ops.kv_quantise(rows, codes, params, slots, bits=bits, check_ids=False), device)
    n_bytes = n_tokens * 8 * (128 * (2 + bits / 8) + 4)
    return Speed(f"kv_quantise {bits} bits", f"{n_tokens} tokens", time_us, n_bytes / time_us / 1e6, "TB/s", None, how)


def norms_speed(ops: Any, device: torch.device, n_tokens: int) -> Speed:
    """Key norms of one long sequence; bytes of the keys."""
    k, _, table = cache([n_tokens], 8, 128, BF16, device)
    lens = torch.tensor([n_tokens], dtype=torch.int32, device=device)
    time_us, how = measure_us(lambda _: ops.key_norms(k, table, lens, check_ids=False), device)
    n_bytes = n_tokens * 8 * 128 * 2
    return Speed("key_norms", f"{n_tokens} tokens", time_us, n_bytes / time_us / 1e6, "TB/s", None, how)


def elementwise_speed(ops: Any, device: torch.device, kernel: str, n_tokens: int) -> Speed:
    """One elementwise kernel; bytes read and written."""
    if kernel == "rms_norm":
        x, residual, out = (torch.randn(n_tokens, 4096, device=device, dtype=BF16) for _ in "xro")
        weight = torch.randn(4096, device=device, dtype=BF16)
        n_bytes = 4 * x.nbytes
        time_us, how = measure_us(lambda _: ops.rms_norm(x, weight, residual=residual, out=out), device)
    elif kernel == "rope":
        qkv = torch.randn(n_tokens, 48, 128, device=device, dtype=BF16)
        positions = torch.arange(n_tokens, device=device)
        table = cos_sin_table(n_tokens, 128, device=device)
        q, k = qkv[:, :32], qkv[:, 32:40]
        n_bytes = 2 * n_tokens * 40 * 128 * 2
        time_us, how = measure_us(lambda _: ops.rope(q, k, positions, table, check_ids=False), device)
    else:
        gate_up = torch.randn(n_tokens, 2 * 14336, device=device, dtype=BF16)
        out = torch.empty(n_tokens, 14336, device=device, dtype=BF16)
        n_bytes = gate_up.nbytes + out.nbytes
        time_us, how = measure_us(lambda _: ops.silu_mul(gate_up, out=out), device)
    return Speed(kernel, f"{n_tokens} tokens", time_us, n_bytes / time_us / 1e6, "TB/s", None, how)


def dense_speed(device: torch.device, name: str, n_tokens: int, n_out: int, n_in: int) -> Speed:
    """One product of a layer through cuBLAS."""
    x = torch.randn(n_tokens, n_in, device=device, dtype=BF16)
    weight = torch.randn(n_out, n_in, device=device, dtype=BF16)
    time_us, how = measure_us(lambda _: dense(x, weight), device)
    flops = 2 * n_tokens * n_out * n_in
    return Speed(
        f"dense {name}", f"{n_tokens} x {n_out} x {n_in}", time_us, flops / time_us / 1e6, "TFLOP/s", None, how
    )


def jobs(ops: Any, device: torch.device, *, is_tiny: bool) -> Iterator[Callable[[], Speed]]:
    """Every timing, the most telling first."""
    few = (8, 2) if is_tiny else (32, 8)
    n = 64 if is_tiny else 1  # sizes are divided by this
    yield partial(copy_ceiling, device, (1 << 30) // n**2)
    yield partial(matmul_ceiling, device, 8192 // n)
    for length, must in ((8192, PREFILL_MUST), (16384, PREFILL_MUST), (4096, None), (1024, None)):
        yield partial(prefill_speed, ops, device, length // n, 0, few, 128, must)
    yield partial(decode_speed, ops, device, [8192 // n] * (128 // n), few, 128, LARGE_DECODE_MUST, has_rivals=True)
    yield partial(
        decode_speed, ops, device, [4096 // n] * (64 // min(n, 16)), few, 128, LARGE_DECODE_MUST, has_rivals=True
    )
    yield partial(decode_speed, ops, device, [1024 // n] * (72 // min(n, 16)), few, 128, DECODE_MUST, has_rivals=True)
    yield partial(decode_speed, ops, device, [1024 // n] * (32 // min(n, 16)), few, 128, DECODE_MUST, has_rivals=True)
    yield partial(
        decode_speed, ops, device, [BLOCK_TOKENS + 1], few, 128, FLOOR_MUST_US, label="floor, ", has_rivals=True
    )
    yield partial(append_speed, ops, device, 8192 // n, APPEND_MUST)
    yield partial(copy_speed, ops, device, 8192 // n, COPY_MUST)
    yield partial(decode_speed, ops, device, [1024 // n] * (16 // min(n, 8)), few, 128, None, has_rivals=True)
    yield partial(decode_speed, ops, device, [131072 // n], few, 128, None, has_rivals=True)
    ragged = [131072 // n, *([512 // min(n, 16), 2048 // n, 700 // min(n, 16), 9000 // n] * (16 // min(n, 16)))]
    yield partial(decode_speed, ops, device, ragged, few, 128, None)
    for bits in (8, 4):
        yield partial(decode_speed, ops, device, [4096 // n] * (64 // min(n, 16)), few, 128, None, bits=bits)
    yield partial(prefill_speed, ops, device, 2048 // n, 30720 // n, few, 128, None)
    yield partial(prefill_speed, ops, device, 16384 // n, 0, few, 128, None, window=4096 // n)
    yield partial(prefill_speed, ops, device, 32768 // n, 0, few, 128, None, window=4096 // n)
    yield partial(decode_speed, ops, device, [32768 // n] * (64 // min(n, 16)), few, 128, None, window=4096 // n)
    for head_dim in (64, 96, 256):
        yield partial(prefill_speed, ops, device, 8192 // n, 0, few, head_dim, None)
        yield partial(decode_speed, ops, device, [4096 // n] * (64 // min(n, 16)), few, head_dim, None, has_rivals=True)
    for heads in ((2, 2), (8, 1)) if is_tiny else ((32, 32), (64, 8)):
        yield partial(prefill_speed, ops, device, 8192 // n, 0, heads, 128, None)
        yield partial(decode_speed, ops, device, [4096 // n] * (32 // min(n, 16)), heads, 128, None, has_rivals=True)
    yield partial(append_speed, ops, device, 256 // min(n, 16), None)
    yield partial(copy_speed, ops, device, 65536 // n, None, row_tokens=1)
    for host in ("source", "target"):
        yield partial(copy_speed, ops, device, 4096 // n, None, host=host)
    for bits in (8, 4):
        yield partial(quantise_speed, ops, device, 131072 // n, bits)
    yield partial(norms_speed, ops, device, 262144 // n)
    for kernel in ("rms_norm", "rope", "silu_mul"):
        yield partial(elementwise_speed, ops, device, kernel, 32768 // (8 * n if is_tiny else 1))
    for name, n_out, n_in in (("qkv", 6144, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336)):
        yield partial(dense_speed, device, name, 8192 // n, n_out // n, n_in // n)

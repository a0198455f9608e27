"""Every kernel and dtype against the float64 reference, at the sizes engines run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels.angles import cos_sin_table
from kernels.decode_plan import plan_decode
from kernels.prefill_plan import plan_prefill
from kernels.timing import capturing

GATES = {torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}  # relative error, Frobenius norm
BLOCK_TOKENS = 16


class Check(NamedTuple):
    """One comparison; ``run`` returns the error and the most it may be."""

    kernel: str
    case: str
    run: Callable[[], tuple[float, float]]


def error(got: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth; NaN anywhere gives NaN."""
    return float((got.double() - truth.double()).norm() / truth.double().norm())


def is_equal(got: Tensor, want: Tensor) -> float:
    """0 if two tensors are equal bit for bit, else 1."""
    same = torch.equal(got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))
    return 0.0 if same else 1.0


def cache(
    kv_lens: list[int],
    n_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    n_columns: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random keys, values and a shuffled block table; a spare block is NaN and in no table."""
    n_columns = n_columns or max(-(-length // block_tokens) for length in kv_lens)
    n_blocks = len(kv_lens) * n_columns
    shape = (n_blocks + 1, block_tokens, n_kv_heads, head_dim)
    k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in "kv")
    k[n_blocks], v[n_blocks] = float("nan"), float("nan")
    table = torch.randperm(n_blocks, device=device).view(len(kv_lens), n_columns)
    return k, v, table.int()


def check_prefill(
    ops: Any,
    device: torch.device,
    dtype: torch.dtype,
    q_lens: list[int],
    kv_lens: list[int],
    heads: tuple[int, int],
    head_dim: int,
    *,
    ring_blocks: int | None = None,
    is_contiguous: bool = False,
    **span: Any,
) -> tuple[float, float]:
    """Error of prefill attention on one batch, and its gate."""
    block_tokens = max(kv_lens) if is_contiguous else BLOCK_TOKENS
    n_columns = -(-span.get("n_sinks", 0) // block_tokens) + ring_blocks if ring_blocks else None
    k, v, table = cache(kv_lens, heads[1], head_dim, dtype, device, n_columns=n_columns, block_tokens=block_tokens)
    q = torch.randn(sum(q_lens), heads[0], head_dim, device=device, dtype=dtype)
    out = torch.full_like(q, float("nan"))
    plan = plan_prefill(
        q_lens, kv_lens, n_heads=heads[0], n_kv_heads=heads[1], head_dim=head_dim, device=device, **span
    )
    ops.prefill_attention(q, k, v, table, plan, ring_blocks=ring_blocks, out=out)
    truth = reference.prefill_attention(q, k, v, table, plan, ring_blocks=ring_blocks)
    return error(out, truth), GATES[dtype]


def check_decode(
    ops: Any,
    device: torch.device,
    dtype: torch.dtype,
    kv_lens: list[int],
    heads: tuple[int, int],
    head_dim: int,
    *,
    bits: int = 16,
    ring_blocks: int | None = None,
    is_contiguous: bool = False,
    is_fixed_grid: bool = False,
    **span: Any,
) -> tuple[float, float]:
    """Error of decode attention (over codes when ``bits`` is 8 or 4) on one batch, and its gate."""
    block_tokens = max(kv_lens) if is_contiguous else BLOCK_TOKENS
    n_columns = -(-span.get("n_sinks", 0) // block_tokens) + ring_blocks if ring_blocks else None
    k, v, table = cache(kv_lens, heads[1], head_dim, dtype, device, n_columns=n_columns, block_tokens=block_tokens)
    q = torch.randn(len(kv_lens), heads[0], head_dim, device=device, dtype=dtype)
    out = torch.full_like(q, float("nan"))
    shape: dict[str, Any] = {"n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": head_dim, "device": device}
    plan = plan_decode(kv_lens, is_fixed_grid=is_fixed_grid, **shape, **span)
    if bits == 16:
        ops.decode_attention(q, k, v, table, plan, ring_blocks=ring_blocks, out=out)
        truth = reference.decode_attention(q, k, v, table, plan, ring_blocks=ring_blocks)
        return error(out, truth), GATES[dtype]
    quantised = (*quantise(reference, k, bits), *quantise(reference, v, bits))
    ops.quant_decode_attention(q, *quantised, table, plan, bits=bits, ring_blocks=ring_blocks, out=out)
    truth = reference.quant_decode_attention(q, *quantised, table, plan, bits=bits, ring_blocks=ring_blocks)
    return error(out, truth), GATES[dtype]


def quantise(ops: Any, one: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and params of a whole cache, but for its last block."""
    codes = torch.zeros(*one.shape[:3], one.shape[3] * bits // 8, dtype=torch.uint8, device=one.device)
    params = torch.zeros(*one.shape[:3], 2, dtype=torch.float16, device=one.device)
    slots = torch.arange((len(one) - 1) * one.shape[1], device=one.device)
    ops.kv_quantise(one[:-1].flatten(0, 1), codes, params, slots, bits=bits)
    return codes, params


def check_quantise(ops: Any, device: torch.device, dtype: torch.dtype, n_tokens: int, bits: int) -> tuple[float, float]:
    """Most levels that a code differs by from the reference: one at most, where division rounds otherwise."""
    k, _, _ = cache([n_tokens], 8, 128, dtype, device)
    (codes, params), (want, want_params) = quantise(ops, k, bits), quantise(reference, k, bits)
    if bits == 4:
        codes, want = (torch.cat([x & 15, x >> 4], -1) for x in (codes, want))
    off = (codes.int() - want.int()).abs().max().item()
    return off + error(params[:-1], want_params[:-1]) * 1e2, 1.5


def check_append(ops: Any, device: torch.device, dtype: torch.dtype, n_tokens: int) -> tuple[float, float]:
    """0 if every cached bit is as the reference leaves it."""
    k, v, _ = cache([2 * n_tokens], 8, 128, dtype, device)
    want = [k.clone(), v.clone()]
    new_k, new_v = (torch.randn(n_tokens, 8, 128, device=device, dtype=dtype) for _ in "kv")
    slots = torch.randperm(2 * n_tokens, device=device)[:n_tokens]
    slots[::7] = -1
    ops.kv_append(new_k, new_v, k, v, slots)
    reference.kv_append(new_k, new_v, want[0], want[1], slots)
    return max(is_equal(k, want[0]), is_equal(v, want[1])), 0.0


def check_copy(ops: Any, device: torch.device, n_blocks: int, *, host: str = "") -> tuple[float, float]:
    """0 if every copied bit is as the reference leaves it; ``host`` names the side in pinned memory."""
    source = torch.randn(n_blocks, BLOCK_TOKENS, 8, 128, device=device, dtype=torch.bfloat16)
    target = torch.zeros_like(source)
    want = target.clone()
    if device.type == "cuda" and host == "source":
        source = source.cpu().pin_memory()
    if device.type == "cuda" and host == "target":
        target = target.cpu().pin_memory()
    from_rows, to_rows = (torch.randperm(n_blocks, device=device)[: n_blocks // 2] for _ in "ft")
    ops.kv_copy(source, target, from_rows, to_rows)
    if device.type == "cuda":
        torch.cuda.synchronize()
    reference.kv_copy(source.to(device), want, from_rows, to_rows)
    return is_equal(target.to(device), want), 0.0


def check_importance(ops: Any, device: torch.device, dtype: torch.dtype, kv_lens: list[int]) -> tuple[float, float]:
    """Error of the key norms; 1 more if compaction moved a wrong bit."""
    k, _, table = cache(kv_lens, 8, 128, dtype, device)
    lens = torch.tensor(kv_lens, dtype=torch.int32, device=device)
    norms, want = ops.key_norms(k, table, lens), reference.key_norms(k, table, lens)
    n_keep = min(kv_lens) // 2
    kept = want.topk(n_keep, dim=1, largest=False).indices.sort(dim=1).values
    moved = k.clone()
    ops.compact(k, table, kept)
    reference.compact(moved, table, kept)
    finite = want.isfinite()
    infinite = 0.0 if torch.equal(finite, norms.isfinite()) else 1.0
    return error(norms[finite], want[finite]) + infinite + is_equal(k, moved), 1e-5


def check_elementwise(
    ops: Any, device: torch.device, dtype: torch.dtype, kernel: str, n_tokens: int
) -> tuple[float, float]:
    """Error of one elementwise kernel, and its gate."""
    if kernel == "rms_norm":
        x, residual = (torch.randn(n_tokens, 4096, device=device, dtype=dtype) for _ in "xr")
        weight = torch.randn(4096, device=device, dtype=dtype)
        kept = residual.clone()
        out = ops.rms_norm(x, weight, residual=residual, out=torch.empty_like(x))
        truth = reference.rms_norm(x, weight, residual=kept)
        return max(error(out, truth), error(residual, kept)), GATES[dtype]
    if kernel == "rope":
        qkv = torch.randn(n_tokens, 48, 128, device=device, dtype=dtype)
        want = qkv.double()
        positions = torch.randint(0, 1000, (n_tokens,), device=device)
        table = cos_sin_table(1000, 128, device=device)
        ops.rope(qkv[:, :32], qkv[:, 32:40], positions, table)
        reference.rope(want[:, :32], want[:, 32:40], positions, table)
        return error(qkv, want), GATES[dtype]
    gate_up = torch.randn(n_tokens, 2 * 14336, device=device, dtype=dtype)
    out = ops.silu_mul(gate_up, out=torch.empty(n_tokens, 14336, device=device, dtype=dtype))
    return error(out, reference.silu_mul(gate_up)), GATES[dtype]


def check_graph(ops: Any, device: torch.device) -> tuple[float, float]:
    """Error of a decode launch captured for some lengths and replayed, after a refill, for others."""
    k, v, table = cache([9000, 700, 3], 8, 128, torch.bfloat16, device)
    q = torch.randn(3, 32, 128, device=device, dtype=torch.bfloat16)
    out = torch.full_like(q, float("nan"))
    plan = plan_decode([5, 5, 5], n_heads=32, n_kv_heads=8, head_dim=128, device=device, is_fixed_grid=True)

    def launch() -> None:
        ops.decode_attention(q, k, v, table, plan, out=out, check_ids=False)

    launch()
    if device.type == "cuda":
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with capturing(graph):
            launch()
        plan.refill([9000, 700, 3])
        graph.replay()
        torch.cuda.synchronize()
    else:
        plan.refill([9000, 700, 3])
        launch()
    return error(out, reference.decode_attention(q, k, v, table, plan)), GATES[torch.bfloat16]


def checks(ops: Any, device: torch.device, *, is_tiny: bool) -> Iterator[Check]:
    """Every comparison, in order; tiny sizes where there is no GPU."""
    n = 256 if is_tiny else 1  # sizes are divided by this
    q_lens, kv_lens = [3000 // n, 1, 777 // n, 16], [3000 // n, 5000 // n + 1, 9000 // n, 40]
    decode_lens = [1, 17, 0, 5000 // n, 33_000 // n, 2048 // n]
    many = [1000 // n] * (8 if is_tiny else 64)  # so many that none is split
    dtypes = (torch.bfloat16, torch.float16)
    window = {"window": 1024 // n, "n_sinks": 4}

    def prefill(case: str, dtype: torch.dtype, heads: tuple[int, int], head_dim: int, **more: Any) -> Check:
        name = f"{case} {heads[0]}/{heads[1]} d{head_dim} {str(dtype).removeprefix('torch.')}"
        return Check(
            "prefill_attention",
            name,
            partial(check_prefill, ops, device, dtype, q_lens, kv_lens, heads, head_dim, **more),
        )

    def decode(case: str, dtype: torch.dtype, heads: tuple[int, int], head_dim: int, **more: Any) -> Check:
        kernel = "decode_attention" if more.get("bits", 16) == 16 else "quant_decode_attention"
        name = f"{case} {heads[0]}/{heads[1]} d{head_dim} {str(dtype).removeprefix('torch.')}"
        lens = more.pop("kv_lens", decode_lens)
        return Check(kernel, name, partial(check_decode, ops, device, dtype, lens, heads, head_dim, **more))

    few = (8, 2) if is_tiny else (32, 8)
    ring = {"window": 512 // n, "n_sinks": 4}
    for dtype in dtypes:
        for head_dim in (64, 96, 128, 256):
            yield prefill("causal", dtype, few, head_dim)
            yield prefill("window+sinks", dtype, few, head_dim, **window)
            yield decode("paged", dtype, few, head_dim)
            yield decode("window+sinks", dtype, few, head_dim, **window)
    bf16 = torch.bfloat16
    for heads in ((2, 2), (8, 1), (7, 1)) if is_tiny else ((32, 32), (64, 8), (32, 1), (28, 4)):
        yield prefill("causal", bf16, heads, 128)
        yield decode("paged", bf16, heads, 128)
    ring_blocks = (3000 // n + 512 // n) // BLOCK_TOKENS + 2
    yield prefill("contiguous", bf16, few, 128, is_contiguous=True)
    yield prefill("ring", bf16, few, 128, ring_blocks=ring_blocks, **ring)
    yield decode("contiguous", bf16, few, 128, is_contiguous=True)
    yield decode("ring", bf16, few, 128, ring_blocks=512 // n // BLOCK_TOKENS + 2, **ring)
    yield decode("fixed grid", bf16, few, 128, is_fixed_grid=True)
    for dtype in dtypes:
        yield decode("whole", dtype, few, 128, kv_lens=many)
    if not is_tiny:
        yield Check("decode_attention", "captured, refilled, replayed", partial(check_graph, ops, device))
    for bits in (8, 4):
        for dtype in dtypes:
            yield decode(f"{bits} bits", dtype, few, 128, bits=bits)
        yield decode(f"{bits} bits", bf16, few, 64, bits=bits)
        yield decode(f"{bits} bits", bf16, few, 256, bits=bits)
        yield decode(f"{bits} bits window", bf16, few, 128, bits=bits, **window)
        yield decode(f"{bits} bits whole", bf16, few, 128, bits=bits, kv_lens=many)
        yield Check("kv_quantise", f"{bits} bits", partial(check_quantise, ops, device, bf16, 8192 // n, bits))
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        yield Check("kv_append", kind, partial(check_append, ops, device, dtype, 8192 // n))
        yield Check(
            "kv_importance",
            kind,
            partial(check_importance, ops, device, dtype, [9000 // n, 5000 // n, 640 // n]),
        )
        for kernel in ("rms_norm", "rope", "silu_mul"):
            yield Check(
                kernel,
                kind,
                partial(check_elementwise, ops, device, dtype, kernel, 1024 // n),
            )
    for host in ("", "source", "target"):
        case = f"pinned {host}" if host else "on the device"
        yield Check("kv_copy", case, partial(check_copy, ops, device, 4096 // n, host=host))

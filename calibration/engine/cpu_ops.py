"""The kernels' operations in plain torch, fast enough to serve with on a CPU; names and arguments are the launchers'.

`kernels.reference` is the truth, in float64 and one head at a time; these gather whole batches and leave the arithmetic
to torch's own attention, in the dtype of the model. Tests hold the two equal.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from kernels.decode_plan import DecodePlan
from kernels.prefill_plan import PrefillPlan
from kernels.reference import compact, key_norms, kv_append, kv_copy, kv_quantise, visible_keys

__all__ = [
    "compact", "decode_attention", "key_norms", "kv_append", "kv_copy", "kv_quantise", "prefill_attention", "rms_norm",
    "rope", "silu_mul",
]  # fmt: skip


def gathered(cache: Tensor, table: Tensor, positions: Tensor, n_sinks: int, ring_blocks: int | None) -> Tensor:
    """Rows of some positions of every sequence, shape (n_seqs, n_positions, n_kv_heads, head_dim)."""
    block_tokens = cache.shape[1]
    column = positions // block_tokens
    if ring_blocks is not None:
        sink_blocks = -(-n_sinks // block_tokens)
        column = torch.where(column < sink_blocks, column, sink_blocks + (column - sink_blocks) % ring_blocks)
    return cache[table.gather(1, column).long(), positions % block_tokens]


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    plan: DecodePlan,
    *,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,  # noqa: ARG001
) -> Tensor:
    """See ``kernels.decode_attention``: the batch is padded to the sequence that attends to most."""
    lens = plan.kv_lens_device.long()[:, None]
    n_visible = (
        lens if plan.window is None else (lens - plan.window).clamp(0, plan.n_sinks) + lens.clamp(max=plan.window)
    )
    index = torch.arange(max(1, int(n_visible.max())), device=q.device)
    positions = index.expand(len(lens), -1)
    if plan.window is not None:
        first = (lens - plan.window).clamp(min=0)
        n_before = first.clamp(max=plan.n_sinks)
        positions = torch.where(positions < n_before, positions, positions + first - n_before)
    is_seen = index < n_visible
    positions = positions.where(is_seen, 0)
    k, v = (gathered(x, block_table, positions, plan.n_sinks, ring_blocks) for x in (k_cache, v_cache))
    grouped = q.view(len(q), plan.n_kv_heads, -1, plan.head_dim)
    answer = scaled_dot_product_attention(
        grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=is_seen[:, None, None, :]
    ).reshape(q.shape)
    return answer if out is None else out.copy_(answer)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    plan: PrefillPlan,
    *,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,  # noqa: ARG001
) -> Tensor:
    """See ``kernels.prefill_attention``: one chunk after the other."""
    out = torch.empty_like(q) if out is None else out
    start = 0
    for seq, (n_new, length) in enumerate(zip(plan.q_lens, plan.kv_lens, strict=True)):
        keys = visible_keys(length - n_new, length, plan.window, plan.n_sinks).to(q.device)
        table = block_table[seq : seq + 1]
        k, v = (gathered(x, table, keys[None], plan.n_sinks, ring_blocks)[0] for x in (k_cache, v_cache))
        at = torch.arange(length - n_new, length, device=q.device)[:, None]
        is_seen = keys <= at
        if plan.window is not None:
            is_seen &= (keys > at - plan.window) | (keys < plan.n_sinks)
        one = q[start : start + n_new].transpose(0, 1).unflatten(0, (plan.n_kv_heads, -1))
        k, v = (x.transpose(0, 1)[:, None].expand(-1, one.shape[1], -1, -1) for x in (k, v))
        answer = scaled_dot_product_attention(one, k, v, attn_mask=is_seen)
        out[start : start + n_new] = answer.flatten(0, 1).transpose(0, 1)
        start += n_new
    return out


def rms_norm(x: Tensor, weight: Tensor, *, residual: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """See ``kernels.rms_norm``; updates ``residual`` in place."""
    if residual is not None:
        x = residual.add_(x)
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def rope(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, check_ids: bool = True) -> None:  # noqa: ARG001
    """See ``kernels.rope``; rotates q and k in place."""
    cos, sin = cos_sin[positions][:, None].to(q.dtype).chunk(2, dim=-1)
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        x.copy_(turned)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ``kernels.silu_mul``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up

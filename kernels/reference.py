"""The truth in plain torch, float64 inside: what every kernel is checked against.

Functions carry the launchers' names and arguments, so that either can stand in for the other. They are written to be
obviously right, one sequence at a time, and run on any device.
"""

import torch
from torch import Tensor

from kernels.decode_plan import DecodePlan
from kernels.prefill_plan import PrefillPlan

QUERY_CHUNK = 512  # queries whose scores are held at once


def visible_keys(first_pos: int, kv_len: int, window: int | None, n_sinks: int) -> Tensor:
    """Positions that queries from ``first_pos`` on attend to, in order: sinks, then the window's reach."""
    first = 0 if window is None else max(0, first_pos - window + 1)
    return torch.cat([torch.arange(min(n_sinks, first)), torch.arange(first, kv_len)])


def rows_of(cache: Tensor, table_row: Tensor, positions: Tensor, n_sinks: int, ring_blocks: int | None) -> Tensor:
    """Cached rows of some positions of one sequence, shape (n_positions, n_kv_heads, head_dim)."""
    block_tokens = cache.shape[1]
    column = positions // block_tokens
    if ring_blocks is not None:
        sink_blocks = -(-n_sinks // block_tokens)
        wrapped = sink_blocks + (column - sink_blocks) % ring_blocks
        column = torch.where(column < sink_blocks, column, wrapped)
    positions, column = positions.to(cache.device), column.to(cache.device)
    return cache[table_row[column].long(), positions % block_tokens]


def attention(
    q: Tensor, k: Tensor, v: Tensor, key_pos: Tensor, first_pos: int, scale: float, window: int | None, n_sinks: int
) -> Tensor:
    """Causal attention of one sequence in float64.

    Parameters
    ----------
    q : Tensor, shape (n_queries, n_heads, head_dim)
        Query ``i`` stands at position ``first_pos + i``.
    k, v : Tensor, shape (n_keys, n_kv_heads, head_dim)
    key_pos : Tensor, shape (n_keys,)
        Positions of the keys.

    Returns
    -------
    Tensor, shape (n_queries, n_heads, head_dim), float64; zeros where a query sees no key
    """
    n_queries, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    out = torch.zeros(n_queries, n_heads, head_dim, dtype=torch.float64, device=q.device)
    key_pos = key_pos.to(q.device)
    for start in range(0, n_queries, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, n_queries)
        q_pos = torch.arange(first_pos + start, first_pos + stop, device=q.device)[:, None]
        is_seen = key_pos <= q_pos
        if window is not None:
            is_seen &= (key_pos > q_pos - window) | (key_pos < n_sinks)
        for head in range(n_heads):
            scores = q[start:stop, head].double() @ k[:, head // group].double().T * scale
            weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1).nan_to_num(0.0)
            out[start:stop, head] = weights @ v[:, head // group].double()
    return out


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    plan: PrefillPlan,
    *,
    scale: float | None = None,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,  # noqa: ARG001
) -> Tensor:
    """See ``kernels.prefill_attention``; float64 unless ``out`` says otherwise."""
    scale = plan.head_dim**-0.5 if scale is None else scale
    pieces = []
    start = 0
    for seq, (n_new, kv_len) in enumerate(zip(plan.q_lens, plan.kv_lens, strict=True)):
        context = kv_len - n_new
        positions = visible_keys(context, kv_len, plan.window, plan.n_sinks)
        k, v = (rows_of(c, block_table[seq], positions, plan.n_sinks, ring_blocks) for c in (k_cache, v_cache))
        one = q[start : start + n_new]
        pieces.append(attention(one, k, v, positions, context, scale, plan.window, plan.n_sinks))
        start += n_new
    truth = torch.cat(pieces) if pieces else torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    return truth if out is None else out.copy_(truth)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    plan: DecodePlan,
    *,
    scale: float | None = None,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,  # noqa: ARG001
) -> Tensor:
    """See ``kernels.decode_attention``; float64 unless ``out`` says otherwise."""
    scale = plan.head_dim**-0.5 if scale is None else scale
    truth = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for seq, kv_len in enumerate(plan.kv_lens):
        positions = visible_keys(kv_len - 1, kv_len, plan.window, plan.n_sinks)
        k, v = (rows_of(c, block_table[seq], positions, plan.n_sinks, ring_blocks) for c in (k_cache, v_cache))
        truth[seq] = attention(q[seq : seq + 1], k, v, positions, kv_len - 1, scale, plan.window, plan.n_sinks)[0]
    return truth if out is None else out.copy_(truth)


def dequantised(codes: Tensor, params: Tensor, bits: int) -> Tensor:
    """Values that quantised rows stand for, float64, shape (..., head_dim).

    ``codes`` (..., head_dim * bits / 8) uint8; with 4 bits byte ``j`` holds channel ``j`` in its low nibble and
    channel ``j + head_dim / 2`` in its high one. ``params`` (..., 2): scale and lowest value of each row.
    """
    levels = codes if bits == 8 else torch.cat([codes & 15, codes >> 4], dim=-1)
    return levels.double() * params[..., :1].double() + params[..., 1:].double()


def kv_quantise(
    x: Tensor,
    codes: Tensor,
    params: Tensor,
    slots: Tensor,
    *,
    bits: int,
    from_slots: Tensor | None = None,
    check_ids: bool = True,  # noqa: ARG001
) -> None:
    """See ``kernels.kv_quant.kv_quantise``."""
    is_row = slots >= 0
    values = (x if from_slots is None else x[from_slots.clamp(min=0)])[is_row].float()
    low = values.amin(-1, keepdim=True).to(params.dtype)
    step = ((values.amax(-1, keepdim=True) - low.float()) / (2**bits - 1)).to(params.dtype)
    divisor = torch.where(step == 0, torch.ones_like(step), step).float()
    levels = ((values - low.float()) / divisor + 0.5).floor().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        half = levels.shape[-1] // 2
        levels = levels[..., :half] | (levels[..., half:] << 4)
    codes.flatten(0, 1)[slots[is_row]] = levels
    params.flatten(0, 1)[slots[is_row]] = torch.cat([step, low], -1)


def quant_decode_attention(
    q: Tensor,
    k_codes: Tensor,
    k_params: Tensor,
    v_codes: Tensor,
    v_params: Tensor,
    block_table: Tensor,
    plan: DecodePlan,
    *,
    bits: int,
    scale: float | None = None,
    ring_blocks: int | None = None,
    out: Tensor | None = None,
    check_ids: bool = True,  # noqa: ARG001
) -> Tensor:
    """See ``kernels.kv_quant_decode.quant_decode_attention``; float64 unless ``out`` says otherwise."""
    k, v = dequantised(k_codes, k_params, bits), dequantised(v_codes, v_params, bits)
    return decode_attention(q, k, v, block_table, plan, scale=scale, ring_blocks=ring_blocks, out=out)


def kv_append(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    check_ids: bool = True,  # noqa: ARG001
) -> None:
    """See ``kernels.kv_append``."""
    is_row = slots >= 0
    block_tokens = k_cache.shape[1]
    at = slots[is_row].long()
    k_cache[at // block_tokens, at % block_tokens] = k[is_row]
    v_cache[at // block_tokens, at % block_tokens] = v[is_row]


def kv_copy(
    source: Tensor,
    target: Tensor,
    from_rows: Tensor,
    to_rows: Tensor,
    *,
    check_ids: bool = True,  # noqa: ARG001
) -> None:
    """See ``kernels.kv_copy``."""
    is_row = (from_rows >= 0) & (to_rows >= 0)
    picked = source[from_rows[is_row].to(source.device).long()]
    target[to_rows[is_row].to(target.device).long()] = picked.to(target.device)


def key_norms(
    k_cache: Tensor,
    block_table: Tensor,
    kv_lens: Tensor,
    *,
    check_ids: bool = True,  # noqa: ARG001
) -> Tensor:
    """See ``kernels.kv_importance.key_norms``."""
    n_slots = block_table.shape[1] * k_cache.shape[1]
    norms = torch.full((len(kv_lens), n_slots), float("inf"), dtype=torch.float32, device=k_cache.device)
    for seq, length in enumerate(kv_lens.tolist()):
        k = rows_of(k_cache, block_table[seq], torch.arange(length), 0, None)
        norms[seq, :length] = k.double().norm(dim=-1).mean(-1).float()
    return norms


def compact(
    cache: Tensor,
    block_table: Tensor,
    kept: Tensor,
    *,
    check_ids: bool = True,  # noqa: ARG001
) -> None:
    """See ``kernels.kv_importance.compact``."""
    for row, positions in zip(block_table, kept, strict=True):
        picked = rows_of(cache, row, positions[positions >= 0].cpu(), 0, None).clone()
        at = torch.arange(kept.shape[1], device=cache.device)[positions >= 0]
        cache[row[at // cache.shape[1]].long(), at % cache.shape[1]] = picked


def rms_norm(
    x: Tensor, weight: Tensor, *, residual: Tensor | None = None, eps: float = 1e-6, out: Tensor | None = None
) -> Tensor:
    """See ``kernels.rms_norm``; updates ``residual`` in place."""
    if residual is not None:
        residual.copy_(residual.double() + x.double())
        x = residual
    wide = x.double()
    truth = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    return truth if out is None else out.copy_(truth)


def rope(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    *,
    check_ids: bool = True,  # noqa: ARG001
) -> None:
    """See ``kernels.rope``; rotates q and k in place."""
    cos, sin = cos_sin.double()[positions.long()][:, None].chunk(2, dim=-1)
    for x in (q, k):
        first, second = x.double().chunk(2, dim=-1)
        x.copy_(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """See ``kernels.silu_mul``."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    truth = torch.nn.functional.silu(gate) * up
    return truth if out is None else out.copy_(truth)

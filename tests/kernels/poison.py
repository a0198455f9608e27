"""Tensors that tell on a kernel: guard zones around them, NaN wherever nothing may be read or left unwritten."""

import torch

from kernels import reference

GUARD = 64  # elements before and after
GUARD_VALUE = 7.0
NOWHERE = 1 << 30  # a block id that no cache has
GATES = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}  # relative error, Frobenius norm
DTYPES = tuple(GATES)


class Guarded:
    """A NaN-filled tensor inside a larger one; ``is_intact`` says whether its surroundings were left alone."""

    def __init__(self, shape, dtype, fill=float("nan")):
        n = int(torch.Size(shape).numel())
        self.whole = torch.full((n + 2 * GUARD,), GUARD_VALUE).to(dtype)
        self.tensor = self.whole[GUARD : GUARD + n].view(shape)
        self.tensor.fill_(fill)

    def is_intact(self):
        return bool((self.whole[:GUARD] == GUARD_VALUE).all() and (self.whole[-GUARD:] == GUARD_VALUE).all())


def relative_error(got, truth):
    """Frobenius norm of the difference over that of the truth; infinite if anything is NaN."""
    error = ((got.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def bits(tensor):
    """A tensor's bits, so that NaNs compare equal."""
    return tensor.contiguous().view(torch.uint8)


def filled_cache(
    kv_lens, first_pos, *, n_kv_heads, head_dim, dtype, block_tokens=16, window=None, n_sinks=0, ring_blocks=None
):
    """Keys, values and a block table where everything that no query may see is NaN or points nowhere.

    ``first_pos`` is the position of each sequence's first query.
    """
    n_seqs = len(kv_lens)
    sink_blocks = -(-n_sinks // block_tokens)
    widest = max(max(-(-length // block_tokens) for length in kv_lens), 1)
    n_columns = widest + 1 if ring_blocks is None else sink_blocks + ring_blocks
    n_blocks = n_seqs * n_columns + 3
    k, v = (Guarded((n_blocks, block_tokens, n_kv_heads, head_dim), dtype) for _ in "kv")
    table = torch.full((n_seqs, n_columns), NOWHERE, dtype=torch.int32)
    free = torch.randperm(n_blocks).tolist()
    for seq, (length, first) in enumerate(zip(kv_lens, first_pos, strict=True)):
        positions = reference.visible_keys(first, length, window, n_sinks)
        column = positions // block_tokens
        if ring_blocks is not None:
            wrapped = sink_blocks + (column - sink_blocks) % ring_blocks
            column = torch.where(column < sink_blocks, column, wrapped)
        for used in column.unique().tolist():
            table[seq, used] = free.pop()
        block = table[seq, column].long()
        for cache in (k, v):
            cache.tensor[block, positions % block_tokens] = torch.randn(len(positions), n_kv_heads, head_dim).to(dtype)
    return k, v, table

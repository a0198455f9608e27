"""The kernels as one object, or the reference in their place, so that a run can be rehearsed without a GPU."""

from types import ModuleType, SimpleNamespace

import torch

from kernels import reference
from kernels.checks import IS_INTERPRETED


def operations(device: torch.device) -> SimpleNamespace | ModuleType:
    """The launchers by name; on a CPU without the interpreter, the reference's functions of the same names."""
    if device.type != "cuda" and not IS_INTERPRETED:
        return reference
    from kernels.decode_attention import decode_attention
    from kernels.kv_append import kv_append
    from kernels.kv_copy import kv_copy
    from kernels.kv_importance import compact, key_norms
    from kernels.kv_quant import kv_quantise
    from kernels.kv_quant_decode import quant_decode_attention
    from kernels.prefill_attention import prefill_attention
    from kernels.rms_norm import rms_norm
    from kernels.rope import rope
    from kernels.silu_mul import silu_mul

    return SimpleNamespace(
        decode_attention=decode_attention,
        kv_append=kv_append,
        kv_copy=kv_copy,
        compact=compact,
        key_norms=key_norms,
        kv_quantise=kv_quantise,
        quant_decode_attention=quant_decode_attention,
        prefill_attention=prefill_attention,
        rms_norm=rms_norm,
        rope=rope,
        silu_mul=silu_mul,
    )

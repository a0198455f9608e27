"""Compile kernels for GPUs that are not here, and print what the compiler made of them, one JSON line a kernel.

Run as a script with TRITON_INTERPRET unset: under the interpreter the decorator yields nothing compilable.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiled(kernel, sm, args, n_warps, n_stages):
    """What one kernel became: shared bytes, registers, spills, wgmma and cp.async instructions.

    ``args`` maps each parameter to ``"*bf16"``, ``"i32"``, ``"i32:16"`` (divisible by 16), ``"fp32"`` or, for a
    constexpr, its value. Pointers count as divisible by 16.
    """
    names = list(kernel.arg_names)
    missing = set(names) ^ set(args)
    if missing:
        raise SystemExit(f"{kernel.fn.__name__}: arguments differ: {sorted(missing)}")
    is_typed = {n: isinstance(args[n], str) for n in names}
    signature = {n: args[n].removesuffix(":16") if is_typed[n] else "constexpr" for n in names}
    constants = {(i,): args[n] for i, n in enumerate(names) if not is_typed[n]}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if is_typed[n] and (args[n].startswith("*") or args[n].endswith(":16"))
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": n_warps, "num_stages": n_stages}
    binary = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {
        "sm": sm,
        "shared_bytes": binary.metadata.shared,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled_bytes": int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        "wgmma": binary.asm["ptx"].count("wgmma.mma_async"),
        "mma": binary.asm["ptx"].count("mma.sync"),
        "cp_async": len(re.findall(r"cp\.async\.c[ag]", binary.asm["ptx"])),
        "wide_loads": len(re.findall(r"ld\.global\.[\w.:]*v[24]", binary.asm["ptx"])),
    }


SPAN = ["scale_log2", "window", "n_sinks", "sink_blocks", "ring_blocks"]
CACHE_STRIDES = [f"{x}_stride_{y}" for x in "kv" for y in ("block", "token", "head")]


def attention(tiles, head_dim, block_tokens, span, seq_or_token):
    """Arguments that prefill and decode share; ``span`` is "causal", "window" or "ring"."""
    return {
        **dict.fromkeys(["kv_lens_ptr", "table_ptr"], "*i32"),
        **dict.fromkeys(SPAN, "i32"),
        "scale_log2": "fp32",
        **dict.fromkeys([f"{x}_stride_{y}" for x in ("q", "out") for y in (seq_or_token, "head")], "i32:16"),
        "table_stride": "i32:16",
        "N_KV_HEADS": 8,
        "GROUP": 4,
        "BLOCK_TOKENS": block_tokens,
        "D": head_dim,
        "D_PAD": 1 << (head_dim - 1).bit_length(),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "PAGED": block_tokens > 1,
        "WINDOWED": span != "causal",
        "RING": span == "ring",
        "UPCAST": False,
    }


def prefill(sm, head_dim, block_tokens=16, span="causal", dtype="bf16"):
    from kernels.configs import PREFILL
    from kernels.prefill_attention import prefill_kernel

    tiles = PREFILL[f"sm_{sm}", 1 << (head_dim - 1).bit_length()]
    args = attention(tiles, head_dim, block_tokens, span, "token")
    args |= dict.fromkeys(["q_ptr", "k_ptr", "v_ptr", "out_ptr"], f"*{dtype}")
    args |= dict.fromkeys(["work_ptr", "q_starts_ptr"], "*i32") | dict.fromkeys(CACHE_STRIDES, "i32:16")
    return compiled(prefill_kernel, sm, args, tiles.n_warps, tiles.n_stages)


def decode(sm, head_dim, block_tokens=16, span="causal", dtype="bf16", is_split=True):
    from kernels.configs import DECODE
    from kernels.decode_attention import decode_kernel

    tiles = DECODE[f"sm_{sm}", 1 << (head_dim - 1).bit_length()]
    args = attention(tiles, head_dim, block_tokens, span, "seq") | {"SPLIT": is_split, "work_ptr": "*i32"}
    args |= dict.fromkeys(["q_ptr", "k_ptr", "v_ptr", "out_ptr"], f"*{dtype}")
    args |= dict.fromkeys(["part_out_ptr", "part_lse_ptr"], "*fp32") | dict.fromkeys(CACHE_STRIDES, "i32:16")
    return compiled(decode_kernel, sm, args, tiles.n_warps, tiles.n_stages)


def quant_decode(sm, head_dim, bits):
    from kernels.configs import QUANT_DECODE
    from kernels.kv_quant_decode import quant_decode_kernel

    tiles = QUANT_DECODE[f"sm_{sm}", 1 << (head_dim - 1).bit_length()]
    args = attention(tiles, head_dim, 16, "causal", "seq") | {"SPLIT": True, "work_ptr": "*i32", "BITS": bits}
    for unused in ("D", "D_PAD", "PAGED"):
        del args[unused]
    half = head_dim // 2
    args |= {"HALF": half, "HALF_PAD": 1 << (half - 1).bit_length(), "q_ptr": "*bf16", "out_ptr": "*bf16"}
    args |= dict.fromkeys(["k_codes_ptr", "v_codes_ptr"], "*u8")
    args |= dict.fromkeys(["k_params_ptr", "v_params_ptr"], "*i32")
    args |= dict.fromkeys(["part_out_ptr", "part_lse_ptr"], "*fp32")
    return compiled(quant_decode_kernel, sm, args, tiles.n_warps, tiles.n_stages)


def reduce(sm):
    from kernels.decode_attention import reduce_kernel

    args = {"part_out_ptr": "*fp32", "part_lse_ptr": "*fp32", "part_starts_ptr": "*i32", "out_ptr": "*bf16"}
    args |= {"out_stride_seq": "i32:16", "out_stride_head": "i32:16", "N_HEADS": 32, "D": 128, "D_PAD": 128}
    return compiled(reduce_kernel, sm, args | {"PARTS": 16}, 4, 3)


def append(sm):
    from kernels.kv_append import append_kernel

    args = dict.fromkeys(["k_ptr", "v_ptr", "k_cache_ptr", "v_cache_ptr"], "*bf16") | {"slots_ptr": "*i64"}
    args |= dict.fromkeys([n for n in append_kernel.arg_names if "stride" in n], "i32:16") | {"n_tokens": "i32"}
    args |= {"BLOCK_TOKENS": 16, "ROW": 1024, "TOKENS": 4, "COLUMNS": 1024}
    return compiled(append_kernel, sm, args, 4, 3)


def copy(sm):
    from kernels.kv_copy import copy_kernel

    args = dict.fromkeys(["source_ptr", "target_ptr", "from_rows_ptr", "to_rows_ptr"], "*i64")
    args |= {"source_stride": "i32:16", "target_stride": "i32:16", "N_WORDS": 4096, "WORDS": 1024}
    return compiled(copy_kernel, sm, args, 4, 3)


def quantise(sm, bits):
    from kernels.kv_quant import quantise_kernel

    args = {"x_ptr": "*bf16", "codes_ptr": "*u8", "params_ptr": "*fp16", "slots_ptr": "*i64", "from_slots_ptr": "*i64"}
    args |= {"n_rows": "i32", "x_stride_token": "i32:16", "N_KV_HEADS": 8, "HALF": 64, "HALF_PAD": 64}
    return compiled(quantise_kernel, sm, args | {"BITS": bits, "ROWS": 16, "GATHER": False}, 4, 3)


def norms(sm):
    from kernels.kv_importance import norm_kernel

    args = {"k_ptr": "*bf16", "norms_ptr": "*fp32", "kv_lens_ptr": "*i32", "table_ptr": "*i32", "n_slots": "i32:16"}
    args |= dict.fromkeys([n for n in norm_kernel.arg_names if "stride" in n], "i32:16")
    args |= {"N_KV_HEADS": 8, "BLOCK_TOKENS": 16, "D": 128, "D_PAD": 128, "KEYS": 32}
    return compiled(norm_kernel, sm, args, 4, 3)


def elementwise(sm, name):
    from kernels.rms_norm import rms_norm_kernel
    from kernels.rope import rope_kernel
    from kernels.silu_mul import silu_mul_kernel

    rows = {"x_ptr": "*bf16", "out_ptr": "*bf16", "x_stride": "i32:16", "out_stride": "i32:16"}
    if name == "silu_mul":
        return compiled(silu_mul_kernel, sm, rows | {"WIDTH": 14336, "COLUMNS": 1024}, 4, 3)
    if name == "rope":
        args = {"x_ptr": "*bf16", "positions_ptr": "*i64", "cos_sin_ptr": "*fp32"}
        args |= {"stride_token": "i32:16", "stride_head": "i32:16"}
        return compiled(rope_kernel, sm, args | {"N_HEADS": 32, "HEADS": 16, "HALF": 64, "HALF_PAD": 64}, 2, 3)
    args = rows | {"residual_ptr": "*bf16", "weight_ptr": "*bf16", "eps": "fp32", "residual_stride": "i32:16"}
    return compiled(rms_norm_kernel, sm, args | {"WIDTH": 4096, "WIDTH_PAD": 4096, "HAS_RESIDUAL": True}, 8, 3)


def variants(sm):
    """What is compiled for one architecture: everything for Hopper, the attention kernels elsewhere."""
    head_dims = (64, 96, 128, 256) if sm == 90 else (64, 128, 256)  # 96 is compiled as 128
    yield from (("prefill", prefill, (sm, d)) for d in head_dims)
    yield from (("decode", decode, (sm, d)) for d in head_dims)
    yield from (("quant_decode", quant_decode, (sm, d, 4)) for d in (128, 256))
    if sm != 90:
        return
    yield "prefill_fp16", prefill, (sm, 128, 16, "causal", "fp16")
    yield "prefill_window", prefill, (sm, 128, 16, "window")
    yield "prefill_window", prefill, (sm, 256, 16, "window")
    yield "prefill_ring", prefill, (sm, 128, 16, "ring")
    yield "prefill_contiguous", prefill, (sm, 128, 1)
    yield "decode_window", decode, (sm, 128, 16, "window")
    yield "decode_ring", decode, (sm, 128, 16, "ring")
    yield "decode_contiguous", decode, (sm, 128, 1)
    yield "decode_whole", decode, (sm, 128, 16, "causal", "bf16", False)
    yield "decode_fp16", decode, (sm, 128, 16, "causal", "fp16")
    yield from (("quant_decode", quant_decode, (sm, d, bits)) for d, bits in ((64, 4), (128, 8), (256, 8)))
    yield from (("quantise", quantise, (sm, bits)) for bits in (8, 4))
    yield from ((one.__name__, one, (sm,)) for one in (reduce, append, copy, norms))
    yield from ((name, elementwise, (sm, name)) for name in ("rms_norm", "rope", "silu_mul"))


if __name__ == "__main__":
    for sm in (90, 80, 89):
        for name, build, args in variants(sm):
            print(json.dumps({"kernel": name, "args": args[1:], **build(*args)}), flush=True)

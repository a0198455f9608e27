"""Experts and latent attention of NVIDIA's aiconfigurator tables: layers that some models have.

A table of experts times one layer of one rank: both products and the activation between them, of all tokens whose
experts lie on it. ``num_tokens`` are those of all ranks that share the experts by number, of which the rank with most
to do was timed. A table of latent attention times DeepSeek-V3's whole block with so many heads a rank.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.importers.aiconfigurator import MS, File, read_table, versions_of
from sim.errors import ProfileError
from sim.profile import version_of

EXPERTS = ("moe_perf.parquet", (
    "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
    "distribution", "latency",
))  # fmt: skip
LATENT_COLUMNS = ("model", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size", "isl", "step", "latency")
LATENT = {
    "latent_decode": ("mla_generation_module_perf.parquet", LATENT_COLUMNS),
    "latent_prefill": ("mla_context_module_perf.parquet", LATENT_COLUMNS),
}
EXPERT_DTYPES = {
    "bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "int4_wo": "int4", "w4a16_mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
}  # fmt: skip
LATENT_DTYPES = {"bfloat16": "bf16", "fp8_block": "fp8_block"}
KV_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
ROUTINGS = {"balanced": 0.0, "power_law_1.01": 1.01, "power_law_1.2": 1.2}
NOT_GATED = ((128, 1856), (512, 2688), (512, 5120))
"""(experts, width) of Nemotron's: one matrix up and not two, which no model here has."""
TIMED_BLOCK = "deepseek-ai/DeepSeek-V3"


def table_files(folder: Path, name: str, version: str) -> list[File]:
    """The files of a table of one version of vLLM; none where it was not timed."""
    wanted = version_of(version)
    return [file for file in versions_of(folder, name, "vllm") if file.version == wanted]


def expert_rows(folder: Path, version: str) -> Iterator[tuple[str, Any]]:
    """By number format, the rows of the table of experts: columns as `calibration.experts` has them."""
    import pandas as pd

    for file in table_files(folder, EXPERTS[0], version):
        table = read_table(file.path, EXPERTS[1])
        table = table[[pair not in NOT_GATED for pair in zip(table["num_experts"], table["inter_size"], strict=True)]]
        if unknown := sorted(set(table["distribution"]) - ROUTINGS.keys()):
            raise ProfileError(f"{file.path}: routings {', '.join(unknown)} are not known, only {', '.join(ROUTINGS)}")
        for theirs, dtype in EXPERT_DTYPES.items():
            rows = table[table["moe_dtype"] == theirs]
            if len(rows):
                yield (
                    dtype,
                    pd.DataFrame(
                        {
                            "dtype": dtype,
                            "m": rows["num_tokens"].astype(int),
                            "hidden": rows["hidden_size"],
                            "width": rows["inter_size"],
                            "top_k": rows["topk"],
                            "n_experts": rows["num_experts"],
                            "tensor_ranks": rows["moe_tp_size"],
                            "expert_ranks": rows["moe_ep_size"],
                            "skew": rows["distribution"].map(ROUTINGS),
                            "seconds": rows["latency"] * MS,
                        }
                    ).reset_index(drop=True),
                )


def latent_rows(folder: Path, version: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """By format of the matrices and of KV, the rows of both operations: columns as `calibration.latent` has them."""
    import pandas as pd

    tables = {}
    for name, (ending, columns) in LATENT.items():
        for file in table_files(folder, ending, version):
            table = read_table(file.path, columns)
            tables[name] = table[table["model"] == TIMED_BLOCK]
    if len(tables) < len(LATENT):
        return
    for theirs, dtype in LATENT_DTYPES.items():
        for kv_theirs, kv_dtype in KV_DTYPES.items():
            found = {}
            for name, table in tables.items():
                rows = table[(table["gemm_type"] == theirs) & (table["kv_cache_dtype"] == kv_theirs)]
                found[name] = pd.DataFrame(
                    {
                        "n_seqs": rows["batch_size"],
                        "n_tokens": rows["isl"] + rows["step"],
                        "n_heads": rows["num_heads"],
                        "seconds": rows["latency"] * MS,
                    }
                ).reset_index(drop=True)
            if all(len(rows) for rows in found.values()):
                yield dtype, kv_dtype, found

"""Kernel times published with NVIDIA's aiconfigurator: attention, matrix products and all-reduce over wide grids.

Tables of one device hold several number formats, window lengths and head sizes. Taken are what this house's models
need: no window, head_dim 64 and 128, bf16 queries; keys and values in bf16 or fp8; matrices in bf16 or fp8 (per
tensor). Rows of a prompt attend causally to themselves alone: no cached context was measured.

In the decode table ``isl`` is 1 and ``step`` the tokens cached before, so a sequence reads ``isl + step`` entries.
"""

from pathlib import Path
from typing import Any

import numpy as np

from calibration.measurements import Measurements, frame
from sim.errors import ProfileError

MS = 1e-3
DTYPES = {"bf16": "bfloat16", "fp8": "fp8"}
HEAD_DIMS = (64, 128)
LICENSE = "Apache-2.0, NVIDIA aiconfigurator (github.com/ai-dynamo/aiconfigurator)"
ATTENTION = (
    "batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "attn_dtype", "kv_cache_dtype", "step",
    "window_size", "latency",
)  # fmt: skip
TABLES = {
    # operation: how its file's name ends, the columns it must have
    "context": ("context_attention_perf.parquet", ATTENTION),
    "generation": ("generation_attention_perf.parquet", ATTENTION),
    "gemm": ("gemm_perf.parquet", ("gemm_dtype", "m", "n", "k", "latency")),
    "graph_all_reduce": ("custom_allreduce_perf.parquet", ("backend", "num_gpus", "message_size", "latency")),
    "nccl": ("nccl_perf.parquet", ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency")),
}


def import_aiconfigurator(path: Path, dtypes: tuple[str, ...] = ("bf16", "fp8")) -> Measurements:
    """Read the tables of one device's folder.

    Raises
    ------
    ProfileError
        If the folder holds not exactly one table of each kind, a column is missing, a latency is no finite positive
        number, or the tables are of several devices.
    """
    import pandas as pd

    if not path.is_dir():
        raise ProfileError(f"{path}: no such folder; path must hold aiconfigurator's *_perf.parquet tables")
    tables = {kind: _table(path, ending, columns) for kind, (ending, columns) in TABLES.items()}
    devices = sorted({name for table in tables.values() for name in table["device"].unique()})
    if len(devices) != 1:
        raise ProfileError(f"{path}: the tables must be of one device, got {', '.join(devices)}")
    parts = []
    for dtype in dtypes:
        parts += [
            _attention(tables["context"], dtype),
            _attention(tables["generation"], dtype),
            _gemm(tables["gemm"], dtype),
        ]
    parts += [_all_reduce(tables["graph_all_reduce"], tables["nccl"])]
    versions = sorted({f"{f} {v}" for f, v in tables["gemm"][["framework", "version"]].drop_duplicates().to_numpy()})
    return Measurements(
        device=devices[0],
        source="aiconfigurator",
        convention=(
            "mean of CUDA-graph replays without an L2 flush, so that small shapes are warm-cache times; "
            "decode attention includes the write of the new keys and values"
        ),
        provenance={
            "versions": [*versions, *(f"NCCL {v}" for v in sorted(tables["nccl"]["version"].unique()))],
            "tables": sorted(_file(path, ending).name for ending, _ in TABLES.values()),
            "license": LICENSE,
        },
        notes=(
            "prompts were measured without cached context",
            "norms, activations, embedding and sampler were not measured: they take the bandwidth and the floor of the "
            "matrix products",
        ),
        rows=pd.concat(parts, ignore_index=True),
    )


def _file(path: Path, ending: str) -> Path:
    found = sorted(path.glob(f"*{ending}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ProfileError(f"{path}: must hold one table *{ending}, got {names}")
    return found[0]


def _table(path: Path, ending: str, columns: tuple[str, ...]) -> Any:
    import pandas as pd

    file = _file(path, ending)
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ProfileError(f"{file}: not a readable Parquet table ({str(error).splitlines()[0]})") from None
    if missing := [column for column in (*columns, "device") if column not in table.columns]:
        raise ProfileError(f"{file}: no column {', '.join(missing)}, it has {', '.join(table.columns)}")
    latency = table["latency"].to_numpy(dtype=np.float64)
    if len(wrong := np.flatnonzero(~(np.isfinite(latency) & (latency > 0.0)))):
        raise ProfileError(
            f"{file}: row {wrong[0]}, column latency: must be finite and > 0 [ms], got {latency[wrong[0]]}"
        )
    return table


def _attention(table: Any, kv_dtype: str) -> Any:
    is_wanted = (
        (table["attn_dtype"] == "bfloat16")
        & (table["kv_cache_dtype"] == DTYPES[kv_dtype])
        & (table["window_size"] == 0)
        & table["head_dim"].isin(HEAD_DIMS)
    )
    rows = table[is_wanted]
    is_decode = bool((rows["step"] > 0).any())
    n, tokens = rows["batch_size"].to_numpy(), (rows["isl"] + rows["step"]).to_numpy()
    heads = {
        "n_heads": rows["num_heads"].to_numpy(),
        "n_kv_heads": rows["num_key_value_heads"].to_numpy(),
        "head_dim": rows["head_dim"].to_numpy(),
    }
    common = {"kv_dtype": kv_dtype, "seconds": rows["latency"].to_numpy() * MS, **heads}
    if is_decode:
        return frame(
            "decode_attention", decode_seqs=n, decode_total_tokens=n * tokens, decode_longest_tokens=tokens, **common
        )
    return frame("batched_prefill_attention", prefill_seqs=n, new_tokens=tokens, **common)


def _gemm(table: Any, dtype: str) -> Any:
    rows = table[table["gemm_dtype"] == DTYPES[dtype]]
    sizes = {axis: rows[axis].to_numpy() for axis in ("m", "n", "k")}
    return frame("gemm", dtype=dtype, seconds=rows["latency"].to_numpy() * MS, **sizes)


def _all_reduce(graph: Any, nccl: Any) -> Any:
    """vLLM's own all-reduce, replayed in a graph, and NCCL's."""
    import pandas as pd

    own = graph[graph["backend"] == "vllm_graph"]
    library = nccl[(nccl["op_name"] == "all_reduce") & (nccl["nccl_dtype"] == "half")]
    return pd.concat(
        frame(
            "all_reduce",
            detail=detail,
            devices=rows["num_gpus"].to_numpy(),
            bytes=rows["message_size"].to_numpy(),
            seconds=rows["latency"].to_numpy() * MS,
        )
        for detail, rows in (("vllm_custom", own), ("nccl", library))
    )

"""Kernel times published with NVIDIA's aiconfigurator: attention, matrix products and all-reduce over wide grids.

Tables of one device hold several number formats, window lengths and head sizes. Taken are what this house's models
need: no window, head_dim 64 and 128, bf16 queries; keys and values in bf16 or fp8; matrices in bf16 or fp8 (per
tensor). Rows of a prompt attend causally to themselves alone: no cached context was measured.

In the decode table ``isl`` is 1 and ``step`` the tokens cached before, so a sequence reads ``isl + step`` entries.
``message_size`` of the all-reduces counts elements, of two bytes here: read so, eight H200 move 446 GB/s at 256 MiB
over links of 450; read as bytes, half of what NCCL is known for. Tables of vLLM 0.14 have no ``window_size``: they
hold no windows.

Two layouts are read: a folder of files named ``<operation>_<framework>_<version>_<table>``, and the tree in which the
tables are distributed, ``systems/data/<gpu>/<operation>/<framework>/<version>/<table>``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.cold import brought_to_memory
from calibration.measurements import Measurements, frame
from calibration.plausible import data_sheet, plausible
from sim.errors import ProfileError

MS = 1e-3
DTYPES = {"bf16": "bfloat16", "fp8": "fp8"}
HEAD_DIMS = (64, 128)
LICENSE = "Apache-2.0, NVIDIA aiconfigurator (github.com/ai-dynamo/aiconfigurator)"
HALF_BYTES = 2  # of an element of the all-reduces taken: half and bfloat16
ATTENTION = (
    "batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "attn_dtype", "kv_cache_dtype", "step",
    "latency",
)  # fmt: skip
TABLES = {
    # operation: how its file's name ends, whose version its path names, the columns it must have
    "context": ("context_attention_perf.parquet", "vllm", ATTENTION),
    "generation": ("generation_attention_perf.parquet", "vllm", ATTENTION),
    "gemm": ("gemm_perf.parquet", "vllm", ("gemm_dtype", "m", "n", "k", "latency")),
    "graph_all_reduce": (
        "custom_allreduce_perf.parquet", "vllm", ("backend", "num_gpus", "message_size", "allreduce_dtype", "latency"),
    ),
    "nccl": ("nccl_perf.parquet", "nccl", ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency")),
}  # fmt: skip
KERNELS = ("context", "generation", "gemm")  # what makes a version; the others may be of another one


@dataclass(frozen=True, slots=True)
class File:
    """A table, and the version of vLLM or NCCL that its path names; none where it names none."""

    path: Path
    version: tuple[int, ...]


def import_aiconfigurator(
    path: Path, version: str | None = None, dtypes: tuple[str, ...] = ("bf16", "fp8")
) -> Measurements:
    """Read the tables of one device and one version of vLLM.

    Parameters
    ----------
    path : Path
        One device's folder, in either layout.
    version : str, optional
        Of vLLM, as ``0.24``; may be left out where the folder holds one.

    Raises
    ------
    ProfileError
        If a table is missing or there are several, a column is missing, a latency is no finite positive number, the
        tables are of several devices, or hold times that are not possible on it.
    """
    import pandas as pd

    if not path.is_dir():
        raise ProfileError(f"{path}: no such folder; path must hold aiconfigurator's *_perf.parquet tables")
    files, notes = _files(path, version)
    tables = {kind: read_table(file.path, TABLES[kind][2]) for kind, file in files.items()}
    devices = sorted({name for table in tables.values() if "device" in table for name in table["device"].unique()})
    if len(devices) != 1:
        raise ProfileError(f"{path}: the tables must be of one device, got {', '.join(devices) or 'none'}")
    sheet = data_sheet(devices[0])
    decodes = pd.concat([_attention(tables["generation"], dtype) for dtype in dtypes], ignore_index=True)
    decodes, warm = brought_to_memory(decodes, sheet.architecture if sheet else "")
    parts = [decodes]
    for dtype in dtypes:
        parts += [_attention(tables["context"], dtype), _gemm(tables["gemm"], dtype)]
    parts += [_all_reduce(tables["graph_all_reduce"], tables["nccl"])]
    return plausible(
        Measurements(
            device=devices[0],
            source="aiconfigurator",
            convention=(
                "mean of CUDA-graph replays without an L2 flush, decode attention corrected for that; it includes the "
                "write of the new keys and values"
            ),
            provenance={
                "vllm": ".".join(map(str, files["gemm"].version)),
                "nccl": ".".join(map(str, files["nccl"].version)),
                "tables": sorted(file.path.name for file in files.values()),
                "license": LICENSE,
            },
            notes=(
                "prompts were measured without cached context",
                "norms, activations, embedding and sampler were not measured: they take the bandwidth and the floor of "
                "the matrix products",
                warm,
                *notes,
            ),
            rows=pd.concat([part for part in parts if len(part)], ignore_index=True),
        )
    )


def _files(path: Path, wanted: str | None) -> tuple[dict[str, File], list[str]]:
    """One file of each table, of one version of vLLM and the newest of NCCL.

    vLLM's all-reduce is of the version wanted where it was timed in it, else of the newest older one, which is noted.
    """
    found = {kind: versions_of(path, ending, framework) for kind, (ending, framework, _) in TABLES.items()}
    if missing := [TABLES[kind][0] for kind, files in found.items() if not files]:
        raise ProfileError(f"{path}: must hold a table *{', *'.join(missing)}, got none")
    versions = sorted({file.version for file in found["gemm"]})
    if wanted is not None:
        asked = tuple(int(part) for part in re.findall(r"\d+", wanted))
        versions = [version for version in versions if version[: len(asked)] == asked]
    if len(versions) != 1:
        there = ", ".join(sorted({".".join(map(str, file.version)) for file in found["gemm"]}))
        raise ProfileError(f"{path}: give version=, one of {there}; got {wanted or 'none'}")
    chosen: dict[str, File] = {}
    notes = []
    for kind, files in found.items():
        same = [file for file in files if file.version == versions[0]]
        if kind == "nccl" or (kind not in KERNELS and not same):
            newest = max(file.version for file in files)
            same = [file for file in files if file.version == newest]
            if kind != "nccl":
                notes.append(f"vLLM's all-reduce is of {'.'.join(map(str, newest))}")
        if len(same) != 1:
            raise ProfileError(f"{path}: must hold one table *{TABLES[kind][0]} of a version, got {len(same)}")
        chosen[kind] = same[0]
    return chosen, notes


def versions_of(path: Path, ending: str, framework: str) -> list[File]:
    """Every file of a table: beside each other, the version in the name, or each in a folder named after it."""
    named = re.compile(rf"(?:^|[/_]){framework}[/_]v?(\d+(?:\.\d+)+)[^/_]*[/_]{re.escape(ending)}$")
    files = []
    for file in sorted(path.rglob(f"*{ending}")):
        if match := named.search(file.relative_to(path).as_posix()):
            files.append(File(file, tuple(int(part) for part in match[1].split("."))))
    return files


def read_table(file: Path, columns: tuple[str, ...]) -> Any:
    """A table with these columns, every latency of it finite and positive.

    Raises
    ------
    ProfileError
    """
    import pandas as pd

    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ProfileError(f"{file}: not a readable Parquet table ({str(error).splitlines()[0]})") from None
    if missing := [column for column in columns if column not in table.columns]:
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
        & table["head_dim"].isin(HEAD_DIMS)
    )
    if "window_size" in table.columns:
        is_wanted &= table["window_size"] == 0
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

    own = graph[(graph["backend"] == "vllm_graph") & (graph["allreduce_dtype"] == "bfloat16")]
    library = nccl[(nccl["op_name"] == "all_reduce") & (nccl["nccl_dtype"] == "half")]
    return pd.concat(
        frame(
            "all_reduce",
            detail=detail,
            devices=rows["num_gpus"].to_numpy(),
            bytes=rows["message_size"].to_numpy() * HALF_BYTES,
            seconds=rows["latency"].to_numpy() * MS,
        )
        for detail, rows in (("vllm_custom", own), ("nccl", library))
    )

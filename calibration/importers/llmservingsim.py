"""Kernel times published with LLMServingSim: one decoder layer of one model in vLLM, layer by layer.

How to read the bundle (found in its numbers, and in the profiler's source):

* ``tp<N>/`` holds one rank of tensor-parallel degree N. The ``hf_overrides`` of ``meta.yaml`` are those of the last
  degree profiled, not of all of them: on the RTX PRO 6000, ``tp_degrees [1, 2]`` and halved heads, but in ``tp1/`` the
  weights of gate_up_proj (4096 x 28672, bf16) are read at 1.47 TB/s and lm_head's (4096 x 128256) at 1.53 TB/s, and
  2048 tokens reach 417 TFLOP/s; decode attention of 256 sequences of 16384 reads 8 KV heads at 1.53 TB/s. The device
  offers 1.79 TB/s and about 500 TFLOP/s dense bf16. Halved shapes would leave it at half of all of these. So ``tp1/``
  holds the whole layer.
* Times are means over ``measurement_iterations`` calls, except in ``skew.csv``: there they are sums over them. Its
  ``t_max_us`` repeats points of the attention grid, and is 3.00 times theirs (standard deviation 0.02 over 13,006
  pairs). They are divided here.
* Kernel time only: an eager engine's launches and gaps are not in it. The attention module was timed, so the append of
  new keys and values is inside. ``kv_decode`` counts cached tokens; a decoding sequence reads one more.
* ``skew_profile: enabled: false`` says that unequal contexts are not to be charged; ``skew.csv`` may lie there all the
  same, left from another run.
* Newer bundles differ: ``attention.csv`` names its layer and how many tokens a decoding sequence computes (above one
  are drafts, left out here), and in place of ``kv_prefill`` has ``prefill_key``, the context plus half the chunk
  (profiler/core/writer.py); the sweep of unequal contexts may have been skipped; ``hardware.yaml``, beside
  ``meta.yaml`` or absent, holds collectives timed between two of the devices.
"""

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from calibration.measurements import Measurements, frame
from calibration.plausible import plausible
from sim.config import conf_dir, make
from sim.cost.dense import CALLS, SEQUENCE_CALLS
from sim.errors import ProfileError
from sim.spec import ModelSpec

US = 1e-6
ATTENTION = ("prefill_chunk", "n_decode", "kv_decode", "time_us")  # and kv_prefill or prefill_key
LAYERS = ("layer", "tokens", "time_us")
PER_SEQUENCE = ("layer", "sequences", "time_us")
SKEW = ("n", "nb", "kvs", "kv_big", "pc", "kp", "t_mean_us", "t_max_us", "t_skew_us")
LICENSE = "MIT, LLMServingSim (github.com/casys-kaist/LLMServingSim)"


def published_shape(model: str, path: Path) -> ModelSpec:
    """A model's data sheet by its published name, from ``conf/model``.

    Raises
    ------
    ProfileError
        If it has no data sheet there; names those that have.
    """
    import yaml  # type: ignore[import-untyped]

    sheets = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(conf_dir().glob("model/*.yaml"))]
    known = {sheet["source"].split("huggingface.co/")[-1].split("/blob/")[0]: sheet for sheet in sheets}
    sheet = {model_key(name): sheet for name, sheet in known.items()}.get(model_key(model))
    if sheet is None:
        raise ProfileError(
            f"{path}: model {model!r} has no data sheet; there are {', '.join(known)}; add one in conf/model"
        )
    spec: ModelSpec = make(sheet, "model")
    return spec


def model_key(name: str) -> str:
    """What of a model's name tells its shape: neither who published it, where it lies, nor that it was instructed.

    Examples
    --------
    >>> model_key("meta-llama/Llama-3.1-8B-Instruct"), model_key("/data/model/Qwen3-32B")
    ('llama-3.1-8b', 'qwen3-32b')
    """
    return name.rstrip("/").rpartition("/")[2].lower().removesuffix("-instruct")


def import_llmservingsim(path: Path, tensor_parallel: int = 1) -> Measurements:
    """Read ``meta.yaml`` and one ``tp<N>/`` folder of a profile bundle, and ``hardware.yaml`` if it is there.

    Raises
    ------
    ProfileError
        If a file or column is missing, a value is no finite positive time, a layer is not one of those a dense decoder
        has, or ``skew.csv`` does not repeat the grid.
    """
    import pandas as pd

    about_path = path / "meta.yaml"
    if not about_path.is_file():
        raise ProfileError(f"{about_path}: missing; path must be the profile folder of an LLMServingSim bundle")
    about = _mapping(about_path)
    model = published_shape(str(about.get("model")), about_path)
    if len(model.stack) > 1:
        raise ProfileError(f"{about_path}: model {model.name} has several kinds of layer, a bundle times one")
    heads = model.rank_stack(tensor_parallel)[0].attention.axes()
    folder = path / f"tp{tensor_parallel}"
    if not folder.is_dir():
        there = ", ".join(sorted(found.name for found in path.glob("tp*"))) or "none"
        raise ProfileError(f"{folder}: missing: no kernel times of that tensor-parallel degree, there are {there}")
    if "gpu" not in about:
        raise ProfileError(f"{about_path}: names no gpu")
    grid = _grid(folder / "attention.csv")
    parts = [_attention(grid, heads)]
    notes = [
        f"tp{tensor_parallel}/ holds one of {tensor_parallel} tensor-parallel ranks; the halved hf_overrides of "
        "meta.yaml are those of the last degree profiled"
    ]
    if not _is_on(about, "skew_profile"):
        notes.append("skew_profile is not enabled in meta.yaml: unequal contexts cost nothing, whatever skew.csv holds")
    elif (folder / "skew.csv").is_file():
        parts.append(_skewed(_table(folder / "skew.csv", SKEW), grid, path, heads))
        notes.append("times of skew.csv are sums over the iterations, and were divided by their number")
    else:
        notes.append("unequal contexts were not measured: they cost nothing")
    parts += [
        _layers(folder / "dense.csv", LAYERS, CALLS, "layer", "new_tokens"),
        _layers(folder / "per_sequence.csv", PER_SEQUENCE, SEQUENCE_CALLS, "sequence_layer", "decode_seqs"),
    ]
    if tensor_parallel > 1 and (path / "hardware.yaml").is_file():
        parts.append(_collectives(path / "hardware.yaml", tensor_parallel))
    rows = pd.concat(parts, ignore_index=True)
    return plausible(
        Measurements(
            device=about["gpu"],
            source="LLMServingSim",
            convention=(
                "sum of kernel times of a module in eager vLLM, mean of "
                f"{about.get('measurement_iterations', 'several')} calls after one; launches and gaps not included; "
                "attention includes the append of new keys and values"
            ),
            provenance={
                "vllm": about.get("vllm_version", "unknown"),
                "cuda": about.get("cuda_version", "unknown"),
                "date": str(about.get("profiled_at", "unknown")),
                "license": LICENSE,
            },
            subject={
                "model": about["model"],
                "tensor_parallel": tensor_parallel,
                **heads,
                "d_model": model.d_model,
                **model.stack[0].feed_forward.axes(),
                "vocab": model.vocab,
                "dtype": "bf16",
                "kv_dtype": "bf16",
            },
            notes=tuple(notes),
            rows=rows,
        )
    )


def _is_on(about: dict[str, Any], name: str) -> bool:
    """Whether a part of the profiler ran, as ``meta.yaml`` says; older ones say nothing, and ran it."""
    section = about.get(name)
    return not isinstance(section, dict) or section.get("enabled") is not False


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: must hold a mapping, got {type(content).__name__}")
    return content


def _table(path: Path, columns: tuple[str, ...]) -> Any:
    """A CSV with these columns, every one but ``layer`` finite and >= 0, times > 0."""
    import pandas as pd

    if not path.is_file():
        raise ProfileError(f"{path}: missing")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        header = next(csv.reader(file), [])
    if missing := [column for column in columns if column not in header]:
        raise ProfileError(f"{path}: no column {', '.join(missing)}, it has {', '.join(header)}")
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise ProfileError(f"{path}: not a CSV ({' '.join(str(error).split())})") from None
    if table.empty:
        raise ProfileError(f"{path}: no rows")
    return _checked(table, path, columns)


def _checked(table: Any, path: Path, columns: tuple[str, ...]) -> Any:
    """The table, after a look at every value of the columns."""
    import pandas as pd

    for column in columns:
        if column == "layer":
            continue
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
        least = np.nextafter(0.0, 1.0) if column.endswith("_us") else 0.0
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= least)))
        if len(wrong):
            raise ProfileError(
                f"{path}: line {wrong[0] + 2}, column {column}: must be a number > 0 for times and >= 0 else, "
                f"got {table[column].iloc[wrong[0]]!r}"
            )
    return table


def _grid(path: Path) -> Any:
    """The attention grid, ``kv_prefill`` made of ``prefill_key`` where it has that; drafts left out."""
    table = _table(path, ATTENTION)
    if "layer" in table.columns and (others := sorted(set(table["layer"]) - {"attention"})):
        raise ProfileError(f"{path}: layers other than attention are not simulated: {', '.join(map(str, others))}")
    if "decode_q_len" in table.columns:
        table = table[table["decode_q_len"] == 1].reset_index(drop=True)
    if "kv_prefill" in table.columns:
        return _checked(table, path, ("kv_prefill",))
    if "prefill_key" not in table.columns:
        raise ProfileError(f"{path}: no column kv_prefill or prefill_key, it has {', '.join(table.columns)}")
    context = table["prefill_key"] - table["prefill_chunk"] / 2.0
    return _checked(table.assign(kv_prefill=context.round().clip(lower=0).astype(int)), path, ("kv_prefill",))


def _collectives(path: Path, n_ranks: int) -> Any:
    """All-reduces timed between the devices of a degree; no rows where another number of them was timed."""
    content = _mapping(path)
    measured = (content.get("measured") or {}).get("interconnect") or {}
    samples = [s for s in measured.get("samples", ()) if s.get("collective", "all_reduce") == "all_reduce"]
    if measured.get("npus") != n_ranks or len(samples) < 2:
        return frame("all_reduce").iloc[:0]
    return frame(
        "all_reduce",
        detail="nccl",
        devices=n_ranks,
        bytes=np.array([int(s["bytes"]) for s in samples]),
        seconds=np.array([float(s["us"]) for s in samples]) * US,
    )


def _attention(table: Any, heads: dict[str, int]) -> Any:
    chunk, n = table["prefill_chunk"].to_numpy(), table["n_decode"].to_numpy()
    read = np.where(n > 0, table["kv_decode"].to_numpy() + 1, 0)
    rows = frame(
        "mixed_attention",
        prefill_seqs=(chunk > 0).astype(int),
        new_tokens=chunk,
        context_tokens=table["kv_prefill"].to_numpy(),
        decode_seqs=n,
        decode_total_tokens=n * read,
        decode_longest_tokens=read,
        seconds=table["time_us"].to_numpy() * US,
        **heads,
    )
    rows.loc[chunk == 0, "operation"] = "decode_attention"
    rows.loc[n == 0, "operation"] = "prefill_attention"
    return rows


def _skewed(table: Any, grid: Any, path: Path, heads: dict[str, int]) -> Any:
    """Batches with unequal contexts; times are brought from sums to means, checked against the grid."""
    n_calls = _n_calls(table, grid)
    if not np.isfinite(n_calls) or abs(n_calls - round(n_calls)) >= 0.05 or round(n_calls) < 1:
        raise ProfileError(f"{path}: skew.csv must hold a whole multiple of the grid's times, got {n_calls:.3f} times")
    per_call = US / round(n_calls)
    table = table.drop_duplicates(["n", "nb", "kvs", "kv_big", "pc", "kp"], keep="last")
    n, n_long = table["n"].to_numpy(), table["nb"].to_numpy()
    long, short = table["kv_big"].to_numpy() + 1, table["kvs"].to_numpy() + 1
    chunk = table["pc"].to_numpy()
    return frame(
        "skewed_attention",
        prefill_seqs=(chunk > 0).astype(int),
        new_tokens=chunk,
        context_tokens=table["kp"].to_numpy(),
        decode_seqs=n,
        decode_total_tokens=n_long * long + (n - n_long) * short,
        decode_longest_tokens=long,
        seconds=table["t_skew_us"].to_numpy() * per_call,
        uniform_s=table["t_mean_us"].to_numpy() * per_call,
        **heads,
    )


def _n_calls(table: Any, grid: Any) -> float:
    """How many times the grid's ``t_max_us`` of equal decode batches is, interpolated where it is not of the grid."""
    ratios: list[float] = []
    for n, group in table[table["pc"] == 0].groupby("n"):
        on = grid[(grid["prefill_chunk"] == 0) & (grid["n_decode"] == n)].sort_values("kv_decode")
        group = group[group["kv_big"].between(on["kv_decode"].min(), on["kv_decode"].max())]
        if len(group) and len(on):
            known = np.interp(np.log(group["kv_big"]), np.log(on["kv_decode"]), np.log(on["time_us"]))
            ratios += (group["t_max_us"] / np.exp(known)).tolist()
    return float(np.median(ratios)) if ratios else float("nan")


def _layers(path: Path, columns: tuple[str, ...], known: Collection[str], operation: str, column: str) -> Any:
    table, count = _table(path, columns), columns[1]
    if strange := sorted(set(table["layer"]) - set(known)):
        raise ProfileError(f"{path}: layers {', '.join(map(str, strange))} are not simulated, only {', '.join(known)}")
    return frame(
        operation,
        detail=table["layer"].to_numpy(),
        seconds=table["time_us"].to_numpy() * US,
        **{column: table[count].to_numpy()},
    )

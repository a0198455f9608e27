"""A file that ``vllm bench serve --save-result --save-detailed`` wrote, as a recorded run.

It holds, per request, when it was sent, its lengths, the time to its first token and the gaps after it, all as the
client saw them: with what the front end takes (``conf/frontend``). Of the engine it names the model alone, so the
arguments that ``vllm serve`` was started with are given beside it, as text or in a file.

References
----------
vllm/benchmarks/serve.py (``benchmark``), vllm/benchmarks/lib/endpoint_request_func.py.
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.engine_run import MAX_BYTES, MAX_REQUESTS, EngineRun
from calibration.engine_settings import engine_settings
from sim.errors import ConfigError, TraceError
from sim.units import ns_from_s

Floats = npt.NDArray[np.float64]

LISTS = ("start_times", "input_lens", "output_lens", "ttfts", "itls")
SHORT = {"tp": "tensor_parallel_size", "dp": "data_parallel_size", "pp": "pipeline_parallel_size", "q": "quantization"}
THOUSANDS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
"""Source: vLLM, ``human_readable_int`` in vllm/engine/arg_utils.py: 1k is 1,000 and 1K is 1,024."""


def read_bench_results(path: Path, arguments: str | None, version: str | None) -> EngineRun:
    """Read a results file; its requests are what clients saw.

    Parameters
    ----------
    path : Path
    arguments : str or None
        Of ``vllm serve``: text as on its command line, or the path of a file with that, or of a JSON or YAML object.
    version : str or None
        Of vLLM.

    Raises
    ------
    TraceError
        If the file holds no such results.
    ConfigError
        If the arguments cannot be read, or ask for what is not simulated.
    """
    content = _results(path)
    kwargs = engine_arguments(arguments)
    model = kwargs.pop("model", None) or content.get("model_id")
    meta = {"model": model, "engine_kwargs": kwargs, **({"vllm_version": version} if version else {})}
    settings = engine_settings(meta, path)
    lists = {name: _list(content, name, path) for name in LISTS}
    n = len(lists["start_times"])
    if any(len(values) != n for values in lists.values()) or not 1 <= n <= MAX_REQUESTS:
        sizes = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
        raise TraceError(f"{path}: lists must be of one length from 1 to {MAX_REQUESTS}, got {sizes}")
    start = _numbers(lists["start_times"], "start_times", path)
    ttft = _numbers(lists["ttfts"], "ttfts", path)
    prompts, outputs = (_lengths(lists[name], name, path) for name in ("input_lens", "output_lens"))
    gaps = np.array([_numbers(row, f"itls[{i}]", path).sum() for i, row in enumerate(lists["itls"])])
    is_served = (outputs >= 1) & (ttft > 0.0) & (prompts >= 1) & ((outputs == 1) | (gaps > 0.0))
    notes = [*settings.assumed, "times are a client's: what the front end takes is simulated too (conf/frontend)"]
    if n_failed := int((~is_served).sum()):
        notes.append(f"{n_failed} requests failed or have no times, and are left out")
    if not is_served.any():
        raise TraceError(f"{path}: no request was answered")
    if settings.has_prefix_caching:
        notes.append("prefix caching was on, but no text was recorded: nothing is shared between requests")
    order = np.flatnonzero(is_served)[np.argsort(start[is_served], kind="stable")]
    arrival_ns, first_ns, last_ns = (
        np.array([ns_from_s(float(x)) for x in seconds[order] - start[order].min()], dtype=np.int64)
        for seconds in (start, start + ttft, start + ttft + gaps)
    )
    return EngineRun(
        path,
        settings,
        arrival_ns,
        arrival_ns,
        first_ns,
        last_ns,
        prompts[order],
        outputs[order],
        (None,) * len(order),
        {},
        tuple(notes),
        is_clients=True,
    )


def engine_arguments(given: str | None) -> dict[str, Any]:
    """Arguments of ``vllm serve`` by the names that its engine has for them.

    Raises
    ------
    ConfigError
        If the text or the file cannot be read.

    Examples
    --------
    >>> engine_arguments("serve meta-llama/Llama-3.1-8B --max-num-seqs 128 -tp=2 --no-enable-prefix-caching")
    {'model': 'meta-llama/Llama-3.1-8B', 'max_num_seqs': 128, 'tensor_parallel_size': 2, 'enable_prefix_caching': False}
    """
    if given is None:
        return {}
    text = given
    if len(given) < 4_096 and (path := Path(given).expanduser()).is_file():
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".json", ".yaml", ".yml"):
            return _object(text, given)
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ConfigError(f"args must be arguments of vllm serve, got {given[:80]!r} ({error})") from None
    found: dict[str, Any] = {}
    while words and not words[0].startswith("-"):  # [vllm] [serve] model
        if (word := words.pop(0)) not in ("vllm", "serve"):
            found["model"] = word
    while words:
        name, has_value, value = words.pop(0).partition("=")
        if not re.fullmatch(r"--?[A-Za-z][\w.-]*", name):
            raise ConfigError(f"args must be arguments of vllm serve, got {name[:80]!r} where a --name was to come")
        values = [value] if has_value else []
        while not has_value and words and not re.match(r"--?[A-Za-z]", words[0]):
            values.append(words.pop(0))
        key = name.lstrip("-").replace("-", "_")
        key = SHORT.get(key, key)
        if not values and key.startswith("no_"):
            found[key.removeprefix("no_")] = False
        else:
            found[key] = True if not values else _value(values[0]) if len(values) == 1 else [*map(_value, values)]
    return found


def _object(text: str, given: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"args={given}: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"args={given} must hold arguments by name, got {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _value(text: str) -> Any:
    """A number, a claim, an object, or the text."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG])", text):
        return int(float(match[1]) * THOUSANDS[match[2]])
    if re.fullmatch(r"\.\d+", text):
        return float(text)
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _results(path: Path) -> dict[str, Any]:
    """The file's object."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise TraceError(f"{path}: at most {MAX_BYTES} [B], got {size}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(
            f"{path}: not one JSON object ({error}); of --append-result put each line in a file of its own"
        ) from None
    if not isinstance(content, dict):
        raise TraceError(f"{path}: must hold an object, got {type(content).__name__}")
    return content


def _list(content: Mapping[str, Any], name: str, path: Path) -> list[Any]:
    values = content.get(name)
    if not isinstance(values, list):
        raise TraceError(f"{path}: {name} must be a list (vllm bench serve writes it with --save-detailed)")
    return values


def _numbers(values: Any, name: str, path: Path) -> Floats:
    """Times, none below 0 [s]."""
    is_listed = isinstance(values, list) and all(type(x) in (int, float) for x in values)
    numbers = np.array(values if is_listed else [np.nan], dtype=np.float64)
    if not (np.isfinite(numbers) & (numbers >= 0.0)).all():
        raise TraceError(f"{path}: {name} must be times >= 0 [s], got {str(values)[:60]}")
    return numbers


def _lengths(values: list[Any], name: str, path: Path) -> npt.NDArray[np.int64]:
    if wrong := [x for x in values if type(x) is not int or not 0 <= x < 1 << 40]:
        raise TraceError(f"{path}: {name} must be whole numbers >= 0 [tokens], got {wrong[0]!r}")
    return np.array(values, dtype=np.int64)

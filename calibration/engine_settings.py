"""The configuration a recorded engine ran with: read from its ``meta.json``, else the documented default of vLLM.

A setting is looked for in the engine's arguments, then in the resolved configuration and KV cache facts that newer
recorders write. What is found nowhere takes vLLM's default, and is said to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.cost.iteration import CAPTURE_SIZES
from sim.errors import ConfigError, TraceError

ASYNC_SINCE = (0, 14)
"""Async scheduling is the default from here on. Source: vLLM pull request 27614 and the release notes of 0.14.0."""

RESERVES_SINCE = (0, 19)
"""Admission asks for room for the whole prompt, not for its first chunk alone, by default at the latest from here on.
Source: resolved configurations that LLMServingSim recorded (CHANGELOG, ``--reserve-full-isl``); vLLM's SchedulerConfig.
"""

COUNTS_GRAPHS_SINCE = (0, 21)
"""CUDA graphs are estimated and taken out of the KV cache's memory, by default from here on. Source: vLLM's start-up
log ("CUDA graph memory profiling is enabled (default since v0.21.0)"), vllm/envs.py."""

DEFAULTS: dict[str, Any] = {
    "tensor_parallel_size": 1,
    "block_size": 16,
    "gpu_memory_utilization": 0.9,
    "enable_prefix_caching": True,
    "enable_chunked_prefill": True,
    "kv_cache_dtype": "auto",
    "dtype": "bfloat16",
}
"""Source: vLLM 0.19, vllm/config/{cache,scheduler}.py and ``EngineArgs._set_default_args`` in vllm/engine/arg_utils.py
(prefix caching and chunked prefill are on for decoder models). What hangs on the device, ``max_num_seqs`` and
``max_num_batched_tokens``, stands in conf/engine."""

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "auto": "bf16"}
NO_GRAPHS = (0, "NONE")
"""``cudagraph_mode`` of an engine without graphs, as recorded (vllm/config/compilation.py) or as given."""

HARMLESS = {
    "model", "seed", "load_format", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "served_model_name",
    "trust_remote_code", "download_dir", "revision", "disable_log_stats", "disable_log_requests",
    "compilation_config", "scheduler_config", "cache_config", "model_config",
}  # fmt: skip
"""Arguments that decide nothing here, or are read section by section."""

KV_DTYPES = {"fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What of an engine's configuration decides when a request is answered."""

    model: str
    vllm_version: str
    tensor_parallel: int
    data_parallel: int
    max_num_seqs: int | None  # None: the engine's for the device, as the next
    max_num_batched_tokens: int | None
    max_model_len: int | None  # None: the model's own
    block_tokens: int
    has_prefix_caching: bool
    is_async: bool
    long_prefill_tokens: int  # of one prompt in an iteration at most; 0: no limit
    capture_sizes: tuple[int, ...] | None  # none: eager; None: the engine's
    memory_utilization_frac: float
    weight_dtype: str
    kv_dtype: str
    reported_blocks: int | None  # that the engine said it allocated
    given_blocks: int | None  # that the engine was told to allocate
    kv_memory_bytes: int | None  # per device, where the engine was given it instead of a share of the memory
    watermark_frac: float  # of the blocks, left free when a request is admitted
    counts_graphs: bool  # whether CUDA graphs come out of the KV cache's memory
    reserves_prompt: bool  # whether a request is admitted only if its whole prompt has room
    device: str | None  # as CUDA names it
    device_memory_bytes: int | None  # as CUDA reports it
    assumed: tuple[str, ...]  # settings that were not recorded, or are not simulated, in words


class Recorded:
    """Looks settings up in a ``meta.json``, and notes what had to be assumed."""

    def __init__(self, meta: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self.assumed: list[str] = []
        arguments = meta.get("engine_kwargs")
        if not isinstance(arguments, Mapping):
            raise TraceError(f"{path}: engine_kwargs must be an object, got {arguments!r}")
        self._arguments: Mapping[str, Any] = arguments
        self._asked: set[str] = set()
        sections = [arguments, *arguments.values(), meta.get("kv_cache")]
        resolved = meta.get("resolved_config")
        if isinstance(resolved, Mapping):
            sections += resolved.values()
        self._sections = [section for section in sections if isinstance(section, Mapping)]

    def unread(self) -> list[str]:
        """The engine's arguments that nobody asked for, and that are on."""
        return [
            f"{name} {value}"
            for name, value in self._arguments.items()
            if name not in self._asked | HARMLESS and value not in (None, False, 0, "", [], {})
        ]

    def find(self, name: str) -> Any:
        """The setting's value where one is recorded, else None."""
        self._asked.add(name)
        for section in self._sections:
            if section.get(name) is not None:
                return section[name]
        return None

    def setting(self, name: str, kind: type[Any], resolved: str | None = None) -> Any:
        """The setting's value or its default, of the given kind; ``resolved`` is another name that it may have.

        Raises
        ------
        TraceError
            If it is of another kind.
        """
        value = self.find(name)
        if value is None and resolved is not None:
            value = self.find(resolved)
        if value is None:
            value = DEFAULTS[name]
            self.assumed.append(f"{name} {value}")
        return self.checked(name, value, kind)

    def fact(self, name: str, kind: type[Any]) -> Any:
        """A value of the given kind where one is recorded, else None; checked as a setting is."""
        value = self.find(name)
        return None if value is None else self.checked(name, value, kind)

    def checked(self, name: str, value: Any, kind: type[Any]) -> Any:
        """The value, if it is of the kind and, of numbers, above 0."""
        if kind is float and type(value) is int:
            value = float(value)
        is_number = kind in (int, float)
        if type(value) is not kind or (is_number and value <= 0):
            raise TraceError(
                f"{self.path}: {name} must be a {kind.__name__}{' > 0' if is_number else ''}, got {value!r}"
            )
        return value


def engine_settings(meta: Mapping[str, Any], path: Path) -> EngineSettings:
    """Settings of the engine a ``meta.json`` describes.

    Raises
    ------
    TraceError
        If a setting is malformed.
    ConfigError
        If the engine did something that is not simulated.
    """
    recorded = Recorded(meta, path)
    model = meta.get("model") or recorded.find("model")
    if not isinstance(model, str):
        raise TraceError(f"{path}: model must be a name, got {model!r}")
    _refuse_what_is_not_simulated(recorded)
    max_num_seqs = recorded.fact("max_num_seqs", int)
    budgets = [recorded.fact(name, int) for name in ("max_num_batched_tokens", "max_num_scheduled_tokens")]
    max_tokens = min((n_tokens for n_tokens in budgets if n_tokens is not None), default=None)
    by_device = (("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_tokens))
    recorded.assumed += [f"{name} by device" for name, value in by_device if value is None]
    dtype = recorded.setting("dtype", str).removeprefix("torch.")
    kv_dtype = recorded.setting("kv_cache_dtype", str, "cache_dtype")
    for name, value, known in (("dtype", dtype, DTYPES), ("kv_cache_dtype", kv_dtype, {"auto": "", **KV_DTYPES})):
        if value not in known:
            raise ConfigError(f"{path}: {name} must be one of {', '.join(known)}, got {value!r}")
    hardware = Recorded({"engine_kwargs": meta["hardware"] if isinstance(meta.get("hardware"), Mapping) else {}}, path)
    version = str(meta.get("vllm_version", "unknown"))
    return EngineSettings(
        model=model,
        vllm_version=version,
        tensor_parallel=recorded.setting("tensor_parallel_size", int),
        data_parallel=recorded.fact("data_parallel_size", int) or 1,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_tokens,
        max_model_len=recorded.fact("max_model_len", int),
        block_tokens=recorded.setting("block_size", int),
        has_prefix_caching=recorded.setting("enable_prefix_caching", bool),
        is_async=_is_async(recorded, version),
        long_prefill_tokens=recorded.find("long_prefill_token_threshold") or 0,
        capture_sizes=_capture_sizes(recorded, max_num_seqs, max_tokens),
        memory_utilization_frac=recorded.setting("gpu_memory_utilization", float),
        weight_dtype=DTYPES[dtype],
        kv_dtype=KV_DTYPES.get(kv_dtype, DTYPES[dtype]),
        reported_blocks=recorded.fact("num_gpu_blocks", int),
        given_blocks=recorded.fact("num_gpu_blocks_override", int),
        kv_memory_bytes=recorded.fact("kv_cache_memory_bytes", int),
        watermark_frac=recorded.find("watermark") or 0.0,
        counts_graphs=_since(recorded, "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", version, COUNTS_GRAPHS_SINCE),
        reserves_prompt=_reserves_prompt(recorded, version),
        device=hardware.fact("device_name", str),
        device_memory_bytes=hardware.fact("device_total_memory_bytes", int),
        assumed=(
            *((f"not recorded, vLLM's default: {', '.join(recorded.assumed)}",) if recorded.assumed else ()),
            *_not_simulated(recorded),
        ),
    )


def _not_simulated(recorded: Recorded) -> list[str]:
    """What the engine did besides, in words: it shades the schedule, and is left out here."""
    left_out = [
        f"{name} {recorded.find(name)}"
        for name, harmless in (
            ("max_num_partial_prefills", (None, 1)),
            ("prefill_schedule_interval", (None, 1)),
            ("kv_offloading_size", (None, 0)),
            ("cudagraph_mode", (None, *NO_GRAPHS, 1, 2, [2, 1], "PIECEWISE", "FULL", "FULL_AND_PIECEWISE")),
        )
        if recorded.find(name) not in harmless
    ]
    if recorded.find("disable_custom_all_reduce") and recorded.find("tensor_parallel_size") not in (None, 1):
        left_out.append("disable_custom_all_reduce true")  # all-reduces are as the profile timed them
    left_out += recorded.unread()
    return [f"recorded, but not simulated: {', '.join(left_out)}"] if left_out else []


def _refuse_what_is_not_simulated(recorded: Recorded) -> None:
    for name, harmless in (
        ("enable_expert_parallel", (None, False)),
        ("pipeline_parallel_size", (None, 1)),
        ("speculative_config", (None,)),
        ("num_speculative_tokens", (None, 0)),
        ("quantization", (None,)),
        ("policy", (None, "fcfs")),
        ("scheduling_policy", (None, "fcfs")),
        ("decode_context_parallel_size", (None, 1)),
        ("prefill_context_parallel_size", (None, 1)),
    ):
        if (value := recorded.find(name)) not in harmless:
            raise ConfigError(f"{recorded.path}: engines with {name} {value!r} are not simulated")
    if recorded.setting("enable_chunked_prefill", bool) is False:
        raise ConfigError(
            f"{recorded.path}: engines without chunked prefill (enable_chunked_prefill false) are not simulated"
        )


def _is_async(recorded: Recorded, version: str) -> bool:
    """Whether iterations were planned ahead: as recorded, else by the version's default."""
    return _since(recorded, "async_scheduling", version, ASYNC_SINCE)


def _reserves_prompt(recorded: Recorded, version: str) -> bool:
    """Whether a request is admitted only if its whole prompt has room: as recorded, else by the version's default."""
    return _since(recorded, "scheduler_reserve_full_isl", version, RESERVES_SINCE)


def _since(recorded: Recorded, name: str, version: str, first: tuple[int, int]) -> bool:
    """A switch as recorded, else on from the version on that made it the default; a name that is no version is new."""
    value = recorded.find(name)
    if isinstance(value, bool):
        return value
    try:
        major, minor = (int(part) for part in version.removeprefix("v").split(".")[:2])
    except ValueError:
        recorded.assumed.append(f"{name} true (vllm_version {version!r} is not a version)")
        return True
    is_on = (major, minor) >= first
    recorded.assumed.append(f"{name} {str(is_on).lower()} (vLLM {version})")
    return is_on


def _capture_sizes(recorded: Recorded, max_num_seqs: int | None, max_tokens: int | None) -> tuple[int, ...] | None:
    """Token counts with a CUDA graph: as recorded, none when eager, else vLLM's default for the largest batch.

    None where that is the device's, too.

    Source: vLLM, ``VllmConfig._set_cudagraph_sizes`` (vllm/config/vllm.py): sizes up to
    ``min(2 * max_num_seqs, 512, max_num_batched_tokens)``.
    """
    if recorded.find("enforce_eager") is True or recorded.find("cudagraph_mode") in NO_GRAPHS:
        return ()
    sizes = recorded.find("cudagraph_capture_sizes")
    if isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes):
        return tuple(sorted(set(sizes)))
    largest = recorded.find("max_cudagraph_capture_size")
    if type(largest) is not int:
        if max_num_seqs is None or max_tokens is None:
            return None
        largest = min(2 * max_num_seqs, 512, max_tokens)
        recorded.assumed.append(f"CUDA graphs up to {largest} tokens")
    return tuple(size for size in CAPTURE_SIZES if size <= largest)

"""vLLM's own flags, as somebody has them in a script: ``engine.args="--max-num-seqs 256 --enable-expert-parallel"``.

Each becomes the setting that it means here. A flag that decides nothing about time or memory is said to; whatever is
not modelled is refused. Names and meanings are those of ``vllm serve`` (vllm/engine/arg_utils.py, vllm/config/), with
dashes or underscores, ``--flag value`` or ``--flag=value``.
"""

import re
import shlex
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from sim.errors import ConfigError
from sim.override import Override, given

KEY = "engine.args"


class Meaning(NamedTuple):
    """What a flag sets, and how its value is read; None: it takes none and sets ``value``."""

    key: str  # the setting; empty: it changes nothing that is simulated
    read: Callable[[str, str], Any] | None = None
    value: Any = True


class Told(NamedTuple):
    """A flag as it was given, and the setting that it became; none where it changes nothing."""

    flag: str
    override: Override | None

    def words(self) -> str:
        """In a line."""
        if self.override is None:
            return f"{self.flag}: changes nothing that is simulated"
        return f"{self.flag}: {self.override.key}={self.override.value}"


def whole(flag: str, text: str) -> int:
    """A whole number; k, m and g are thousands, K, M and G powers of 1,024, as vLLM reads them."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", text)
    scale = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    number = float(match[1]) * scale[match[2]] if match else 0.5
    if number != int(number):
        raise ConfigError(f"{KEY}: {flag} must be a whole number, as 8192 or 8k, got {text!r}")
    return int(number)


def fraction(flag: str, text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{KEY}: {flag} must be a number, got {text!r}") from None


def wholes(flag: str, text: str) -> list[int]:
    """Several whole numbers, separated by commas or blanks."""
    return sorted(whole(flag, one) for one in re.split(r"[\s,]+", text.strip("[] ")))


def one_of(**known: Any) -> Callable[[str, str], Any]:
    """Names that mean a value of ours."""

    def read(flag: str, text: str) -> Any:
        if text not in known:
            raise ConfigError(f"{KEY}: {flag} {text} is not modelled, there are {', '.join(known)}")
        return known[text]

    return read


def text_of(_flag: str, text: str) -> str:
    """As it is."""
    return text


def model_of(_flag: str, text: str) -> str:
    """The path of a checkpoint, or a published name as the shipped files have it; that there is one is seen later."""
    if Path(text).expanduser().exists():
        return text
    return text.rstrip("/").rpartition("/")[2].lower().removesuffix("-instruct").replace("meta-llama", "llama")


NOTHING = Meaning("", text_of)
FLAGS: dict[str, Meaning] = {
    "model": Meaning("model", model_of),
    "max-num-seqs": Meaning("batching.max_num_seqs", whole),
    "max-num-batched-tokens": Meaning("batching.max_num_batched_tokens", whole),
    "long-prefill-token-threshold": Meaning("batching.long_prefill_token_threshold", whole),
    "max-model-len": Meaning("model.max_len", whole),
    "tensor-parallel-size": Meaning("hardware.tensor_parallel", whole),
    "pipeline-parallel-size": Meaning("hardware.pipeline_parallel", whole),
    "enable-expert-parallel": Meaning("hardware.expert_parallel"),
    "no-enable-expert-parallel": Meaning("hardware.expert_parallel", value=False),
    "gpu-memory-utilization": Meaning("hardware.memory_utilization_frac", fraction),
    "num-gpu-blocks-override": Meaning("hardware.kv_blocks", whole),
    "block-size": Meaning("cache.block_tokens", whole),
    "enable-prefix-caching": Meaning("cache.prefix_caching"),
    "no-enable-prefix-caching": Meaning("cache.prefix_caching", value=False),
    "kv-cache-dtype": Meaning(
        "model.kv_dtype", one_of(auto=None, bfloat16="bf16", fp8="fp8", fp8_e4m3="fp8", fp8_e5m2="fp8")
    ),
    "quantization": Meaning(
        "model.weight_dtype",
        one_of(fp8="fp8", modelopt="fp8", awq="int4", awq_marlin="int4", gptq="int4", gptq_marlin="int4",
               modelopt_fp4="nvfp4"),
    ),
    "dtype": Meaning("", one_of(auto=None, bfloat16=None, float16=None, half=None)),  # activations: two bytes each
    "enforce-eager": Meaning("cost.capture_sizes", value=[]),
    "cuda-graph-sizes": Meaning("cost.capture_sizes", wholes),
    "cudagraph-capture-sizes": Meaning("cost.capture_sizes", wholes),
    "async-scheduling": Meaning("engine.async_scheduling"),
    "no-async-scheduling": Meaning("engine.async_scheduling", value=False),
    "scheduling-policy": Meaning("queue", one_of(fcfs="fcfs", priority="priority")),
    "preemption-mode": Meaning("preemption", one_of(recompute="recompute", swap="swap")),
    "enable-chunked-prefill": Meaning("", value=True),  # how batching=chunked works
    "max-num-partial-prefills": Meaning("", one_of(**{"1": None})),
    **dict.fromkeys(
        ("host", "port", "api-key", "served-model-name", "seed", "download-dir", "load-format", "tokenizer",
         "tokenizer-mode", "revision", "chat-template", "uvicorn-log-level", "tool-call-parser", "reasoning-parser"),
        NOTHING,
    ),
    **dict.fromkeys(
        ("trust-remote-code", "disable-log-stats", "disable-log-requests", "no-enable-log-requests",
         "enable-auto-tool-choice", "disable-uvicorn-access-log"),
        Meaning(""),
    ),
}  # fmt: skip
"""By vLLM's name. Those without a setting decide who may ask, what is logged and where weights come from."""

SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "q": "quantization",
    "ep": "enable-expert-parallel",
}
NOT_MODELLED = {
    "data-parallel-size": "ranks of a model with experts step together; of a dense one they are replicas=",
    "dp": "ranks of a model with experts step together; of a dense one they are replicas=",
    "no-enable-chunked-prefill": "prompts in whole iterations of v1; batching=continuous is v0's",
    "speculative-config": "drafts of other models",
    "enable-lora": "adapters",
    "cpu-offload-gb": "weights in host memory",
    "swap-space": "v1 does not swap; preemption=swap is v0's",
}
"""Why, for flags that somebody is likely to have."""


def told(text: str) -> list[Told]:
    """Every flag of a command line, in order, and what it sets.

    Raises
    ------
    ConfigError
        If one is not modelled, lacks its value, or has one that is not what it takes.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{KEY}: {error}, in {text!r}") from None
    if words[:2] == ["vllm", "serve"]:
        words = ["--model", *words[2:]]
    found = []
    while words:
        written = words.pop(0)
        name, equals, value = written.partition("=")
        if not name.startswith("-"):
            raise ConfigError(f"{KEY}: {written!r} is no flag, and the one before it takes one value")
        plain = name.lstrip("-").replace("_", "-")
        plain = SHORT.get(plain, plain)
        meaning = FLAGS.get(plain)
        if meaning is None:
            raise ConfigError(f"{KEY}: {name} is not modelled{_why(plain)}")
        if meaning.read is None:
            if equals:
                raise ConfigError(f"{KEY}: {name} takes no value, got {value!r}")
            found.append(Told(name, given(meaning.key, meaning.value) if meaning.key else None))
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{KEY}: {name} needs a value")
            value = words.pop(0)
            while plain.endswith("-sizes") and words and not words[0].startswith("-"):
                value += f" {words.pop(0)}"
        meant = meaning.read(name, value)
        sets = bool(meaning.key) and meant is not None
        found.append(Told(f"{name} {value}", given(meaning.key, meant) if sets else None))
    return found


def _why(name: str) -> str:
    """Why a flag is not modelled, or which one was meant."""
    if name in NOT_MODELLED:
        return f": {NOT_MODELLED[name]}"
    near = get_close_matches(name, FLAGS, n=1, cutoff=0.8)
    return f"; did you mean --{near[0]}?" if near else ""


def expanded(overrides: list[Override]) -> list[Override]:
    """Settings with those that ``engine.args`` stands for in its place; what follows goes before it.

    Raises
    ------
    ConfigError
    """
    result = []
    for one in overrides:
        if one.key == KEY and not one.is_removal:
            text = one.text if one.text is not None else one.value
            if text and not isinstance(text, str):
                raise ConfigError(f"{KEY} must be vLLM's flags as one text, got {text!r}")
            text = _unquoted(text or "")
            result += [flag.override for flag in told(text) if flag.override is not None]
            one = Override(KEY, text)
        result.append(one)
    return result


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text

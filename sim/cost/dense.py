"""Parts of a forward pass that depend on the number of tokens or sequences alone, from a profile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sim.cost.experts import ExpertShape, ExpertTimes, expert_times
from sim.cost.grid import unpacked
from sim.cost.roofline import (
    ELEMENTWISE_KERNELS,
    LOGIT_BYTES,
    Roofline,
    gathered_as,
    n_all_reduces,
    n_elementwise,
)
from sim.cost.sampling import SAMPLERS
from sim.cost.surface import SoftRoofline, Surface, error_from, monotone, roofline_from, surface_from
from sim.cost.work import gemm_work
from sim.errors import ProfileError
from sim.spec import ACTIVATION_BYTES, DTYPE_BYTES, Gemm, Layers, ModelSpec, Moe

CALLS = {
    # of one forward pass, per decoder layer (layer) or once (model). Source: vLLM 0.19, models/llama.py
    "layernorm": ("layer", 2),  # before attention and before the MLP, with the residual added
    "qkv_proj": ("layer", 1),
    "qk_norm": ("layer", 1),  # of queries and keys, timed as one; models as Qwen3 alone have it
    "rotary_emb": ("layer", 1),
    "o_proj": ("layer", 1),
    "gate_up_proj": ("layer", 1),
    "act_fn": ("layer", 1),
    "down_proj": ("layer", 1),
    "embedding": ("model", 1),
    "final_layernorm": ("model", 1),
}
TILE_TOKENS, MEASURED_SINGLY = 16, 64
"""A matrix product's time is a staircase: it computes whole tiles of tokens. Between measured counts, the next one up.

Source: LLMServingSim's times of an RTX PRO 6000, measured at every 16th count past 64: at 641 tokens a layer's time
rises by 27 % over 640, and then stays within 1 % up to 768; a recorded iteration of 643 tokens took the upper time.
"""
OPTIONAL_CALLS = ("qk_norm",)
ATTENTION_KERNELS = 2  # of a layer's attention: the append of keys and values, and attention itself
SEQUENCE_CALLS = ("lm_head", "sampler")
TABULATED_TOKENS, TABULATED_SEQS = 8_192, 512  # told from a list; vLLM's largest default budget, largest batch in use

Array = npt.NDArray[np.float64]


class Dense(Protocol):
    """Everything but attention, over the whole model on one rank [s]."""

    most_tokens: int  # measured up to here
    most_seqs: int
    n_launches: int  # kernels of an iteration, where what passes between them was not timed

    dense_s: "Tabulated"  # all layers on so many tokens
    sequences_s: "Tabulated"  # lm_head and sampler for so many sequences


@dataclass(frozen=True, slots=True)
class Curve:
    """Time against a count: straight lines between measured knots, the outermost lines going on."""

    knots: Sequence[float]
    seconds: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.seconds) or len(self.knots) < 2 or list(self.knots) != sorted(set(self.knots)):
            raise ProfileError(
                f"a curve needs >= 2 ascending knots with a time each, got knots {list(self.knots)[:4]}…"
            )

    def __call__(self, x: float) -> float:
        """Time at a count [s], never negative."""
        return float(self.at(np.array([x]))[0])

    def at(self, x: Array) -> Array:
        """Times at counts [s], never negative."""
        knots, seconds = np.asarray(self.knots, dtype=np.float64), np.asarray(self.seconds)
        i = np.clip(np.searchsorted(knots, x, "right") - 1, 0, len(knots) - 2)
        slopes = np.diff(seconds) / np.diff(knots)
        result: Array = np.maximum(0.0, seconds[i] + slopes[i] * (x - knots[i]))
        return result


class Tabulated:
    """A function of a count as a list up to some count, and the function itself beyond."""

    __slots__ = ("_function", "_known")

    def __init__(self, function: Callable[[Array], Array], most: int) -> None:
        self._function = function
        self._known: list[float] = function(np.arange(most + 1, dtype=np.float64)).tolist()

    def __call__(self, count: int) -> float:
        """Time at a count [s]."""
        if count < len(self._known):
            return self._known[count]
        return float(self._function(np.array([count], dtype=np.float64))[0])


def curve_from(form: Mapping[str, Any]) -> Curve:
    """The curve an operation of a profile holds."""
    return Curve(tuple(form["knots"]), tuple(form["seconds"]))


class LayerCurves:
    """A model measured layer by layer: one curve per layer, summed over the model's calls of it.

    The sampler that was measured is the greedy one; what another way of sampling takes more, ``sampling_s`` tells.
    """

    def __init__(
        self,
        form: Mapping[str, Any],
        n_layers: int,
        z: float = 0.0,
        sampling_s: Callable[[int], float] | None = None,
    ) -> None:
        self._sampling_s = sampling_s
        curves, spread = form["curves"], form["standard_error"]
        needed = [name for name in (*CALLS, *SEQUENCE_CALLS) if name not in OPTIONAL_CALLS]
        if missing := [name for name in needed if name not in curves]:
            raise ProfileError(f"the profile measured no {', '.join(missing)}")
        counts = {name: n * (n_layers if per == "layer" else 1) for name, (per, n) in CALLS.items() if name in curves}
        self._layers = [(curve_from(curves[name]), n) for name, n in counts.items()]
        self._sequences = [curve_from(curves[name]) for name in SEQUENCE_CALLS]
        self.n_launches = sum(counts.values()) + n_layers * ATTENTION_KERNELS + len(SEQUENCE_CALLS)
        self._factor = exp(z * spread["layers_log_sd"])
        self._sequences_factor = exp(z * spread["sequences_log_sd"])
        self.most_tokens = int(min(curve.knots[-1] for curve, _ in self._layers))
        self.most_seqs = int(min(curve.knots[-1] for curve in self._sequences))
        self.dense_s = Tabulated(self._dense_s, TABULATED_TOKENS)
        self.sequences_s = Tabulated(self._sequences_s, TABULATED_SEQS)

    def _dense_s(self, tokens: Array) -> Array:
        tiles = np.where(tokens > MEASURED_SINGLY, np.ceil(tokens / TILE_TOKENS) * TILE_TOKENS, tokens)
        total = np.zeros(len(tokens))
        for curve, n in self._layers:
            total += n * curve.at(tiles)
        return self._factor * total

    def _sequences_s(self, seqs: Array) -> Array:
        total = np.zeros(len(seqs))
        for curve in self._sequences:
            total += curve.at(seqs)
        total = self._sequences_factor * total
        if self._sampling_s is not None:
            total = total + np.array([self._sampling_s(int(n)) for n in seqs])
        return total


class _LayerTimes(NamedTuple):
    """Layers of one kind."""

    n_layers: int
    kernel_bytes: float  # of an element-wise kernel, per token [B]
    curves: list[Curve]  # of matrices that every token is multiplied with
    experts: ExpertTimes | None  # where they were measured
    apart: list[Gemm]  # experts that were not


EXPERT_FORMATS = {"fp16": "bf16", "int4_g32": "int4"}
"""Formats of experts that take the times of another: int4 with more scales, 5 % more bytes."""


def measured_experts(
    operations: Mapping[str, Mapping[str, Any]],
    model: ModelSpec,
    layers: Layers,
    tensor_parallel: int,
    expert_ranks: int,
    z: Mapping[str, float],
) -> ExpertTimes | None:
    """Times of a layer's experts, where their number format was measured."""
    moe = layers.feed_forward
    if not isinstance(moe, Moe):
        return None
    dtype = moe.weight_dtype or model.weight_dtype
    name = expert_operation(dtype)
    if name not in operations:
        return None
    shape = expert_shape(model, moe, tensor_parallel, expert_ranks)
    return expert_times(operations[name], shape, DTYPE_BYTES[dtype], model.routing_skew, z.get(name, 0.0))


def expert_shape(model: ModelSpec, moe: Moe, tensor_parallel: int, expert_ranks: int) -> ExpertShape:
    """Experts of a layer, whole, and how ranks share them: by number, or else by width."""
    by_width = tensor_parallel if expert_ranks == 1 else 1
    return ExpertShape(model.d_model, moe.d_ff, moe.top_k, moe.n_experts, by_width, expert_ranks)


def expert_operation(dtype: str) -> str:
    """The operation, and part of a profile, that experts of a number format are told by."""
    return f"experts_{EXPERT_FORMATS.get(dtype, dtype)}"


class ShapedGemms:
    """A model put together from matrix products of its shapes, all-reduces, and element-wise kernels.

    Shapes that were measured are served by their own times, others by those around them (`sim.cost.grid`) or, where no
    grid was measured, by a fitted surface; columns beyond the widest matrix measured are cut into equal pieces.
    Element-wise kernels and the sampler, which such profiles do not time, take the bandwidth and the floor of the
    matrix products. Experts are a part of the profile; where it has none of their format they take ``matrix_s``, of
    tokens and a `Gemm`: the data sheet. ``links`` tells all-reduces where those of the profile are not of such a host.
    """

    def __init__(
        self,
        operations: Mapping[str, Mapping[str, Any]],
        model: ModelSpec,
        tensor_parallel: int = 1,
        z: Mapping[str, float] | None = None,
        suffix: str = "",
        matrix_s: Callable[[int, Gemm], float] | None = None,
        links: Roofline | None = None,
        expert_ranks: int = 1,
        sampling: str = "greedy",
    ) -> None:
        z = z or {}
        self._sampler = SAMPLERS[sampling]
        self._matrix_s = matrix_s or no_experts
        name = f"gemm{suffix}"
        self._layers: list[_LayerTimes] = []
        for whole, layers in zip(model.stack, model.rank_stack(tensor_parallel, expert_ranks), strict=True):
            curves, apart = [], []
            experts = measured_experts(operations, model, whole, tensor_parallel, expert_ranks, z)
            for gemm in layers.gemms(model.d_model):
                if gemm.n_matrices > 1:
                    if experts is None:
                        apart.append(gemm)
                    continue
                key, n_bytes = (name, model.weight_bytes) if gemm.dtype is None else ("gemm", DTYPE_BYTES[gemm.dtype])
                curves.append(gemm_curve(operations[key], gemm.outputs, gemm.inputs, n_bytes, z.get(key, 0.0)))
            token_bytes = n_elementwise(layers, model.d_model) * ACTIVATION_BYTES
            self._layers.append(_LayerTimes(layers.n_layers, token_bytes / ELEMENTWISE_KERNELS, curves, experts, apart))
        head_columns = -(-model.vocab // tensor_parallel)
        self._head = gemm_curve(operations["gemm"], head_columns, model.d_model, 2.0, z.get("gemm", 0.0))
        line = roofline_from(operations["gemm"])
        self._elementwise = SoftRoofline({"bytes": line.rates["bytes"]}, line.floor_s, line.p)
        self._all_reduce = (
            all_reduce_curve(operations, tensor_parallel, z.get("all_reduce", 0.0))
            if links is None
            else straight(links.all_reduce_s)
            if tensor_parallel > 1
            else None
        )
        self._model = model
        self.n_launches = 0  # replays of a graph were timed, the way from kernel to kernel included
        self.most_tokens = int(operations[name]["range"]["m"][1])
        self.most_seqs = int(operations["gemm"]["range"]["m"][1])
        self.dense_s = Tabulated(self._dense_s, TABULATED_TOKENS)
        self.sequences_s = Tabulated(self._sequences_s, TABULATED_SEQS)

    def _dense_s(self, tokens: Array) -> Array:
        total = np.zeros(len(tokens))
        for n_layers, kernel_bytes, curves, experts, apart in self._layers:
            layer = ELEMENTWISE_KERNELS * self._elementwise.seconds({"bytes": tokens * kernel_bytes})
            for curve in curves:
                layer = layer + curve.at(tokens)
            if experts is not None:
                layer = layer + experts(tokens)
            for gemm in apart:
                layer = layer + np.array([self._matrix_s(int(n), gemm) for n in tokens])
            total += n_layers * layer
        if self._all_reduce is not None:
            reduced = self._all_reduce.at(tokens * self._model.d_model * ACTIVATION_BYTES)
            total = total + n_all_reduces(self._model) * reduced
        return total

    def _sequences_s(self, seqs: Array) -> Array:
        logits_bytes = seqs * self._model.vocab * LOGIT_BYTES
        sampler = self._sampler
        kernel_bytes = logits_bytes * (sampler.n_passes / sampler.n_kernels)
        seconds = self._head.at(seqs) + sampler.n_kernels * self._elementwise.seconds({"bytes": kernel_bytes})
        return seconds if self._all_reduce is None else seconds + self._all_reduce.at(gathered_as(seqs, self._model))


def no_experts(n_tokens: int, gemm: Gemm) -> float:
    """What stands for experts' times where the caller gave none."""
    raise ProfileError(f"the profile timed no experts, {gemm.name} of {n_tokens} tokens was asked for")


def gemm_curve(form: Mapping[str, Any], n: int, k: int, element_bytes: float, z: float) -> Curve:
    """Time of (m, k) x (k, n) over m: of a measured grid, or this shape's kept curve, or the surface along it."""
    if "grid" in form:
        grid = unpacked(form["grid"])
        knots, seconds = grid.m, grid.along(n, k)
    elif (kept := form["curves"]["seconds"].get(f"{n}x{k}")) is not None:
        knots, seconds = np.array(form["curves"]["m"], dtype=np.float64), np.array(kept)
    else:
        low, high = form["range"]["m"]
        knots = np.unique(np.round(np.geomspace(low, high, 61)))
        n_pieces = -(-n // int(form["range"]["n"][1]))
        seconds = n_pieces * monotone(gemm_seconds(surface_from(form), knots, n / n_pieces, float(k), element_bytes))
    seconds = seconds * np.exp(z * error_from(form)(seconds))
    return Curve(knots.tolist(), seconds.tolist())


def gemm_seconds(surface: Surface, m: Any, n: Any, k: Any, element_bytes: float) -> Any:
    """Time of matrix products by the fitted surface, arrays of one shape or scalars with ``m`` an array [s]."""
    m, n, k = (np.broadcast_to(np.asarray(x, dtype=np.float64), np.shape(m)) for x in (m, n, k))
    return surface.seconds({"m": m, "n": n, "k": k}, gemm_work(m, n, k, element_bytes))


def straight(seconds: Callable[[float], float]) -> Curve:
    """A straight line as a curve."""
    far = float(1 << 30)
    return Curve((0.0, far), (seconds(0.0), seconds(far)))


def all_reduce_curve(operations: Mapping[str, Mapping[str, Any]], devices: int, z: float) -> Curve | None:
    """Time of summing a message of some bytes over ``devices``; None on a single one."""
    if devices == 1:
        return None
    form = operations.get("all_reduce", {"curves": {}})
    if str(devices) not in form["curves"]:
        raise ProfileError(f"all-reduce was measured over {', '.join(form['curves']) or 'no'} devices, not {devices}")
    kept = form["curves"][str(devices)]
    factor = exp(z * form["standard_error"]["log_sd"])
    return Curve(kept["bytes"], [factor * s for s in kept["seconds"]])

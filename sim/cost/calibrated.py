"""Iteration times from a kernel profile: what was measured on a device, fitted, for one model on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from zlib import crc32

import numpy as np

from sim.cost.attention import Attention, Heads, MixedAttention, SeparateAttention, check_heads, nodes
from sim.cost.dense import Dense, LayerCurves, ShapedGemms, expert_operation, expert_shape, gemm_curve
from sim.cost.host import HostCost
from sim.cost.iteration import CAPTURE_SIZES, IterationCost
from sim.cost.latent import LatentAttention, is_of_these
from sim.cost.operations import DecodeCurve
from sim.cost.pipeline import Pipeline
from sim.cost.roofline import Efficiency, Roofline, interconnect_words
from sim.cost.surface import Array, soft_s
from sim.errors import ProfileError
from sim.profile import KernelProfile, find_profile
from sim.spec import Attention as AttentionKind
from sim.spec import DeviceSpec, Gqa, Mla, ModelSpec, Moe
from sim.step import Chunks

DECODE_KNOTS_PER_OCTAVE = 4
"""Knots of a decode curve over the mean context. The time is nearly straight between them: 0.1 % off at most."""

FEED_FORWARD_AXES = ("d_ff",)  # what profiles of one model name of its feed-forward layers


UNTIMED = (1.0, float(1 << 24))
"""Where nothing was measured nothing is outside of it: the data sheet's lines have no end."""

FP8_BLOCK_WORDS = (
    "matrices in fp8 by blocks take the times of fp8 by tensors: their own were published with their launches, 59 us "
    "for one token, and whole blocks of latent attention in both formats take the same within 2 % (median)"
)


class _Layers(NamedTuple):
    """Layers with one kind of attention."""

    n_layers: int
    narrow: int | None  # a window of theirs that is not the whole model's [tokens]
    attention: Attention


class CalibratedOperations:
    """`Operations` of a model on one tensor-parallel rank, from a profile.

    Parameters
    ----------
    profile : KernelProfile
    model : ModelSpec
        A profile of one model takes this model alone, in any number of layers.
    device : DeviceSpec
        For what kernels were not timed: copies, at the bandwidth of its data sheet.
    tensor_parallel : int
    errors : mapping of str to float, optional
        By operation, how many standard errors of the fit its times are off: a draw from a standard normal each, for
        simulations that carry the profile's uncertainty into their results. Drawn once per run, since an error of the
        fit is the same in every iteration. Nothing: the best estimates.
    peer_to_peer : bool
        Of devices on PCIe. All-reduces over PCIe are the host's: without peer-to-peer, and over numbers of devices that
        were not measured, the data sheet's are taken, and that is said.
    expert_parallel : bool
        Ranks share experts by number. Their results are summed as other layers' are, by one all-reduce (vLLM without
        data-parallel attention dispatches nothing).

    Raises
    ------
    ProfileError
        If the profile lacks an operation or was measured on another model's shapes.
    """

    def __init__(
        self,
        profile: KernelProfile,
        model: ModelSpec,
        device: DeviceSpec,
        tensor_parallel: int = 1,
        errors: Mapping[str, float] | None = None,
        peer_to_peer: bool = True,
        expert_parallel: bool = False,
        sampling: str = "greedy",
    ) -> None:
        z = dict(errors or {})
        for _, kind in model.rank_attentions(tensor_parallel):
            check_heads(profile.subject, kind.axes(), profile.path)
        check_model(profile, model, tensor_parallel)
        profile = with_parts(profile, model)
        self.provenance = profile.describe() | {"standard_errors_off": z}
        self._device = device
        self._copies = profile.operations
        self._dense: Dense
        by_data_sheet = Roofline(model, device, tensor_parallel, Efficiency(), peer_to_peer, expert_parallel, sampling)
        suffix = format_suffix(profile, "decode_attention", model.kv_dtype, "kv_dtype")
        self._attention: list[_Layers] = []
        self._fused: tuple[int, MixedAttention] | None = None
        reach: dict[str, Sequence[float]] = {}
        prompts: Mapping[str, Sequence[float]] = {}
        untimed: list[str] = []
        are_heads_inside = True
        for n_layers, kind in model.rank_attentions(tensor_parallel):
            narrow = kind.window if kind.window != model.window else None
            times: Attention
            if isinstance(kind, Gqa):
                heads = Heads(kind.n_heads, kind.n_kv_heads, kind.head_dim, model.kv_bytes)
                if "mixed_attention" in profile.operations:
                    if self._fused is not None:
                        raise ProfileError(
                            f"{profile.path}: measured one kind of attention, {model.name} has several; take "
                            "cost=roofline"
                        )
                    reach, prompts = profile.operation("decode_attention")["range"], mixed_range(profile)
                    times = mixed = MixedAttention(profile.operations, heads, z, kind.window)
                    self._fused = n_layers, mixed
                else:
                    reach = profile.operation(f"decode_attention{suffix}")["range"]
                    prompts = profile.operation(f"batched_prefill_attention{suffix}")["range"]
                    times = SeparateAttention(profile.operations, heads, z, suffix, kind.window)
                are_heads_inside &= all(
                    reach[axis][0] <= x <= reach[axis][1] for axis, x in heads.axes().items() if axis in reach
                )
            elif isinstance(kind, Mla) and latent_is_timed(profile, kind, model.d_model):
                operations = profile.operations
                reach, prompts = operations["latent_decode"]["range"], operations["latent_prefill"]["range"]
                times = LatentAttention(operations, kind, model.kv_bytes, unpacking(profile, model, kind), z)
            elif "mixed_attention" in profile.operations:
                raise ProfileError(
                    f"{profile.path}: measured grouped-query attention, {model.name} has {type(kind).__name__}; take "
                    "cost=roofline"
                )
            else:
                times = DataSheetAttention(model, kind, device, tensor_parallel)
                untimed.append(type(kind).__name__)
            self._attention.append(_Layers(n_layers, narrow, times))
        if untimed:
            self.provenance["attention"] = f"{', '.join(untimed)}: data sheet of {device.name}, nobody timed its like"
        if "layers" in profile.operations:
            self._dense = LayerCurves(
                profile.operation("layers"), model.n_layers, z.get("layers", 0.0), beyond_greedy(by_data_sheet)
            )
        else:
            suffix = format_suffix(profile, "gemm", model.weight_dtype, "dtype")
            measured = profile.operations.get("all_reduce", {"curves": {}})["curves"]
            links = None
            if device.interconnect == "pcie" and not (peer_to_peer and str(tensor_parallel) in measured):
                words = interconnect_words(device, tensor_parallel, peer_to_peer)
                self.provenance |= {"interconnect": words} if words else {}
                links = by_data_sheet
            self._dense = ShapedGemms(
                profile.operations,
                model,
                tensor_parallel,
                z,
                suffix,
                by_data_sheet.matrix_s,
                links,
                tensor_parallel if expert_parallel else 1,
                sampling,
            )
            if model.weight_dtype == "fp8_block" and suffix == "_fp8":
                self.provenance["matrices"] = FP8_BLOCK_WORDS
            if words := expert_words(
                profile, model, device, tensor_parallel, tensor_parallel if expert_parallel else 1
            ):
                self.provenance["experts"] = words
        self.n_launches = self._dense.n_launches
        seqs = reach.get("decode_seqs", UNTIMED)
        self._most_seqs = int(seqs[1]) if are_heads_inside else 0
        means = reach.get("decode_mean_tokens", UNTIMED)
        self._most_mean = means[1]
        windows = {float(layers.narrow) for layers in self._attention if layers.narrow is not None}
        self._means = sorted({*nodes(means, DECODE_KNOTS_PER_OCTAVE, 0.0), *windows})
        new = prompts.get("new_tokens", UNTIMED)
        self._most_new = new[1]
        self._most_context = prompts.get("context_tokens", (0.0, self._most_new))[1]
        self.is_fused = self._fused is not None
        self.extrapolated_runs = 0  # iterations with chunks outside the range the profile was fitted in
        prompt = "prompt attention"
        self.ranges: dict[tuple[str, str], tuple[float, float]] = {
            (prompt, "new tokens"): (new[0], self._most_new),
            (prompt, "cached tokens"): (prompts.get("context_tokens", (0.0, 0.0))[0], self._most_context),
            ("decode attention", "sequences"): (seqs[0], seqs[1]),
            ("decode attention", "tokens a sequence"): (means[0], self._most_mean),
        }
        self.asked = dict.fromkeys(self.ranges, 0)  # the most that was asked for outside of them

    def dense_s(self, n_tokens: int) -> float:
        """GEMMs, norms, activations of all layers on ``n_tokens`` tokens [s]."""
        return self._dense.dense_s(n_tokens)

    def sequences_s(self, n_seqs: int) -> float:
        """lm_head and sampler for one token of each of ``n_seqs`` sequences [s]."""
        return self._dense.sequences_s(n_seqs)

    def prefill_attention_s(self, chunks: Chunks) -> float:
        """Attention of chunks in one launch per layer [s]."""
        for new, context, _ in chunks:
            if new > self._most_new or context > self._most_context:
                self._outside(chunks, 0, 0)
                break
        seconds = 0.0
        for layers in self._attention:
            seconds += layers.n_layers * layers.attention.chunks_s(chunks)
        return seconds

    def fused_attention_s(self, chunks: Chunks, batch: int, context_tokens: int, longest_tokens: int) -> float:
        """Attention of chunks and of the decoding sequences beside them, all layers, where `is_fused` [s]."""
        assert self._fused is not None, "asked only where is_fused"
        n_layers, attention = self._fused
        for new, context, _ in chunks:
            if new > self._most_new or context > self._most_context:
                self._outside(chunks, 0, 0)
                break
        else:
            if batch > self._most_seqs or longest_tokens > self._most_mean:
                self._outside(chunks, batch, longest_tokens)
        return n_layers * attention.fused_s(chunks, batch, context_tokens, longest_tokens)

    def _outside(self, chunks: Chunks, batch: int, tokens: int) -> None:
        """Count an iteration outside of what was measured, and note how far it reaches along each axis."""
        self.extrapolated_runs += 1
        reached = (max(chunk[0] for chunk in chunks), max(chunk[1] for chunk in chunks), batch, tokens)
        for axis, most in zip(self.ranges, reached, strict=True):
            self.asked[axis] = max(self.asked[axis], most)

    def decode_attention(self, batch: int) -> DecodeCurve:
        """Attention of ``batch`` decoding sequences over their total context, all layers.

        Of the layers that read all there is, or the widest window; narrower windows end where they are full on average.
        """
        knots, seconds = [batch], [self._decode_s(batch, 1.0)]
        for mean in self._means:
            knot = round(mean * batch)
            if knot > knots[-1]:
                knots.append(knot)
                seconds.append(max(seconds[-1], self._decode_s(batch, knot / batch)))
        skew_s = 0.0
        for layers in self._attention:
            if layers.narrow is None:
                skew_s += layers.n_layers * layers.attention.decode_skew_s(batch)
        return DecodeCurve(
            knots=tuple(knots),
            seconds=tuple(seconds),
            skew_s=skew_s,
            valid_to_tokens=int(batch * self._most_mean) if batch <= self._most_seqs else 0,
        )

    def _decode_s(self, batch: int, mean_tokens: float) -> float:
        seconds = 0.0
        for layers in self._attention:
            mean = mean_tokens if layers.narrow is None else min(mean_tokens, layers.narrow)
            seconds += layers.n_layers * layers.attention.decode_s(batch, mean)
        return seconds

    def copy_s(self, moved_bytes: float, host_bytes: float) -> float:
        """Copies inside device memory (read and written) and over the link to the host [s].

        As measured where they were (the slower way of the link, pinned memory), else by the data sheet.
        """
        seconds = 0.0
        if moved_bytes:
            line = self._copies.get("block_copy", {}).get("roofline")
            if line is None:
                seconds += 2.0 * moved_bytes / self._device.bandwidth_bytes_per_s
            else:
                seconds += soft_s(moved_bytes / line["rates"]["bytes"], line["floor_s"], line["p"])
        if host_bytes:
            paths = self._copies.get("link", {}).get("paths")
            if paths is None:
                seconds += host_bytes / self._device.host_link_bytes_per_s + self._device.host_link_latency_s
            else:
                ways = (paths["h2d pinned"], paths["d2h pinned"])
                seconds += max(soft_s(host_bytes / way["bytes_per_s"], way["latency_s"], way["p"]) for way in ways)
        return seconds


class DataSheetAttention:
    """Attention of a kind that no profile timed: one layer of it, by the device's data sheet."""

    def __init__(self, model: ModelSpec, kind: AttentionKind, device: DeviceSpec, tensor_parallel: int) -> None:
        layers = next(layers for layers in model.stack if layers.attention.shard(tensor_parallel) == kind)
        one = replace(model, stack=(replace(layers, n_layers=1),))
        self._roofline = Roofline(one, device, tensor_parallel)

    def decode_s(self, n_seqs: int, mean_tokens: float) -> float:
        """Of ``n_seqs`` decoding sequences that read ``mean_tokens`` KV entries each [s]."""
        return self._roofline.decode_s(n_seqs, n_seqs * mean_tokens)

    def decode_skew_s(self, n_seqs: int) -> float:  # noqa: ARG002
        """Unequal contexts cost nothing by the data sheet."""
        return 0.0

    def chunks_s(self, chunks: Chunks) -> float:
        """Of prompt chunks [s]."""
        return self._roofline.prefill_attention_s(chunks)


def beyond_greedy(by_data_sheet: Roofline) -> Callable[[int], float] | None:
    """What the run's way of sampling takes more than the greedy one, by the data sheet; None where it is that [s]."""
    sampling = by_data_sheet.sampling
    if sampling == "greedy":
        return None
    return lambda n_seqs: by_data_sheet.sampler_s(n_seqs, sampling) - by_data_sheet.sampler_s(n_seqs, "greedy")


def with_parts(profile: KernelProfile, model: ModelSpec) -> KernelProfile:
    """The profile with those of its parts that the model's kinds ask for."""
    for layers in model.stack:
        moe = layers.feed_forward
        if isinstance(moe, Moe):
            profile = profile.with_part(expert_operation(moe.weight_dtype or model.weight_dtype))
        if isinstance(layers.attention, Mla) and layers.attention.n_selected is None:
            dtype = {"fp8": "fp8_block", "fp16": "bf16"}.get(model.weight_dtype, model.weight_dtype)
            profile = profile.with_part(f"latent_{dtype}_{model.kv_dtype}")
    return profile


def latent_is_timed(profile: KernelProfile, kind: Mla, d_model: int) -> bool:
    """Whether the profile timed blocks like this one, in the model's number formats."""
    names = ("latent_decode", "latent_prefill")
    return all(name in profile.operations and is_of_these(profile.operation(name), kind, d_model) for name in names)


def unpacking(profile: KernelProfile, model: ModelSpec, kind: Mla) -> Callable[[Array], Array]:
    """Time of unpacking so many cached latent vectors into keys and values, by the matrix that does it [s]."""
    up = next(gemm for gemm in kind.gemms(model.d_model) if gemm.name == "kv_up")
    name = f"gemm{format_suffix(profile, 'gemm', model.weight_dtype, 'dtype')}"
    return gemm_curve(profile.operation(name), up.outputs, up.inputs, model.weight_bytes, 0.0).at


def mixed_range(profile: KernelProfile) -> Mapping[str, Sequence[float]]:
    """What prompts were measured in, beside decoding sequences."""
    found: Mapping[str, Sequence[float]] = profile.operation("mixed_attention")["range"]
    return found


def expert_words(
    profile: KernelProfile, model: ModelSpec, device: DeviceSpec, tensor_parallel: int, expert_ranks: int
) -> str | None:
    """Where the times of a model's experts come from; None where it has none."""
    moes = [layers.feed_forward for layers in model.stack if isinstance(layers.feed_forward, Moe)]
    if not moes:
        return None
    routing = (
        f"routed by a power law of {model.routing_skew:g}" if model.routing_skew else "chosen at random, all alike"
    )
    name = expert_operation(moes[0].weight_dtype or model.weight_dtype)
    if name not in profile.operations:
        return f"data sheet of {device.name} (roofline), {routing}: the profile timed none of this format"
    shapes = profile.operation(name)["shapes"]
    own = [list(expert_shape(model, moe, tensor_parallel, expert_ranks)) for moe in moes]
    how = "measured" if all(shape in shapes for shape in own) else "told by other shapes that were measured"
    return f"{how} ({name}, {len(shapes)} shapes), {routing}"


def format_suffix(profile: KernelProfile, operation: str, dtype: str, key: str) -> str:
    """What a profile adds to an operation's name for a number format.

    A profile of several formats names bf16 plainly; one of a single format says which in its subject.

    Raises
    ------
    ProfileError
        If the format was not measured.
    """
    dtype = {"fp8_block": "fp8"}.get(dtype, dtype) if f"{operation}_{dtype}" not in profile.operations else dtype
    if f"{operation}_{dtype}" in profile.operations:
        return f"_{dtype}"
    if dtype not in ("bf16", "fp16") and profile.subject.get(key) != dtype:
        raise ProfileError(f"{profile.path}: {operation} was not measured in {dtype}; take bf16 or cost=roofline")
    return ""


def check_model(profile: KernelProfile, model: ModelSpec, tensor_parallel: int) -> None:
    """Refuse a model, number format or degree other than the one a profile of a single model was measured with.

    Raises
    ------
    ProfileError
        If they differ.
    """
    subject = profile.subject
    if not subject:
        return
    whole_model = {
        "d_model": model.d_model,
        "vocab": model.vocab,
        "dtype": model.weight_dtype,
        "kv_dtype": model.kv_dtype,
        "tensor_parallel": tensor_parallel,
    }
    for layers in model.stack:
        found = {**whole_model, **layers.feed_forward.axes()}
        for key in (*whole_model, *FEED_FORWARD_AXES):
            if key in subject and subject[key] != found.get(key):
                raise ProfileError(
                    f"{profile.path}: measured on {subject.get('model')} with {key} {subject[key]}, got "
                    f"{found.get(key, 'none')}; take cost=roofline or a profile of any shapes"
                )


def draw_errors(profile: KernelProfile, seed: int) -> dict[str, float]:
    """One draw from a standard normal per operation: how many standard errors its times are off in one run.

    An error of the fit is the same in every iteration of a run, so runs with several seeds show how far a result
    depends on it.
    """
    rng = np.random.default_rng([seed, crc32(b"cost")])
    return {name: float(rng.standard_normal()) for name in sorted(profile.operations)}


def calibrated_cost(
    model: ModelSpec,
    device: DeviceSpec,
    host: HostCost,
    tensor_parallel: int = 1,
    profile: str | None = None,
    sample: bool = False,
    seed: int = 0,
    capture_sizes: Sequence[int] = CAPTURE_SIZES,
    peer_to_peer: bool = True,
    engine_version: str | None = None,
    expert_parallel: bool = False,
    sampling: str = "greedy",
    pipeline: Pipeline | None = None,
) -> IterationCost:
    """Iteration times from a profile file: what ``conf/cost/calibrated.yaml`` calls.

    Parameters
    ----------
    profile : str, optional
        ``device/source`` among the shipped ones, or the path of a file; None takes the best there is for the device.
    sample : bool
        Whether the profile's times are off by a draw of their standard error (`draw_errors`).
    engine_version : str, optional
        Of vLLM: of a device's profiles that of this version is the best, else the newest before it, else the oldest.
    """
    fitted = find_profile(profile, device.name, engine_version)
    errors = draw_errors(fitted, seed) if sample else {}
    operations = CalibratedOperations(
        fitted, model, device, tensor_parallel, errors, peer_to_peer, expert_parallel, sampling
    )
    return IterationCost(operations, host, capture_sizes, pipeline=pipeline)

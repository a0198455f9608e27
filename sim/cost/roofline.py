"""Iteration times from data sheets: every kernel is as fast as arithmetic or memory allows, plus a floor.

    t = floor + max(FLOP / (peak x share of it that is reached), bytes / (bandwidth x share of it that is reached))

where the floor of a matrix product hides behind its arithmetic, as the device is busy then.

For hardware that nobody has measured. Against the published kernels of the architecture that the floors and shares
below come from, the median error is 4 to 9 % for bf16 GEMMs (fp8 9 to 19 %), 8 to 17 % for decode attention and 13 to
17 % for prefill attention of at least 1,024 tokens. Layers of an RTX PRO 6000, which nothing was taken from, come out
within 4 % (median). Unequal contexts cost nothing. A measured profile is better where there is one.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from sim.cost.operations import DecodeCurve
from sim.cost.sampling import SAMPLERS
from sim.errors import ConfigError
from sim.spec import (
    ACTIVATION_BYTES,
    COMPUTED_AS,
    DTYPE_BYTES,
    Attention,
    DeviceSpec,
    Gemm,
    Layers,
    Mla,
    ModelSpec,
    as_given,
    known,
    positive,
)
from sim.step import Chunks
from sim.units import FAR

LOGIT_BYTES = 4.0  # logits are fp32
ELEMENTWISE_KERNELS = 4  # of a layer: two norms with the residual, rotary embedding, activation
TILE_ROWS = 16  # queries that a tensor core takes at once
SMALL_HEAD_DIM = 128  # narrower heads leave tensor cores part idle
FAR_TOKENS = 1 << 24  # a second point of a line over the context


class Reached(NamedTuple):
    """What attention kernels of one kind reach."""

    prefill_floor_s: float
    prefill_flops_frac: float
    decode_floor_s: float
    decode_flops_frac: float
    decode_bandwidth_frac: float
    prefill_passes: float = 0.0
    decode_passes: float = 0.0


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the data sheet's peaks that kernels reach, and what a kernel takes however little it does.

    Source of the defaults: least absolute error in log time over NVIDIA's aiconfigurator tables of an H200 with vLLM
    0.24, GEMMs of at least 2,048 x 4,096, FlashAttention-3 with 32 and 64 heads; elementwise kernels from
    LLMServingSim's times on an RTX PRO 6000; from the same H200 tables, as sums of floor, arithmetic and traffic,
    latent attention (DeepSeek-V3's module less its matrices, FlashAttention and FlashMLA) and experts (evenly routed,
    over at most 8 ranks: Triton's kernels in bf16 and in fp8 by blocks, 4-bit ones in mxfp4);
    all-reduce from vLLM's own on 2, 4 and 8 H200, and over PCIe from NCCL on two RTX PRO 6000 (LLMServingSim,
    profiler/perf/RTXPRO6000/hardware.yaml: 12.7 us for 4 KiB, 587 us for 20 MiB; a floor and a bandwidth give all its
    sizes within 10 %). That other devices reach the same shares is an assumption.
    """

    gemm_flops_frac: float = 0.80
    gemm_bandwidth_frac: float = 0.86
    gemm_floor_s: float = 4.7e-6
    fp8_gemm_flops_frac: float = 0.46
    fp8_gemm_bandwidth_frac: float = 0.78
    fp8_gemm_floor_s: float = 8.2e-6  # with the kernel that quantises the inputs
    prefill_flops_frac: float = 0.525
    prefill_small_head_flops_frac: float = 0.41  # head_dim 64
    prefill_floor_s: float = 15e-6
    decode_bandwidth_frac: float = 0.75
    fp8_decode_bandwidth_frac: float = 0.58
    decode_floor_s: float = 12.7e-6
    fp8_decode_floor_s: float = 14.5e-6
    elementwise_bandwidth_frac: float = 0.84
    elementwise_floor_s: float = 2.7e-6
    latent_floor_s: float = 63e-6  # a layer's kernels between the matrices together
    latent_prefill_flops_frac: float = 0.84
    latent_prefill_passes: float = 1.8  # times that queries, keys and values of a token are read or written
    latent_decode_flops_frac: float = 0.74
    latent_decode_bandwidth_frac: float = 0.92
    latent_decode_passes: float = 3.4
    fp8_latent_floor_s: float = 75e-6
    fp8_latent_decode_bandwidth_frac: float = 0.65
    expert_flops_frac: float = 0.78
    expert_bandwidth_frac: float = 0.93
    expert_floor_s: float = 17.2e-6  # of one of an expert's two products
    fp8_expert_flops_frac: float = 0.36
    fp8_expert_bandwidth_frac: float = 0.87
    fp8_expert_floor_s: float = 20.3e-6
    narrow_expert_flops_frac: float = 0.66  # 4-bit weights, widened to bf16
    narrow_expert_bandwidth_frac: float = 0.59
    narrow_expert_floor_s: float = 16.6e-6
    all_reduce_bandwidth_frac: float = 0.69
    all_reduce_floor_s: float = 4.7e-6
    pcie_all_reduce_bandwidth_frac: float = 0.73
    pcie_all_reduce_floor_s: float = 12.7e-6
    pcie_host_all_reduce_bandwidth_frac: float = 0.318  # through host memory: 15.9 of 50 GB/s, two RTX PRO 6000

    def on(self, architecture: str) -> "Efficiency":
        """The shares of an architecture, but for those that were set to something else than the default."""
        usual = Efficiency.__dataclass_fields__
        own = ARCHITECTURES.get(architecture, {})
        return replace(self, **{name: x for name, x in own.items() if getattr(self, name) == usual[name].default})

    def __post_init__(self) -> None:
        shares = {one.name: getattr(self, one.name) for one in fields(self)}
        positive("cost.operations.efficiency", **shares)
        for name, share in shares.items():
            if name.endswith("_frac") and share > 1.0:
                raise ConfigError(f"cost.operations.efficiency.{name} must be > 0 and <= 1, got {as_given(share)}")

    def of(self, attention: Attention, is_fp8: bool) -> Reached:
        """What kernels of this kind of attention reach, with KV in fp8 or not."""
        if isinstance(attention, Mla):
            floor_s = self.fp8_latent_floor_s if is_fp8 else self.latent_floor_s
            return Reached(
                prefill_floor_s=floor_s,
                prefill_flops_frac=self.latent_prefill_flops_frac,
                decode_floor_s=floor_s,
                decode_flops_frac=self.latent_decode_flops_frac,
                decode_bandwidth_frac=self.fp8_latent_decode_bandwidth_frac
                if is_fp8
                else self.latent_decode_bandwidth_frac,
                prefill_passes=self.latent_prefill_passes,
                decode_passes=self.latent_decode_passes,
            )
        is_small = attention.head_dim < SMALL_HEAD_DIM
        flops_frac = self.prefill_small_head_flops_frac if is_small else self.prefill_flops_frac
        return Reached(
            prefill_floor_s=self.prefill_floor_s,
            prefill_flops_frac=flops_frac,
            decode_floor_s=self.fp8_decode_floor_s if is_fp8 else self.decode_floor_s,
            decode_flops_frac=flops_frac,
            decode_bandwidth_frac=self.fp8_decode_bandwidth_frac if is_fp8 else self.decode_bandwidth_frac,
        )


class _AttentionTimes(NamedTuple):
    """What attention of some layers of one kind takes [s]."""

    n_layers: int
    n_read: int | None  # tokens that a query attends to at most
    per_pair_s: float  # one layer's prefill attention, per (query, key) pair
    per_read_s: float  # one layer's KV, per entry read in prefill
    per_entry_s: float  # one layer's KV, per entry read in decode
    per_append_s: float  # one layer's KV, per token written
    per_unpack_s: float  # per entry read in prefill, before all pairs
    per_scan_pair_s: float  # per (query, key) pair to select from, in prefill
    per_scan_s: float  # per entry to select from, in decode
    per_token_s: float  # per token of a prompt, whatever it attends to
    per_decode_s: float  # per decoding sequence, whatever it attends to
    prefill_floor_s: float
    decode_floor_s: float
    per_seq_s: float  # a state read and written


ARCHITECTURES: dict[str, dict[str, float]] = {
    "sm_80": {
        "gemm_flops_frac": 0.82,
        "gemm_bandwidth_frac": 0.73,
        "gemm_floor_s": 8.1e-6,
        "prefill_flops_frac": 0.48,
        "decode_bandwidth_frac": 0.61,
        "decode_floor_s": 19e-6,
        "all_reduce_bandwidth_frac": 0.61,
        "all_reduce_floor_s": 5.5e-6,
    },
    "sm_89": {
        "gemm_flops_frac": 0.62,
        "gemm_bandwidth_frac": 0.75,
        "gemm_floor_s": 0.9e-6,
        "fp8_gemm_flops_frac": 0.47,
        "fp8_gemm_bandwidth_frac": 0.67,
        "fp8_gemm_floor_s": 0.2e-6,
        "prefill_flops_frac": 0.43,
        "prefill_small_head_flops_frac": 0.35,
        "decode_bandwidth_frac": 0.74,
        "fp8_decode_bandwidth_frac": 0.78,
        "fp8_decode_floor_s": 13e-6,
    },
    "sm_100": {
        "gemm_flops_frac": 0.68,
        "gemm_bandwidth_frac": 0.83,
        "gemm_floor_s": 4.8e-6,
        "fp8_gemm_flops_frac": 0.41,
        "fp8_gemm_bandwidth_frac": 0.70,
        "fp8_gemm_floor_s": 8.6e-6,
        "prefill_flops_frac": 0.41,
        "prefill_small_head_flops_frac": 0.25,
        "decode_bandwidth_frac": 0.89,
        "fp8_decode_bandwidth_frac": 0.85,
        "decode_floor_s": 10.7e-6,
        "fp8_decode_floor_s": 11e-6,
        "all_reduce_bandwidth_frac": 0.58,
        "all_reduce_floor_s": 7.3e-6,
    },
}
"""Shares of architectures other than sm_90's, which are the defaults of `Efficiency`; found likewise, from tables of an
A100 (vLLM 0.14), an L40S and a B200 (0.24). Told by another device's shares, an H100's by an H200's and the other way
round, matrices are 5 to 6 % off (median), decoding 9 %, prompts 16 %; by those of another architecture decoding 32 % on
an A100, 22 % on a B200. What is none of these takes sm_90's."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """`Operations` of a model on one tensor-parallel rank, from data sheets."""

    model: ModelSpec
    device: DeviceSpec
    tensor_parallel: int = 1
    efficiency: Efficiency = field(default_factory=Efficiency)
    peer_to_peer: bool = True  # whether devices on PCIe reach one another without passing through host memory
    expert_parallel: bool = False  # experts are shared by number, not by width
    sampling: str = "greedy"  # or random, top_p
    _stack: tuple[Layers, ...] = field(init=False, repr=False)  # as one rank holds it
    _attention: tuple[_AttentionTimes, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known("cost", SAMPLERS, sampling=self.sampling)
        object.__setattr__(self, "efficiency", self.efficiency.on(self.device.architecture))
        attentions = self.model.rank_attentions(self.tensor_parallel)
        derived = {
            "_stack": self.model.rank_stack(self.tensor_parallel, self.tensor_parallel if self.expert_parallel else 1),
            "_attention": tuple(self._attention_times(*one) for one in attentions),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _attention_times(self, n_layers: int, attention: Attention) -> _AttentionTimes:
        device, model = self.device, self.model
        entry_bytes, work = attention.kv_bytes_per_token(model.kv_bytes), attention.work(TILE_ROWS)
        reached = self.efficiency.of(attention, model.kv_dtype == "fp8")
        bandwidth, peak = device.bandwidth_bytes_per_s, device.flops_per_s("bf16")
        multiplied_per_s, elementwise_per_s = peak * reached.prefill_flops_frac, self._elementwise_bytes_per_s
        scanned_per_s = device.flops_per_s("fp8") * reached.prefill_flops_frac
        read_per_s = bandwidth * reached.decode_bandwidth_frac
        per_read_s = (entry_bytes - work.scan_bytes) / read_per_s
        return _AttentionTimes(
            n_layers=n_layers,
            n_read=attention.n_read,
            per_pair_s=work.pair_flops / multiplied_per_s,
            per_read_s=per_read_s,
            per_entry_s=max(per_read_s, work.entry_flops / (peak * reached.decode_flops_frac)),
            per_append_s=entry_bytes / elementwise_per_s,
            per_unpack_s=work.unpack_flops / (peak * self.efficiency.gemm_flops_frac),
            per_scan_pair_s=work.scan_flops / scanned_per_s,
            per_scan_s=max(work.scan_flops / scanned_per_s, work.scan_bytes / read_per_s),
            per_token_s=work.token_flops / multiplied_per_s
            + reached.prefill_passes * work.prefill_token_bytes / bandwidth,
            per_decode_s=reached.decode_passes * work.decode_token_bytes / bandwidth,
            per_seq_s=2.0 * attention.state_bytes_per_seq() / elementwise_per_s,
            prefill_floor_s=reached.prefill_floor_s,
            decode_floor_s=reached.decode_floor_s,
        )

    def dense_s(self, n_tokens: int) -> float:
        """GEMMs, norms, activations and all-reduces of all layers [s]."""
        model, efficiency = self.model, self.efficiency
        total = 0.0
        for layers in self._stack:
            one = 0.0
            for gemm in layers.gemms(model.d_model):  # not sum(): since Python 3.12 it rounds better than + does
                one += self.matrix_s(n_tokens, gemm)
            elementwise = (
                ELEMENTWISE_KERNELS * efficiency.elementwise_floor_s
                + n_tokens * n_elementwise(layers, model.d_model) * ACTIVATION_BYTES / self._elementwise_bytes_per_s
            )
            total += layers.n_layers * (one + elementwise)
        return total + n_all_reduces(model) * self.all_reduce_s(n_tokens * model.d_model * ACTIVATION_BYTES)

    def sequences_s(self, n_seqs: int) -> float:
        """lm_head and sampler, for one token of each sequence [s]."""
        model, ranks = self.model, self.tensor_parallel
        head = self.gemm_s(n_seqs, model.d_model, -(-model.vocab // ranks), "bf16")
        gathered = self.all_reduce_s(gathered_as(n_seqs, model))
        return head + gathered + self.sampler_s(n_seqs, self.sampling)

    def sampler_s(self, n_seqs: int, sampling: str) -> float:
        """One way of sampling one token of each sequence (`sim.cost.sampling`) [s]."""
        sampler = SAMPLERS[sampling]
        logits_bytes = n_seqs * self.model.vocab * LOGIT_BYTES
        moved_s = sampler.n_passes * logits_bytes / self._elementwise_bytes_per_s
        return sampler.n_kernels * self.efficiency.elementwise_floor_s + moved_s

    def prefill_attention_s(self, chunks: Chunks) -> float:
        """Attention of all chunks in one launch per layer, and the append of their KV [s]."""
        total, efficiency = 0.0, self.efficiency
        for kind in self._attention:
            n_read = FAR if kind.n_read is None else kind.n_read
            pairs = entries = new_tokens = cached = scanned = 0
            for new, context, reach in chunks:
                seen = min(n_read, reach)
                pairs += attended_pairs(new, context, seen)
                entries += new + min(context, seen)
                new_tokens += new
                cached += context
                scanned += attended_pairs(new, context, reach)
            attention = kind.prefill_floor_s + max(pairs * kind.per_pair_s, entries * kind.per_read_s)
            attention += cached * kind.per_unpack_s + scanned * kind.per_scan_pair_s
            attention += new_tokens * kind.per_token_s + len(chunks) * kind.per_seq_s
            append = efficiency.elementwise_floor_s + new_tokens * kind.per_append_s
            total += kind.n_layers * (attention + append)
        return total

    def decode_attention(self, batch: int) -> DecodeCurve:
        """Attention of ``batch`` sequences with one new token each, straight lines over their total context.

        Of the layers that read all there is, or the widest window; narrower windows, and what sparse attention selects,
        end where they are full on average.
        """
        narrow = {kind.n_read for kind in self._attention if kind.n_read not in (None, self.model.window)}
        full = sorted(batch * n_read for n_read in narrow if n_read is not None)
        knots = (0, *full, max(FAR_TOKENS, 2 * full[-1] if full else 0))
        return DecodeCurve(knots=knots, seconds=tuple(self.decode_s(batch, tokens) for tokens in knots))

    def copy_s(self, moved_bytes: float, host_bytes: float) -> float:
        """Copies inside device memory, read and written, and over the link to the host [s]."""
        seconds = 0.0
        if moved_bytes:
            seconds += self.efficiency.elementwise_floor_s + 2.0 * moved_bytes / self._elementwise_bytes_per_s
        if host_bytes:
            seconds += self.device.host_link_latency_s + host_bytes / self.device.host_link_bytes_per_s
        return seconds

    def gemm_s(self, m: int, k: int, n: int, dtype: str) -> float:
        """One (m, k) by (k, n) product [s]."""
        efficiency, device = self.efficiency, self.device
        weight_bytes, input_bytes = DTYPE_BYTES[dtype], ACTIVATION_BYTES
        if self._has_units(dtype):
            shares = efficiency.fp8_gemm_flops_frac, efficiency.fp8_gemm_bandwidth_frac, efficiency.fp8_gemm_floor_s
            input_bytes = 1.0
        else:  # without units for it the weights are widened as they are read
            shares = efficiency.gemm_flops_frac, efficiency.gemm_bandwidth_frac, efficiency.gemm_floor_s
        flops_frac, bandwidth_frac, floor_s = shares
        arithmetic = 2.0 * m * k * n / (device.flops_per_s(dtype) * flops_frac)
        moved = weight_bytes * k * n + input_bytes * m * k + ACTIVATION_BYTES * m * n
        return max(arithmetic, floor_s + moved / (device.bandwidth_bytes_per_s * bandwidth_frac))

    def matrix_s(self, n_tokens: int, gemm: Gemm) -> float:
        """A matrix that all tokens are multiplied with, or experts that each token takes some of [s]."""
        dtype = gemm.dtype or self.model.weight_dtype
        if gemm.n_matrices == 1:
            return self.gemm_s(n_tokens, gemm.inputs, gemm.outputs, dtype)
        efficiency, weight_bytes = self.efficiency, DTYPE_BYTES[dtype]
        shares = efficiency.expert_flops_frac, efficiency.expert_bandwidth_frac, efficiency.expert_floor_s
        if self._has_units(dtype):
            shares = (
                efficiency.fp8_expert_flops_frac,
                efficiency.fp8_expert_bandwidth_frac,
                efficiency.fp8_expert_floor_s,
            )
        elif weight_bytes < 1.0:
            shares = (
                efficiency.narrow_expert_flops_frac,
                efficiency.narrow_expert_bandwidth_frac,
                efficiency.narrow_expert_floor_s,
            )
        flops_frac, bandwidth_frac, floor_s = shares
        n_rows, inputs, outputs = n_tokens * gemm.n_taken, gemm.inputs, gemm.outputs
        read = gemm.n_touched(n_tokens, self.model.routing_skew) * inputs * outputs * weight_bytes
        moved = read + n_rows * (inputs + outputs) * ACTIVATION_BYTES
        arithmetic = 2.0 * n_rows * inputs * outputs / (self.device.flops_per_s(dtype) * flops_frac)
        return floor_s + arithmetic + moved / (self.device.bandwidth_bytes_per_s * bandwidth_frac)

    def _has_units(self, dtype: str) -> bool:
        """Whether the device multiplies this narrow format as it is stored."""
        return (
            DTYPE_BYTES[dtype] < ACTIVATION_BYTES
            and COMPUTED_AS.get(dtype, dtype) in self.device.peak_flops
            and (COMPUTED_AS.get(dtype, dtype) != "bf16")
        )

    def all_reduce_s(self, n_bytes: float) -> float:
        """Sum over all ranks, each holding ``n_bytes``; nothing to do on one rank [s]."""
        ranks, efficiency = self.tensor_parallel, self.efficiency
        if ranks == 1:
            return 0.0
        travelled = 2.0 * (ranks - 1) / ranks * n_bytes  # ring: scatter the sums, then gather them
        floor_s, share = efficiency.all_reduce_floor_s, efficiency.all_reduce_bandwidth_frac
        if self.device.interconnect == "pcie":
            floor_s, share = efficiency.pcie_all_reduce_floor_s, efficiency.pcie_all_reduce_bandwidth_frac
            if not self.peer_to_peer:
                share = efficiency.pcie_host_all_reduce_bandwidth_frac
        return floor_s + travelled / (self.device.link_bytes_per_s * share)

    def decode_s(self, batch: int, context_tokens: float) -> float:
        """Attention of ``batch`` sequences that hold ``context_tokens`` in all [s]."""
        total = 0.0
        for kind in self._attention:
            tokens = context_tokens
            if kind.n_read is not None and kind.n_read != self.model.window:
                tokens = min(tokens, float(batch * kind.n_read))
            total += kind.n_layers * (
                kind.decode_floor_s
                + tokens * kind.per_entry_s
                + context_tokens * kind.per_scan_s
                + batch * (kind.per_append_s + kind.per_seq_s + kind.per_decode_s)
            )
        return total

    @property
    def _elementwise_bytes_per_s(self) -> float:
        return self.device.bandwidth_bytes_per_s * self.efficiency.elementwise_bandwidth_frac


def interconnect_words(device: DeviceSpec, tensor_parallel: int, peer_to_peer: bool) -> str | None:
    """What is taken for all-reduces that nobody measured on such a host; None where the link is the device's own."""
    if tensor_parallel == 1 or device.interconnect != "pcie":
        return None
    way = "with peer-to-peer" if peer_to_peer else "through host memory"
    return (
        f"all-reduces of {tensor_parallel} devices over PCIe {way}: nobody measured them on such a host, where two "
        "devices of one type reach 36.5 GB/s with peer-to-peer and 15.9 without (hardware.peer_to_peer)"
    )


def n_elementwise(layers: Layers, d_model: int) -> int:
    """Numbers that the element-wise kernels of one of these layers read or write for a token.

    Two norms with the residual (each reads two vectors and writes two), the activation, the rotary embedding in place.
    """
    return 2 * 4 * d_model + layers.feed_forward.n_activated() + 2 * layers.attention.n_rotated()


def n_all_reduces(model: ModelSpec) -> int:
    """All-reduces of hidden states in one forward pass: after the embedding, each attention and each MLP.

    Source: vLLM's VocabParallelEmbedding and RowParallelLinear, which reduce their results over the ranks.
    """
    return 2 * model.n_layers + 1


def gathered_as(n_seqs: Any, model: ModelSpec) -> Any:
    """Bytes of an all-reduce that takes as long as gathering the logits of ``n_seqs`` sequences on every rank.

    Half of them, for each byte travels once, not twice; in bf16, for they are widened afterwards. Source: vLLM's
    LogitsProcessor (all-gather of lm_head's result) and Sampler (to fp32).
    """
    return n_seqs * model.vocab * ACTIVATION_BYTES / 2.0


def attended_pairs(new_tokens: int, context_tokens: int, window: int = FAR) -> int:
    """(query, key) pairs of a prompt chunk: each token attends to what is before it and to itself, in its window.

    Examples
    --------
    >>> attended_pairs(3, 10)  # 11 + 12 + 13
    36
    >>> attended_pairs(3, 10, window=12)  # 11 + 12 + 12
    35
    """
    growing = max(0, min(new_tokens, window - context_tokens))
    return growing * context_tokens + growing * (growing + 1) // 2 + (new_tokens - growing) * window

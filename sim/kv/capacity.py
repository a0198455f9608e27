"""How much memory is left for keys and values: the derivation of a replica's KV capacity, term by term.

    KV = memory x utilisation - weights - activation peak - CUDA graphs - context          (per accelerator)

The terms follow vLLM's start-up: load the weights, run the largest batch once and note the peak, and give what is
left of the allowed share to the KV cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spec import ACTIVATION_BYTES, DTYPE_BYTES, HardwareSpec, ModelSpec, as_given
from sim.units import GIB

MOST_TOKENS = 1 << 53  # of one replica: up to there 64 bits hold all sums of them, and floats every one
SAMPLER_COPIES = 9.6
"""Copies of the fp32 logits alive at the sampler's peak (logits, sorted values, 64-bit indices, probabilities, ...),
beside the hidden states of the largest batch.

Source: peaks that vLLM reports on an H100, less the hidden states of 8,192 tokens, divided by ``max_num_seqs * vocab *
4 B`` (llm-d capacity planner, 1,024 sequences): Llama-3.1-8B 4.76 GiB (9.61), Llama-70B on two 4.84 GiB (9.64),
Qwen3-0.6B 5.56 GiB (9.57). Others: vLLM pull request 10511, Llama-3-8B, 256 sequences, 1.26 GiB (9.8); 21489,
Gemma-3-4B, 9.96 GiB (9.9).
"""

CONTEXT_BYTES = {1: 0.1 * GIB, 2: 0.6 * GIB}
"""Libraries, loaded kernels and, with several ranks, communication buffers, per accelerator.

Source: what vLLM reports as non-torch memory: 0.07 GiB on one B200 (vLLM pull request 21489), 0.13 to 0.14 GiB on one
H100, 0.55 GiB on two (llm-d capacity planner).
"""

GRAPH_BYTES_PER_LAYER_AND_SIZE = 0.23 * GIB / (32 * 51)
"""CUDA graphs, per layer and captured batch size.

Source: start-up log of vLLM 0.31 on an A100-80G, Llama-3.1-8B (32 layers, 51 sizes): 0.23 GiB. Others report up to
three times as much. vLLM takes them out of the KV cache's memory since 0.21; before, they go into what is kept free
(``hardware.counts_graphs``).
"""


DEGREES = (1, 2, 4, 8, 16, 32)  # that a refusal may propose


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """KV slots of one replica, and where its accelerators' memory goes.

    ``terms`` are bytes per accelerator in the order of the subtraction, what is taken away negative; the last,
    "KV cache", is their sum, unless the number of blocks was given.
    """

    n_blocks: int
    block_tokens: int
    bytes_per_token: float  # per accelerator [B]
    terms: Mapping[str, float]
    is_given: bool = False

    @property
    def n_tokens(self) -> int:
        """KV slots of the replica [tokens]."""
        return self.n_blocks * self.block_tokens


def weights_bytes(model: ModelSpec, tensor_parallel: int = 1, expert_ranks: int = 1) -> float:
    """Weights on one rank: matrices and embeddings are shared out, norms (and keys of too few KV heads) are copied [B].

    Experts lie on ``expert_ranks`` ranks by number, else on the tensor-parallel ones by width.

    Embeddings, lm_head and norms stay in bf16 when the layers' matrices are fp8, as in published fp8 checkpoints.
    """
    wide = max(model.weight_bytes, DTYPE_BYTES["bf16"])
    others = model.n_embedding_params / tensor_parallel * wide + model.n_other_params * wide
    return model.matrix_bytes(tensor_parallel, expert_ranks) + others


def activation_peak_bytes(model: ModelSpec, max_batched_tokens: int, max_seqs: int, tensor_parallel: int = 1) -> float:
    """Peak of one forward pass at the largest batch [B].

    The larger of two moments: the MLP of the largest batch (hidden states, residual, its inner activations before and
    after the gate), and the sampler, which holds several copies of all sequences' logits on every rank, beside the
    hidden states.
    """
    inner = max(layers.feed_forward.n_inner() for layers in model.rank_stack(tensor_parallel))
    hidden = max_batched_tokens * model.d_model * ACTIVATION_BYTES
    layer = 2.0 * hidden + max_batched_tokens * inner * ACTIVATION_BYTES
    sampler = hidden + SAMPLER_COPIES * min(max_seqs, max_batched_tokens) * model.vocab * DTYPE_BYTES["fp32"]
    return max(layer, sampler)


def kv_capacity(
    model: ModelSpec,
    hardware: HardwareSpec,
    block_tokens: int = 16,
    max_batched_tokens: int = 8192,
    max_seqs: int = 256,
    n_graphs: int = 51,
) -> KVCapacity:
    """Derive a replica's KV capacity, or take it from ``hardware.kv_blocks``.

    Parameters
    ----------
    model, hardware
        Data sheets.
    block_tokens : int
        KV block size [tokens].
    max_batched_tokens, max_seqs : int
        The largest iteration the scheduler may plan: they set the activation peak.
    n_graphs : int
        Batch sizes captured as CUDA graphs; 0 without graphs.

    Raises
    ------
    ConfigError
        If the weights and the rest leave no room for a single block. The message holds the arithmetic.
    """
    if hardware.expert_parallel and not model.has_experts:
        raise ConfigError(f"hardware.expert_parallel must be false, model={model.name} has no experts")
    if block_tokens < 1:
        raise ConfigError(f"cache.block_tokens must be >= 1 [tokens], got {block_tokens}")
    ranks, device = hardware.tensor_parallel, hardware.device
    per_token = model.stage(hardware.pipeline_parallel).kv_bytes_per_token(ranks)
    terms = memory_terms(model, hardware, max_batched_tokens, max_seqs, n_graphs)
    most_blocks = MOST_TOKENS // block_tokens
    if hardware.kv_blocks is not None:
        if hardware.kv_blocks > most_blocks:
            raise ConfigError(f"hardware.kv_blocks must be <= {most_blocks} of {block_tokens} tokens, to be counted")
        terms["KV cache"] = hardware.kv_blocks * block_tokens * per_token
        return KVCapacity(hardware.kv_blocks, block_tokens, per_token, terms, is_given=True)
    terms["KV cache"] = available = sum(terms.values())
    if not available / (block_tokens * per_token) <= most_blocks:
        raise ConfigError(
            f"hardware.device.memory_gib={as_given(device.memory_gib)} is room for more than {most_blocks} blocks of "
            f"{block_tokens} tokens: too many to be counted"
        )
    n_blocks = int(available // (block_tokens * per_token))
    if n_blocks < 1:
        largest = (max_batched_tokens, max_seqs, n_graphs)
        raise ConfigError(
            f"model={model.name} ({model.weight_dtype} weights) does not fit hardware={device.name} "
            f"({degrees(hardware)}): {arithmetic(terms)}. {enough(model, hardware, block_tokens, largest)}; or take "
            "weights in a narrower format, or a higher hardware.memory_utilization_frac"
        )
    return KVCapacity(n_blocks, block_tokens, per_token, terms)


def memory_terms(
    model: ModelSpec, hardware: HardwareSpec, max_batched_tokens: int, max_seqs: int, n_graphs: int
) -> dict[str, float]:
    """What is there and what is taken away before the KV cache, per accelerator [B].

    Layers that keep a state of constant size reserve one for each of ``max_seqs`` sequences, as SGLang's
    ``max_mamba_cache_size`` does; vLLM takes them from the pool of KV blocks as sequences come.
    """
    ranks, memory = hardware.tensor_parallel, hardware.device.memory_bytes
    model = model.stage(hardware.pipeline_parallel)
    terms = {
        "memory": memory,
        "kept free": -(1.0 - hardware.memory_utilization_frac) * memory,
        "weights": -weights_bytes(model, ranks, hardware.expert_ranks),
        "activation peak": -activation_peak_bytes(model, max_batched_tokens, max_seqs, ranks),
        "CUDA graphs": -GRAPH_BYTES_PER_LAYER_AND_SIZE * model.n_layers * n_graphs * hardware.counts_graphs,
        "context": -CONTEXT_BYTES[min(hardware.n_devices, 2)],
    }
    if state_bytes := model.state_bytes_per_seq(ranks):
        terms["sequences' states"] = -state_bytes * max_seqs
    return terms


def degrees(hardware: HardwareSpec) -> str:
    """How its accelerators share a model, in words."""
    words = [f"tensor_parallel={hardware.tensor_parallel}"]
    if hardware.expert_parallel:
        words.append("experts by number")
    if hardware.pipeline_parallel > 1:
        words.append(f"pipeline_parallel={hardware.pipeline_parallel}")
    return ", ".join(words)


def enough(model: ModelSpec, hardware: HardwareSpec, block_tokens: int, largest: tuple[int, int, int]) -> str:
    """What degrees would do: the least tensor-parallel one, with experts shared as they are, and the fewest stages."""
    tried = {
        "tensor_parallel": [replace(hardware, tensor_parallel=degree) for degree in DEGREES],
        "pipeline_parallel": [replace(hardware, pipeline_parallel=degree) for degree in DEGREES],
    }
    found = []
    for name, ways in tried.items():
        least = next((way for way in ways if holds(model, way, block_tokens, largest)), None)
        if least is not None:
            found.append(f"hardware.{name}={getattr(least, name)}")
    return f"{' or '.join(found) if found else 'More or larger devices'} would do"


def holds(model: ModelSpec, hardware: HardwareSpec, block_tokens: int, largest: tuple[int, int, int]) -> bool:
    """Whether a block for the KV cache is left on such hardware."""
    try:
        terms = memory_terms(model, hardware, *largest)
        per_token = model.stage(hardware.pipeline_parallel).kv_bytes_per_token(hardware.tensor_parallel)
    except ConfigError:  # so many ranks cannot share the model's heads, or there are fewer layers
        return False
    return sum(terms.values()) >= block_tokens * per_token


def arithmetic(terms: Mapping[str, float]) -> str:
    """The subtraction as one line, in GiB."""
    words = [f"{name} {abs(term) / GIB:.2f}" for name, term in terms.items() if name != "KV cache"]
    left = sum(term for name, term in terms.items() if name != "KV cache")
    return f"{' - '.join(words)} = {left / GIB:.2f} GiB for the KV cache"

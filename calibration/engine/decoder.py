"""A decoder of any model here, on our kernels, with torch for matrix products: one forward pass over a batch.

A batch holds prompt chunks first and decoding sequences behind them, as an engine's iteration computes them: matrix
products over all tokens at once, attention in one launch for the chunks and one for those that decode. Shapes are a
`ModelSpec`'s; what it does not say is Llama's (RMSNorm before each part, SwiGLU or GELU, rotary positions unless
positions are learnt), so other families have their shapes here, and their cost, not their answers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from calibration.engine import cpu_ops
from calibration.engine.clocks import Clock, Wall
from kernels.angles import cos_sin_table
from kernels.decode_plan import DecodePlan
from kernels.operations import operations
from kernels.paging import extents
from kernels.prefill_plan import PrefillPlan
from sim.errors import ConfigError
from sim.spec import Dense, Gemm, Gqa, ModelSpec
from sim.units import NS_PER_S

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SAFE_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
LLAMA = {
    # our name -> those of a folder of safetensors, joined along the rows
    "norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_out": ("mlp.down_proj",),
}


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries (n_tokens, n_heads, head_dim) to keys and values of the same tokens, without a cache."""


@dataclass(slots=True)
class Batch:
    """What one forward pass computes, and where its keys and values lie. Chunks' tokens come first."""

    tokens: Tensor  # (n_tokens,) int64
    positions: Tensor  # (n_tokens,) int64
    slots: Tensor  # (n_tokens,) int64: where new keys and values go; -1: nowhere
    wanted: Tensor  # (n_wanted,) int64: tokens whose logits are asked for
    n_prompt_tokens: int
    prefill: PrefillPlan | None = None
    prefill_table: Tensor | None = None  # (n_chunks, n_columns) int32
    decode: DecodePlan | None = None
    decode_table: Tensor | None = None
    ring_blocks: int | None = None


def kinds(model: ModelSpec) -> tuple[Gqa, Dense]:
    """The attention and the feed-forward part that all layers share.

    Raises
    ------
    ConfigError
        If layers differ, or are of a kind that is not computed here.
    """
    found = {(layers.attention, layers.feed_forward) for layers in model.stack}
    attention, feed_forward = next(iter(found))
    if len(found) > 1 or not isinstance(attention, Gqa) or not isinstance(feed_forward, Dense):
        raise ConfigError(f"model {model.name}: the engine computes layers all alike, with grouped heads and one MLP")
    return attention, feed_forward


def gemms(model: ModelSpec) -> tuple[Gemm, ...]:
    """Matrices of a layer."""
    return model.stack[0].gemms(model.d_model)


class Pool:
    """Keys and values of all layers, each in a row of token slots: read in blocks, or in extents that start anywhere.

    Parameters
    ----------
    extent_tokens : int
        The longest extent; 0 where block tables list blocks. So many slots behind the last are never an extent's own,
        and let one of any length start at every slot [tokens].
    """

    def __init__(
        self,
        model: ModelSpec,
        n_slots: int,
        block_tokens: int,
        device: torch.device,
        dtype: Any,
        extent_tokens: int = 0,
    ) -> None:
        self.n_slots, self.block_tokens, self.extent_tokens = n_slots, block_tokens, extent_tokens
        n_rows = -(-(n_slots + extent_tokens) // block_tokens) * block_tokens
        attention, _ = kinds(model)
        shape = (model.n_layers, 2, n_rows, attention.n_kv_heads, attention.head_dim)
        self.rows = torch.zeros(shape, device=device, dtype=dtype)

    def written(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as blocks, to append to."""
        k, v = self.rows[layer].unflatten(1, (-1, self.block_tokens))
        return k, v

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as attention reads them."""
        if not self.extent_tokens:
            return self.written(layer)
        k, v = (extents(rows, self.extent_tokens) for rows in self.rows[layer])
        return k, v


class Decoder:
    """The model. With ``times`` a list, each part's name and seconds are added to it as it is done, by ``clock``."""

    def __init__(
        self,
        model: ModelSpec,
        device: torch.device,
        dtype: str | None = None,
        seed: int = 0,
        folder: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.model, self.device, self.clock = model, device, clock or Wall()
        self.dtype = DTYPES[dtype or ("bf16" if device.type == "cuda" else "fp32")]
        self.ops: ModuleType | SimpleNamespace = operations(device) if device.type == "cuda" else cpu_ops
        found = random_weights(model, seed) if folder is None else read_weights(model, folder)
        self._weights = {name: tensor.to(device, self.dtype) for name, tensor in found.items()}
        self.attention, self.feed_forward = kinds(model)
        self._angles = cos_sin_table(model.max_len, self.attention.head_dim, device=device)
        self.times: list[tuple[str, float]] | None = None

    def forward(self, batch: Batch, cache: "Pool | Attend") -> Tensor:
        """Logits of the wanted tokens, shape (n_wanted, vocab).

        Parameters
        ----------
        cache : Pool or callable
            All tokens' keys and values are appended to a pool, and attention reads them there. Without one, a function
            of queries, keys and values attends to these tokens alone.
        """
        model, ops, weights = self.model, self.ops, self._weights
        n_q, n_kv, width = self.attention.n_heads, self.attention.n_kv_heads, self.attention.head_dim
        self._begin()
        residual = weights["embedding"][batch.tokens]
        if model.n_position_embeddings:
            residual = residual + weights["positions"][batch.positions]
        self._done("embedding")
        x = ops.rms_norm(residual, weights["0.norm"])
        for layer in range(model.n_layers):
            if layer:
                x = ops.rms_norm(x, weights[f"{layer}.norm"], residual=residual)
            self._done("layernorm")
            qkv = torch.mm(x, weights[f"{layer}.qkv"].T).view(len(x), n_q + 2 * n_kv, width)
            self._done("qkv_proj")
            q, k, v = qkv[:, :n_q], qkv[:, n_q : n_q + n_kv], qkv[:, n_q + n_kv :]
            if not model.n_position_embeddings:
                ops.rope(q, k, batch.positions, self._angles, check_ids=False)
            self._done("rotary_emb")
            x = self._attend(q, k, v, cache, layer, batch).flatten(1)
            x = torch.mm(x, weights[f"{layer}.attention_out"].T)
            self._done("o_proj")
            x = ops.rms_norm(x, weights[f"{layer}.mlp_norm"], residual=residual)
            self._done("layernorm")
            x = torch.mm(x, weights[f"{layer}.mlp_in"].T)
            self._done("gate_up_proj")
            x = ops.silu_mul(x) if self.feed_forward.is_gated else gelu(x)
            self._done("act_fn")
            x = torch.mm(x, weights[f"{layer}.mlp_out"].T)
            self._done("down_proj")
        x = ops.rms_norm(x, weights["norm"], residual=residual)
        self._done("final_layernorm")
        logits = torch.mm(x[batch.wanted], weights["lm_head"].T)
        self._done("lm_head")
        return logits

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, cache: "Pool | Attend", layer: int, batch: Batch) -> Tensor:
        if not isinstance(cache, Pool):
            return cache(q, k, v)
        self.ops.kv_append(k, v, *cache.written(layer), batch.slots, check_ids=False)
        self._done("append")
        k, v = cache.read(layer)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        n = batch.n_prompt_tokens
        common: dict[str, Any] = {"ring_blocks": batch.ring_blocks, "check_ids": False}
        if batch.prefill is not None:
            self.ops.prefill_attention(q[:n], k, v, batch.prefill_table, batch.prefill, out=out[:n], **common)
            self._done("prefill_attention")
        if batch.decode is not None:
            self.ops.decode_attention(q[n:], k, v, batch.decode_table, batch.decode, out=out[n:], **common)
            self._done("decode_attention")
        return out

    def _begin(self) -> None:
        if self.times is not None:
            self._since_s = self._now_s()

    def _done(self, name: str) -> None:
        if self.times is not None:
            self.times.append((name, self._now_s() - self._since_s))
            self._since_s = self.clock.now_ns() / NS_PER_S

    def _now_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock.now_ns() / NS_PER_S


def sample(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Next tokens, shape (n,): the likeliest at temperature 0."""
    if temperature == 0.0:
        return logits.argmax(-1)
    weights = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def random_weights(model: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Weights of a model's shapes, drawn so that hidden states keep their size; norms are ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n_out: int, n_in: int) -> Tensor:
        return torch.randn(n_out, n_in, generator=generator) / n_in**0.5

    found = {"embedding": draw(model.vocab, model.d_model) * model.d_model**0.5, "norm": torch.ones(model.d_model)}
    for layer in range(model.n_layers):
        found |= {f"{layer}.{gemm.name}": draw(gemm.outputs, gemm.inputs) for gemm in gemms(model)}
        found |= {f"{layer}.{name}": torch.ones(model.d_model) for name in ("norm", "mlp_norm")}
    if model.n_position_embeddings:
        found["positions"] = draw(model.n_position_embeddings, model.d_model)
    found["lm_head"] = found["embedding"] if model.has_tied_embeddings else draw(model.vocab, model.d_model)
    return found


def read_weights(model: ModelSpec, folder: Path) -> dict[str, Tensor]:
    """Weights of a Llama-like model from the safetensors files of a folder.

    Raises
    ------
    ConfigError
        If a tensor is missing, of another shape, or of a family that is not Llama's.
    """
    raw: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw |= read_safetensors(path)
    if not raw:
        raise ConfigError(f"{folder}: no *.safetensors in it")
    used: set[str] = set()

    def take(names: list[str], shape: tuple[int, ...]) -> Tensor:
        if missing := [name for name in names if name not in raw]:
            raise ConfigError(f"{folder}: no tensor {missing[0]}; the engine reads models named as Llama's")
        used.update(names)
        found = torch.cat([raw[name] for name in names])
        if tuple(found.shape) != shape:
            raise ConfigError(f"{folder}: {', '.join(names)} must have shape {shape}, got {tuple(found.shape)}")
        return found

    d = model.d_model
    found = {
        "embedding": take(["model.embed_tokens.weight"], (model.vocab, d)),
        "norm": take(["model.norm.weight"], (d,)),
    }
    shapes: Mapping[str, tuple[int, ...]] = {gemm.name: (gemm.outputs, gemm.inputs) for gemm in gemms(model)}
    for layer in range(model.n_layers):
        for name, parts in LLAMA.items():
            names = [f"model.layers.{layer}.{part}.weight" for part in parts]
            found[f"{layer}.{name}"] = take(names, shapes.get(name, (d,)))
    if model.has_tied_embeddings:
        found["lm_head"] = found["embedding"]
    else:
        found["lm_head"] = take(["lm_head.weight"], (model.vocab, d))
    within = tuple(f"model.layers.{layer}." for layer in range(model.n_layers))
    strange = [name for name in raw if name not in used and (name.startswith(within) and "rotary" not in name)]
    if strange:
        raise ConfigError(f"{folder}: {strange[0]} is of no model the engine computes")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file: eight bytes with the header's length, a JSON header, and the bytes it points into.

    Raises
    ------
    ConfigError
        If the file is cut off or holds number formats other than bf16, fp16 and fp32.
    """
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        return {
            name: torch.frombuffer(
                content,
                dtype=SAFE_DTYPES[about["dtype"]],
                count=(about["data_offsets"][1] - about["data_offsets"][0]) // SAFE_DTYPES[about["dtype"]].itemsize,
                offset=start + about["data_offsets"][0],
            ).view(about["shape"])
            for name, about in header.items()
        }
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path}: no whole safetensors file of bf16, fp16 or fp32 ({error})") from None

"""What training a model takes on one accelerator: parameters, gradients, optimizer, activations.

References
----------
Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020, section 3.1: of
mixed precision with Adam 2 B a parameter, 2 B its gradient, 12 B the optimizer (an fp32 copy, momentum, variance).
Ren et al., "ZeRO-Offload", USENIX ATC 2021, section 4: gradients and optimizer lie in host memory.
Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023, section 4: activations
of a layer, ``s b h (34 + 5 a s / h)`` bytes; recomputing the attention's scores leaves ``34 s b h``, recomputing whole
layers their inputs, ``2 s b h``; and ``4 s b h (1 + v / h)`` for the last norm, lm_head and the loss.
"""

from dataclasses import dataclass

from sim.spec import Gqa, ModelSpec, Moe

PARAMETER_BYTES = {"mixed": (2.0, 2.0, 12.0), "fp32": (4.0, 4.0, 8.0)}
"""Bytes of a parameter, its gradient, and what Adam keeps of it."""
RECOMPUTED = ("none", "scores", "layers")


@dataclass(frozen=True, slots=True)
class Training:
    """Bytes on one tensor-parallel rank, of a batch of one sequence."""

    parameters: float
    gradients: float
    optimizer: float
    activations: dict[str, float]  # by what is recomputed, of `RECOMPUTED`

    def total(self, recomputed: str = "none", is_offloaded: bool = False) -> float:
        """All that lies on the accelerator [B]."""
        beside = 0.0 if is_offloaded else self.gradients + self.optimizer
        return self.parameters + beside + self.activations[recomputed]


def training(model: ModelSpec, length: int, tensor_parallel: int = 1, precision: str = "mixed") -> Training | None:
    """Of sequences of ``length`` tokens; None where a layer's attention is of a kind that nothing is published of.

    The published layer is multi-head attention and 4 h inner width. Here its terms are taken apart by what they are
    of, so that grouped heads and gated widths count as they are; for the published layer the sum is the published one.
    What is in 32-bit training wider by two bytes is not: activations are 16 bit in both.
    """
    parameter, gradient, moments = PARAMETER_BYTES[precision]
    n_params = model.n_params / tensor_parallel
    kept = dict.fromkeys(RECOMPUTED, 0.0)
    for layers in model.stack:
        attention = layers.attention
        if not isinstance(attention, Gqa):
            return None
        of_heads = attention.n_heads * attention.head_dim
        of_groups = attention.n_kv_heads * attention.head_dim
        whole = 10.0 * model.d_model  # two norms, the inputs of both halves, and two dropout masks: on every rank
        shared = 2.0 * (2.0 * of_heads + 2.0 * of_groups)  # queries, keys, values, the heads' outputs
        shared += 2.0 * layers.feed_forward.n_activated()
        if isinstance(layers.feed_forward, Moe):  # of the experts that a token takes
            shared += 2.0 * 3.0 * layers.feed_forward.top_k * layers.feed_forward.d_ff
        seen = length if attention.window is None else min(length, attention.window)
        scores = 5.0 * attention.n_heads * seen  # softmax, its dropout mask and output
        kept["none"] += layers.n_layers * length * (whole + (shared + scores) / tensor_parallel)
        kept["scores"] += layers.n_layers * length * (whole + shared / tensor_parallel)
        kept["layers"] += layers.n_layers * length * 2.0 * model.d_model
    ends = length * (model.d_model + 4.0 * (model.d_model + model.vocab) / tensor_parallel)
    return Training(
        n_params * parameter,
        n_params * gradient,
        n_params * moments,
        {name: n_bytes + ends for name, n_bytes in kept.items()},
    )

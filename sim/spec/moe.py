"""Mixture of experts: a router sends each token through a few of many small feed-forward layers."""

from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spec.kinds import Gemm
from sim.spec.values import DTYPE_BYTES, known, whole


@dataclass(frozen=True, slots=True)
class Moe:
    """``top_k`` of ``n_experts`` for each token, and shared experts that every token goes through.

    Under tensor parallelism each rank holds a slice of every expert; where experts lie on ``expert_ranks`` ranks, each
    holds whole ones, as many as the fullest has.
    """

    n_experts: int
    top_k: int
    d_ff: int  # inner width of one expert
    shared_d_ff: int = 0  # of all shared experts together
    weight_dtype: str | None = None  # of the experts, where it differs from the model's
    has_shared_gate: bool = False  # how much of the shared experts' output a token takes is learnt (Qwen3.5)
    has_bias: bool = False  # on router and experts (gpt-oss)
    has_router_bias: bool = False  # a correction of the router's scores (DeepSeek-V3)
    expert_ranks: int = 1  # of which this is one: 1 unless `shard` says otherwise

    def __post_init__(self) -> None:
        whole("model.feed_forward", n_experts=self.n_experts, top_k=self.top_k, d_ff=self.d_ff)
        if self.top_k > self.n_experts:
            raise ConfigError(f"model.feed_forward.top_k must be <= n_experts ({self.n_experts}), got {self.top_k}")
        if self.shared_d_ff:
            whole("model.feed_forward", shared_d_ff=self.shared_d_ff)
        if self.weight_dtype is not None:
            known("model.feed_forward", DTYPE_BYTES, weight_dtype=self.weight_dtype)

    def shard(self, tensor_parallel: int, expert_ranks: int = 1) -> "Moe":
        """A rank's share of every expert's inner width, or its experts; shared ones by width, the router is copied."""
        if expert_ranks > self.n_experts:
            raise ConfigError(
                f"hardware.expert_parallel: {expert_ranks} ranks are more than the {self.n_experts} experts of a layer"
            )
        d_ff, shared = (-(-width // tensor_parallel) for width in (self.d_ff, self.shared_d_ff))
        if expert_ranks > 1:
            return replace(self, shared_d_ff=shared, expert_ranks=expert_ranks)
        return replace(self, d_ff=d_ff, shared_d_ff=shared)

    def axes(self) -> dict[str, int]:
        """Experts, those of a token, their width."""
        return {"n_experts": self.n_experts, "top_k": self.top_k, "expert_d_ff": self.d_ff}

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Router (bf16 at least), up and down of the shared experts, up and down of the others."""
        router = Gemm("router", d_model, self.n_experts, "bf16", has_bias=self.has_bias)
        n_held, taken = -(-self.n_experts // self.expert_ranks), self.top_k / self.expert_ranks
        experts = tuple(
            Gemm(name, inputs, outputs, self.weight_dtype, n_held, taken, self.has_bias)
            for name, inputs, outputs in (("experts_in", d_model, 2 * self.d_ff), ("experts_out", self.d_ff, d_model))
        )
        if not self.shared_d_ff:
            return router, *experts
        shared = Gemm("shared_in", d_model, 2 * self.shared_d_ff), Gemm("shared_out", self.shared_d_ff, d_model)
        return router, *shared, *experts

    def n_other_params(self, d_model: int) -> int:
        """The correction of the router's scores, and the gate of the shared experts."""
        return (self.n_experts if self.has_router_bias else 0) + (d_model if self.has_shared_gate else 0)

    def n_inner(self) -> int:
        """Of the experts that a token takes, and of the shared ones."""
        return 3 * (self.top_k * self.d_ff + self.shared_d_ff)

    def n_activated(self) -> int:
        """Of the shared experts; the others' activation is part of their kernels."""
        return 3 * self.shared_d_ff

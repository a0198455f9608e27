"""A feed-forward layer whose every weight every token is multiplied with."""

from dataclasses import dataclass, replace

from sim.spec.kinds import Gemm
from sim.spec.values import whole


@dataclass(frozen=True, slots=True)
class Dense:
    """Up, activation, down."""

    d_ff: int
    is_gated: bool = True  # gate and up projections (SwiGLU) rather than one

    def __post_init__(self) -> None:
        whole("model.feed_forward", d_ff=self.d_ff)

    def shard(self, tensor_parallel: int, expert_ranks: int = 1) -> "Dense":  # noqa: ARG002
        """A rank's share of the inner width: columns of what goes up, rows of what goes down."""
        return replace(self, d_ff=-(-self.d_ff // tensor_parallel))

    def axes(self) -> dict[str, int]:
        """The inner width."""
        return {"d_ff": self.d_ff}

    def gemms(self, d_model: int) -> tuple[Gemm, ...]:
        """Up (with the gate beside it) and down."""
        return Gemm("mlp_in", d_model, (2 if self.is_gated else 1) * self.d_ff), Gemm("mlp_out", self.d_ff, d_model)

    def n_other_params(self, d_model: int) -> int:  # noqa: ARG002
        """None; biases are left out."""
        return 0

    def n_inner(self) -> int:
        """What comes up, gate and all, and what is left of it after the activation."""
        return (3 if self.is_gated else 2) * self.d_ff

    def n_activated(self) -> int:
        """All of them."""
        return self.n_inner()

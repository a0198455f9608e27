"""Parts of a forward pass that depend on the number of tokens or sequences alone, from a profile."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, Protocol

from sim.errors import ProfileError

CALLS = {
    # of one forward pass, per decoder layer (layer) or once (model). Source: vLLM 0.19, models/llama.py
    "layernorm": ("layer", 2),  # before attention and before the MLP, with the residual added
    "qkv_proj": ("layer", 1),
    "rotary_emb": ("layer", 1),
    "o_proj": ("layer", 1),
    "gate_up_proj": ("layer", 1),
    "act_fn": ("layer", 1),
    "down_proj": ("layer", 1),
    "embedding": ("model", 1),
    "final_layernorm": ("model", 1),
}
SEQUENCE_CALLS = ("lm_head", "sampler")


class Dense(Protocol):
    """Everything but attention, over the whole model on one rank [s]."""

    most_tokens: int  # measured up to here
    most_seqs: int

    def dense_s(self, n_tokens: int) -> float:
        """All layers on ``n_tokens`` tokens."""
        ...

    def sequences_s(self, n_seqs: int) -> float:
        """lm_head and sampler for ``n_seqs`` sequences."""
        ...


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
        i = bisect_right(self.knots, x, 1, len(self.knots) - 1) - 1
        slope = (self.seconds[i + 1] - self.seconds[i]) / (self.knots[i + 1] - self.knots[i])
        return max(0.0, self.seconds[i] + slope * (x - self.knots[i]))


def curve_from(form: Mapping[str, Any]) -> Curve:
    """The curve an operation of a profile holds."""
    return Curve(tuple(form["knots"]), tuple(form["seconds"]))


class LayerCurves:
    """A model measured layer by layer: one curve per layer, summed over the model's calls of it."""

    def __init__(self, form: Mapping[str, Any], n_layers: int, z: float = 0.0) -> None:
        curves, spread = form["curves"], form["standard_error"]
        if missing := [name for name in (*CALLS, *SEQUENCE_CALLS) if name not in curves]:
            raise ProfileError(f"the profile measured no {', '.join(missing)}")
        counts = {name: n * (n_layers if per == "layer" else 1) for name, (per, n) in CALLS.items()}
        self._layers = [(curve_from(curves[name]), n) for name, n in counts.items()]
        self._sequences = [curve_from(curves[name]) for name in SEQUENCE_CALLS]
        self._factor = exp(z * spread["layers_log_sd"])
        self._sequences_factor = exp(z * spread["sequences_log_sd"])
        self.most_tokens = int(min(curve.knots[-1] for curve, _ in self._layers))
        self.most_seqs = int(min(curve.knots[-1] for curve in self._sequences))

    def dense_s(self, n_tokens: int) -> float:
        """All layers on ``n_tokens`` tokens [s]."""
        return self._factor * sum(n * curve(n_tokens) for curve, n in self._layers)

    def sequences_s(self, n_seqs: int) -> float:
        """lm_head and sampler for ``n_seqs`` sequences [s]."""
        return self._sequences_factor * sum(curve(n_seqs) for curve in self._sequences)

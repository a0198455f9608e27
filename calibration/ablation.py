"""What each mechanism of a prediction is worth: recorded runs predicted without it, one at a time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from calibration.comparison import Line, compare
from calibration.prediction import Predictor, Scaled
from sim.cost.host import HostCost
from sim.cost.operations import DecodeCurve, Operations
from sim.step import Chunks


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism, in words, and a run's predictor and host time without it."""

    name: str
    without: Callable[[Predictor, HostCost], tuple[Predictor, HostCost]]


def _no_identity(predict: Predictor, host: HostCost) -> tuple[Predictor, HostCost]:
    run = predict.recorded
    return replace(predict, recorded=replace(run, prompts=(None,) * len(run))), host


def _no_launches(predict: Predictor, host: HostCost) -> tuple[Predictor, HostCost]:
    return predict, replace(host, launch_s=0.0, eager_launch_s=0.0)


def _no_host(predict: Predictor, host: HostCost) -> tuple[Predictor, HostCost]:
    return predict, replace(host, base_s=0.0, per_seq_s=0.0, per_finished_s=0.0)


def _no_skew(predict: Predictor, host: HostCost) -> tuple[Predictor, HostCost]:
    return replace(predict, operations=_Even(predict.operations)), host


def _no_graphs(predict: Predictor, host: HostCost) -> tuple[Predictor, HostCost]:
    run = predict.recorded
    settings = replace(run.settings, capture_sizes=())
    return replace(predict, recorded=replace(run, settings=settings)), host


def _no_plans_ahead(predict: Predictor, host: HostCost) -> tuple[Predictor, HostCost]:
    config: dict[str, Any] = dict(predict.config)
    config["batching"] = {**config["batching"], "plans_ahead": False}
    return replace(predict, config=config), replace(host, scheduling="sync")


def _derived_capacity(predict: Predictor, host: HostCost) -> tuple[Predictor, HostCost]:
    config: dict[str, Any] = dict(predict.config)
    config["hardware"] = {**config["hardware"], "kv_blocks": predict.derived.n_blocks - 1}
    return replace(predict, config=config), host


class _Even(Scaled):
    """Operations to which unequal contexts in a decoding batch are as equal ones."""

    def __init__(self, operations: Operations) -> None:
        super().__init__(operations, 1.0)

    def decode_attention(self, batch: int) -> DecodeCurve:
        """Attention of decoding sequences."""
        return super().decode_attention(batch)._replace(skew_s=0.0)

    def fused_attention_s(self, chunks: Chunks, batch: int, context_tokens: int, longest_tokens: int) -> float:
        """Attention of chunks beside decoding sequences, all as long as their mean."""
        mean = -(-context_tokens // batch)
        return super().fused_attention_s(chunks, batch, context_tokens, min(mean, longest_tokens))


MECHANISMS = (
    Mechanism("text that prompts share", _no_identity),
    Mechanism("what passes between kernels", _no_launches),
    Mechanism("the host's time beside the device", _no_host),
    Mechanism("unequal contexts", _no_skew),
    Mechanism("CUDA graphs, with their padding", _no_graphs),
    Mechanism("scheduling ahead of the device", _no_plans_ahead),
    Mechanism("the engine's own KV capacity (derived instead)", _derived_capacity),
)


def ablation(predict: Predictor) -> dict[str, list[Line]]:
    """Errors of the documented default, and of it without each mechanism."""
    host = predict.default_host()
    found = {"all": compare(predict.recorded, predict(host))}
    for mechanism in MECHANISMS:
        other, its_host = mechanism.without(predict, host)
        found[f"without {mechanism.name}"] = compare(predict.recorded, other(its_host))
    return found

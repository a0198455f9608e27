"""Pipeline stages: several batches under way in one replica, each on another stage.

An iteration is then a round: every decoding sequence gets its token, and prompts get as many tokens as all batches may
have. Sequences are spread evenly over the batches; prompts fill one after the other. A round lasts as long as the
fullest batch takes through all the stages, one after the other, and from stage to stage. So a lone prompt gains nothing
by stages (the others are idle: bubbles), while a full engine does ``stages`` batches in the time of one.

What this leaves out: batches that come to be uneven (vLLM forms them as requests come and go, and never evens them
out), and prompts and decoding sequences that wait for one another on a stage within a round.
"""

from dataclasses import dataclass

from sim.errors import ConfigError
from sim.spec import ACTIVATION_BYTES, DeviceSpec, whole
from sim.step import Chunks

HANDED_ON = 2  # hidden states and residual. Source: vLLM, IntermediateTensors of its decoder models
HOP_S, HOP_BANDWIDTH_FRAC = 13e-6, 0.66
"""From one accelerator to another of the same node. Source: NCCL's all-to-all of two H200 in NVIDIA's aiconfigurator
tables, where each sends half of a message: 13 us for 64 KiB, 0.90 ms for 256 MiB each way over 450 GB/s."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages of one replica.

    Parameters
    ----------
    stages : int
    device : DeviceSpec
        Whose link hidden states go over.
    d_model : int
    batch_tokens : int
        Tokens of one batch at most; 0: all prompts of a round are one batch's.
    """

    stages: int
    device: DeviceSpec
    d_model: int
    batch_tokens: int = 0

    def __post_init__(self) -> None:
        whole("cost.pipeline", stages=self.stages, d_model=self.d_model)
        if self.batch_tokens < 0:
            raise ConfigError(f"cost.pipeline.batch_tokens must be >= 0 [tokens], got {self.batch_tokens}")

    def share(self, n: int) -> int:
        """Of ``n`` sequences, those of the fullest batch."""
        return -(-n // self.stages)

    def fullest(self, chunks: Chunks, n_decoding: int) -> Chunks:
        """The prompts of the fullest batch, beside its decoding sequences.

        Of one that is cut, the part with the most before it.
        """
        most = self.batch_tokens - n_decoding if self.batch_tokens else 0
        if most <= 0:
            return chunks
        kept: list[tuple[int, int, int]] = []
        for new, context, reach in chunks:
            n = min(new, most)
            kept.append((n, context + new - n, reach))
            most -= n
            if not most:
                break
        return tuple(kept)

    def hops_s(self, n_tokens: int) -> float:
        """Hidden states of ``n_tokens`` from each stage to the next [s]."""
        n_bytes = HANDED_ON * ACTIVATION_BYTES * n_tokens * self.d_model
        return (self.stages - 1) * (HOP_S + n_bytes / (self.device.link_bytes_per_s * HOP_BANDWIDTH_FRAC))

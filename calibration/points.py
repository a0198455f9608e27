"""What is measured: shapes of operations, as columns of the measurement table."""

import json
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """One shape of one operation; ``columns`` are those of `calibration.measurements` that it sets."""

    operation: str
    columns: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        """What names the point in a file that a run goes on from."""
        return json.dumps([self.operation, dict(self.columns)], sort_keys=True)

    def __getitem__(self, column: str) -> Any:
        return dict(self.columns)[column]


def point(operation: str, **columns: Any) -> Point:
    """A point from columns."""
    return Point(operation, tuple(sorted(columns.items())))


def decode(n_seqs: int, tokens: int, **columns: Any) -> Point:
    """Decoding sequences that read ``tokens`` KV entries each."""
    return point(
        "decode_attention",
        decode_seqs=n_seqs,
        decode_total_tokens=n_seqs * tokens,
        decode_longest_tokens=tokens,
        **columns,
    )


CPU_HEADS = {"n_heads": 12, "n_kv_heads": 12, "head_dim": 64, "kv_dtype": "fp32", "dtype": "fp32"}  # gpt2's
CPU_MATRICES = (
    # (n, k): gpt2's, and others for the surface between them
    *((2304, 768), (768, 768), (3072, 768), (768, 3072)),
    *((256, 256), (512, 512), (1024, 1024), (2048, 512), (512, 2048), (4096, 768), (1024, 256), (256, 1024)),
)


def cpu_points() -> list[Point]:
    """A grid small enough for a few seconds on one core: decode and prompt attention, matrix products."""
    decodes = [decode(n, tokens, **CPU_HEADS) for n, tokens in product((1, 2, 4, 8, 16), (16, 64, 256, 512))]
    prompts = [
        point("batched_prefill_attention", prefill_seqs=n, new_tokens=new, **CPU_HEADS)
        for n, new in product((1, 2, 4), (16, 32, 64, 128, 256))
    ]
    matrices = [point("gemm", m=m, n=n, k=k, dtype="fp32") for (n, k), m in product(CPU_MATRICES, (1, 4, 16, 64, 256))]
    return [*decodes, *prompts, *matrices]

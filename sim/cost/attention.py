"""Attention of one layer from a profile: fitted surfaces, tabulated once for a model's heads.

Start-up evaluates the surfaces on grids and makes them monotone; a question in the hot loop is then one or two
look-ups. Two kinds of profile exist. One measured prompts and decoding sequences in one launch (`MixedAttention`); the
other measured them apart (`SeparateAttention`), and their times add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, log, log2
from typing import Any, Protocol, TypeVar

import numpy as np

from sim.cost.roofline import attended_pairs
from sim.cost.surface import Array, StandardError, monotone, soft_s, surface_from
from sim.cost.table import Plane, Space, Table
from sim.cost.work import TILE_ROWS, attention_work
from sim.errors import ProfileError
from sim.spec import ACTIVATION_BYTES
from sim.step import Chunks
from sim.units import FAR

LN2 = log(2.0)
HEADS = ("n_heads", "n_kv_heads", "head_dim")  # shape of attention in profiles and measurements
SERVED = {
    # operation: axes of its table, and nodes per octave along each
    "decode_attention": {"decode_seqs": 2, "decode_mean_tokens": 2},
    "prefill_attention": {"new_tokens": 4, "context_tokens": 2},
    "batched_prefill_attention": {"prefill_seqs": 1, "new_tokens": 3},
    "mixed_attention": {"new_tokens": 2, "context_tokens": 1, "decode_seqs": 1, "decode_mean_tokens": 2},
}
CACHED_AXES = ("prefill_seqs", "new_tokens", "context_tokens")  # of a factor for chunks after a cached context
SKEW_AXES = ("alone", "spread", "decode_seqs", "decode_mean_tokens")  # of a factor for unequal contexts
T = TypeVar("T", bound=Table)


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads of one tensor-parallel rank, and the bytes of a cached element."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    kv_bytes: float = 2.0

    def token_bytes(self) -> float:
        """Keys and values of one token in one layer [B]."""
        return 2.0 * self.kv_bytes * self.n_kv_heads * self.head_dim

    def axes(self) -> dict[str, float]:
        """As axes of a surface that was fitted over several of them."""
        return {"n_heads": self.n_heads, "n_kv_heads": self.n_kv_heads, "head_dim": self.head_dim}


class Attention(Protocol):
    """Attention of one layer [s]."""

    def decode_s(self, n_seqs: int, mean_tokens: float) -> float:
        """Of ``n_seqs`` decoding sequences that read ``mean_tokens`` KV entries each."""
        ...

    def decode_skew_s(self, n_seqs: int) -> float:
        """What unequal contexts add, per token of ``n_seqs`` * longest - total."""
        ...

    def chunks_s(self, chunks: Chunks) -> float:
        """Of prompt chunks."""
        ...


def nodes(ends: Sequence[float], per_octave: int, shift: float) -> list[float]:
    """Points from one end to the other, evenly spread in ``log2(x + shift)``, both ends included."""
    low, high = ends
    n = max(1, ceil((log2(high + shift) - log2(low + shift)) * per_octave))
    points = 2.0 ** np.linspace(log2(low + shift), log2(high + shift), n + 1) - shift
    points[0], points[-1] = low, high
    return [float(x) for x in points]


def error_factor(spread: StandardError, seconds: Array, z: float) -> Array:
    """By how much times change when the fit is off by ``z`` standard errors."""
    result: Array = np.exp(z * spread(seconds))
    return result


def tabulate(name: str, form: Mapping[str, Any], heads: Heads, z: float) -> Table:
    """A fitted operation on the grid of `SERVED`, monotone, off by ``z`` standard errors."""
    axes = tuple(SERVED[name])
    surface = surface_from(form)
    shifts = dict(zip(surface.residual.axes, surface.residual.shifts, strict=True))
    lines = [nodes(form["range"][axis], SERVED[name][axis], shifts[axis]) for axis in axes]
    mesh = meshed(axes, lines)
    shape = {**{name: np.full(len(mesh[axes[0]]), float(x)) for name, x in heads.axes().items()}, **mesh}
    seconds = surface.seconds(shape, attention_work(kv_bytes=heads.kv_bytes, **work_columns(shape)))
    seconds = monotone(seconds.reshape([len(line) for line in lines]))
    seconds = seconds * error_factor(surface.error, seconds, z)
    kind: type[Table] = {2: Plane, 4: Space}.get(len(axes), Table)
    return kind(lines, [shifts[axis] for axis in axes], np.log(seconds))


def meshed(axes: Sequence[str], lines: Sequence[Sequence[float]]) -> dict[str, Array]:
    """All points of a grid, each axis's coordinates in a flat array."""
    return dict(zip(axes, (m.ravel() for m in np.meshgrid(*lines, indexing="ij")), strict=True))


def factor_table(form: Mapping[str, Any], kind: type[T]) -> T:
    """A factor on a time, learnt over the axes of its residual: on a grid, held constant outside what was measured."""
    residual = surface_from(form).residual
    axes, shifts = residual.axes, residual.shifts
    lines = [nodes(form["range"][axis], 2, shift) for axis, shift in zip(axes, shifts, strict=True)]
    logs = residual(meshed(axes, lines)).reshape([len(line) for line in lines])
    return kind(lines, shifts, logs, is_clamped=True)


def work_columns(shape: Mapping[str, Array]) -> dict[str, Array]:
    """Arguments of `attention_work` for shapes given by the axes of a surface; decoding contexts are equal."""
    columns = {name: x for name, x in shape.items() if name != "decode_mean_tokens"}
    if "new_tokens" in columns:
        columns.setdefault("prefill_seqs", np.ones_like(columns["new_tokens"]))
    if "decode_seqs" in shape:
        columns["decode_total_tokens"] = shape["decode_seqs"] * shape["decode_mean_tokens"]
        columns["decode_longest_tokens"] = shape["decode_mean_tokens"]
    return columns


class MixedAttention:
    """Prompt chunks and decoding sequences in one launch, as measured over (chunk, its context, sequences, theirs).

    One chunk was measured at a time. Of several, the one with the most work goes with the decoding sequences, and each
    other one adds its own time less the floor, which is paid once per launch.

    Unequal contexts cost, without chunks, ``skew`` per token of sequences * longest - total; with chunks a factor that
    depends on how long the longest would take alone, how unequal they are, on their number and mean.

    Windows were not measured: a chunk of which each token attends to some entries only is taken as chunks with as many
    queries and pairs (`as_unbounded`).
    """

    def __init__(
        self,
        operations: Mapping[str, Mapping[str, Any]],
        heads: Heads,
        z: Mapping[str, float],
        window: int | None = None,
    ) -> None:
        self._window = FAR if window is None else window
        names = ("decode_attention", "prefill_attention", "mixed_attention")
        tables = [tabulate(name, operations[name], heads, z.get(name, 0.0)) for name in names]
        self._decode, self._prefill, mixed_table = tables
        assert isinstance(mixed_table, Space), "mixed attention has four axes"
        self._mixed = mixed_table
        mixed = operations["mixed_attention"]
        self._least_new, self._most_new = mixed["range"]["new_tokens"]
        self._least_context = mixed["range"]["decode_mean_tokens"][0]
        self._floor_s = self._prefill(self._least_new, 0.0)
        skew = operations.get("decode_skew", {"decode_seqs": [1], "seconds_per_token": [0.0]})  # not always measured
        self._skew_seqs, self._skew_s = np.log2(skew["decode_seqs"]), np.array(skew["seconds_per_token"])
        self._factor = factor_table(operations["mixed_skew"], Space) if "mixed_skew" in operations else None
        # Where whole numbers of tokens and sequences lie in the tables is looked up, not computed.
        if mixed["residual"]["shifts"][2:] != [0.0, 0.0]:
            raise ProfileError("mixed_attention: sequences and their contexts must not be shifted")
        new, context, seqs, mean = self._mixed.axes
        self._news = new.places(int(self._most_new), self._least_new)
        self._contexts = context.places(int(mixed["range"]["context_tokens"][1]), 0.0)
        self._seqs = seqs.places(int(mixed["range"]["decode_seqs"][1]), 1.0)
        self._longests = mean.places(int(mixed["range"]["decode_mean_tokens"][1]), self._least_context)
        most = int(operations["mixed_skew"]["range"]["decode_seqs"][1]) if self._factor else 0
        self._factor_seqs = self._factor.axes[2].places(most, 1.0) if self._factor else []

    def decode_s(self, n_seqs: int, mean_tokens: float) -> float:
        """Of ``n_seqs`` decoding sequences that read ``mean_tokens`` KV entries each [s]."""
        return self._decode(n_seqs, max(mean_tokens, self._least_context))

    def decode_skew_s(self, n_seqs: int) -> float:
        """What unequal contexts add [s] per token of ``n_seqs`` * longest - total; 0 for a single sequence."""
        if n_seqs < 2:
            return 0.0
        return float(np.interp(log2(n_seqs), self._skew_seqs, self._skew_s))

    def chunks_s(self, chunks: Chunks) -> float:
        """Of prompt chunks [s]."""
        new, context, rest = self._heaviest(chunks)
        return rest + self._prefill(max(new, self._least_new), context)

    def fused_s(self, chunks: Chunks, n_seqs: int, total_tokens: int, longest_tokens: int) -> float:
        """Of prompt chunks and the decoding sequences beside them [s]."""
        new, context, rest = self._heaviest(chunks)
        mean = total_tokens / n_seqs
        if mean < self._least_context:
            mean = self._least_context
        log_mean = log2(mean)
        mixed, news, contexts, seqs = self._mixed, self._news, self._contexts, self._seqs
        at, a = news[new] if new < len(news) else mixed.axes[0].place(new)
        i, b = contexts[context] if context < len(contexts) else mixed.axes[1].place(context)
        at += i
        i, c = seqs[n_seqs] if n_seqs < len(seqs) else mixed.axes[2].place(n_seqs)
        j, d = mixed.axes[3].place_log(log_mean)
        told = mixed.between(at + i + j, a, b, c, d)
        factor, longests = self._factor, self._longests
        if longest_tokens > 1.01 * mean and factor is not None:
            log_longest = log2(longest_tokens)
            i, d = longests[longest_tokens] if longest_tokens < len(longests) else mixed.axes[3].place_log(log_longest)
            alone = mixed.between(at + i, a, b, 0.0, d)  # beside the longest only: the first node of the sequences
            by_ratio, by_spread, _, by_mean = factor.axes
            at, a = by_ratio.place_log((alone - told) / LN2)
            i, b = by_spread.place_log(log_longest - log_mean)
            at += i
            seqs = self._factor_seqs
            i, c = seqs[n_seqs] if n_seqs < len(seqs) else seqs[-1]
            j, d = by_mean.place_log(log_mean)
            told += factor.between(at + i + j, a, b, c, d)
        return rest + exp(told)

    def _heaviest(self, chunks: Chunks) -> tuple[int, int, float]:
        """The chunk with the most work, and what all the others add [s]."""
        window = self._window
        if len(chunks) == 1:
            new, context, reach = chunks[0]
            if new + context <= reach and new + context <= window:
                return new, context, 0.0
        heaviest_new = heaviest_context = 0
        most, rest, floor_s = -1.0, 0.0, self._floor_s
        heaviest_s = 0.0
        for new, context, reach in chunks:
            n_like = 1.0
            if window < reach:
                reach = window
            if new + context > reach:
                n_like, new, context = as_unbounded(new, context, reach)
            work = new * (context + 0.5 * new)
            seconds = self._prefill(new if new > self._least_new else self._least_new, context)
            rest += n_like * (seconds - floor_s)
            if work > most:
                heaviest_new, heaviest_context, heaviest_s, most = new, context, seconds, work
        return heaviest_new, heaviest_context, rest - (heaviest_s - floor_s)


def as_unbounded(new: int, context: int, reach: int) -> tuple[float, int, int]:
    """Chunks with as many queries and pairs as one whose tokens attend to ``reach`` entries at most.

    Returns how many, their tokens and their cached entries. A prompt cut to a band has the pairs of several short ones,
    or of one behind fewer entries.

    Examples
    --------
    >>> as_unbounded(2_000, 100_000, 50_000)  # in the middle of its window: 48,999.5 before it
    (1.0, 2000, 49000)
    >>> as_unbounded(8_192, 0, 512)
    (8.26..., 991, 0)
    """
    pairs = attended_pairs(new, context, reach)
    before = pairs / new - (new + 1) / 2.0
    if before >= 0.0:
        return 1.0, new, round(before)
    length = max(1, round(2.0 * pairs / new - 1.0))
    return new / length, length, 0


class SeparateAttention:
    """Prompts and decoding sequences measured apart: an iteration launches both, and their times add.

    Prompts were measured in equal batches without cached context. Chunks are taken as the batch of equal prompts with
    as many query rows and as many attended pairs; what the roofline says of their true work over that batch's scales
    its time. So a chunk after a long context keeps the efficiency of a prompt with its work, lowered where the
    roofline finds it short of parallel rows. Where chunks after a cached context were measured, a factor over
    `CACHED_AXES` corrects that; published tables hold none. Unequal contexts and the append of new keys and values are
    added where they were measured; published times of decoding include the append.
    """

    def __init__(
        self,
        operations: Mapping[str, Mapping[str, Any]],
        heads: Heads,
        z: Mapping[str, float],
        suffix: str = "",
        window: int | None = None,
    ) -> None:
        prefill, decode = operations[f"batched_prefill_attention{suffix}"], operations[f"decode_attention{suffix}"]
        self._prefill = tabulate(
            "batched_prefill_attention", prefill, heads, z.get(f"batched_prefill_attention{suffix}", 0.0)
        )
        self._decode = tabulate("decode_attention", decode, heads, z.get(f"decode_attention{suffix}", 0.0))
        line = surface_from(prefill).roofline
        assert line is not None, "prefill attention has a roofline"
        self._heads, self._window = heads, FAR if window is None else window
        self._p, self._floor_p = line.p, line.floor_s**line.p
        self._most_seqs = prefill["range"]["prefill_seqs"][1]
        self._least_context = decode["range"]["decode_mean_tokens"][0]
        width = heads.head_dim
        self._flops_s = 4.0 * heads.n_heads * width / line.rates["flops"]  # per attended pair
        self._kv_s = 2.0 * heads.kv_bytes * heads.n_kv_heads * width / line.rates["bytes"]  # per entry read
        self._row_s = 2.0 * ACTIVATION_BYTES * heads.n_heads * width / line.rates["bytes"]  # per query
        self._serial_s = 1.0 / line.rates["serial_tokens"]
        cached = operations.get("cached_prefill_attention")
        self._cached = None if cached is None else factor_table(cached, Table)
        ragged = operations.get("ragged_decode_attention", {"seconds_per_byte": 0.0})
        self._skew_s = ragged["seconds_per_byte"] * heads.token_bytes()
        append = operations.get("append")
        self._append = None if append is None else append["roofline"]
        self._append_factor = exp(z.get("append", 0.0) * append["standard_error"]["log_sd"]) if append else 1.0

    def decode_s(self, n_seqs: int, mean_tokens: float) -> float:
        """Of ``n_seqs`` decoding sequences that read ``mean_tokens`` KV entries each [s]."""
        return self._decode(n_seqs, max(mean_tokens, self._least_context)) + self._append_s(n_seqs)

    def decode_skew_s(self, n_seqs: int) -> float:
        """What unequal contexts add [s] per token of ``n_seqs`` * longest - total; 0 where they were not measured."""
        return self._skew_s if n_seqs > 1 else 0.0

    def chunks_s(self, chunks: Chunks) -> float:
        """Of prompt chunks [s]."""
        window = self._window
        rows = pairs = entries = longest = 0
        for new, context, reach in chunks:
            rows += new
            walked = seen = new + context
            if window < reach:
                reach = window
            if seen <= reach:
                pairs += new * context + new * (new + 1) // 2
            else:
                pairs += attended_pairs(new, context, reach)
                if context > reach:
                    seen = new + reach
                walked = min(seen, reach + TILE_ROWS - 1)  # by a tile of queries, each of which sees that far back
            entries += seen
            if walked > longest:  # max() takes three times as long
                longest = walked
        length = 2.0 * pairs / rows - 1.0  # of equal prompts with as many rows and pairs
        n_equal = rows / length
        if n_equal < 1.0:  # after a long context: one prompt with as many pairs
            n_equal, length = 1.0, (2.0 * pairs) ** 0.5
        if n_equal > self._most_seqs:
            seconds: float = self._prefill(self._most_seqs, length) * (n_equal / self._most_seqs)
        else:
            seconds = self._prefill(n_equal, length)
        if longest != length:  # else these are such prompts
            seconds *= self._over_equal(pairs, entries, rows, longest, n_equal * length, length)
        if self._cached is not None:
            cached = pairs  # less those among new tokens: pairs with what was there before
            for new, _, reach in chunks:
                cached -= attended_pairs(new, 0, min(window, reach))
            if cached > 0:
                seconds *= self._cached(len(chunks), rows / len(chunks), cached / rows)
        return seconds + self._append_s(rows)

    def _append_s(self, n_tokens: int) -> float:
        """Writing the keys and values of new tokens, where it was measured on its own [s]."""
        line = self._append
        if line is None:
            return 0.0
        moved_s = n_tokens * self._heads.token_bytes() / line["rates"]["bytes"]
        return self._append_factor * soft_s(moved_s, line["floor_s"], line["p"])

    def _over_equal(
        self, pairs: float, entries: float, rows: float, longest: float, equal_rows: float, length: float
    ) -> float:
        """The fitted roofline of the chunks' work over that of equal prompts with as many pairs, in plain numbers."""
        p = self._p
        both = (pairs * self._flops_s) ** p + self._floor_p
        ours = both + (entries * self._kv_s + rows * self._row_s) ** p + (longest * self._serial_s) ** p
        equal = both + (equal_rows * (self._kv_s + self._row_s)) ** p + (length * self._serial_s) ** p
        ratio: float = (ours / equal) ** (1.0 / p)
        return ratio


def check_heads(subject: Mapping[str, Any], axes: Mapping[str, float], path: str) -> None:
    """Refuse attention of another shape than the one a profile of one model was measured with.

    Raises
    ------
    ProfileError
        If they differ.
    """
    for name in HEADS:
        if name in subject and subject[name] != axes.get(name):
            raise ProfileError(
                f"{path}: measured with {name} {subject[name]} ({subject.get('model')}, tensor parallel "
                f"{subject.get('tensor_parallel')}), the model has {axes.get(name, 'none')}; take cost=roofline or "
                "a profile of its shapes"
            )

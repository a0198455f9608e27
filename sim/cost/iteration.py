"""How long an engine iteration takes: the parts of a forward pass on the device, and the host beside it.

An iteration computes new tokens of some prompts (chunks) and one token of every decoding sequence:

    device = dense(tokens, padded to a captured graph) + lm_head and sampler(sequences)
             + prefill attention(chunks) + decode attention(batch, total context) + copies + gap + launches
    host   = base + per_seq * sequences + per_finished * finished
    iteration = max(device, host) under async scheduling, device + host under sync

What the parts cost comes from `Operations`: a data sheet (`sim.cost.roofline`) or a measured profile. Here they
become integer picoseconds, once per batch size, so that a run of decode iterations is an exact arithmetic series.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from sim.cost.host import HostCost
from sim.cost.operations import FusedAttention, Operations
from sim.cost.pipeline import Pipeline
from sim.errors import ConfigError, ProfileError
from sim.step import Chunks, CostModel, Shape
from sim.units import FAR, ps_from_s

CAPTURE_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Token counts vLLM captures CUDA graphs for; a smaller batch runs the next larger graph.

Source: vLLM, ``cudagraph_capture_sizes`` of its engine arguments: ``[1, 2, 4] + range(8, 256, 8) +
range(256, max + 1, 16)`` with ``max_cudagraph_capture_size = min(2 * max_num_seqs, 512)``.
"""

MOST_REMEMBERED = 1 << 14  # sets of chunks; a megabyte or two


_Decode = tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int]
"""One batch size, in integers: everything a decode iteration of it needs.

(all but attention, under sync scheduling the host too [ps]; what the host does beside the device, 0 under sync [ps];
knots, the first below any context, the last at `FAR` [tokens]; per piece attention's line at context 0 [ps] and its
slope [ps per token]; what unequal contexts cost [ps per token]; where extrapolation begins [tokens])
"""


class IterationCost(CostModel):
    """A `CostModel` put together from a model's operations and the host's time."""

    def __init__(
        self,
        operations: Operations,
        host: HostCost,
        capture_sizes: Sequence[int] = CAPTURE_SIZES,
        provenance: Mapping[str, object] | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.operations = operations
        self._pipeline = pipeline if pipeline is not None and pipeline.stages > 1 else None
        self.capture_sizes = tuple(capture_sizes)
        self.provenance = provenance or getattr(operations, "provenance", {})  # where the operations' times come from
        self.extrapolated_runs = 0  # decode paces asked for outside the operations' range
        self._most_seqs_outside = self._most_mean_outside = 0  # of those: sequences, and tokens of one on average
        if any(size < 1 for size in self.capture_sizes) or sorted(set(self.capture_sizes)) != [*self.capture_sizes]:
            raise ConfigError(f"cost.capture_sizes must be ascending and >= 1 [tokens], got {self.capture_sizes}")
        self._decode: dict[int, _Decode] = {}
        self._shares: dict[int, _Decode] = {}  # of one of a pipeline's batches
        self._dense_ps: dict[int, int] = {}
        self._sequences_ps: dict[int, int] = {}
        self._prefill_ps: dict[Chunks, int] = {}
        self._fused = operations if isinstance(operations, FusedAttention) and operations.is_fused else None
        self._is_sync = host.scheduling == "sync"
        n_batches = 1 if self._pipeline is None else self._pipeline.stages  # the host plans each of them
        self._base_ps, self._per_seq_ps = n_batches * ps_from_s(host.base_s), ps_from_s(host.per_seq_s)
        self._finished_ps = ps_from_s(host.per_finished_s)
        self._gap_base_ps, self._gap_per_seq_ps = ps_from_s(host.gap_s), ps_from_s(host.gap_per_seq_s)
        self._prefill_gap_ps = ps_from_s(host.prefill_gap_s)
        n_launches = int(getattr(operations, "n_launches", 0))
        self._launches_ps = ps_from_s(n_launches * host.launch_s)
        self._eager_launches_ps = ps_from_s(n_launches * host.eager_launch_s)

    def pace(self, shape: Shape) -> tuple[int, int, int]:
        """Duration of the iteration ``shape`` and of those that follow it at the same batch.

        Exact in the sense of `CostModel.pace`. O(1): two table look-ups and integer arithmetic.
        """
        chunks, batch, context, longest, growing, moved, hosted, finished = shape
        if chunks or moved or hosted or not batch:
            return self._once_ps(shape), 0, 1
        rest, host, knots, lines, slopes, skew, valid_to = self._decode.get(batch) or self._tabulate(batch)
        i = 0 if context < knots[1] else bisect_right(knots, context) - 1
        slope = slopes[i]
        device = rest + lines[i] + slope * context
        growth = slope * growing
        n_steps = -((context - knots[i + 1]) // growing) if growing else FAR
        if context > valid_to:
            self._outside(batch, context)
        if skew:
            device += skew * (longest * batch - context)
            if growing != batch:  # the longest slides over its window and stays, the others catch up
                growth -= skew * growing
        if finished and self._finished_ps:
            busy = host + finished * self._finished_ps
            if self._is_sync:
                return device + busy, 0, 1
            if device < busy:
                return busy, 0, 1
        if device < host:  # the host is the slower one, until the device's time has grown past it
            if growth > 0:
                n_steps = min(n_steps, (host - device) // growth + 1)
            return host, 0, n_steps
        if growth < 0:
            n_steps = min(n_steps, (device - host) // -growth + 1)
        return device, growth, n_steps

    def _once_ps(self, shape: Shape) -> int:
        """One iteration that does not repeat: with prompt chunks, or with copies."""
        chunks, batch, context, longest, _growing, moved, hosted, finished = shape
        n_host = batch + len(chunks)  # sequences that the host sees to
        pipeline = self._pipeline
        if pipeline is not None and batch:
            share = pipeline.share(batch)
            context, batch = context * share // batch, share
        if pipeline is not None:
            chunks = pipeline.fullest(chunks, batch)
        n_tokens, n_seqs = batch, batch + len(chunks)
        for chunk in chunks:
            n_tokens += chunk[0]
        device = self._gap_base_ps + n_seqs * self._gap_per_seq_ps + (self._prefill_gap_ps if chunks else 0)
        if n_tokens:
            device += self._dense_ps.get(n_tokens) or self._dense(n_tokens)
            device += self._sequences_ps.get(n_seqs) or self._sequences(n_seqs)
        if chunks and batch and self._fused is not None:
            device += ps_from_s(self._fused.fused_attention_s(chunks, batch, context, longest))
        elif chunks:
            device += self._prefill_ps.get(chunks) or self._prefill(chunks)
        if batch and not (chunks and self._fused is not None):
            _rest, _host, knots, lines, slopes, skew, valid_to = self._one_batch(batch)
            i = 0 if context < knots[1] else bisect_right(knots, context) - 1
            device += lines[i] + slopes[i] * context
            if skew:
                device += skew * (longest * batch - context)
            if context > valid_to:
                self._outside(batch, context)
        if moved or hosted:
            device += ps_from_s(self.operations.copy_s(moved, hosted))
        if pipeline is not None:
            device += ps_from_s(pipeline.hops_s(n_tokens))
        host = self._base_ps + n_host * self._per_seq_ps + finished * self._finished_ps
        return device + host if self._is_sync else max(device, host)

    def _outside(self, batch: int, context: int) -> None:
        """Count a decode iteration outside of what was measured, and how far it reaches."""
        self.extrapolated_runs += 1
        self._most_seqs_outside = max(self._most_seqs_outside, batch)
        self._most_mean_outside = max(self._most_mean_outside, context // batch)

    def n_extrapolated(self) -> int:
        """Decode paces, and prompts, outside the operations' range."""
        return self.extrapolated_runs + int(getattr(self.operations, "extrapolated_runs", 0))

    def extrapolations(self) -> list[str]:
        """What was asked for outside of what was measured: operation, axis, how far, and the range."""
        operations = self.operations
        asked = dict(getattr(operations, "asked", {}))
        for axis, most in (("sequences", self._most_seqs_outside), ("tokens a sequence", self._most_mean_outside)):
            asked["decode attention", axis] = max(most, asked.get(("decode attention", axis), 0))
        return [
            f"{operation}: {axis} up to {asked[operation, axis]:,}, measured {low:,.0f} to {high:,.0f}"
            for (operation, axis), (low, high) in getattr(operations, "ranges", {}).items()
            if asked.get((operation, axis), 0) > high
        ]

    def _one_batch(self, batch: int) -> _Decode:
        """Tables of one batch of a pipeline's, or of all sequences."""
        if self._pipeline is None:
            return self._decode.get(batch) or self._tabulate(batch)
        return self._shares.get(batch) or self._tabulate_share(batch, batch)

    def _tabulate(self, batch: int) -> _Decode:
        """Integer tables of one batch size, made when it first occurs: of a pipeline, of its fullest batch's share."""
        share = batch if self._pipeline is None else self._pipeline.share(batch)
        row = self._decode[batch] = self._tabulate_share(share, batch)
        return row

    def _tabulate_share(self, share: int, batch: int) -> _Decode:
        """Of ``share`` sequences of ``batch``, over the context of all."""
        curve = self.operations.decode_attention(share)
        knots = tuple(curve.knots)
        if share != batch:  # as much context more as there are sequences more
            knots = (min(batch, knots[0] * batch // share), *(knot * batch // share for knot in knots[1:]))
        if not knots or len(knots) != len(curve.seconds) or knots[0] > batch or list(knots) != sorted(set(knots)):
            raise ProfileError(f"decode curve of batch {batch}: knots must ascend from at most {batch}, got {knots}")
        starts = [ps_from_s(seconds) for seconds in curve.seconds]
        slopes = [
            (starts[i + 1] - starts[i]) // (knots[i + 1] - knots[i])  # rounded down: a piece never overshoots the next
            for i in range(len(knots) - 1)
        ]
        slopes.append(slopes[-1] if slopes else 0)
        host = self._base_ps + batch * self._per_seq_ps
        rest = self._gap_base_ps + share * self._gap_per_seq_ps + self._dense(share) + self._sequences(share)
        if self._pipeline is not None:
            rest += ps_from_s(self._pipeline.hops_s(share))
        row = (
            rest + host if self._is_sync else rest,
            0 if self._is_sync else host,
            (*knots, FAR),
            tuple(start - slope * knot for start, slope, knot in zip(starts, slopes, knots, strict=True)),
            tuple(slopes),
            ps_from_s(curve.skew_s * share / batch),
            curve.valid_to_tokens if share == batch else curve.valid_to_tokens * batch // share,
        )
        if self._pipeline is not None and share == batch:
            self._shares[share] = row
        return row

    def _prefill(self, chunks: Chunks) -> int:
        """Attention of some chunks, remembered: prompts of one length that start from nothing come again and again.

        Those outside the operations' range are asked for each time, so that each is counted.
        """
        operations = self.operations
        n_outside = getattr(operations, "extrapolated_runs", 0)
        ps = ps_from_s(operations.prefill_attention_s(chunks))
        if getattr(operations, "extrapolated_runs", 0) == n_outside:
            if len(self._prefill_ps) >= MOST_REMEMBERED:
                self._prefill_ps.clear()
            self._prefill_ps[chunks] = ps
        return ps

    def _dense(self, n_tokens: int) -> int:
        """Dense parts and launches of the smallest captured graph that holds the tokens; past the largest, without."""
        i = bisect_left(self.capture_sizes, n_tokens)
        n_computed, launches = n_tokens, self._eager_launches_ps
        if i < len(self.capture_sizes):
            n_computed, launches = self.capture_sizes[i], self._launches_ps
        if (ps := self._dense_ps.get(n_computed)) is None:
            ps = self._dense_ps[n_computed] = ps_from_s(self.operations.dense_s(n_computed)) + launches
        self._dense_ps[n_tokens] = ps
        return ps

    def _sequences(self, n_seqs: int) -> int:
        if (ps := self._sequences_ps.get(n_seqs)) is None:
            ps = self._sequences_ps[n_seqs] = ps_from_s(self.operations.sequences_s(n_seqs))
        return ps

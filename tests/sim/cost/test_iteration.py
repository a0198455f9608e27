"""Iteration times: exact arithmetic series, padding, the host beside the device."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost import DecodeCurve, HostCost, IterationCost
from sim.errors import ConfigError, ProfileError
from sim.step import Chunk, StepShape

US = 1_000_000  # [ps]


@dataclass
class Sheet:
    """Operations with round numbers: 1 us a token dense, 2 us a sequence, 1 ns per attended token."""

    knots: tuple[int, ...] = (1, 1_001, 5_001)
    seconds: tuple[float, ...] = (0.0, 1e-6, 9e-6)  # 1 ns a token, then 2 ns
    skew_s: float = 0.0
    valid_to_tokens: int = 10_000
    dense_asked: list[int] = field(default_factory=list)

    def dense_s(self, n_tokens: int) -> float:
        self.dense_asked.append(n_tokens)
        return n_tokens * 1e-6

    def sequences_s(self, n_seqs: int) -> float:
        return n_seqs * 2e-6

    def prefill_attention_s(self, chunks: tuple[Chunk, ...]) -> float:
        return sum(new * (context + new) * 1e-9 for new, context, _ in chunks)

    def decode_attention(self, batch: int) -> DecodeCurve:
        return DecodeCurve(self.knots, self.seconds, self.skew_s, self.valid_to_tokens)

    def copy_s(self, moved_bytes: float, host_bytes: float) -> float:
        return moved_bytes * 1e-12 + host_bytes * 1e-10


FREE = HostCost(base_s=0.0, per_seq_s=0.0)


def decoding(batch: int, context: int, growing: int | None = None, longest: int | None = None, **rest) -> StepShape:
    return StepShape(
        decode_seqs=batch,
        decode_context_tokens=context,
        decode_max_context_tokens=-(-context // batch) if longest is None else longest,
        decode_growing=batch if growing is None else growing,
        **rest,
    )


def later(shape: StepShape, k: int) -> StepShape:
    """The shape ``k`` iterations later, as `CostModel.pace` defines it."""
    if k == 0:
        return shape
    grows = shape.decode_growing == shape.decode_seqs
    return shape._replace(
        decode_context_tokens=shape.decode_context_tokens + k * shape.decode_growing,
        decode_max_context_tokens=shape.decode_max_context_tokens + k * grows,
        moved_bytes=0.0,
        host_bytes=0.0,
        finished_seqs=0,
    )


def test_a_decode_iteration_adds_padded_dense_sequences_attention_and_gap():
    cost = IterationCost(Sheet(), HostCost(0.0, 0.0, gap_s=5e-6), capture_sizes=(1, 2, 4, 8))
    first_ps, growth_ps, _ = cost.pace(decoding(3, 301))
    assert first_ps == 4 * US + 3 * 2 * US + 300 * 1_000 + 5 * US  # padded to 4 tokens, 3 sequences sampled
    assert growth_ps == 3 * 1_000


def test_a_run_reaches_to_the_next_knot_and_no_further():
    cost = IterationCost(Sheet(), FREE)
    assert cost.pace(decoding(10, 981))[2] == 2  # 981 and 991 lie below the knot at 1001, which belongs to the next
    assert cost.pace(decoding(10, 1_001))[1] == 10 * 2_000


def test_past_the_largest_graph_nothing_is_padded():
    sheet = Sheet()
    cost = IterationCost(sheet, FREE, capture_sizes=(1, 2, 4))
    cost.pace(StepShape(chunks=(Chunk(1_000, 0),)))
    cost.pace(StepShape(chunks=(Chunk(3, 0),)))
    assert sheet.dense_asked == [1_000, 4]


def test_what_passes_between_kernels_is_charged_where_they_were_timed_alone_more_outside_of_graphs():
    host = HostCost(0.0, 0.0, launch_s=1e-6, eager_launch_s=2e-6)
    alone, replayed = Sheet(), Sheet()
    alone.n_launches = 100
    with_gaps, without = (IterationCost(sheet, host, capture_sizes=(1, 2, 4)) for sheet in (alone, replayed))
    for batch, gap_s in ((3, 100e-6), (4, 100e-6), (5, 200e-6)):
        shape = StepShape((), batch, batch * 10, 10, batch)
        assert with_gaps.pace(shape)[0] - without.pace(shape)[0] == round(gap_s * 1e12)
    mixed = StepShape((Chunk(9, 0),), 2, 20, 10, 2)
    assert with_gaps.pace(mixed)[0] - without.pace(mixed)[0] == round(200e-6 * 1e12)


def test_a_mixed_iteration_adds_both_attentions_and_samples_every_sequence():
    cost = IterationCost(Sheet(), FREE, capture_sizes=(1, 16))
    pace = cost.pace(decoding(3, 301, chunks=(Chunk(10, 90), Chunk(2, 0))))
    prefill_ps = (10 * 100 + 2 * 2) * 1_000
    assert pace == (16 * US + 5 * 2 * US + prefill_ps + 300 * 1_000, 0, 1)


def test_copies_delay_the_first_iteration_only():
    cost = IterationCost(Sheet(), FREE)
    plain, copying = cost.pace(decoding(2, 100)), cost.pace(decoding(2, 100, moved_bytes=1e6, host_bytes=1e4))
    assert copying == (plain[0] + 1 * US + 1 * US, 0, 1)


def test_async_scheduling_takes_the_slower_of_host_and_device_and_sync_their_sum():
    device_ps = IterationCost(Sheet(), FREE).pace(decoding(4, 100))[0]
    slow, fast = HostCost(500e-6, 1e-6), HostCost(1e-6, 1e-6)
    assert IterationCost(Sheet(), slow).pace(decoding(4, 100))[0] == 504 * US
    assert IterationCost(Sheet(), fast).pace(decoding(4, 100))[0] == device_ps
    sync = HostCost(500e-6, 1e-6, scheduling="sync")
    assert IterationCost(Sheet(), sync).pace(decoding(4, 100))[0] == device_ps + 504 * US


def test_a_run_that_waits_for_the_host_ends_where_the_device_overtakes_it():
    cost = IterationCost(Sheet(knots=(1, 100_001), seconds=(0.0, 100e-6)), HostCost(5e-6, 0.0))
    assert cost.pace(decoding(1, 1_901)) == (5 * US, 0, 101)  # 4.9 us and 1 ns more each time: 5 us after 100 more
    assert cost.pace(decoding(1, 2_002))[:2] == (5 * US + 1_000, 1_000)


def test_the_longest_sequence_delays_its_batch_by_the_skew():
    cost = IterationCost(Sheet(skew_s=5e-10), FREE)
    even, uneven = cost.pace(decoding(4, 400)), cost.pace(decoding(4, 400, longest=250))
    assert uneven[0] - even[0] == (4 * 250 - 400) * 500
    assert uneven[1] == even[1]


def test_runs_outside_the_measured_range_are_counted():
    cost = IterationCost(Sheet(), FREE)
    cost.pace(decoding(4, 9_999))
    assert cost.extrapolated_runs == 0
    cost.pace(decoding(4, 10_001))
    cost.pace(decoding(4, 10_001, chunks=(Chunk(1, 0),)))
    assert cost.extrapolated_runs == 2


shapes = st.builds(
    decoding,
    batch=st.integers(1, 12),
    context=st.integers(12, 7_000),
    finished_seqs=st.integers(0, 3),
    moved_bytes=st.sampled_from([0.0, 0.0, 2.5e6]),
)
hosts = st.builds(
    HostCost,
    base_s=st.sampled_from([0.0, 2e-5, 3e-5, 4e-5]),
    per_seq_s=st.sampled_from([0.0, 1.7e-7]),
    per_finished_s=st.sampled_from([0.0, 1e-6, 1e-5]),
    gap_s=st.sampled_from([0.0, 1.3e-6]),
    scheduling=st.sampled_from(["async", "sync"]),
)
curves = st.builds(
    lambda steps, skew_s: Sheet(
        knots=tuple(1 + sum(n for n, _ in steps[:i]) for i in range(len(steps) + 1)),
        seconds=tuple(1e-6 + sum(s for _, s in steps[:i]) for i in range(len(steps) + 1)),
        skew_s=skew_s,
    ),
    steps=st.lists(st.tuples(st.integers(1, 3_000), st.floats(0.0, 2e-5)), max_size=5),
    skew_s=st.sampled_from([0.0, 3e-10, 8e-9]),
)


@given(shape=shapes, host=hosts, sheet=curves, slack=st.integers(0, 500), sliding=st.integers(0, 12))
def test_a_run_is_exactly_the_series_of_its_single_iterations(shape, host, sheet, slack, sliding):
    """Across knots, where the device overtakes the host, and with sequences that slide over a window."""
    batch = shape.decode_seqs
    shape = shape._replace(
        decode_growing=max(0, batch - sliding),
        decode_max_context_tokens=shape.decode_max_context_tokens + slack,
    )
    cost = IterationCost(sheet, host)
    first_ps, growth_ps, n_steps = cost.pace(shape)
    assert n_steps >= 1
    for k in [*range(min(n_steps, 40)), min(n_steps, 3_000) - 1]:
        assert cost.pace(later(shape, k))[0] == first_ps + k * growth_ps


@given(shape=shapes, host=hosts, sheet=curves)
def test_an_iteration_never_gets_shorter_as_contexts_grow(shape, host, sheet):
    cost = IterationCost(sheet, host)
    shape = shape._replace(finished_seqs=0, moved_bytes=0.0)
    paces = [cost.pace(later(shape, k))[0] for k in range(0, 400, 7)]
    assert paces == sorted(paces)


def test_a_run_with_finished_sequences_is_as_long_as_the_host_allows():
    hidden = IterationCost(Sheet(), HostCost(0.0, 0.0, per_finished_s=1e-6))
    assert hidden.pace(decoding(4, 100, finished_seqs=1)) == hidden.pace(decoding(4, 100))
    seen = IterationCost(Sheet(), HostCost(0.0, 0.0, per_finished_s=1e-3))
    assert seen.pace(decoding(4, 100, finished_seqs=2)) == (2_000 * US, 0, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_s": -1.0}, r"cost\.host\.base_s must be a finite number >= 0 \[s\], got -1\.0"),
        ({"gap_s": float("nan")}, r"cost\.host\.gap_s must be a finite number >= 0 \[s\], got nan"),
        ({"scheduling": "overlap"}, r"cost\.host\.scheduling must be one of async, sync, got 'overlap'"),
    ],
)
def test_a_wrong_host_is_refused_by_key_and_value(fields, message):
    with pytest.raises(ConfigError, match=message):
        HostCost(**{"base_s": 0.0, "per_seq_s": 0.0, **fields})


def test_capture_sizes_must_ascend():
    with pytest.raises(ConfigError, match=r"cost\.capture_sizes must be ascending"):
        IterationCost(Sheet(), FREE, capture_sizes=(4, 2))


def test_a_decode_curve_that_starts_above_its_batch_is_refused():
    with pytest.raises(ProfileError, match="decode curve of batch 2"):
        IterationCost(Sheet(knots=(5, 10), seconds=(0.0, 1.0)), FREE).pace(decoding(2, 10))

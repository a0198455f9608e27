"""Times small enough to check by hand, from data sheets and counting alone, each with the law that a wrong one breaks.

Llama-3.1-8B: 32 layers of width 4,096, 32 query heads and 8 KV heads of 128. H200: 989 TFLOP/s in bf16, 4.8 TB/s, 450
GB/s between accelerators. Shares of these that kernels reach are set here, so that a new fit moves nothing.
"""

from dataclasses import dataclass, replace
from functools import cache

import pytest

from sim.config import compose, make
from sim.cost import DecodeCurve, Efficiency, HostCost, IterationCost, Roofline
from sim.cost.calibrated import CalibratedOperations
from sim.cost.work import attention_work, gemm_work
from sim.profile import find_profile
from sim.step import Chunk, StepShape

US = 1_000_000  # [ps]


REACHED = Efficiency(
    gemm_flops_frac=0.8,
    gemm_bandwidth_frac=0.84,
    gemm_floor_s=4.4e-6,
    prefill_flops_frac=0.525,
    prefill_floor_s=15e-6,
    decode_bandwidth_frac=0.8,
    elementwise_bandwidth_frac=0.84,
    elementwise_floor_s=2.7e-6,
    all_reduce_bandwidth_frac=0.4,
    all_reduce_floor_s=4.5e-6,
)


@cache
def sheet(ranks: int = 1) -> Roofline:
    overrides = ["cost=roofline", "model=llama-3.1-8b", "hardware=h200", f"hardware.tensor_parallel={ranks}"]
    return replace(make(compose(overrides)["cost"], "cost").operations, efficiency=REACHED)


@cache
def measured(ranks: int = 1, links: tuple[float, float] | None = None) -> CalibratedOperations:
    """The H200's published kernels; with a link of so many bytes a second down to the device and up from it."""
    config = compose(["model=llama-3.1-8b", "hardware=h200"])
    model, device = make(config["model"], "model"), make(config["hardware"], "hardware").device
    profile = find_profile("h200/published", device.name)
    if links is not None:
        ways = zip(("h2d pinned", "d2h pinned"), links, strict=True)
        paths = {name: {"bytes_per_s": rate, "latency_s": 1e-9, "p": 1.0} for name, rate in ways}
        profile = replace(profile, operations={**profile.operations, "link": {"paths": paths}})
    return CalibratedOperations(profile, model, device, ranks)


def test_a_gemm_of_8192_cubed_is_1_1_peta_operations():
    seconds = sheet().gemm_s(8192, 8192, 8192, "bf16")
    assert seconds == pytest.approx(1.0995e12 / 791.2e12, rel=0.005)  # 2 x 8192^3 FLOP at 80 % of 989 TFLOP/s
    twice = sheet().gemm_s(16384, 8192, 8192, "bf16")
    assert twice - seconds == pytest.approx(seconds, rel=0.005), "twice the rows, twice the arithmetic"


def test_a_gemm_of_one_row_reads_the_matrix():
    assert sheet().gemm_s(1, 8192, 8192, "bf16") == pytest.approx(134.2e6 / 4.032e12 + 4.4e-6, rel=0.005)


def test_a_prompt_of_8192_attends_to_34_million_pairs():
    # 33.56 M pairs x 4 x 32 heads x 128 = 550 GFLOP a layer, at 519.2 TFLOP/s; appending 8,192 x 4 KiB takes 8 us
    seconds = sheet().prefill_attention_s((Chunk(8192, 0),))
    assert seconds == pytest.approx(32 * (550e9 / 519.2e12 + 15e-6 + 2.7e-6 + 8.3e-6), rel=0.005)
    halves = sheet().prefill_attention_s((Chunk(4096, 0), Chunk(4096, 4096)))
    assert halves == pytest.approx(seconds, rel=1e-3), "two halves attend to as many pairs"


@pytest.mark.parametrize(("ranks", "seconds"), [(1, 0.034133), (2, 0.017067), (4, 0.008533), (8, 0.004267)])
def test_a_million_tokens_of_context_are_131_gigabytes_shared_by_the_ranks(ranks, seconds):
    """2 x 8 KV heads x 128 x 2 B x 32 layers = 131,072 B a token, read at 3.84 TB/s: each rank reads its own heads."""
    curve = sheet(ranks).decode_attention(1)
    per_token = (curve.seconds[1] - curve.seconds[0]) / (curve.knots[1] - curve.knots[0])
    assert per_token * 1e6 == pytest.approx(seconds, rel=1e-3)


def test_measured_context_is_read_at_no_more_than_the_memory_gives_and_by_two_ranks_in_half_the_time():
    one, two = (at(measured(ranks).decode_attention(64), 64 * 8192) for ranks in (1, 2))
    assert 64 * 8192 * 131_072 / 4.8e12 < one < 1.6 * 64 * 8192 * 131_072 / 4.8e12
    assert one / two == pytest.approx(2.0, rel=0.15)


def at(curve: DecodeCurve, context_tokens: int) -> float:
    """Seconds on a curve, between its knots."""
    i = max(i for i, knot in enumerate(curve.knots[:-1]) if knot <= context_tokens)
    (x0, x1), (y0, y1) = curve.knots[i : i + 2], curve.seconds[i : i + 2]
    return y0 + (y1 - y0) * (context_tokens - x0) / (x1 - x0)


def test_eight_ranks_move_seven_quarters_of_what_each_holds():
    assert sheet(8).all_reduce_s(1e9) == pytest.approx(1.75e9 / 180e9 + 4.5e-6, rel=1e-6)
    assert sheet(1).all_reduce_s(1e9) == 0.0


def test_copies_wait_for_the_slower_way_of_the_link():
    fast_up, fast_down = measured(1, (10e9, 40e9)), measured(1, (40e9, 10e9))
    assert fast_up.copy_s(0.0, 1e9) == pytest.approx(0.1, rel=1e-3)
    assert fast_up.copy_s(0.0, 1e9) == fast_down.copy_s(0.0, 1e9)


def test_work_of_attention_counted_by_hand():
    """Two query heads over one KV head of 4; a chunk of 3 after 2 sees 3 + 4 + 5 entries, each 2 x 2 FLOP a number."""
    shape = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4}
    prompt = attention_work(**shape, prefill_seqs=1, new_tokens=3, context_tokens=2)
    assert {name: float(x) for name, x in prompt.items()} == {
        "flops": 4 * 2 * 4 * 12,
        "bytes": 2 * 4 * 5 * 2 + 2 * 8 * 3 * 2,  # keys and values of 5 entries; 3 queries and 3 results of 8 numbers
        "blocks": 2,
        "serial_tokens": 5,
    }
    decoding = attention_work(**shape, decode_seqs=2, decode_total_tokens=10, decode_longest_tokens=7)
    assert {name: float(x) for name, x in decoding.items()} == {
        "flops": 4 * 2 * 4 * 10,
        "bytes": 2 * 4 * 10 * 2 + 2 * 8 * 2 * 2,
        "blocks": 2,
        "serial_tokens": 7,
    }
    both = attention_work(
        **shape,
        prefill_seqs=1,
        new_tokens=3,
        context_tokens=2,
        decode_seqs=2,
        decode_total_tokens=10,
        decode_longest_tokens=7,
    )
    for name in ("flops", "bytes", "blocks"):
        assert both[name] == prompt[name] + decoding[name], "work adds up"


def test_work_of_a_matrix_product_counted_by_hand():
    work = {name: float(x) for name, x in gemm_work(2, 3, 4).items()}
    assert work == {"flops": 2 * 2 * 3 * 4, "bytes": 2 * (8 + 12 + 6), "padded_flops": 2 * 64 * 128 * 4}
    assert float(gemm_work(64, 128, 4)["flops"]) == work["padded_flops"], "a whole tile is padded with nothing"


@dataclass
class Nothing:
    """A device that computes in no time, but for what a test sets [s]."""

    dense: float = 0.0

    def dense_s(self, n_tokens: int) -> float:
        return self.dense

    def sequences_s(self, n_seqs: int) -> float:
        return 0.0

    def prefill_attention_s(self, chunks: tuple[Chunk, ...]) -> float:
        return 0.0

    def decode_attention(self, batch: int) -> DecodeCurve:
        return DecodeCurve((1, 1_000), (0.0, 0.0))

    def copy_s(self, moved_bytes: float, host_bytes: float) -> float:
        return 0.0


DECODING = StepShape(decode_seqs=3, decode_context_tokens=30, decode_max_context_tokens=10, decode_growing=3)
MIXED = DECODING._replace(chunks=(Chunk(5, 0),))
HOSTS = {"base": {"base_s": 40e-6}, "sequences": {"per_seq_s": 2e-6}, "finished": {"per_finished_s": 8e-6}}


@pytest.mark.parametrize(
    ("shape", "us"),
    [
        (DECODING, 40 + 3 * 2),
        (MIXED, 40 + 4 * 2),  # the prompt is a sequence too
        (DECODING._replace(finished_seqs=2), 40 + 3 * 2 + 2 * 8),
        (MIXED._replace(finished_seqs=2), 40 + 4 * 2 + 2 * 8),
    ],
)
@pytest.mark.parametrize(("scheduling", "device_us"), [("async", 0), ("sync", 7)])
def test_the_host_takes_its_base_once_and_so_much_for_each_sequence(shape, us, scheduling, device_us):
    def first_ps(**host: float) -> int:
        given = {"base_s": 0.0, "per_seq_s": 0.0, **host}
        cost = IterationCost(Nothing(device_us * 1e-6), HostCost(**given, scheduling=scheduling))
        return cost.pace(shape)[0]

    everything = {name: value for one in HOSTS.values() for name, value in one.items()}
    assert first_ps(**everything) == (us + device_us) * US
    parts = sum(first_ps(**one) - device_us * US for one in HOSTS.values())
    assert first_ps(**everything) - device_us * US == parts, "base, sequences and ends add up"

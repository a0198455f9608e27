"""What a prompt's tokens attend to at most reaches its cost, be it the model's window or what a cache keeps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.build import Builder
from sim.config import compose
from sim.cost.attention import as_unbounded
from sim.cost.roofline import attended_pairs
from sim.step import Chunk, StepShape

FIXED = "model.stack.0.attention.window"
COSTS = [
    ("hardware=h200", "cost=calibrated"),  # prompts and decoding measured apart
    ("hardware=rtxpro6000", "cost=calibrated"),  # and in one launch
    ("hardware=h200", "cost=roofline"),
]


def operations(*choices: str):
    return Builder(compose([*choices])).cost.operations


@pytest.fixture(params=COSTS, ids=" ".join, scope="module")
def choices(request) -> tuple[str, ...]:
    return request.param


def test_a_bound_that_nothing_reaches_changes_nothing(choices):
    made = operations(*choices)
    for new, context in ((700, 0), (700, 900)):
        unbounded = made.prefill_attention_s((Chunk(new, context),))
        assert made.prefill_attention_s((Chunk(new, context, new + context),)) == unbounded


def test_attention_of_a_prompt_never_falls_with_how_far_it_reaches(choices):
    made = operations(*choices)
    for context in (0, 1_000):
        times = [made.prefill_attention_s((Chunk(2_000, context, reach),)) for reach in (64, 256, 1_000, 2_000, 3_000)]
        assert times == sorted(times)
        assert times[0] < times[-1] / 2


def test_the_models_window_and_a_caches_cost_the_same(choices):
    bare, windowed = operations(*choices), operations(*choices, f"{FIXED}=512")
    for new, context in ((2_000, 0), (2_000, 300), (300, 512)):
        told = bare.prefill_attention_s((Chunk(new, context, 512),))
        assert told == windowed.prefill_attention_s((Chunk(new, context),))
        assert told == windowed.prefill_attention_s((Chunk(new, context, 700),)), "the narrower of the two"


def test_bounded_prompts_beside_decoding_sequences_cost_less_than_unbounded_ones(choices):
    cost = Builder(compose([*choices])).cost
    beside = StepShape(decode_seqs=4, decode_context_tokens=4_000, decode_max_context_tokens=1_000, decode_growing=4)
    both = (Chunk(1_500, 0), Chunk(500, 0))
    free = cost.pace(beside._replace(chunks=both))[0]
    assert cost.pace(beside._replace(chunks=tuple(one._replace(reach_tokens=100) for one in both)))[0] < free


@settings(max_examples=200)
@given(new=st.integers(1, 20_000), context=st.integers(0, 20_000), reach=st.integers(1, 20_000))
def test_chunks_taken_instead_of_a_bounded_one_have_its_queries_and_pairs(new, context, reach):
    context = min(context, reach)  # no more stays than is attended to
    n_like, length, before = as_unbounded(new, context, reach)
    pairs = n_like * (length * before + length * (length + 1) / 2.0)
    assert n_like * length == pytest.approx(new)
    assert pairs == pytest.approx(attended_pairs(new, context, reach), rel=0.5 / min(new, reach), abs=new)


def ttft_ms(*choices: str) -> float:
    """Of one prompt of 8,192 tokens, computed in one piece."""
    requests = sim.simulate("scenario=replay", *choices).requests.frame()
    return float((requests.first_token_ns - requests.arrival_ns).iloc[0]) / 1e6


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("trace") / "one.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,8192,2\n")
    return f"scenario.path={path}"


def test_a_streaming_cache_computes_a_prompt_as_fast_as_a_model_of_its_window(prompt):
    whole, windowed = ttft_ms(prompt), ttft_ms(prompt, f"{FIXED}=512")
    streaming = ("cache=streaming", "cache.retention.window=508")
    assert ttft_ms(prompt, *streaming) == pytest.approx(windowed, rel=1e-9)
    assert windowed < 0.93 * whole
    assert ttft_ms(prompt, *streaming, "cache.retention.prompt=dense") == pytest.approx(whole, rel=1e-9)


def test_a_share_taken_piece_by_piece_leaves_later_pieces_less_to_attend_to(prompt):
    """Of four pieces of 2,048 the second to fourth attend to half of what was, and each share is moved together."""
    pieces = ("cache=compressed", "batching.max_num_batched_tokens=2048")
    dense = ttft_ms(prompt, *pieces)
    assert dense == pytest.approx(ttft_ms(prompt, "batching.max_num_batched_tokens=2048"), rel=1e-9)
    assert ttft_ms(prompt, *pieces, "cache.retention.prompt=by_piece") < 0.97 * dense

"""Which experts tokens go to: loads that sum to what is chosen, ranks, and what the tables' draw gives on average."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.spec.routing import even_load, loads, n_touched, rank_load

SHAPES = st.tuples(st.integers(1, 3_000), st.sampled_from([(2, 8), (8, 128), (4, 32), (8, 256), (1, 16)]))


@given(SHAPES, st.sampled_from([0.5, 1.0, 1.01, 1.2, 3.0]))
def test_loads_of_a_power_law_are_all_choices_and_no_token_comes_twice_to_an_expert(shape, skew):
    n_tokens, (top_k, n_experts) = shape
    found = loads(n_tokens, top_k, n_experts, skew)
    assert len(found) == n_experts
    assert sum(found) == n_tokens * top_k
    assert found == sorted(found, reverse=True)
    assert 0 <= found[-1] <= found[0] <= n_tokens


@given(SHAPES, st.sampled_from([0.0, 1.01, 1.2]), st.sampled_from([1, 2, 4, 8]))
def test_the_fullest_rank_has_at_least_its_share_and_at_most_its_experts(shape, skew, n_ranks):
    n_tokens, (top_k, n_experts) = shape
    choices, touched = rank_load(n_tokens, top_k, n_experts, n_ranks, skew)
    assert choices >= n_tokens * top_k / n_ranks - 1e-9
    assert 0 < touched <= n_experts / n_ranks + 1e-9
    assert touched <= choices + 1e-9
    assert touched >= n_touched(n_tokens, top_k, n_experts, skew) / n_ranks - 1e-9


def test_a_steeper_law_touches_fewer_and_one_expert_for_all_is_one():
    touched = [n_touched(64, 8, 256, skew) for skew in (0.0, 1.01, 1.2)]
    assert touched == sorted(touched, reverse=True)
    assert touched[-1] < 0.85 * touched[0]
    assert n_touched(5_000, 1, 1) == n_touched(5_000, 1, 1, 1.2) == 1.0


@pytest.mark.parametrize("skew", [1.01, 1.2])
def test_quantiles_stand_for_the_draw_that_the_tables_make(skew):
    """Loads drawn as aiconfigurator's collector does, from a density over [1, 0.8 n], scaled and rounded."""
    rng = np.random.default_rng(0)
    for n_tokens in (64, 512, 4096):
        high, power, found, most = 0.8 * n_tokens, 1.0 - skew, [], []
        for _ in range(200):
            drawn = ((high**power - 1.0) * rng.random(128) + 1.0) ** (1.0 / power)
            counts = np.round(drawn / drawn.sum() * n_tokens * 8)
            found.append((counts > 0).sum())
            most.append(counts.max())
        assert n_touched(n_tokens, 8, 128, skew) == pytest.approx(np.mean(found), rel=0.03)
        assert loads(n_tokens, 8, 128, skew)[0] == pytest.approx(np.mean(most), rel=0.15)


def test_dealt_out_in_turn_no_expert_comes_twice_before_all_have_come():
    assert even_load(16, 8, 128, 1) == (128.0, 128.0)
    assert even_load(3, 8, 128, 4) == (6.0, 6.0)
    assert even_load(1_000, 8, 128, 4) == (2_000.0, 32.0)

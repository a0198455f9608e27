"""How sure differences are: intervals that cover, and what pairing is worth."""

import numpy as np
import pytest

from sim.report.significance import Samples, difference, ratio


def served(rng, shared, slower=1.0, n=600):
    """Waits that hang together from one request to the next: part is the traffic's, part this run's."""
    noise = np.zeros(n)
    for i in range(1, n):
        noise[i] = 0.5 * noise[i - 1] + rng.normal()
    ttft_ms = slower * np.exp(0.5 * shared + 0.1 * noise)
    good = (ttft_ms < 1.0).astype(float)
    ones = np.ones(n)
    return Samples(
        {"ttft_ms": ttft_ms, "tpot_ms": ttft_ms, "is_good": good, "cached_tokens": ones, "prompt_tokens": ones}
    )


@pytest.mark.parametrize("name", ["within", "ttft_p50"])
def test_runs_that_differ_by_chance_alone_are_told_apart_as_often_as_said(name):
    rng = np.random.default_rng(7)
    n, found = 300, 0
    for _ in range(n):
        shared = rng.normal(size=600)
        between = difference(served(rng, shared), served(rng, shared), name)
        found += not between.low <= 0.0 <= between.high
    assert 0.01 * n < found < 0.10 * n


def test_what_both_runs_share_cancels():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=600)
    one, same, another = served(rng, shared), served(rng, shared, 1.1), served(rng, rng.normal(size=599), 1.1, 599)
    paired, apart = difference(same, one, "ttft_p50"), difference(another, one, "ttft_p50")
    assert paired.high - paired.low < 0.8 * (apart.high - apart.low)


def test_a_ratio_holds_what_it_is_of():
    rng = np.random.default_rng(2)
    shared = rng.normal(size=600)
    found = ratio(served(rng, shared, 1.5), served(rng, shared), "ttft_p50")
    assert found.low < 1.5 < found.high
    assert found.high / found.low < 1.2


def test_what_has_no_number_has_no_interval():
    empty = {key: np.full(200, np.nan) for key in ("ttft_ms", "tpot_ms")}
    none = Samples({**empty, "is_good": np.zeros(200), "cached_tokens": np.zeros(200), "prompt_tokens": np.ones(200)})
    assert difference(none, none, "ttft_p50") is None
    assert ratio(none, none, "within") is None

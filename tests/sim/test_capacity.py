"""The rate that is held: a search that knows its answer, objectives that move it, and a bound above it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sim.build import Builder
from sim.capacity import (
    Capacity,
    Search,
    bound_of,
    could_hold,
    decode_s_per_token,
    is_plain,
    mean_request,
    prefill_s_per_token,
    sizes,
)
from sim.config import compose
from sim.errors import ConfigError
from sim.report.words import rate as in_words
from sim.run import run

SMALL = ["scenario=synthetic", "task=capacity", "hardware.kv_blocks=1200"]


def found(folder, *overrides: str, **settings):
    settings = {"window_s": 15.0, "precision_frac": 0.2} | settings
    with (folder / "console").open("w", encoding="utf-8") as quiet:
        returned = Capacity(**settings)(
            config=compose([*SMALL, *overrides]), out=folder, console=Console(file=quiet, width=120)
        )
    written = json.loads((folder / "capacity.json").read_text(encoding="utf-8"))
    assert returned == written["requests_per_s"]
    return written


@given(st.floats(0.01, 1000.0), st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_the_search_ends_between_a_rate_that_is_held_and_one_that_is_not(most, precision):
    held, not_held = Search(lambda rate: rate <= most, 5.0, precision)()
    assert held <= most < not_held
    assert not_held / held <= 1.0 + precision + 1e-9


def test_nothing_held_and_nothing_too_much_are_told_apart():
    assert Search(lambda rate: True, 5.0, 0.1)() == (5.0 * 2**12, None)
    assert Search(lambda rate: False, 5.0, 0.1)()[0] is None


@given(st.dictionaries(st.integers(-40, 40), st.booleans()), st.dictionaries(st.integers(-40, 40), st.booleans()))
def test_looser_objectives_never_end_lower_even_where_luck_decides(tight, also):
    def step(rate):
        return round(np.log2(rate / 5.0) * 16)

    def is_kept(rate):
        return tight.get(step(rate), rate < 20.0)

    strict, _ = Search(is_kept, 5.0, 0.05)()
    loose, _ = Search(lambda rate: is_kept(rate) or also.get(step(rate), False), 5.0, 0.05)()
    assert strict is None or loose >= strict


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capacity")
    return folder, found(folder)


def test_the_same_seed_finds_the_same_to_the_byte(small, tmp_path):
    folder, _ = small
    found(tmp_path)
    for name in ("capacity.json", "capacity.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_rate_held_keeps_the_objectives_and_the_next_does_not(small):
    _, one = small
    by_rate = {probe["rate"]: probe for probe in one["probes"]}
    held, above = by_rate[one["rate"]], by_rate[one["rate_not_held"]]
    assert held["attainment_frac"] >= 0.99
    assert not held["is_saturated"]
    assert above["attainment_frac"] < 0.99 or above["is_saturated"]
    assert above["rate"] / held["rate"] <= 1.2


def test_no_more_is_held_than_the_cost_model_allows(small):
    _, one = small
    assert 0.0 < one["requests_per_s"] <= one["bound_requests_per_s"]


def test_tighter_objectives_hold_less(small, tmp_path):
    _, one = small
    assert found(tmp_path, "slo.tpot_ms=7")["rate"] < one["rate"]


def test_an_objective_that_nothing_keeps_is_answered_with_one_that_would_be(tmp_path):
    with pytest.raises(ConfigError, match=r"no rate is held: slo\.tpot_ms=1 is kept by 0 %, 99\.0 % need 5\.\d+ ms"):
        found(tmp_path, "slo.tpot_ms=1")


def test_what_is_refused_is_said(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no rate is held: \d+ of \d+ requests are refused, 77 KV blocks needed, the device has 20"
    ):
        found(tmp_path, "hardware.kv_blocks=20")


def test_the_console_names_rate_reason_and_bound(small):
    folder, one = small
    said = (folder / "console").read_text(encoding="utf-8")
    assert f"Holds {one['rate']:,.4g}/s" in said
    assert f"Not {one['rate_not_held']:,.4g}/s: " in said
    assert "The cost model allows at most" in said


def test_twice_the_replicas_are_allowed_twice_as_much(small):
    from sim.probe import Prober

    config = compose(["scenario=synthetic"])
    probe = Prober(config, 15.0)(4.0)
    assert bound_of(probe, {**config, "replicas": 2}).per_s == 2 * bound_of(probe, config).per_s


def test_the_bound_is_the_better_of_no_batch_that_there_is():
    config = compose(["scenario=synthetic"])
    from sim.probe import Prober

    probe = Prober(config, 15.0)(4.0)
    cost, bound = Builder(config).cost, bound_of(probe, config)
    context = round(probe.context_tokens)
    for n in (1, 7, 100):
        assert bound.decode_s <= decode_s_per_token(cost, n, context) * (probe.output_tokens - 1) + 1e-12
    assert bound.prefill_s <= prefill_s_per_token(cost, round(probe.computed_tokens), 1) * probe.computed_tokens + 1e-9


@pytest.mark.parametrize(("most", "tried"), [(1, [1]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])])
def test_batches_tried_end_with_the_largest(most, tried):
    assert sizes(most) == tried


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attainment_frac": 0.0}, r"task\.attainment_frac must be > 0 and <= 1"),
        ({"precision_frac": 0.0}, r"task\.precision_frac must be >= 0\.001"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Capacity(**settings)


def test_without_objectives_there_is_no_capacity(tmp_path):
    with pytest.raises(ConfigError, match="needs an objective"):
        found(tmp_path, "slo=none")


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.5, "The device could hold more: 0."),
        (4000.0, "More came than can be served: "),
    ],
)
def test_a_run_ends_with_what_the_device_could_hold(rate, words):
    result = run(compose(["scenario=synthetic", f"scenario.rate={rate}", "scenario.n_requests=200"]))
    said = could_hold(result)
    assert said.startswith(words)
    bound = bound_of(mean_request(result), result.config)
    assert f"at most {in_words(bound.per_s)} requests/s like these ({bound.busy})" in said


def test_requests_that_come_at_once_have_no_rate(tmp_path):
    (tmp_path / "a.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,100,10\n" * 5)
    said = could_hold(run(compose(["scenario=replay", f"scenario.path={tmp_path / 'a.csv'}"])))
    assert said.startswith("All came at once; the cost model allows at most ")


def test_the_mean_request_is_the_mean():
    result = run(compose(["scenario=synthetic", "scenario.n_requests=50"]))
    requests = result.requests
    mean = mean_request(result)
    assert mean.output_tokens == pytest.approx(requests.column("output_tokens").mean())
    assert mean.computed_tokens == pytest.approx(requests.column("prompt_tokens").mean()), "nothing is shared"
    assert mean.context_tokens == pytest.approx(
        (requests.column("prompt_tokens") + requests.column("output_tokens") / 2).mean()
    )


@pytest.mark.parametrize("choice", ["fleet=pd", "scaler=queue"])
def test_of_replicas_that_change_or_work_together_there_is_no_bound(choice):
    assert not is_plain(compose(["scenario=synthetic", choice]))
    assert is_plain(compose(["scenario=synthetic"]))

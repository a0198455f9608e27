"""What fits where, without traffic: against arithmetic by hand, and against what a simulation has room for."""

import json

import pytest
from rich.console import Console

from sim import simulate
from sim.build import Builder
from sim.config import choices_of, compose
from sim.errors import ConfigError
from sim.kv.footprint import generation_flops
from sim.memory import Memory, footprints
from sim.units import GIB

CACHES = [name for name in choices_of("cache") if name != "by_class"]


def facts(*overrides: str, **settings):
    return Memory(**{"caches": CACHES} | settings).facts(compose(["task=memory", *overrides]))


def waste(found, cache):
    return [one.footprint.waste_frac for one in found.by_cache if one.cache == cache]


def test_a_static_extent_is_as_empty_as_its_sequence_is_short():
    found = facts()
    assert list(found.lengths) == [8192, 16384, 32768, 65536, 131072]
    assert waste(found, "static") == [0.9375, 0.875, 0.75, 0.5, 0.0]
    assert waste(found, "paged") == [0.0] * 5


def test_a_block_is_what_paging_wastes_at_most():
    found = facts("cache.block_tokens=32", lengths=[1, 33, 1000])
    assert waste(found, "paged") == pytest.approx([31 / 32, 31 / 64, 24 / 1024])


def test_a_buddy_rounds_an_extent_of_no_power_of_two():
    found = facts("model=qwen3-8b", lengths=[1000])
    held = {one.cache: one.footprint.held_tokens for one in found.by_cache}
    assert compose(["model=qwen3-8b"])["model"]["max_len"] == 40960
    assert held["static"] == 65536


def test_the_model_is_counted():
    found = facts()
    assert found.content()["parameters"] == 8_030_261_248  # of its checkpoint
    assert found.kv_bytes_per_token == 131072
    assert found.content()["kv_bytes_per_token_and_layer"] == [{"layers": 32, "attention": "Gqa", "bytes": 4096}]


def test_sequences_that_fit_are_those_of_the_simulated_capacity():
    found = facts(lengths=[4096])
    capacity = simulate("scenario.n_sessions=2").capacity_tokens
    own = next(fit for fit in found.fits if fit.name == "h200")
    assert own.n_seqs == capacity // 4096


def test_what_is_missing_is_what_one_sequence_lacks():
    found = facts("model=llama-3.1-70b", "hardware=rtx4090", lengths=[8192], hardware=["rtx4090", "b200"])
    small, large = found.fits
    assert small.n_seqs == 0
    assert small.short_bytes == pytest.approx(8192 * 327680 - sum(small.terms.values()))
    assert small.short_bytes > 100 * GIB
    assert large.n_seqs >= 1
    assert large.short_bytes == 0


def test_eager_attention_takes_heads_times_length_squared():
    found = facts(lengths=[8192], attention_matrix=True)
    assert found.matrix_bytes == [2.0 * 32 * 8192**2]
    without = facts(lengths=[8192]).fits
    assert [a.left_bytes - b.left_bytes for a, b in zip(without, found.fits, strict=True)] == pytest.approx(
        [found.matrix_bytes[0]] * len(without)
    )


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt-oss-20b", "deepseek-v3.2", "qwen3.5-35b-a3b"])
def test_computing_all_again_is_the_sum_of_the_passes(model):
    spec = Builder(compose([f"model={model}"])).model
    passes = [generation_flops(spec, n)["cached"] for n in range(1, 41)]
    head = 2.0 * spec.vocab * spec.d_model
    bodies = [one - n * head for n, one in enumerate(passes, start=1)]
    assert generation_flops(spec, 40)["recomputed"] == pytest.approx(sum(bodies) + 40 * head)


def test_one_token_costs_two_flop_a_parameter_and_what_it_attends_to():
    spec = Builder(compose([])).model
    assert generation_flops(spec, 1)["cached"] == 2.0 * spec.n_active_params + 32 * 4.0 * 32 * 128


@pytest.mark.parametrize("n", [2, 40])
def test_every_token_attends_to_all_before_it(n):
    spec = Builder(compose([])).model
    assert generation_flops(spec, n)["cached"] == pytest.approx(
        2.0 * n * spec.n_active_params + 32 * 4.0 * 32 * 128 * n * (n + 1) / 2
    )


def test_no_token_attends_to_more_than_its_window():
    spec = Builder(compose(["model=gpt-oss-20b"])).model
    step = generation_flops(spec, 1001)["cached"] - generation_flops(spec, 1000)["cached"]
    assert step == pytest.approx(2.0 * spec.n_active_params + 12 * 4.0 * 64 * 64 * (1001 + 128))


def test_other_devices_serve_under_the_conditions_of_the_run():
    found = facts(
        "hardware.tensor_parallel=2", "hardware.memory_utilization_frac=0.8", "hardware.kv_blocks=10", lengths=[4096]
    )
    own, *others = found.fits
    assert own.left_bytes == 10 * 16 * found.kv_bytes_per_token
    for fit in others:
        memory = fit.hardware.device.memory_bytes
        assert fit.terms["kept free"] == pytest.approx(-0.2 * memory)
        assert fit.terms["weights"] == own.terms["weights"] == -found.weights_bytes
        assert fit.left_bytes == pytest.approx(sum(fit.terms.values()))


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_not_chosen_is_read_from_its_file_as_if_it_were(cache):
    chosen = compose([f"cache={cache}", "preemption=recompute"])
    others = compose([])
    lengths = [1, 700, 100_000]
    assert footprints(others, Builder(others), cache, lengths) == footprints(chosen, Builder(chosen), cache, lengths)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("length", [1, 100, 5000])
def test_no_cache_holds_less_than_lives_in_it(cache, length):
    config = compose([])
    [one] = footprints(config, Builder(config), cache, [length])
    assert one.held_tokens >= one.live_tokens >= 1
    assert one.live_tokens <= length


def test_settings_of_the_chosen_cache_count():
    found = facts("cache=streaming", "cache.retention.window=252", lengths=[10_000])
    assert next(one for one in found.by_cache if one.cache == "streaming").footprint.held_tokens == 256


def test_tables_page_and_file_say_the_same(tmp_path):
    with (tmp_path / "console").open("w", encoding="utf-8") as quiet:
        Memory(caches=CACHES)(config=compose([]), out=tmp_path, console=Console(file=quiet, width=160))
    written = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    shown = (tmp_path / "console").read_text(encoding="utf-8")
    page = (tmp_path / "memory.html").read_text(encoding="utf-8")
    assert {one["hardware"] for one in written["fits"]} == set(choices_of("hardware"))
    for said in ("93.8 %", "87.5 %", "75.0 %", "50.0 %", "131,072 B"):
        assert said in shown
        assert said in page
    for fit in written["fits"]:
        assert (f"{fit['sequences']:,}" if fit["sequences"] else "short") in shown


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"caches": ["pagd"]}, "task.caches=pagd is not a choice; did you mean"),
        ({"caches": []}, "task.caches must be a list of at least one"),
        ({"hardware": ["h900"]}, "task.hardware=h900 is not a choice"),
        ({"lengths": [0]}, "task.lengths must be whole numbers >= 1"),
        ({"lengths": []}, "task.lengths must be null or a list of at least one"),
        ({"lengths": [200_000]}, "task.lengths must be <= 131072"),
    ],
)
def test_what_is_wrong_is_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        facts(**settings)


def test_classes_with_a_cache_each_are_no_one_cache():
    with pytest.raises(ConfigError, match="task=memory needs one cache"):
        facts("cache=by_class")

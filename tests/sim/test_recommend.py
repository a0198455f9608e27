"""The cheapest deployment that holds a rate: what trying everything finds, with nothing cheaper left untried."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sim.config import compose
from sim.errors import ConfigError
from sim.probe import Prober
from sim.recommend import Recommend
from sim.report.recommend import serve_command
from sim.report.words import rate
from sim.task import do_task

SMALL = [
    "scenario=synthetic",
    "slo.ttft_ms=400",
    "model.max_len=4096",
    "task=recommend",
    "target_rate=20",
    "task.window_s=15",
]
SEARCH = ["search.hardware=[h100,l40s]", "search.cache=[paged,static]", "search.max_replicas=4"]
PRICES = {"h100": 2.5, "l40s": 1.0}
PRICED = [f"search.price_per_hour={{h100: {PRICES['h100']}, l40s: {PRICES['l40s']}}}"]


def recommended(folder: Path, *overrides: str) -> dict[str, Any]:
    given = [*SMALL, *overrides]
    with (folder / "console").open("w", encoding="utf-8") as quiet:
        cost = do_task(compose(given), folder, Console(file=quiet, width=200), given)
    found: dict[str, Any] = json.loads((folder / "recommend.json").read_text(encoding="utf-8"))
    assert cost == found["options"][0]["cost"]
    return found


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("priced")
    return folder, recommended(folder, *SEARCH, *PRICED)


@pytest.fixture(scope="module")
def everything() -> dict[tuple[str, str, int], Any]:
    """Every combination with every number of replicas, simulated."""
    found = {}
    for hardware, cache, n in product(PRICES, ("paged", "static"), (1, 2, 3, 4)):
        config = compose([*SMALL, f"hardware={hardware}", f"cache={cache}", f"replicas={n}"])
        found[hardware, cache, n] = Prober(config, 15.0)(20.0)
    return found


def held(everything: Mapping[tuple[str, str, int], Any], price: Mapping[str, float]) -> list[tuple[float, float, Any]]:
    """What holds the rate: cost, what is to spare negated, and what it is; the best first."""
    task = Recommend(target_rate=20.0)
    fewest: dict[tuple[str, str], int] = {}
    for (hardware, cache, n), probe in sorted(everything.items()):
        if task.is_held(probe):
            fewest.setdefault((hardware, cache), n)
    return sorted(
        (n * price[hardware], -task.spare(everything[hardware, cache, n]), (hardware, cache, n))
        for (hardware, cache), n in fewest.items()
    )


def answer(option: Mapping[str, Any]) -> tuple[str, str, int]:
    return option["hardware"], option["cache"], option["replicas"]


def test_the_answer_is_what_trying_everything_finds(priced: Any, everything: Any) -> None:
    _, found = priced
    truth = held(everything, PRICES)

    assert answer(found["options"][0]) == truth[0][2]
    assert found["options"][0]["cost"] == truth[0][0]
    assert found["options"][0]["spare_frac"] == pytest.approx(-truth[0][1])


def test_so_is_the_runner_up(priced: Any, everything: Any) -> None:
    _, found = priced
    truth = held(everything, PRICES)

    assert [answer(one) for one in found["options"] if one["is_held"]][:2] == [at for _, _, at in truth[:2]]


def test_the_case_is_one_where_searching_matters(everything: Any) -> None:
    truth = held(everything, PRICES)

    assert truth[0][2] == ("l40s", "paged", 2), "neither the first nor the one with fewest accelerators"
    assert truth[1][2] == ("h100", "paged", 1)


def test_replicas_are_added_one_at_a_time_where_the_bound_is_too_few(tmp_path: Path) -> None:
    found = recommended(tmp_path, "target_rate=24", "hardware=l40s", "search.max_replicas=4")

    config, task = compose([*SMALL, "hardware=l40s"]), Recommend(target_rate=24.0)
    held_by = [n for n in (1, 2, 3, 4) if task.is_held(Prober({**config, "replicas": n}, 15.0)(24.0))]
    assert found["options"][0]["replicas"] == held_by[0] == 3
    assert found["simulated"] == 3, "the reference, two, and three: one cannot, by the cost model"


def test_without_prices_fewest_accelerators_win_and_it_says_so(tmp_path: Path, everything: Any) -> None:
    found = recommended(tmp_path, *SEARCH)
    truth = held(everything, dict.fromkeys(PRICES, 1.0))

    assert answer(found["options"][0]) == truth[0][2]
    assert found["cost_is"] == "accelerators"
    assert any("fewest accelerators win" in line for line in found["said"])
    assert not any("per million output tokens and" in line for line in found["said"])


def test_fewer_are_simulated_than_there_are(priced: Any, everything: Any) -> None:
    _, found = priced
    assert found["simulated"] <= len(everything)


def test_cost_and_energy_follow_from_what_is_served(priced: Any) -> None:
    _, found = priced
    best = found["options"][0]
    millions_per_hour = best["probe"]["output_tokens_per_s"] * 3600 / 1e6
    said = next(line for line in found["said"] if line.startswith("It costs"))

    assert said.startswith(f"It costs {rate(best['cost'] / millions_per_hour)} per million output tokens")
    watts = {"h100": 700.0, "l40s": 350.0}[best["hardware"]] * best["accelerators"]
    assert found["power_w"] == watts
    assert f"{rate(watts / 1000 / millions_per_hour)} kWh" in said


def test_the_answer_is_said_with_its_runner_up_and_its_command(priced: Any) -> None:
    folder, found = priced
    said = (folder / "console").read_text(encoding="utf-8")
    assert "Take " in said
    assert "Next is " in said
    assert found["command"].startswith("vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 1")
    assert found["command"] in said
    assert "All combinations" in (folder / "recommend.html").read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_bytes(priced: Any, tmp_path: Path) -> None:
    folder, _ = priced
    recommended(tmp_path, *SEARCH, *PRICED)
    for name in ("recommend.json", "recommend.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_what_does_not_fit_is_told_and_not_simulated(tmp_path: Path) -> None:
    found = recommended(
        tmp_path,
        "target_rate=1",
        "model=qwen3-32b",
        "search.hardware=[l40s,h200]",
        "search.max_replicas=1",
        "slo=server",
    )
    by_name = {one["hardware"]: one for one in found["options"]}
    assert by_name["h200"]["is_held"]
    assert "does not fit" in by_name["l40s"]["why"]
    assert "probe" not in by_name["l40s"]


def test_what_the_cost_model_does_not_allow_is_not_simulated(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nothing holds 4000/s with up to 2 replicas; nearest: .*more than 2 replicas"
    ):
        recommended(tmp_path, "target_rate=4000", "search.max_replicas=2", "task.window_s=2")


def test_a_cache_without_blocks_is_tried_once() -> None:
    task = Recommend(target_rate=1.0, cache=["paged", "static"], block_tokens=[16, 32])
    built, cannot, _ = task.candidates(["scenario=synthetic"])
    assert [one.choices for one in built] == [
        {"cache": "paged", "cache.block_tokens": 16},
        {"cache": "paged", "cache.block_tokens": 32},
        {"cache": "static"},
    ]
    assert not cannot


def test_what_the_user_set_holds_for_all_but_what_is_searched() -> None:
    task = Recommend(target_rate=1.0, cache=["paged", "static"])
    built, _, _ = task.candidates(["scenario=synthetic", "cache=streaming", "seed=4", "hardware.tensor_parallel=2"])
    assert {one.config["seed"] for one in built} == {4}
    assert {one.config["hardware"]["tensor_parallel"] for one in built} == {2}
    assert [one.cost_each for one in built] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["target_rate=null"], "target_rate must be given"),
        (["target_rate=-1"], "target_rate must be given"),
        (["search.hardware=[h10]"], "hardware=h10 is not a choice"),
        (["search.cache=[]"], "search.cache must be null or a list"),
        (["search.max_replicas=0"], "search.max_replicas must be >= 1"),
        (["search.price_per_hour={h100: 0}"], "search.price_per_hour.h100 must be a finite number > 0"),
        (["fleet=pd"], "goes with fleet=aggregated, scaler=none"),
        (["slo=none", "slo.ttft_ms=null"], "needs an objective"),
    ],
)
def test_what_cannot_be_searched_is_refused(settings: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        recommended(tmp_path, *settings)


def test_the_command_has_the_flags_of_the_configuration() -> None:
    config = compose(
        [
            "scenario=synthetic",
            "hardware.tensor_parallel=2",
            "cache.block_tokens=32",
            "cache.prefix_caching=false",
            "model.kv_dtype=fp8",
            "batching.max_num_seqs=77",
        ]
    )
    assert serve_command(config) == (
        "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2 --gpu-memory-utilization 0.9 --block-size 32 "
        "--max-num-seqs 77 --max-num-batched-tokens 8192 --no-enable-prefix-caching --kv-cache-dtype fp8"
    )


@pytest.mark.parametrize("choice", ["cache=static", "cache=streaming", "batching=static"])
def test_what_vllm_does_not_do_has_no_command(choice: str) -> None:
    assert serve_command(compose(["scenario=synthetic", choice])) is None


def test_more_to_spare_is_better_at_the_same_cost(everything: Any) -> None:
    task = Recommend(target_rate=20.0)
    probe = everything["h100", "paged", 1]
    tighter = replace(probe, limits=tuple(replace(one, most_ms=one.most_ms / 2.0) for one in probe.limits))
    assert task.spare(tighter) < task.spare(probe)

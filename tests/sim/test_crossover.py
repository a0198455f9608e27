"""Swap or recompute: a point of the map from its three runs, and the sum on paper."""

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sim.command import main
from sim.config import compose
from sim.crossover import SwapOrRecompute
from sim.errors import ConfigError
from sim.report.crossover import FILE, read_crossings

POINT = [
    "experiment=swap_or_recompute",
    "scenario.users=6",
    "scenario.sessions_per_user=2",
    "task.room_sequences=3",
    "task.context_tokens=1024",
]


def crossing(folder: Path, *overrides: str):
    config = compose([*POINT, *overrides])
    task = SwapOrRecompute(config["task"]["context_tokens"], config["task"]["room_sequences"])
    with (folder / "console").open("w") as quiet:
        task(config=config, out=folder, console=Console(file=quiet))
    (point,) = read_crossings([folder])
    return point


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    return crossing(tmp_path_factory.mktemp("fast"))


def test_a_point_is_served_all_three_ways_and_only_swapping_swaps(fast):
    assert fast.recompute.n_swapped == 0 < fast.recompute.n_preemptions
    assert fast.swap.n_swapped == fast.swap.n_preemptions > 0
    assert fast.swap.all_e2el_ms < fast.recompute.all_e2el_ms, "50 GB/s against 20 ms of computing"


def test_over_a_slow_link_computing_wins_and_auto_knows(tmp_path):
    slow = crossing(tmp_path, "hardware.device.host_link_bytes_per_s=5e8")
    assert slow.swap.all_e2el_ms > slow.recompute.all_e2el_ms
    assert slow.auto == slow.recompute
    assert slow.load_s > slow.compute_s


def test_one_transfer_alone_by_hand(fast):
    """Of 1,024 tokens the 63 full blocks before the last token are loaded: 1,008 x 131,072 bytes in 4 pieces of 256."""
    n_bytes = 1_008 * 131_072
    fixed_s = 5e-6 + 4 * 5e-6
    rest_s = fast.load_s - fixed_s - n_bytes / 50e9
    assert 0 < rest_s < fast.compute_s, "16 tokens computed"
    assert fast.equal_bytes_per_s == pytest.approx(n_bytes / (fast.compute_s - fixed_s - rest_s))
    at_equal_s = fixed_s + rest_s + n_bytes / fast.equal_bytes_per_s
    assert at_equal_s == pytest.approx(fast.compute_s)


def test_two_accelerators_load_over_two_links(tmp_path):
    """As many bytes as on one, half of them over each link: 100 GB/s together."""
    two = crossing(tmp_path, "hardware.tensor_parallel=2")
    assert two.bytes_per_s == 100e9
    rest_s = two.load_s - 25e-6 - 1_008 * 131_072 / 100e9
    assert 0 < rest_s < two.compute_s, "16 tokens computed"
    assert two.equal_bytes_per_s == pytest.approx(1_008 * 131_072 / (two.compute_s - 25e-6 - rest_s))


def test_lengths_and_memory_follow_the_context(tmp_path):
    config = compose([*POINT])
    sized = SwapOrRecompute(2_048, 5).sized(config)
    assert sized["hardware"]["kv_blocks"] == 5 * 2_048 // 16
    assert sized["scenario"]["dialogue"]["lengths"]["prompt_tokens"] == 2_048
    assert sized["scenario"]["dialogue"]["lengths"]["output_tokens"] == 512
    open_loop = SwapOrRecompute(2_048, 5).sized({**config, "scenario": compose(["scenario=synthetic"])["scenario"]})
    assert open_loop["scenario"]["lengths"]["prompt_tokens"] == 2_048


def test_the_same_seed_gives_the_same_point(fast, tmp_path):
    assert crossing(tmp_path) == fast
    assert json.loads((tmp_path / FILE).read_text())["context_tokens"] == 1_024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((32, 12), r"task.context_tokens must be >= 64 \[tokens\], got 32"),
        ((64, 1), r"task.room_sequences must be >= 2 \[sequences\], got 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SwapOrRecompute(*settings)


def test_a_sweep_of_points_ends_with_the_map(tmp_path, monkeypatch, capsys):
    sweep = ["task.context_tokens=512,1024", "hardware.device.host_link_bytes_per_s=1e9", f"hydra.sweep.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["sim", "-m", *POINT[:-1], *sweep])
    main()
    assert [point.context_tokens for point in read_crossings(sorted(path.parent for path in tmp_path.rglob(FILE)))] == [
        512,
        1_024,
    ]
    assert "Swap or recompute?" in (tmp_path / "swap_or_recompute.html").read_text()
    assert "equal at" in capsys.readouterr().out

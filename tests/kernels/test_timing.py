"""The convention of timing, on a device of our own whose clock is known."""

import pytest
import torch

from kernels import timing

LAUNCH_US = 7.0


class Device:
    """Graphs and events of a device on which a launch takes 7 us and a replay's first microseconds are not its own."""

    def __init__(self, launch_us: float = LAUNCH_US) -> None:
        self.now_us = 0.0
        self.n_launched = 0
        self.launch_us = launch_us

    def captured(self, launch, n_variants):
        before = self.n_launched
        for i in range(n_variants):
            launch(i)
        return Graph(self, self.n_launched - before)

    def launch(self, i: int) -> None:
        self.n_launched += 1


class Graph:
    def __init__(self, device: Device, n_launches: int) -> None:
        self.device, self.n_launches = device, n_launches
        self.n_replays = 0

    def replay(self) -> None:
        slow_us = 0.0 if self.n_replays else 500.0
        self.n_replays += 1
        self.device.now_us += self.n_launches * self.device.launch_us + slow_us


@pytest.fixture
def device(monkeypatch) -> Device:
    made = Device()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at_us = made.now_us

        def synchronize(self) -> None:
            return

        def elapsed_time(self, end: "Event") -> float:
            return (end.at_us - self.at_us) / 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)

    class Flush:
        """What the cache is written over with, which takes longer than anything and is never counted."""

        def zero_(self) -> None:
            made.now_us += 10_000.0

    monkeypatch.setattr(torch, "empty", lambda *_, **__: Flush())
    monkeypatch.setattr(timing, "captured", made.captured)
    return made


@pytest.mark.parametrize("n_variants", [1, 4, 20])
def test_the_time_of_a_graph_is_shared_by_its_launches(device, n_variants):
    assert timing.graph_us(device.launch, n_variants) == pytest.approx(LAUNCH_US)


@pytest.mark.parametrize("n_variants", [1, 20])
def test_a_short_launch_is_timed_in_a_graph_whatever_its_variants(device, n_variants):
    measured = timing.measure_us(device.launch, torch.device("cuda"), n_variants=n_variants)
    assert measured == (pytest.approx(LAUNCH_US), "graph")


def test_a_graph_is_replayed_once_before_anything_counts(device):
    assert timing.replays_us(device.captured(device.launch, 3), 1) == pytest.approx(3 * LAUNCH_US)


def test_a_bench_gives_seconds_of_one_launch(device):
    from calibration.gpu import GpuBench
    from calibration.gpu_launches import Launched

    bench = object.__new__(GpuBench)
    bench._device = torch.device("cuda")
    assert bench.time(Launched(device.launch, 5)) == pytest.approx(LAUNCH_US * 1e-6)

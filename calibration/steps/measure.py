"""``step=measure``: time kernels on this machine."""

from pathlib import Path

from calibration.bench import Bench, run_bench
from calibration.cpu import CpuBench
from calibration.measurements import write_measurements
from sim.errors import ConfigError, ProfileError


def measure(device: str, out: str, minutes: float, seed: int) -> None:
    """Time all points of the device and write them to the folder ``out``.

    Raises
    ------
    ConfigError
        If the device is neither cuda nor cpu, or the minutes are not positive.
    ProfileError
        If there is no GPU, or the folder holds another device's timings.
    """
    if device not in ("cuda", "cpu"):
        raise ConfigError(f"device must be cuda or cpu, got {device!r}")
    if not minutes > 0.0:
        raise ConfigError(f"minutes must be > 0, got {minutes!r}")
    measured = run_bench(bench_of(device), Path(out), minutes, seed)
    written = write_measurements(measured, Path(out))
    about = measured.provenance
    print(f"{about['n_points_timed']} of {about['n_points']} points of {measured.device}: {written}")
    for note in measured.notes[:10]:
        print(note)


def bench_of(device: str) -> Bench:
    """The bench of a device."""
    if device == "cpu":
        return CpuBench()
    try:
        import torch
    except ImportError:
        raise ProfileError("device=cuda needs torch: pip install 'kvtwin[gpu]'; device=cpu times the CPU") from None
    if not torch.cuda.is_available():
        raise ProfileError("device=cuda: torch sees no GPU here; device=cpu times torch's CPU kernels instead")
    from calibration.gpu import GpuBench

    return GpuBench(torch.device("cuda"))

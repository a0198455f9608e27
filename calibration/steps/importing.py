"""``step=import``: published measurements into our schema."""

from pathlib import Path

from calibration.bench import gather
from calibration.importers.aiconfigurator import import_aiconfigurator
from calibration.importers.llmservingsim import import_llmservingsim
from calibration.measurements import Measurements, write_measurements
from calibration.plausible import plausible
from sim.errors import ConfigError

SOURCES = ("aiconfigurator", "llmservingsim", "timings")


def import_published(source: str, path: str, version: str | None, tensor_parallel: int, out: str) -> None:
    """Read the tables of ``source`` in the folder ``path``, write them to the folder ``out``.

    Raises
    ------
    ConfigError
        If the source is not one of `SOURCES`, or tensor_parallel is below 1.
    ProfileError
        If the tables are not what that source publishes.
    """
    if source not in SOURCES:
        raise ConfigError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if tensor_parallel < 1:
        raise ConfigError(f"tensor_parallel must be >= 1, got {tensor_parallel}")
    measured = _read(source, Path(path), version, tensor_parallel)
    written = write_measurements(measured, Path(out))
    print(f"{len(measured.rows)} rows of {measured.device}: {written}")


def _read(source: str, path: Path, version: str | None, tensor_parallel: int) -> Measurements:
    if source == "aiconfigurator":
        return import_aiconfigurator(path, version)
    if source == "llmservingsim":
        return import_llmservingsim(path, tensor_parallel)
    return plausible(gather(path))  # what `python -m calibration.gpu` left on another machine

"""``step=import``: published measurements into our schema."""

from collections.abc import Callable
from pathlib import Path

from calibration.bench import gather
from calibration.importers.aiconfigurator import import_aiconfigurator
from calibration.importers.llmservingsim import import_llmservingsim
from calibration.measurements import Measurements, write_measurements
from sim.errors import ConfigError

SOURCES: dict[str, Callable[[Path], Measurements]] = {
    "aiconfigurator": import_aiconfigurator,
    "llmservingsim": import_llmservingsim,
    "timings": gather,  # what `python -m calibration.gpu` left on another machine
}


def import_published(source: str, path: str, out: str) -> None:
    """Read the tables of ``source`` in the folder ``path``, write them to the folder ``out``.

    Raises
    ------
    ConfigError
        If the source is not one of `SOURCES`.
    ProfileError
        If the tables are not what that source publishes.
    """
    if source not in SOURCES:
        raise ConfigError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    measured = SOURCES[source](Path(path))
    written = write_measurements(measured, Path(out))
    print(f"{len(measured.rows)} rows of {measured.device}: {written}")

"""``step=fit``: a profile from measurements, or the host's time from a recorded run."""

from pathlib import Path

from calibration.fit import fit_profile, write_profile
from calibration.measurements import read_measurements
from sim.errors import ConfigError

SOURCES = ("measurements", "run")


def fit(
    source: str,
    measurements: str | None,
    run: str | None,
    hardware: str | None,
    out: str | None,
    seed: int,
    compare: bool,
) -> None:
    """Fit all operations of the measurements in a folder, or the host's time of a recorded run, and write a profile.

    Raises
    ------
    ConfigError
        If the source is not one of `SOURCES`, or its folder is not given.
    ProfileError
        If the measurements are missing or altered, hold nothing to fit, or the profile grows too large.
    TraceError
        If the recorded run is malformed or too short.
    """
    if source not in SOURCES:
        raise ConfigError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    folder = {"measurements": measurements, "run": run}[source]
    if folder is None:
        raise ConfigError(f"{source} must be given with source={source}")
    if source == "run":
        fit_host(Path(folder), hardware, Path(out or "outputs/calibration/run/profile.json"))
        return
    content = fit_profile(read_measurements(Path(folder)), seed, compare)
    target = Path(out) if out else Path(folder) / "profile.json"
    write_profile(content, target)
    print(f"{content['device']}: {target}, {target.stat().st_size} bytes")


def fit_host(run: Path, hardware: str | None, out: Path) -> None:
    """Learn the host's time from a recorded run, and write its kernels' profile with it."""
    import json

    from calibration.engine_run import read_engine_run
    from calibration.host_time import learn_host, provenance
    from calibration.prediction import kernels_of, predictor
    from sim.errors import ProfileError
    from sim.profile import content_sha256

    recorded = read_engine_run(run)
    profile = kernels_of(recorded, out.parent, hardware=hardware)
    if profile is None:
        raise ProfileError(f"{recorded.profile_path}: missing, and there is no profile to write the host's time into")
    host = provenance(recorded, learn_host(predictor(recorded, profile, hardware)))
    content = json.loads(Path(profile.path).read_text(encoding="utf-8"))
    content["provenance"]["host_time"] = host
    content["sha256"] = content_sha256(content)
    write_profile(content, out)
    print(f"{out}: {', '.join(f'{name} {value}' for name, value in host.items())}")

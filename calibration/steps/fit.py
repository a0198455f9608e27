"""``step=fit``: a profile from measurements."""

from pathlib import Path

from calibration.fit import fit_profile, write_profile
from calibration.measurements import read_measurements


def fit(measurements: str, out: str, seed: int, compare: bool) -> None:
    """Fit all operations of the measurements in a folder and write the profile.

    Raises
    ------
    ProfileError
        If the measurements are missing or altered, hold nothing to fit, or the profile grows too large.
    """
    content = fit_profile(read_measurements(Path(measurements)), seed, compare)
    write_profile(content, Path(out))
    print(f"{content['device']}: {out}, {Path(out).stat().st_size} bytes")

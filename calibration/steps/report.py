"""``step=report``: a page that shows what a profile says of the measurements it stands on."""

from pathlib import Path

from calibration.measurements import read_measurements, replace
from calibration.page import page
from calibration.proof import prove
from sim.errors import ProfileError
from sim.profile import read_profile, shipped_profiles


def report(measurements: str, profile: str, out: str) -> None:
    """Predict every measured row with the profile and write the page; needs no network to be read.

    Raises
    ------
    ProfileError
        If a file is missing or altered, or the profile was fitted to other measurements.
    """
    measured = read_measurements(Path(measurements))
    fitted = read_profile(shipped_profiles().get(profile, Path(profile)))
    if fitted.provenance["measurements_sha256"] != measured.sha256:
        raise ProfileError(
            f"{fitted.path}: fitted to measurements of sha256 {fitted.provenance['measurements_sha256']}, "
            f"those of {measurements} have {measured.sha256}"
        )
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(target, page(fitted, list(prove(fitted, measured))).encode())
    print(f"{fitted.device}: {target}")

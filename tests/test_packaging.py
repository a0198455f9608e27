"""What is installed is what is in the tree, and names that others also use are ours."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])

    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("sim", "kernels", "calibration", "scenarios", "hydra_plugins")
        for path in (ROOT / top).rglob("__init__.py")
    }

    assert listed == found | {"sim.conf"}


def test_kernels_is_ours_and_not_the_package_of_that_name() -> None:
    import kernels

    assert Path(str(kernels.__file__)).parent == ROOT / "kernels"


def test_the_project_has_no_path_of_a_machine_in_it() -> None:
    suffixes = {".py", ".md", ".yaml", ".toml", ".txt", ".json", ".html", ".css", ".js", ".j2"}
    folders = ("sim", "kernels", "calibration", "scenarios", "conf", "tests")

    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    words = ("/" + "work/", "/" + "home/", "/" + "root/")

    assert [path for path in files if any(word in path.read_text(errors="replace") for word in words)] == []

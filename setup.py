"""Builds kvtwin: plain Python, or with ``KVTWIN_COMPILED=1`` the same source with its hot loop compiled to C by mypyc.

`make fast` makes a compiled one in an environment of its own, at three times the speed; the source tree always runs
as plain Python. `tests/compiled.py` holds the two equal, byte by byte.
"""

import os
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
PLAIN = {
    **dict.fromkeys(
        ("sim/cost/operations.py", "sim/kv/abilities.py", "sim/kv/eviction/contract.py"),
        "protocols that isinstance is asked about: a compiled class is none",
    ),
    "sim/errors.py": "raised once a run",
    "sim/metrics": "numpy over whole columns, after the run",
    "sim/profile.py": "reads a file before the run",
    "sim/report": "pages and tables, after the run",
}
"""What stands no higher than the engine and stays Python, and why."""


def hot() -> Iterator[str]:
    """The modules an iteration may run through: traffic, and all below it in the import contract."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [layer.split(" | ") for layer in contract["layers"]]
    top = next(i for i, layer in enumerate(layers) if "traffic" in layer)
    for name in (name for layer in layers[top:] for name in layer):
        folder = ROOT / "sim" / name
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
            module = path.relative_to(ROOT)
            if path.name != "__init__.py" and not any(module.is_relative_to(plain) for plain in PLAIN):
                yield str(module)


def compiled() -> list[Any]:
    """The hot modules as extensions of one library, a C file a module, so that cores share the work.

    Calls between modules stay direct: what the library hides from the outside, its own code need not look up.
    """
    from mypyc.build import mypycify

    extensions = mypycify([*hot()], opt_level="2", debug_level="0", multi_file=True)
    for extension in extensions:  # a * b + c rounds twice, as in Python: gcc would fuse it where the processor can
        extension.extra_compile_args = [*extension.extra_compile_args, "-ffp-contract=off", "-fvisibility=hidden"]
    return extensions


class OnAllCores(build_ext):
    """Compiles an extension's C files side by side; setuptools itself takes them one by one."""

    def build_extensions(self) -> None:
        """As ever, but with a compiler that hands out single files."""
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options: Any) -> list[str]:
            largest_first = sorted(sources, key=lambda source: -os.path.getsize(source))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile_all([source], **options), largest_first)
                objects = dict(zip(largest_first, made, strict=True))
            return [path for source in sources for path in objects[source]]

        self.compiler.compile = compile_each
        super().build_extensions()


setup(
    cmdclass={"build_ext": OnAllCores},
    ext_modules=compiled() if os.environ.get("KVTWIN_COMPILED") == "1" else [],
)

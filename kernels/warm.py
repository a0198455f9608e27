"""Compile kernels before they are needed, in several processes that share Triton's cache.

A process takes every n-th comparison, launches the kernel in it and leaves the comparison itself out: the launch
compiles, and whoever launches the same variant later, in whichever process, finds it in the cache.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any


class CompiledError(Exception):
    """A kernel has been launched; what was to follow is not wanted."""


def launching_only(ops: Any) -> SimpleNamespace:
    """The kernels, each of which ends the comparison that launches it."""

    def launch(kernel: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        kernel(*arguments, **options)
        raise CompiledError

    return SimpleNamespace(
        **{name: partial(launch, kernel) for name, kernel in vars(ops).items() if callable(kernel) and name[0] != "_"}
    )


def share_of(text: str) -> tuple[int, int]:
    """Which process of how many.

    Examples
    --------
    >>> share_of("0/8")
    (0, 8)
    """
    index, _, number = text.partition("/")
    return int(index), int(number)


def compile_all(launches: Iterable[Callable[[], Any]]) -> int:
    """Make all launches; what fails is left to those who will look at it. Returns how many were made."""
    n_made = 0
    for launch in launches:
        with suppress(Exception):
            try:
                launch()
            except CompiledError:
                n_made += 1
    return n_made

"""Parts as a file of conf/ describes them: a new file is tested by every suite that asks for its group."""

from collections.abc import Callable
from functools import partial
from typing import Any

from sim.build import contracts
from sim.config import choices_of, compose, make


def chosen(group: str, name: str, *overrides: str) -> Callable[[], Any]:
    """Makes what a file describes, anew each time."""
    node = compose([f"{group}={name}", *overrides])[group]
    return partial(make, node, group, (), contracts()[group])


def each_of(group: str) -> dict[str, Callable[[], Any]]:
    """Makers of all choices of a group, by name."""
    return {name: chosen(group, name) for name in choices_of(group)}

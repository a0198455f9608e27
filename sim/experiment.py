"""Experiments that list what they compare: ``grid:`` in a file of conf/experiment names axes, and on each its variants.

A variant is a list of settings, so that each has its own: a sweep over ``cache`` could not give one cache a setting
that another lacks. The points are all combinations of one variant an axis, and of whatever else is swept over.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from sim.check import as_written, unknown
from sim.config import grid_of
from sim.errors import ConfigError
from sim.override import argument, each, for_sweep

KEYS = ("title", "axes", "metrics", "note")


class Grid(NamedTuple):
    """What an experiment compares."""

    title: str
    axes: Mapping[str, Mapping[str, Sequence[str]]]  # by axis and variant: settings
    metrics: Sequence[str]  # of `sim.report.matrix.METRICS`; all that have a number if empty
    note: str = ""

    def narrowed(self, arguments: Sequence[str]) -> tuple["Grid", list[str]]:
        """The grid with those variants alone that arguments pick (``cache=paged,static``), and the other arguments.

        A value that is no variant is one of its own.
        """
        axes, others = dict(self.axes), []
        for one in arguments:
            key = argument(one).key
            if key in axes:
                picked = [value.partition("=")[2] for value in each(for_sweep(one))]
                axes[key] = {name: self.axes[key].get(name, [f"{key}={name}"]) for name in picked}
            else:
                others.append(one)
        return self._replace(axes=axes), others

    def points(self) -> list[tuple[dict[str, str], list[str]]]:
        """Of every point the names of its variants, and all that they set."""
        named = [
            [(axis, name, settings) for name, settings in variants.items()] for axis, variants in self.axes.items()
        ]
        return [
            (
                {axis: name for axis, name, _ in chosen},
                [for_sweep(one) for _, _, settings in chosen for one in settings],
            )
            for chosen in product(*named)
        ]


def read_grid(arguments: Sequence[str]) -> Grid | None:
    """The grid of the experiment that the arguments name; None where it has none, or there is no experiment.

    Raises
    ------
    ConfigError
        If it is not of the form that `Grid` has.
    """
    chosen = [one for one in arguments if argument(one).key in ("experiment", "hydra.searchpath")]
    node = grid_of(chosen)
    if node is None:
        return None
    for key in node:
        if key not in KEYS:
            raise ConfigError(unknown(f"grid.{key}", list(KEYS), "grid"))
    axes = node.get("axes")
    if not isinstance(axes, Mapping) or not axes:
        raise ConfigError(f"grid.axes must name at least one axis with its variants, got {as_written(axes)}")
    metrics = node.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(one, str) for one in metrics):
        raise ConfigError(f"grid.metrics must be a list of names, got {as_written(metrics)}")
    check_metrics(metrics)
    found = {str(axis): _variants(str(axis), variants) for axis, variants in axes.items()}
    return Grid(str(node.get("title", "")), found, metrics, str(node.get("note", "")))


def check_metrics(names: Sequence[str]) -> None:
    """Refuse names that are no numbers of a matrix.

    Raises
    ------
    ConfigError
    """
    from sim.report.matrix import METRICS

    for name in names:
        if name not in METRICS:
            raise ConfigError(unknown(f"grid.metrics.{name}", list(METRICS), "grid.metrics"))


def _variants(axis: str, node: Any) -> dict[str, list[str]]:
    """By name: given with their settings, or values of the setting that the axis is called."""
    path = f"grid.axes.{axis}"
    if isinstance(node, list) and node and all(isinstance(one, str | int | float) for one in node):
        return {str(one): [f"{axis}={str(one).lower() if isinstance(one, bool) else one}"] for one in node}
    if not isinstance(node, Mapping) or not node:
        raise ConfigError(f"{path} must be a list of values, or lists of settings by name, got {as_written(node)}")
    for name, settings in node.items():
        if not isinstance(settings, list) or not all(isinstance(one, str) for one in settings):
            raise ConfigError(f"{path}.{name} must be a list of settings, as [cache=paged], got {as_written(settings)}")
    return {str(name): list(settings) for name, settings in node.items()}

"""Configurations as the command line makes them: a choice of files, and some keys set in them."""

from copy import deepcopy
from functools import cache
from typing import Any

from sim.config import compose


@cache
def _composed(*choices: str) -> dict[str, Any]:
    return compose(list(choices))


def configured(*choices: str, **settings: object) -> dict[str, Any]:
    """As ``python -m sim choice ... key=value ...``; keys of settings have ``__`` where the command line has a dot.

    Composing takes a tenth of a second and is done once for a set of choices.
    """
    config = deepcopy(_composed(*choices))
    for path, value in settings.items():
        *parents, name = path.split("__")
        node = config
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[name] = value
    return config

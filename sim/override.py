"""What a user sets, on the command line or in Python: a key, and the value as it was written.

A value is read by Hydra's grammar where it is of that grammar (numbers, lists, ``{a: 1}``, ``null``, quoted texts),
and taken as it is where it is not: a path with spaces, brackets or ``=`` needs no quotes.
"""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sim.errors import ConfigError

KEY = re.compile(r"[A-Za-z_][\w./@:-]*")


class Override(NamedTuple):
    """One setting: ``scenario.rate=3``, ``+scenario.rate=3`` (the same), ``~tiers`` (taken out), ``cache=paged``."""

    key: str
    value: Any
    text: str | None = None  # as it was written; None where it was given in Python
    is_removal: bool = False


def argument(written: str) -> Override:
    """One argument of the command line.

    Raises
    ------
    ConfigError
        If it is not of the form ``key=value``.
    """
    is_removal = written.startswith("~")
    key, equals, text = written.lstrip("+~" if not is_removal else "~").partition("=")
    if not KEY.fullmatch(key) or not (equals or is_removal):
        raise ConfigError(f"{written!r} is not of the form key=value")
    return Override(key, None if is_removal else read(text), text, is_removal)


def given(key: str, value: Any) -> Override:
    """One setting out of Python: any value that a YAML file could hold, and paths."""
    return Override(key, _plain(key, value))


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [_plain(f"{key}.{i}", item) for i, item in enumerate(items)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of numpy's
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{key} must be a number, text, list or mapping, got {type(value).__name__}")


def as_text(text: str) -> str:
    """A value that is one text whatever it looks like: as written, without the quotes around all of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = str(read(text))
    return at_home(text)


def at_home(text: str) -> str:
    """A path whose ``~`` the shell left as it is."""
    return os.path.expanduser(text) if text.startswith("~/") else text


@cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parsed(text: str) -> Any:
    """Hydra's reading of a value; None where it is not of its grammar."""
    from hydra.errors import HydraException

    try:
        return _parser().parse_override(f"key={text}")
    except HydraException:
        return None


def read(text: str) -> Any:
    """The value that a text stands for; several separated by commas are one text."""
    parsed = _parsed(text)
    if parsed is None or parsed.is_sweep_override():
        return at_home(text)
    value = parsed.value()
    return at_home(value) if isinstance(value, str) else value


def for_sweep(written: str) -> str:
    """An argument as Hydra's sweepers read it: what is not of their grammar, and an existing file's path, in quotes."""
    key, equals, text = written.partition("=")
    if not equals:
        return written
    if _parsed(text) is None:
        text = ",".join(part if _parsed(part) is not None else quoted(part) for part in text.split(","))
    elif "," in text and Path(at_home(text)).exists():
        text = quoted(text)
    return f"{key}={text}"


def has_values(written: str) -> bool:
    """Whether an argument gives several values to try."""
    parsed = _parsed(for_sweep(written).partition("=")[2])
    return bool(parsed is not None and parsed.is_sweep_override())


def each(written: str) -> list[str]:
    """An argument with each of its values alone, where they can be counted."""
    parsed = _parser().parse_override(written)
    if not parsed.is_sweep_override():
        return [written]
    values = parsed.sweep_string_iterator() if parsed.is_discrete_sweep() else ["null"]
    return [f"{parsed.get_key_element()}={value}" for value in values]


def quoted(text: str) -> str:
    """A text in Hydra's quotes."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text=text, quote=Quote.single).with_quotes())

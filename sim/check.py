"""Whether a configuration says what its classes take: every key and value against the constructor's signature.

A configuration is code (``_target_`` names what is called), so what may be named is narrow: a class or a function
that is *defined* in kvtwin's packages, or in those that the user lists under ``trusted_packages``, reached through
modules of these packages alone, and of the kind that the place it stands in asks for. A name that a module merely
imports (``sim.command.os.system``) is none.
"""

import dataclasses
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from sim.errors import ConfigError, InvariantError

PACKAGES = ("sim", "scenarios", "calibration", "kernels")
HYDRA_KEYS = ("_target_", "_partial_")
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}
NAMED, LIST, PART = "values by name", "a list", "a part with a _target_ of its own"
MOST_SHOWN = 80  # characters of a value that a message repeats


def check(node: Any, path: str, trusted: tuple[str, ...] = (), contract: Any = None) -> None:
    """Refuse a part of another kind, unknown keys and values of the wrong type, here and in every node below.

    Parameters
    ----------
    node : mapping
        With a ``_target_``.
    path : str
        Where it stands in the configuration, for messages.
    trusted : tuple of str
        Further packages whose classes may be named.
    contract : type, callable annotation or None
        What its class must derive from or, of a Protocol, do; ``Callable[..., X]`` wants what makes an X.

    Raises
    ------
    ConfigError
        Names the key, the value and what is allowed.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{path}._target_ must be given" if isinstance(node, Mapping) else _not_a_part(path, node))
    target = node["_target_"]
    found = find(target, f"{path}._target_", (*PACKAGES, *trusted))
    takes = signature(target, path, trusted).parameters
    if contract is not None:
        _check_contract(found, target, path, contract, trusted)
    positional = _arguments(contract)
    for i, (key, parameter) in enumerate(takes.items()):
        if key in node and i < positional:
            raise ConfigError(not_a_setting(f"{path}.{key}"))
        is_missing = parameter.default is parameter.empty and key not in node
        if is_missing and not node.get("_partial_"):
            raise ConfigError(f"{path}.{key} must be given")
    for key, value in node.items():
        if key == "_partial_" and type(value) is not bool:
            raise ConfigError(f"{path}.{key} must be true or false, got {as_written(value)}")
        if key not in HYDRA_KEYS and key not in takes:
            raise ConfigError(unknown(f"{path}.{key}", list(takes), path))
        if key not in HYDRA_KEYS:
            check_value(value, f"{path}.{key}", takes[key].annotation, trusted)


def check_call(settings: Mapping[str, Any], target: str) -> None:
    """Refuse settings of a function whose names have no part before them.

    Raises
    ------
    ConfigError
    """
    takes = signature(target, "step").parameters
    for key, value in settings.items():
        if key not in takes:
            raise ConfigError(unknown(key, list(takes)))
        check_value(value, key, takes[key].annotation)


def check_value(value: Any, path: str, annotation: Any, trusted: tuple[str, ...] = ()) -> None:
    """Refuse a value of another kind than a parameter's annotation names: plain ones, lists, values by name, parts.

    Raises
    ------
    ConfigError
    """
    allowed = _alternatives(annotation)
    kinds = [_kind(one) for one in allowed]
    fitting = [one for one, kind in zip(allowed, kinds, strict=True) if _is_of(value, one, kind)]
    if "" in kinds and not fitting:
        _check_plain(value, path)
        return
    if not fitting:
        raise ConfigError(f"{path} must be {' or '.join(dict.fromkeys(kinds))}, got {as_written(value)}")
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(f"{path} must fit 64 bits, got {as_written(value)}")
    best = fitting[0]
    inner = [one for one in typing.get_args(best) if one is not Ellipsis]
    if _kind(best) == PART:
        makers = [one for one in fitting if (typing.get_origin(one) is Callable) == bool(value.get("_partial_"))]
        check(value, path, trusted, makers[0] if makers else best)
    elif _kind(best) == NAMED:
        for name, item in value.items():
            check_value(item, f"{path}.{name}", inner[-1] if inner else Any, trusted)
    elif _kind(best) == LIST:
        is_row = len(inner) > 1  # a tuple of so many
        if is_row and len(inner) != len(value):
            raise ConfigError(f"{path} must be a list of {len(inner)}, got {as_written(value)}")
        for i, item in enumerate(value):
            check_value(item, f"{path}.{i}", inner[i] if is_row else inner[0] if inner else Any, trusted)


def is_text(annotation: Any) -> bool:
    """Whether a parameter takes texts and nothing that is written like one: what is given is then taken as it is."""
    return str in _alternatives(annotation) and set(_alternatives(annotation)) <= {str, types.NoneType}


def is_open(annotation: Any) -> bool:
    """Whether a parameter takes values under names of the user's own."""
    return NAMED in (_kind(one) for one in _alternatives(annotation))


def inner(annotation: Any, name: str) -> Any:
    """The annotation of what stands under a name, or at an index, of a parameter's value; None where there is none."""
    for one in _alternatives(annotation):
        below = [item for item in typing.get_args(one) if item is not Ellipsis]
        if below and _kind(one) == NAMED:
            return below[-1]
        if below and _kind(one) == LIST:
            return below[min(int(name), len(below) - 1)] if name.isdigit() else None
    return None


def defaults(target: str, path: str, trusted: tuple[str, ...] = ()) -> dict[str, Any]:
    """Settings of what a dotted name names that have a default, as a YAML file would have them."""
    found = find(target, f"{path}._target_", (*PACKAGES, *trusted))
    factories = {}
    if dataclasses.is_dataclass(found):
        factories = {one.name: one.default_factory for one in dataclasses.fields(found)}
    known = {}
    for name, parameter in signature(target, path, trusted).parameters.items():
        value = parameter.default
        if callable(factories.get(name)):
            value = factories[name]()  # type: ignore[operator]
        if value is not parameter.empty and (plain := _as_yaml(value)) is not parameter.empty:
            known[name] = plain
    return known


def _as_yaml(value: Any) -> Any:
    """A default in the containers of a YAML file; `inspect.Parameter.empty` for what a file cannot say."""
    if isinstance(value, list | tuple):
        items = [_as_yaml(item) for item in value]
        return inspect.Parameter.empty if inspect.Parameter.empty in items else items
    if isinstance(value, Mapping):
        items = [_as_yaml(item) for item in value.values()]
        return inspect.Parameter.empty if inspect.Parameter.empty in items else dict(zip(value, items, strict=True))
    return value if type(value) in PLAIN else inspect.Parameter.empty


def _check_plain(value: Any, path: str) -> None:
    """Where no signature says what belongs there, nothing that is called does."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise ConfigError(f"{path}._target_ must not be given: no part belongs there")
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_plain(item, f"{path}.{i}")


def _check_contract(found: Any, target: str, path: str, contract: Any, trusted: tuple[str, ...]) -> None:
    """Refuse what is not, or does not make, a part of the kind that its place asks for."""
    wanted = typing.get_args(contract)[-1] if typing.get_origin(contract) is Callable else contract
    choices = [one for one in _alternatives(wanted) if isinstance(typing.get_origin(one) or one, type)]
    made = found if isinstance(found, type) else signature(target, path, trusted).return_annotation
    if not isinstance(made, type):
        words = " or ".join(one.__name__ for one in choices)
        raise ConfigError(f"{path}._target_ must be a class, or a function annotated to return {words}, got {target}")
    refused = [_lacks(made, typing.get_origin(one) or one) for one in choices]
    if None not in refused and refused:
        raise ConfigError(f"{path}._target_ must {refused[0]}".format(target=target))


def _lacks(made: Any, contract: type) -> str | None:
    """What a class lacks to be of a contract, in words; None if nothing.

    Who derives from it is; else, of a Protocol and of a class that is not abstract, who has its methods.
    """
    if not isinstance(made, type):
        return ""
    base = f"{contract.__module__}.{contract.__qualname__}"
    if base in (f"{one.__module__}.{one.__qualname__}" for one in made.__mro__):  # compiled or its source: one class
        return None
    methods = [
        name for name in dir(contract) if not name.startswith("_") and inspect.isroutine(getattr(contract, name))
    ]
    is_protocol = bool(getattr(contract, "_is_protocol", False))
    if not methods or (inspect.isabstract(contract) and not is_protocol):
        return f"be a subclass of {base}, got {{target}}"
    missing = next((name for name in methods if not hasattr(made, name)), None)
    return missing and f"have the methods of {contract.__name__}, got {{target}} without {missing}()"


def _arguments(contract: Any) -> int:
    """How many arguments a maker is called with, in order: they are no settings."""
    if typing.get_origin(contract) is not Callable:
        return 0
    given = typing.get_args(contract)[0]
    return len(given) if isinstance(given, list) else 0


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _kind(annotation: Any) -> str:
    """What a parameter wants, in words; empty where that is not ours to say."""
    origin = typing.get_origin(annotation) or annotation
    if annotation is None:
        return PLAIN[types.NoneType]
    if origin in PLAIN:
        return PLAIN[origin]
    if origin is Callable:
        return PART
    if origin is typing.Literal:
        return " or ".join(map(repr, typing.get_args(annotation)))
    if not isinstance(origin, type):
        return ""  # Any, names in quotes
    if issubclass(origin, Mapping):
        return NAMED
    if issubclass(origin, Sequence):
        return LIST
    return "" if origin is object or origin is inspect.Parameter.empty or origin.__module__ == "builtins" else PART


def _is_of(value: Any, annotation: Any, kind: str) -> bool:
    """Whether a value out of a YAML file is of that kind."""
    if kind == PART:
        return isinstance(value, Mapping) and "_target_" in value
    if kind == NAMED:
        return isinstance(value, Mapping) and "_target_" not in value
    if kind == LIST:
        return isinstance(value, list)
    if typing.get_origin(annotation) is typing.Literal:
        return value in typing.get_args(annotation)
    if kind == "":
        return False
    wanted = types.NoneType if annotation is None else annotation
    return type(value) is wanted or (wanted is float and type(value) is int)


def _not_a_part(path: str, value: Any) -> str:
    return f"{path} must be {PART}, got {as_written(value)}"


def not_a_setting(path: str) -> str:
    """Message for a parameter that the program itself gives."""
    return f"{path} is not a setting: the run works it out from its other parts"


def unknown(key: str, known: list[str], path: str = "") -> str:
    """Message for a key that does not exist, with the nearest one that does."""
    name = key.rpartition(".")[2]
    near = get_close_matches(name, known, n=1)
    if near:
        return f"{key} is not a setting; did you mean {path + '.' if path else ''}{near[0]}?"
    return f"{key} is not a setting; known here: {', '.join(known) or 'nothing'}"


def as_written(value: Any) -> str:
    """A value as a YAML file has it, cut off where it is long."""
    if value is None:
        return "null"
    return cut_short(str(value).lower() if isinstance(value, bool) else repr(value))


def cut_short(text: str) -> str:
    """The beginning of what is long."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"


def signature(target: str, path: str, trusted: tuple[str, ...] = ()) -> inspect.Signature:
    """What the thing a dotted name names is made of, and makes."""
    return _signature(find(target, f"{path}._target_", (*PACKAGES, *trusted)))


@cache
def _signature(found: Any) -> inspect.Signature:
    """What was compiled no longer knows the types of its parameters: its source does."""
    if is_compiled(found.__module__):
        found = getattr(_as_source(found.__module__), found.__name__)
    return inspect.signature(found)


def is_compiled(module: str) -> bool:
    """Whether an imported module is an extension."""
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    return path.endswith(tuple(EXTENSION_SUFFIXES))


@cache
def _as_source(name: str) -> types.ModuleType:
    """A compiled module, from the Python file beside it."""
    compiled = Path(str(sys.modules[name].__file__))
    spec = importlib.util.spec_from_file_location(name, compiled.with_name(f"{compiled.name.split('.')[0]}.py"))
    if spec is None or spec.loader is None:
        raise InvariantError(f"{compiled} came without its source")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def find(target: str, path: str, packages: tuple[str, ...] = PACKAGES) -> Any:
    """The class or function that a dotted name names.

    Every step must be a module, a class or a function that is defined in one of the packages; a name that is merely
    imported there is not found.

    Raises
    ------
    ConfigError
    """
    names = target.split(".")
    allowed = f"{', '.join(packages)} (trusted_packages lists further ones)"
    if names[0] not in packages:
        raise ConfigError(f"{path} must be in one of {allowed}, got {as_written(target)}")
    found: Any = None
    for here in _steps(names):
        owner, name = found, here.rpartition(".")[2]
        if owner is None or (hasattr(owner, "__path__") and importlib.util.find_spec(here)):
            found = _imported(here, path, target)
        else:
            found = vars(owner).get(name) if isinstance(owner, types.ModuleType) else getattr(owner, name, None)
        if found is None or (isinstance(found, types.ModuleType) and found.__name__ != here):
            near = get_close_matches(name, list(_made_here(owner, packages)), n=1)
            hint = f"; did you mean {here.rpartition('.')[0]}.{near[0]}?" if near else ""
            raise ConfigError(f"{path} names nothing that exists, got {as_written(target)}{hint}")
        if not isinstance(found, types.ModuleType) and not _is_made_in(found, packages):
            raise ConfigError(f"{path} must be a class or a function defined in one of {allowed}, got {target!r}")
    if isinstance(found, types.ModuleType):
        raise ConfigError(f"{path} must name a class or a function, got the module {target!r}")
    return found


def _steps(names: list[str]) -> Iterator[str]:
    return (".".join(names[: i + 1]) for i in range(len(names)))


def _imported(name: str, path: str, target: str) -> types.ModuleType | None:
    try:
        return import_module(name)
    except (ModuleNotFoundError, ValueError) as error:
        missing = getattr(error, "name", None)
        if missing and not f"{name}.".startswith(f"{missing}."):
            raise ConfigError(f"{path}={target} needs the package {missing}, not installed") from error
        return None


def _is_made_in(found: Any, packages: tuple[str, ...]) -> bool:
    """Whether something is a class or function of these packages, not one that they import."""
    is_code = isinstance(found, type | types.FunctionType | types.BuiltinFunctionType)
    return is_code and str(getattr(found, "__module__", "")).split(".")[0] in packages


def _made_here(owner: Any, packages: tuple[str, ...]) -> Iterator[str]:
    names = vars(owner) if isinstance(owner, types.ModuleType | type) else {}
    return (name for name in names if _is_made_in(names[name], packages))

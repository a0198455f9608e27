"""Whether a configuration says what its classes take: every key and plain value against the constructor's signature.

A configuration is code (`_target_` names what is called), so only targets in kvtwin's packages, and in packages that
the user lists under ``trusted_packages``, are allowed.
"""

import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from sim.errors import ConfigError, InvariantError

PACKAGES = ("sim", "scenarios", "calibration", "kernels")
HYDRA_KEYS = ("_target_", "_partial_")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}
NAMED, LIST, PART = "values by name", "a list", "a part with a _target_ of its own"


def check(node: Any, path: str, trusted: tuple[str, ...] = ()) -> None:
    """Refuse unknown keys and plain values of the wrong type, here and in every node below.

    Raises
    ------
    ConfigError
        Names the key, the value and what is allowed.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            check(item, f"{path}.{i}", trusted)
    if isinstance(node, int) and not -(1 << 63) <= node < 1 << 63:
        raise ConfigError(f"{path} must fit 64 bits, got {node}")
    if not isinstance(node, Mapping):
        return
    parameters: Mapping[str, inspect.Parameter] = {}
    if "_target_" in node:
        target = str(node["_target_"])
        if target.split(".")[0] not in (*PACKAGES, *trusted):
            raise ConfigError(
                f"{path}._target_ must be in one of {', '.join((*PACKAGES, *trusted))} "
                f"(trusted_packages lists further ones), got {target!r}"
            )
        parameters = signature(target, path)
        is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for key, value in node.items():
            if key in HYDRA_KEYS:
                continue
            if key not in parameters:
                if is_open:
                    continue
                raise ConfigError(unknown(f"{path}.{key}", list(parameters), path))
            _check_type(f"{path}.{key}", value, parameters[key].annotation)
        for key, parameter in parameters.items():
            is_missing = key not in node and parameter.default is parameter.empty and parameter.kind not in VARIADIC
            if is_missing and not node.get("_partial_"):
                raise ConfigError(f"{path}.{key} must be given")
    for key, value in node.items():
        check(value, f"{path}.{key}", trusted)
        if key in parameters:
            _check_parts(value, f"{path}.{key}", parameters[key].annotation)


def check_contract(node: Mapping[str, Any], path: str, contract: type) -> None:
    """Refuse a part whose class lacks methods of the contract that it stands in for, or is none of an abstract class.

    Raises
    ------
    ConfigError
        Names the key, the class and what it lacks.
    """
    found = find(str(node["_target_"]), path)
    if not isinstance(found, type):
        return  # a function: what it makes is seen when it runs
    is_base = inspect.isabstract(contract) and not getattr(contract, "_is_protocol", False)
    if is_base and not issubclass(found, contract):
        base = f"{contract.__module__}.{contract.__qualname__}"
        raise ConfigError(f"{path}._target_ must be a subclass of {base}, got {node['_target_']}")
    for name in dir(contract):
        if not name.startswith("_") and inspect.isroutine(getattr(contract, name)) and not hasattr(found, name):
            raise ConfigError(
                f"{path}._target_ must have the methods of {contract.__name__}, got {node['_target_']} without {name}()"
            )


def _check_parts(value: Any, path: str, annotation: Any) -> None:
    """The contracts of a part, or of all in a list or a mapping of them, as a constructor's annotation names them."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    allowed = typing.get_args(annotation) if is_union else (annotation,)
    has_choice = [_kind(one) for one in allowed].count(PART) > 1  # a part or what makes one
    for one in allowed:
        if _kind(one) == PART and isinstance(one, type) and _is_of(value, one, PART) and not has_choice:
            check_contract(value, path, one)
        inner = typing.get_args(one)
        if inner and _kind(one) == NAMED and isinstance(value, Mapping):
            for name, item in value.items():
                _check_parts(item, f"{path}.{name}", inner[-1])
        if inner and _kind(one) == LIST and isinstance(value, list):
            for i, item in enumerate(value):
                _check_parts(item, f"{path}.{i}", inner[0])


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another kind than the constructor wants: plain ones, lists and mappings of them, parts."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    allowed = typing.get_args(annotation) if is_union else (annotation,)
    kinds = [_kind(one) for one in allowed]
    if "" in kinds:
        return
    fitting = [one for one, kind in zip(allowed, kinds, strict=True) if _is_of(value, one, kind)]
    if not fitting:
        how = f" (+{key}.NAME=...)" if NAMED in kinds else ""
        raise ConfigError(f"{key} must be {' or '.join(dict.fromkeys(kinds))}{how}, got {as_written(value)}")
    inner = [one for one in typing.get_args(fitting[0]) if one is not Ellipsis]
    if inner and _kind(fitting[0]) == NAMED:
        for name, item in value.items():
            _check_type(f"{key}.{name}", item, inner[-1])
    elif len(inner) == 1 and _kind(fitting[0]) == LIST:
        for i, item in enumerate(value):
            _check_type(f"{key}.{i}", item, inner[-1])


def _kind(annotation: Any) -> str:
    """What a parameter wants, in words; empty where that is not ours to say."""
    origin = typing.get_origin(annotation) or annotation
    if origin in PLAIN:
        return PLAIN[origin]
    if origin is Callable:
        return PART
    if not isinstance(origin, type):
        return ""  # Any, names in quotes
    if issubclass(origin, Mapping):
        return NAMED
    if issubclass(origin, Sequence):
        return LIST
    return PART if origin.__module__.split(".")[0] in PACKAGES else ""


def _is_of(value: Any, annotation: Any, kind: str) -> bool:
    """Whether a value out of a YAML file is of that kind."""
    if kind == PART:
        return isinstance(value, Mapping) and "_target_" in value
    if kind == NAMED:
        return isinstance(value, Mapping)
    if kind == LIST:
        return isinstance(value, list)
    return type(value) is annotation or (annotation is float and type(value) is int)


def unknown(key: str, known: list[str], path: str = "") -> str:
    """Message for a key that does not exist, with the nearest one that does."""
    name = key.rpartition(".")[2]
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    prefix = f"{path}." if path else ""
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known) or 'nothing'}"
    return f"{key} is not a setting; {hint}"


def as_written(value: Any) -> str:
    """A value as a YAML file has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


@cache
def signature(target: str, path: str) -> Mapping[str, inspect.Parameter]:
    """What the thing a dotted name names is made of.

    What was compiled no longer knows the types of its parameters: its source does.
    """
    found = find(target, path)
    if is_compiled(found.__module__):
        found = getattr(_as_source(found.__module__), found.__name__)
    return inspect.signature(found).parameters


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
def find(target: str, path: str) -> Any:
    """What a dotted name names. Hydra's own look-up logs what it does not find before it says so."""
    names = target.split(".")
    for n in range(len(names) - 1, 0, -1):
        module = ".".join(names[:n])
        try:
            found: Any = import_module(module)
        except (ModuleNotFoundError, ValueError) as error:
            if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
                raise ConfigError(f"{path}._target_={target} needs the package {error.name}, not installed") from error
            continue
        owner = found
        for name in names[n:]:
            owner, found = found, getattr(found, name, None)
        if callable(found):
            return found
        near = get_close_matches(names[-1], [known for known in dir(owner) if callable(getattr(owner, known))], n=1)
        hint = f"; did you mean {module}.{near[0]}?" if near and near[0] != names[-1] else ""
        raise ConfigError(f"{path}._target_ names nothing that exists, got {target!r}{hint}")
    raise ConfigError(f"{path}._target_ names nothing that exists, got {target!r}")

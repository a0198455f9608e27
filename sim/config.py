"""Configuration becomes objects, once: compose, check every key, instantiate.

A configuration is code (`_target_` names what is called), so only targets in kvtwin's packages, and in packages that
the user lists under ``trusted_packages``, are allowed.
"""

import inspect
import re
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sim.errors import ConfigError, SimError

PACKAGES = ("sim", "scenarios", "calibration", "kernels")
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def conf_dir() -> Path:
    """The YAML files: installed inside the package, in a checkout beside it."""
    installed = Path(__file__).resolve().parent / "conf"
    return installed if installed.is_dir() else installed.parent.parent / "conf"


def compose(overrides: list[str], config_name: str = "config") -> dict[str, Any]:
    """Configuration from the YAML files and overrides, as plain containers.

    Raises
    ------
    ConfigError
        In one line, naming the key or choice that is not there and the nearest that is.
    """
    from omegaconf import OmegaConf

    try:
        cfg = _compose(overrides, config_name)
        hydra_config = cfg.hydra
        return plain(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), hydra_config)
    except Exception as error:
        raise ConfigError(explain(error, overrides, config_name)) from error


def _compose(overrides: list[str], config_name: str) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose(config_name, overrides, return_hydra_config=True)


def explain(error: BaseException, overrides: list[str], config_name: str = "config") -> str:
    """What is wrong with the overrides, in one line; for a key that does not exist, the nearest that does."""
    match = re.search(r"Could not override '(.+?)'", str(error))
    if not match:
        return one_line(error)
    *parents, name = match[1].split(".")
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    groups.discard(match[1])
    choices = [one.split(",")[0] for one in overrides if one.split("=")[0].split("/")[0] in groups]
    try:
        node: Any = _compose(choices, config_name)
        for parent in parents:
            node = node[parent]
        if name in node:  # it is there, but something new is put into it
            return f"{match[1]} has keys of its own: put +{match[1]}.KEY=..., one at a time"
        return unknown(match[1], [str(key) for key in node if key not in HYDRA_KEYS], ".".join(parents))
    except Exception:
        return f"{'.'.join([*parents, name])} is not a setting"


def plain(cfg: Any, hydra_config: Any) -> dict[str, Any]:
    """A resolved copy in dicts and lists: a DictConfig is 700 times slower to read and stays outside.

    Under ``choices`` it names the file chosen for each group, which Hydra's own configuration knows.

    Raises
    ------
    ConfigError
        A value is missing or an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        container: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    named = hydra_config.runtime.choices
    container["choices"] = {str(group): str(named[group]) for group in sorted(named) if group in container}
    return {str(key): value for key, value in container.items()}


def make(node: Any, path: str, trusted: tuple[str, ...] = (), **given: Any) -> Any:
    """Instantiate a node and all inside it, after checking every key and plain value against the constructor.

    Parameters
    ----------
    node : dict
        With a ``_target_``.
    path : str
        Where it stands in the configuration, for messages.
    trusted : tuple of str
        Further packages whose targets are allowed.
    given : Any
        Objects that the program adds and calls a ``_partial_`` with; those it does not take are left out.

    Raises
    ------
    ConfigError
    """
    from hydra.utils import instantiate

    check(node, path, trusted)
    try:
        if not given:
            return instantiate(node, _convert_="all")
        takes = inspect.signature(_find(node["_target_"], path)).parameters
        partial = instantiate({**node, "_partial_": True}, _convert_="all")
        return partial(**{key: value for key, value in given.items() if key in takes})
    except Exception as error:
        raise ConfigError(one_line(error, path)) from error


def check(node: Any, path: str, trusted: tuple[str, ...] = ()) -> None:
    """Refuse unknown keys and plain values of the wrong type, here and in every node below.

    Raises
    ------
    ConfigError
        Names the key, the value and what is allowed.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            check(item, f"{path}[{i}]", trusted)
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        target = str(node["_target_"])
        if target.split(".")[0] not in (*PACKAGES, *trusted):
            raise ConfigError(
                f"{path}._target_ must be in one of {', '.join((*PACKAGES, *trusted))} "
                f"(trusted_packages lists further ones), got {target!r}"
            )
        parameters = inspect.signature(_find(target, path)).parameters
        is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for key, value in node.items():
            if key in HYDRA_KEYS:
                continue
            if key not in parameters:
                if is_open:
                    continue
                raise ConfigError(unknown(f"{path}.{key}", list(parameters), path))
            _check_type(f"{path}.{key}", value, parameters[key].annotation)
    for key, value in node.items():
        check(value, f"{path}.{key}", trusted)


def unknown(key: str, known: list[str], path: str = "") -> str:
    """Message for a key that does not exist, with the nearest one that does."""
    name = key.rpartition(".")[2]
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    prefix = f"{path}." if path else ""
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"{key} is not a setting; {hint}"


def one_line(error: BaseException, path: str = "") -> str:
    """What went wrong, without Hydra's wrapping."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SimError):
            return str(cause)
        cause = cause.__cause__
    text = str(error).strip()
    if match := re.search(r"Could not find '(.+?)'\s*Available options in '.*?':\s*(.+)", text, re.DOTALL):
        choice, options = match[1], match[2].partition("Config search path")[0].split()
        group, _, name = choice.rpartition("/")
        near = get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{group}={name} is not a choice; {hint}(there are {', '.join(options)})"
    if match := re.search(r"Config group override must be a string or a list. Got (\w+)", text):
        return f"a choice must be the name of a file in conf/, got one of type {match[1]} (`--help` lists them)"
    if match := re.search(r"Error parsing override '(.*?)'", text):
        return f"{match[1]!r} is not of the form key=value"
    if match := re.search(r"In '.*?': Could not find '(.+?)'", text):
        return f"{match[1].replace('/', '=', 1)} is not a choice"
    if "Missing mandatory value" in text and (match := re.search(r"full_key: (\S+)", text)):
        return f"{match[1]} must be given, for example {match[1]}=..."
    cause = error.__cause__ or error
    first = str(cause).strip().splitlines()
    return f"{path}: {first[0] if first else type(cause).__name__}" if path else (first[0] if first else repr(cause))


def _find(target: str, path: str) -> Any:
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:
        raise ConfigError(f"{path}._target_ names nothing that exists, got {target!r}") from error


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a plain value where the constructor wants another plain type; what is not plain is not judged."""
    allowed = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    plain_types = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        types.NoneType: "null",
    }
    if isinstance(value, Mapping | list) or not all(kind in plain_types for kind in allowed):
        if not isinstance(value, Mapping | list) or not all(kind in plain_types for kind in allowed):
            return
        raise ConfigError(f"{key} must be {' or '.join(plain_types[kind] for kind in allowed)}, got {value!r}")
    if type(value) in allowed or (type(value) is int and float in allowed):
        return
    raise ConfigError(f"{key} must be {' or '.join(plain_types[kind] for kind in allowed)}, got {value!r}")

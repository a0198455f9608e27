"""Configuration becomes objects, once: compose the files and what was overridden, say what is wrong, instantiate."""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from sim.check import HYDRA_KEYS, check, check_contract, find, signature, unknown
from sim.errors import ConfigError, SimError

RUN_ID = os.urandom(3).hex()  # two processes that start in the same second get two folders
RESULTS_FOLDER = dict.fromkeys(("out", "output", "out_dir", "output_dir", "folder"), "hydra.run.dir")
"""What the folder of results is called elsewhere."""


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
    return compose_run(overrides, config_name)[0]


def compose_run(overrides: list[str], config_name: str = "config") -> tuple[dict[str, Any], Path]:
    """The same, and the folder that a run of it writes to.

    Raises
    ------
    ConfigError
    """
    from omegaconf import OmegaConf

    try:
        cfg = _compose(overrides, config_name)
        if not cfg.hydra.run.dir:
            raise ConfigError("hydra.run.dir must be a folder to write to, got nothing")
        out = Path(str(cfg.hydra.run.dir))
        return plain(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), cfg.hydra), out
    except composing_errors() as error:
        raise ConfigError(explain(error, overrides, config_name)) from error


def _compose(overrides: list[str], config_name: str) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("run_id"):
        OmegaConf.register_new_resolver("run_id", lambda: RUN_ID)
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose(config_name, overrides, return_hydra_config=True)


def explain(error: BaseException, overrides: list[str], config_name: str = "config") -> str:
    """What is wrong with the overrides, in one line; for a key that does not exist, the nearest that does."""
    if wrong := next((one for one in overrides if one.startswith("=")), None):
        return f"{wrong!r} is not of the form key=value"
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    given = [one.partition("=")[::2] for one in overrides]
    if "Config group override must be" in str(error):
        for group, value in given:
            if group in groups and value not in (names := choices_of(group)):
                return f"{group} must be one of {', '.join(names)}, got {value}"
    if match := re.search(r"Could not override '(.+?)'", str(error)):
        wrong_keys = [match[1]]
    elif re.search(r"list index out of range|Index '.+?' \(str\) is not an int", f"{error} {error.__cause__}"):
        wrong_keys = [key for key, _ in given if "." in key and key[0] not in "+~"]
    else:
        return one_line(error)
    chosen = [f"{key}={value.split(',')[0]}" for key, value in given if key.split("/")[0] in groups - set(wrong_keys)]
    try:
        from omegaconf import OmegaConf

        tree: Any = OmegaConf.to_container(_compose(chosen, config_name))
    except composing_errors():
        return f"{wrong_keys[0]} is not a setting"
    return next(filter(None, (_what_is_wrong(tree, key) for key in wrong_keys)), one_line(error))


def choices_of(group: str) -> list[str]:
    """Names of the files in a folder of conf/."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def composing_errors() -> tuple[type[Exception], ...]:
    """What Hydra and OmegaConf raise about overrides: a TypeError about indices, a ValueError about choices."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return HydraException, OmegaConfBaseException, ValueError, TypeError, OSError


def _what_is_wrong(tree: Any, key: str) -> str:
    """Why a key cannot be set, in a composed configuration; empty if it is there."""
    node, path = tree, ""
    for name in key.split("."):
        if isinstance(node, list):
            known = {str(i): item for i, item in enumerate(node)}
        elif isinstance(node, Mapping):
            known = {str(one): node[one] for one in node if one not in HYDRA_KEYS}
        else:
            return f"{path} is a single value, it has no {name}"
        here = f"{path}.{name}" if path else name
        if name not in known:
            takes = _parameters(node, here)
            if not known and "_target_" not in node:
                return f"{path} has keys of its own: put +{key}=..."
            if name in takes:
                return f"{here} has its default: put +{key}=... to set it"
            if deeper := next(_keys_ending_in(name, node, path), RESULTS_FOLDER.get(here)):
                return f"{here} is not a setting; did you mean {deeper}?"
            return unknown(here, list(dict.fromkeys([*known, *takes])), path)
        node, path = known[name], here
    return f"{key} has keys of its own: put +{key}.KEY=..., one at a time" if isinstance(node, Mapping) else ""


def _parameters(node: Any, path: str) -> list[str]:
    """Those with a default of what a node's target calls."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return []
    parameters = signature(str(node["_target_"]), path).values()
    return [one.name for one in parameters if one.default is not one.empty]


def _keys_ending_in(name: str, node: Any, path: str) -> Iterator[str]:
    """Dotted keys further down that have this last part."""
    items = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, Mapping) else ()
    for key, item in items:
        here = f"{path}.{key}" if path else str(key)
        if key == name:
            yield here
        elif key != "hydra":
            yield from _keys_ending_in(name, item, here)


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
        if gone := re.search(r"Interpolation key '(.+?)' not found", str(error)):
            raise ConfigError(f"{gone[1]} must be given, it was taken out of the configuration") from error
        raise ConfigError(one_line(error)) from error
    named = hydra_config.runtime.choices
    for group in container:
        if group not in named and isinstance(container[group], Mapping) and (conf_dir() / str(group)).is_dir():
            raise ConfigError(f"{group} must be the name of one file in conf/{group}/; -m {group}=A,B compares two")
    container["choices"] = {str(group): str(named[group]) for group in sorted(named) if group in container}
    if named.get("experiment"):
        _check_experiment(str(named["experiment"]), container)
    return {str(key): value for key, value in container.items()}


def _check_experiment(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a choice that lacks a setting of the experiment; name the choice that the experiment is made for."""
    from omegaconf import OmegaConf

    file: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "experiment" / f"{name}.yaml"))
    for line in file["defaults"]:
        for override, made_for in line.items():
            group = override.removeprefix("override /")
            if "_target_" not in config.get(group, {}):
                continue
            takes = signature(str(config[group]["_target_"]), group)
            for key in file.get(group, {}):
                if key not in takes:
                    raise ConfigError(
                        f"experiment={name} sets {group}.{key}, which {group}={config['choices'][group]} "
                        f"does not have; it is made for {group}={made_for}"
                    )


def make(node: Any, path: str, trusted: tuple[str, ...] = (), contract: type | None = None, **given: Any) -> Any:
    """Instantiate a node and all inside it, after checking every key and plain value against the constructor.

    Parameters
    ----------
    node : dict
        With a ``_target_``.
    path : str
        Where it stands in the configuration, for messages.
    trusted : tuple of str
        Further packages whose targets are allowed.
    contract : type or None
        What its class must derive from or, of a Protocol, do.
    given : Any
        Objects that the program adds and calls a ``_partial_`` with; those it does not take are left out. The node must
        not set them.

    Raises
    ------
    ConfigError
    """
    check(node, path, trusted)
    if contract is not None:
        check_contract(node, path, contract)
    takes = signature(node["_target_"], path)
    if taken := [key for key in node if key in given and key in takes]:
        raise ConfigError(f"{path}.{taken[0]} is not a setting: the run works it out from its other parts")
    is_maker = node.get("_partial_") and not given
    added = {key: value for key, value in given.items() if key in takes}
    return _built({**node, "_partial_": is_maker}, path, **added)


def _built(node: Any, path: str, **given: Any) -> Any:
    """What a node describes, from the inside out; Hydra's ``instantiate`` would take 40 ms a run for its copies."""
    if isinstance(node, list):
        return [_built(item, f"{path}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    values = {key: _built(value, f"{path}.{key}") for key, value in node.items() if key not in HYDRA_KEYS}
    if "_target_" not in node:
        return values
    try:
        maker = partial(find(node["_target_"], path), **values, **given)
        return maker if node.get("_partial_") else maker()
    except Exception as error:
        raise ConfigError(one_line(error, path)) from error


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
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{group}={name} is not a choice{hint} (there are {', '.join(options)})"
    if match := re.search(r"Error parsing override '(.*?)'", text):
        return f"{match[1]!r} is not of the form key=value"
    if match := re.search(r"LexerNoViableAltException: (.*)", text):
        return f"{match[1]!r} is not of the form key=value; unusual characters need quotes: key='\"value\"'"
    if match := re.search(r"node `(.+?)` is not a container", text):
        return f"{match[1]} must be a part with settings of its own, got a single value"
    if match := re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.+)", text):
        return f"{path}: {match[1]} must be given"
    if match := re.search(r"missing required argument ('.+?')", text):  # as compiled code says it
        return f"{path}: {match[1]} must be given"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if match := re.search(r"In '.*?': Could not find '(.+?)'", text):
        return f"{match[1].replace('/', '=', 1)} is not a choice"
    if "Missing mandatory value" in text and (match := re.search(r"full_key: (\S+)", text)):
        return f"{match[1]} must be given, for example {match[1]}=..."
    if (match := re.search(r"full_key: (\S+)", text)) and match[1] not in text.splitlines()[0]:
        return f"{match[1]}: {text.splitlines()[0]}"
    cause = error.__cause__ or error
    first = str(cause).strip().splitlines()
    return f"{path}: {first[0] if first else type(cause).__name__}" if path else (first[0] if first else repr(cause))

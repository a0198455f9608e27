"""Configuration becomes objects, once: compose the files, set what was overridden, say what is wrong, instantiate.

Hydra reads the files and puts together what is chosen; settings are set here, where the constructors' signatures are
known. So a setting that a class has can be set whether or not its YAML names it, every one is in the configuration with
its value, and what is wrong is said of the key that the user wrote.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sim.check import (
    HYDRA_KEYS,
    PACKAGES,
    as_written,
    check,
    check_value,
    cut_short,
    defaults,
    find,
    inner,
    is_open,
    is_text,
    not_a_setting,
    signature,
    unknown,
)
from sim.engine_args import expanded
from sim.errors import ConfigError, SimError
from sim.override import Override, argument, as_text
from sim.resolvers import register
from sim.spec.fleet import OWN, POOLS

RESULTS_FOLDER = dict.fromkeys(("out", "output", "out_dir", "output_dir", "folder"), "hydra.run.dir")
"""What the folder of results is called elsewhere."""
GRID = "grid"
OF_POOL = re.compile(rf"fleet\.({'|'.join(POOLS)})\.((?:{'|'.join(OWN)})(?:\..+)?)")
MAY_BE_NONE = ("experiment", "tiers")
HYDRAS = re.compile(
    r"hydra\.(run\.dir|sweep\.(dir|subdir)|searchpath|mode|sweeper\..+|launcher\..+)|hydra/(sweeper(/\w+)?|launcher)"
)
"""Settings of Hydra's own that mean something here. Callbacks and logging, which name code of any kind, are none."""


def conf_dir() -> Path:
    """The YAML files: installed inside the package, in a checkout beside it."""
    installed = Path(__file__).resolve().parent / "conf"
    return installed if installed.is_dir() else installed.parent.parent / "conf"


def choices_of(group: str) -> list[str]:
    """Names of the files in a folder of conf/."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def compose(
    overrides: Sequence[str | Override], config_name: str = "config", groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Configuration from the YAML files and overrides, as plain containers.

    Under ``choices`` it names the file chosen for each group, which Hydra's own configuration knows. ``groups`` are
    those that are chosen from, all folders of conf/ if not given.

    Raises
    ------
    ConfigError
        In one line, naming the key or choice that is not there and the nearest that is.
    """
    overrides, own = _of_pools(overrides)
    chosen, settings = _sorted(overrides, groups)
    tree, choices = deepcopy(_base(tuple(chosen), config_name))
    is_trusted = [one for one in settings if one.key == "trusted_packages"]
    if tree.get("trusted_packages") and not is_trusted:
        raise ConfigError("trusted_packages is taken from the command line alone, not from a file")
    for one in is_trusted:
        tree["trusted_packages"] = one.value
    trusted = trusted_packages(tree)
    settings.sort(key=lambda one: not one.key.endswith("_target_"))  # first what is set, then how
    n_classes = sum(one.key.endswith("_target_") for one in settings)
    for i, one in enumerate(settings):
        if i == n_classes:
            _complete(tree, "", trusted)
        if isinstance(one.value, Path):
            node = tree[one.key] = _file(one.key, one.value)
            choices[one.key] = node["name"] if one.value.suffix == ".json" else one.value.stem
        elif one not in is_trusted:
            _set(tree, one, trusted)
    _complete(tree, "", trusted)
    _serve_as_measured(tree, {one.key for one in settings})
    config = _resolved(tree, [one.key for one in settings if one.is_removal])
    if "_target_" not in config:
        config["choices"] = {group: str(name) for group, name in sorted(choices.items()) if group in config}
    for pool, theirs in own.items():
        _give(config, pool, overrides, theirs)
    if choices.get("experiment"):
        _check_experiment(str(choices["experiment"]), config, trusted)
    return config


def _of_pools(overrides: Sequence[str | Override]) -> tuple[list[Override], dict[str, list[Override]]]:
    """Overrides of the run, and by pool those of what it has of its own: ``fleet.prefill.hardware=h100``."""
    run: list[Override] = []
    own: dict[str, list[Override]] = {}
    for one in overrides:
        read = argument(one) if isinstance(one, str) else one
        if found := OF_POOL.fullmatch(read.key):
            own.setdefault(found[1], []).append(read._replace(key=found[2]))
        else:
            run.append(read)
    return run, own


def _give(config: dict[str, Any], pool: str, overrides: list[Override], theirs: list[Override]) -> None:
    """Compose what a pool has of its own: all that the run has, and its own overrides on top.

    Raises
    ------
    ConfigError
    """
    node = config.get("fleet")
    if not isinstance(node, dict) or pool not in node:
        raise ConfigError(f"fleet.{pool}.{theirs[0].key} needs a fleet with a {pool} pool: fleet=pd")
    try:
        shared = [one for one in overrides if one.key.partition(".")[0] not in ("fleet", "experiment")]
        its = compose([*shared, *theirs])
    except ConfigError as error:
        raise ConfigError(f"fleet.{pool}: {error}") from None
    node[pool]["own"] = {group: its[group] for group in (*OWN, "choices") if its[group] != config[group]}


def trusted_packages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The user's own packages whose classes may be named.

    Raises
    ------
    ConfigError
    """
    trusted = config.get("trusted_packages", [])
    if not isinstance(trusted, list) or not all(isinstance(name, str) for name in trusted):
        raise ConfigError(f"trusted_packages must be a list of names, got {as_written(trusted)}")
    return tuple(trusted)


def hydra_settings(overrides: Sequence[str | Override], config_name: str = "config") -> Any:
    """Hydra's own part of the configuration, under ``hydra``: where results go, sweepers, launchers.

    Raises
    ------
    ConfigError
    """
    from omegaconf import OmegaConf

    return OmegaConf.masked_copy(_hydra(tuple(_sorted(overrides)[0]), config_name), ["hydra"])


def grid_of(overrides: Sequence[str], config_name: str = "config") -> dict[str, Any] | None:
    """What the chosen experiment compares, as its file has it; None where it says nothing of that.

    Raises
    ------
    ConfigError
    """
    from omegaconf import OmegaConf

    cfg = _hydra(tuple(_sorted(overrides)[0]), config_name)
    if GRID not in cfg:
        return None
    node: Any = OmegaConf.to_container(cfg[GRID]) if OmegaConf.is_config(cfg[GRID]) else cfg[GRID]
    if not isinstance(node, dict):
        raise ConfigError(f"{GRID} must have axes, got {as_written(node)}")
    return {str(key): value for key, value in node.items()}


def check_choices(overrides: Sequence[str]) -> None:
    """Refuse names of files that do not exist.

    Raises
    ------
    ConfigError
    """
    _sorted(overrides)


def _sorted(
    overrides: Sequence[str | Override], groups: Sequence[str] | None = None
) -> tuple[list[str], list[Override]]:
    """What Hydra is to put together, and what is set afterwards."""
    chosen, settings = [], []
    all_given = expanded([argument(one) if isinstance(one, str) else one for one in overrides])
    has_more_files = any(one.key == "hydra.searchpath" for one in all_given)
    for one in all_given:
        group = one.key.partition("@")[0]
        if one.key.startswith("hydra"):
            if not HYDRAS.fullmatch(one.key):
                raise ConfigError(
                    f"{one.key} is not a setting; of Hydra's there are hydra.run.dir, hydra.sweep.dir, "
                    "hydra.searchpath, and for sweeps hydra/launcher, hydra/sweeper and their settings"
                )
            chosen.append(_for_hydra(one))
        elif not (group in groups if groups is not None else (conf_dir() / group).is_dir()) or (
            isinstance(one.value, Mapping) and "_target_" in one.value
        ):
            settings.append(one)
        elif one.is_removal:
            chosen.append(f"~{one.key}")
        else:
            value = as_text(one.text) if one.text is not None and isinstance(one.value, str) else one.value
            if isinstance(value, str) and (path := _own(group, value)):
                settings.append(one._replace(key=group, value=path))
            else:
                chosen.append(f"{one.key}={_choice(group, value, has_more_files)}")
    return chosen, settings


def _for_hydra(one: Override) -> str:
    from sim.override import for_sweep, quoted

    if one.is_removal:
        return f"~{one.key}"
    if one.key.endswith(".dir"):
        value = as_text(one.text) if one.text is not None else str(one.value)
        if not value or value == "null":
            raise ConfigError(f"{one.key} must be a folder to write to, got nothing")
        return f"{one.key}={quoted(value) if '$' not in value else value}"
    text = one.text if one.text is not None else quoted(one.value) if isinstance(one.value, str) else str(one.value)
    is_new = "." in one.key and one.key != "hydra.searchpath"  # which Hydra looks for under that very name
    return for_sweep(f"{'++' if is_new else ''}{one.key}={text}")


def _choice(group: str, value: Any, has_more_files: bool) -> str:
    """The name of a file in a group's folder."""
    names = choices_of(group)
    if value is None and group in MAY_BE_NONE:
        return "null"
    if isinstance(value, list) or (isinstance(value, str) and "," in value):
        raise ConfigError(f"{group} must be the name of one file in conf/{group}/; -m {group}=A,B compares two")
    if not isinstance(value, str):
        raise ConfigError(f"{group} must be one of {', '.join(names)}, got {as_written(value)}")
    if value in names or (has_more_files and re.fullmatch(r"[\w.-]+", value)):
        return value
    near = get_close_matches(value, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"{group}={cut_short(value)} is not a choice{hint} (there are {', '.join(names)})")


@lru_cache(maxsize=64)
def _hydra(chosen: tuple[str, ...], config_name: str) -> Any:
    """What Hydra composes of the files."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose(config_name, list(chosen), return_hydra_config=True)
    except Exception as error:  # whatever Hydra says, of whatever class, is about what was chosen
        for one in chosen:
            if one.startswith("hydra/") and one.replace("=", "/") in str(error):
                raise ConfigError(
                    f"{one} is not installed; kvtwin[sweep] has joblib and submitit, kvtwin[ray] and kvtwin[optuna] "
                    "have these"
                ) from error
        raise ConfigError(one_line(error)) from error


@lru_cache(maxsize=64)
def _base(chosen: tuple[str, ...], config_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chosen files together, before anything is set, and what was chosen."""
    from omegaconf import OmegaConf

    cfg = _hydra(chosen, config_name)
    if GRID in cfg:  # what else an experiment compares is no setting of a point
        from omegaconf import open_dict

        cfg = deepcopy(cfg)
        with open_dict(cfg):
            del cfg[GRID]
    choices = {str(group): name for group, name in cfg.hydra.runtime.choices.items() if name}
    masked = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    tree: Any = OmegaConf.to_container(masked)
    return tree, choices


def _own(group: str, value: str) -> Path | None:
    """The file of a choice of the user's own: a YAML or, of a model, a ``config.json`` or the folder it is in."""
    if value.endswith((".yaml", ".yml")):
        return Path(value)
    if group != "model" or value in choices_of(group):
        return None
    from sim.spec.huggingface import config_file

    return config_file(str(Path(value).expanduser()))


def _file(group: str, path: Path) -> Any:
    """A choice of the user's own, from its file."""
    import yaml  # type: ignore[import-untyped]

    if path.suffix == ".json":
        from sim.spec.huggingface import model_node

        return model_node(path)
    try:
        node = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = error.strerror if isinstance(error, OSError) else one_line(error)
        raise ConfigError(f"{group}={path}: {words}") from None
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{group}={path} must hold settings with a _target_, as conf/{group}/{choices_of(group)[0]}.yaml"
        )
    return node


def _serve_as_measured(tree: dict[str, Any], given: Collection[str]) -> None:
    """Take the number formats of a profile of one's own that knows but one, unless they were set.

    Raises
    ------
    ProfileError
        If the file cannot be read.
    """
    cost, model = tree.get("cost"), tree.get("model")
    name = cost.get("profile") if isinstance(cost, dict) else None
    if not isinstance(model, dict) or not isinstance(name, str) or not name.endswith(".json"):
        return
    from sim.profile import read_profile

    subject = read_profile(name).subject
    for measured, setting in (("dtype", "weight_dtype"), ("kv_dtype", "kv_dtype")):
        if measured in subject and f"model.{setting}" not in given:
            model[setting] = subject[measured]


def _complete(node: Any, path: str, trusted: tuple[str, ...]) -> None:
    """Give every part the settings that its YAML leaves at their default, so that all can be seen and set.

    But for what the run calls with further arguments (``_partial_``): which of its parameters are settings, its YAML
    alone says.
    """
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in [*items]:
        _complete(item, f"{path}.{key}" if path else str(key), trusted)
    if isinstance(node, dict) and isinstance(node.get("_target_"), str) and not node.get("_partial_"):
        try:
            known = defaults(node["_target_"], path, trusted)
        except ConfigError:
            return  # said when it is checked
        for key, value in known.items():
            node.setdefault(key, deepcopy(value))


def _set(tree: dict[str, Any], one: Override, trusted: tuple[str, ...]) -> None:
    """Set one value, or take it out, where it stands in the tree.

    Raises
    ------
    ConfigError
        If nothing there has such a setting, or it takes no such value.
    """
    *owners, last = one.key.split(".")
    node, path, annotation = tree, "", None
    for name in owners:
        node, path, annotation = _step(node, name, path, annotation, trusted)
    if one.is_removal:
        if last not in _children(node):
            raise ConfigError(_unknown(node, last, path))
        del node[int(last) if isinstance(node, list) else last]
        return
    if last in HYDRA_KEYS and isinstance(node, dict) and path:
        value = as_text(one.text) if last == "_target_" and one.text is not None else one.value
        here = f"{path}.{last}"
        if type(value) is not (str if last == "_target_" else bool):
            raise ConfigError(
                f"{here} must be {'a name' if last == '_target_' else 'true or false'}, got {as_written(value)}"
            )
        node[last] = value
        return
    old, here, annotation = _step(node, last, path, annotation, trusted)
    value = one.value
    if annotation is not None:
        if one.text is not None and is_text(annotation) and value is not None:
            value = as_text(one.text)
        if "${" not in repr(value):
            check_value(value, here, annotation, trusted)
    elif isinstance(old, dict) and "_target_" in old and not isinstance(value, dict):
        raise ConfigError(f"{here} must be a part with settings of its own, got {as_written(value)}")
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


def _children(node: Any) -> dict[str, Any]:
    """What is below a node, by name."""
    if isinstance(node, list):
        return {str(i): item for i, item in enumerate(node)}
    return {str(key): item for key, item in node.items()} if isinstance(node, Mapping) else {}


def _step(node: Any, name: str, path: str, annotation: Any, trusted: tuple[str, ...]) -> tuple[Any, str, Any]:
    """One name further down: what is there, its path, and what a signature says of it."""
    here = f"{path}.{name}" if path else name
    if isinstance(node, str) and (copied := re.fullmatch(r"\$\{([\w.]+)\}", node)):
        raise ConfigError(f"{path} repeats {copied[1]}: set {copied[1]}.{name}")
    if not isinstance(node, dict | list):
        raise ConfigError(f"{path} is a single value, it has no {name}")
    below: Any = None
    is_known = name in _children(node) and name not in HYDRA_KEYS
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        takes = signature(node["_target_"], path, trusted).parameters
        if name in takes:
            is_known, below = True, takes[name].annotation
    elif annotation is not None:
        below = inner(annotation, name)
        is_known = is_known or (isinstance(node, dict) and is_open(annotation))
    if not is_known:
        raise ConfigError(_unknown(node, name, path))
    if isinstance(node, dict) and node.get(name) is None and below is not None and is_open(below):
        node[name] = {}  # names of the user's own go there
    child = _children(node).get(name)
    return child, here, below


def _unknown(node: Any, name: str, path: str) -> str:
    """Message for a name that is not there: the nearest that is, here or further down."""
    here = f"{path}.{name}" if path else name
    known = [key for key in _children(node) if key not in HYDRA_KEYS]
    if deeper := next(_keys_ending_in(name, node, path), RESULTS_FOLDER.get(here)):
        return f"{here} is not a setting; did you mean {deeper}?"
    return unknown(here, known, path)


def _keys_ending_in(name: str, node: Any, path: str) -> Iterator[str]:
    """Dotted keys further down that have this last part."""
    for key, item in _children(node).items():
        here = f"{path}.{key}" if path else key
        if key == name:
            yield here
        else:
            yield from _keys_ending_in(name, item, here)


def _missing(node: Any, path: str) -> Iterator[str]:
    """Keys that must be given and are not; `OmegaConf.missing_keys` takes as long as all else here."""
    if node == "???":
        yield path
    for key, item in _children(node).items():
        yield from _missing(item, f"{path}.{key}" if path else key)


def _resolved(tree: dict[str, Any], removed: list[str]) -> dict[str, Any]:
    """Every reference replaced by what it names."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    try:
        cfg = OmegaConf.create(tree)
        if missing := sorted(_missing(tree, "")):
            raise ConfigError(f"{missing[0]} must be given, for example {missing[0]}=...")
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, SimError):
            raise
        if removed:
            raise ConfigError(f"{removed[0]} must be given, it was taken out of the configuration") from error
        where = getattr(error, "full_key", None)
        raise ConfigError(f"{where}: {one_line(error)}" if where else one_line(error)) from error
    return {str(key): value for key, value in config.items()}


def _check_experiment(name: str, config: Mapping[str, Any], trusted: tuple[str, ...]) -> None:
    """Refuse a choice that lacks a setting of the experiment; name the choice that the experiment is made for."""
    import yaml

    path = conf_dir() / "experiment" / f"{name}.yaml"
    file = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for line in file.get("defaults", []):
        for override, made_for in line.items() if isinstance(line, dict) else ():
            group = override.removeprefix("override /")
            if not isinstance(config.get(group), Mapping) or "_target_" not in config[group]:
                continue
            takes = signature(str(config[group]["_target_"]), group, trusted).parameters
            if lacking := [key for key in file.get(group, {}) if key not in takes]:
                raise ConfigError(
                    f"experiment={name} sets {group}.{lacking[0]}, which {group}={config['choices'][group]} "
                    f"does not have; it is made for {group}={made_for}"
                )


def make(node: Any, path: str, trusted: tuple[str, ...] = (), contract: Any = None, **given: Any) -> Any:
    """Instantiate a node and all inside it, after checking every key and value against the constructors.

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
    check(node, path, trusted, contract)
    takes = signature(node["_target_"], path, trusted).parameters
    if taken := [key for key in node if key in given and key in takes]:
        raise ConfigError(not_a_setting(f"{path}.{taken[0]}"))
    is_maker = node.get("_partial_") and not given
    added = {key: value for key, value in given.items() if key in takes}
    missing = [
        key
        for key, one in takes.items()
        if one.default is one.empty and key not in node and key not in added and not is_maker
    ]
    if missing:
        raise ConfigError(f"{path}.{missing[0]} must be given")
    return _built({**node, "_partial_": is_maker}, path, trusted, **added)


def _built(node: Any, path: str, trusted: tuple[str, ...], **given: Any) -> Any:
    """What a node describes, from the inside out; Hydra's ``instantiate`` would take 40 ms a run for its copies."""
    if isinstance(node, list):
        return [_built(item, f"{path}.{i}", trusted) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    values = {key: _built(value, f"{path}.{key}", trusted) for key, value in node.items() if key not in HYDRA_KEYS}
    if "_target_" not in node:
        return values
    maker = partial(find(node["_target_"], path, (*PACKAGES, *trusted)), **values, **given)
    try:
        return maker if node.get("_partial_") else maker()
    except SimError:
        raise
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror or error}") from error
    except Exception as error:  # of a class of the user's own
        raise ConfigError(f"{path}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The first line of what went wrong."""
    lines = str(error).strip().splitlines() or str(error.__cause__ or "").strip().splitlines()
    return lines[0] if lines else type(error).__name__

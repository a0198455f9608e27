"""A sweep: points that Hydra's sweepers choose and its launchers run, here or elsewhere; one table of them at the end.

A launcher carries a point as the list of what was set; its configuration is composed where it runs, once. Its results
lie in a folder named by the hash of that configuration and are complete or absent: a sweep that was killed and is
started again in the same folder finds what is done, and its table is the same to the byte.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from omegaconf import DictConfig, OmegaConf, open_dict

from sim.check import as_written, find
from sim.config import check_choices, compose, conf_dir, hydra_settings, one_line
from sim.errors import ConfigError, InvariantError, SimError
from sim.experiment import Grid, read_grid
from sim.override import argument, each, for_sweep, has_values
from sim.report.files import config_hash, replacing
from sim.run import frozen_heap, versions
from sim.task import do_task, shown, unmade_if_empty

PLUGINS, SAMPLERS = ("hydra", "hydra_plugins"), ("optuna",)
DONE, RECORDS = "point.json", ".points"
QUIET = {"version": 1, "root": None, "disable_existing_loggers": False}
"""Hydra's logging: none."""


class Ended(NamedTuple):
    """How a point ended."""

    number: int
    overrides: list[str]
    folder: str | None  # inside the sweep's; None where there was no configuration to name it by
    error: str | None
    objective: float | list[float] | None = None
    was_done: bool = False
    variants: dict[str, str] | None = None  # of an experiment, by axis


class Points(ConfigLoaderImpl):
    """In place of Hydra's loader: a point is what was set, not yet a configuration.

    Hydra composes every point twice, in the process that launches it, for a fifth of a second each time.
    """

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Hydra's own part of the configuration, with what was set beside it."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        config = deepcopy(master_config)
        parsed = OverridesParser.create().parse_overrides(sweep_overrides)
        names = config.hydra.job.config.override_dirname
        with open_dict(config.hydra):
            config.hydra.overrides.task = list(sweep_overrides)
            config.hydra.job.override_dirname = get_overrides_dirname(
                parsed, names.exclude_keys, names.item_sep, names.kv_sep
            )
        return config


@dataclass(frozen=True, slots=True)
class Job:
    """What a launcher calls for every point, in whatever process."""

    sweep: str  # the sweep's folder
    token: str  # names the sweep: others may have used the folder

    def __call__(self, _: Any) -> Any:
        """Compose, do, record; the objective, NaN where the point failed."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        overrides = [str(one) for one in hydra.overrides.task]
        files = [str(one) for one in hydra.overrides.hydra if "hydra.searchpath" in str(one)]
        folder = Path(hydra.runtime.output_dir)
        try:
            ended = run_point(overrides, files, int(hydra.job.num), folder, Path(self.sweep))
        except Exception as error:  # a bug of ours: the traceback is wanted, from whatever process
            traceback.print_exc()
            raise InvariantError(f"job {hydra.job.num}: {error!r}") from error
        records = Path(self.sweep) / RECORDS
        with suppress(OSError):  # a full disk: a point without a record has failed
            records.mkdir(parents=True, exist_ok=True)
            with replacing(records / f"{self.token}-{ended.number}.json") as path:
                path.write_text(json.dumps(ended._asdict()), encoding="utf-8")
        return math.nan if ended.error is not None else ended.objective


def run_point(overrides: list[str], files: list[str], number: int, folder: Path, sweep: Path) -> Ended:
    """One point of a sweep, unless it is done already."""
    from rich.console import Console

    where = None
    try:
        with frozen_heap():
            config = compose([*files, *overrides])
            key = point_key(config)
            if folder == sweep.absolute():
                folder = folder / key[:16]
            where = os.path.relpath(folder, sweep)
            written = folder / DONE
            if (done := _read(written)) and done["key"] == key:
                return Ended(number, overrides, where, None, done["objective"], True)
            with unmade_if_empty(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for name in (DONE, "manifest.json"):  # of another configuration, or another version
                    (folder / name).unlink(missing_ok=True)
                for stale in folder.glob(".*.[0-9]*"):  # half a file of a process that was killed
                    stale.unlink(missing_ok=True)
                said = StringIO()
                console = Console(file=said, width=Console().width)
                objective = do_task(config, shown(folder), console, [*files, *overrides])
                print(in_a_line(number, overrides, folder) or said.getvalue(), end="", flush=True)
                with replacing(written) as path:
                    path.write_text(json.dumps({"key": key, "objective": objective}) + "\n", encoding="utf-8")
            return Ended(number, overrides, where, None, objective)
    except InvariantError:
        raise
    except (SimError, OSError) as error:
        words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        return Ended(number, overrides, where, words)


def in_a_line(number: int, overrides: list[str], folder: Path) -> str:
    """A point that was simulated, for a terminal that shows many; nothing where another task was done."""
    from sim.report.terminal import headline

    try:
        numbers = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return f"{number}: {' '.join(overrides)}: {headline(numbers)}\n"


def point_key(config: Mapping[str, Any]) -> str:
    """Names what a point computes: its settings, the program, and the state of the files that it reads."""
    files = {}
    for text in sorted(_texts(config)):
        if os.sep in text or "." in text:
            try:
                state = os.stat(text)
            except (OSError, ValueError):
                continue
            files[text] = [state.st_size, state.st_mtime_ns]
    return sha256(json.dumps([config_hash(config), dict(versions()), files], sort_keys=True).encode()).hexdigest()


def _texts(node: Any) -> set[str]:
    if isinstance(node, str):
        return {node}
    items = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return set().union(*(_texts(item) for item in items))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"key", "objective"} <= found.keys() else None


def run_sweep(arguments: list[str]) -> bool:
    """Run all points; print and write their comparison. Whether one failed.

    Raises
    ------
    ConfigError
        If there is nothing to sweep over, or a sweeper or launcher cannot be had.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    hydras = [one for one in arguments if argument(one).key.startswith("hydra")]
    grid = read_grid(arguments)
    rest = [one for one in arguments if one not in hydras]
    if grid is not None:
        grid, rest = grid.narrowed(rest)
    swept = [for_sweep(one) for one in rest]
    alone = [each(one) for one in swept]
    nothing = f"nothing to sweep over in {' '.join(['-m', *swept])}: give values separated by commas"
    if not all(alone):
        raise ConfigError(nothing)
    for values in alone:
        check_choices([*hydras, *values])
    master = hydra_settings([*hydras, *(values[0] for values in alone)])
    settings = master.hydra
    check_plugins(settings)
    if grid is not None and not _is_grid(settings):
        raise ConfigError("an experiment with a grid lists its points itself: it goes without hydra/sweeper")
    if not (grid or any(map(has_values, swept)) or settings.sweeper.get("params") or not _is_grid(settings)):
        raise ConfigError(nothing)
    sweep, token = Path(str(settings.sweep.dir)), os.urandom(6).hex()
    with open_dict(settings):
        settings.sweep.dir, settings.callbacks = str(sweep), {}
        settings.job_logging, settings.hydra_logging = QUIET, QUIET
    variants: list[dict[str, str]] = []
    with _swept_folder(sweep):
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                search_path = GlobalHydra.instance().config_loader().get_search_path()
                context = HydraContext(config_loader=Points(search_path), callbacks=Callbacks())
                job = Job(str(sweep.absolute()), token)
                if grid is None:
                    sweeper = Plugins.instance().instantiate_sweeper(
                        hydra_context=context, task_function=job, config=master
                    )
                    sweeper.sweep(arguments=swept)
                else:
                    launcher = Plugins.instance().instantiate_launcher(
                        hydra_context=context, task_function=job, config=master
                    )
                    variants = launch(launcher, grid, swept, settings.sweeper)
        except (SimError, OSError):
            raise
        except Exception as error:  # not of a point, which raises InvariantError: of a sweeper or a launcher
            raise ConfigError(one_line(error)) from error
        finally:
            ended = _records(sweep, token)
        if grid is not None:
            ended = [one._replace(variants=variants[one.number]) for one in ended]
        _summarise(sweep, ended, grid)
    is_lost = [one.number for one in ended] != [*range(len(ended))]
    return is_lost or not ended or any(one.error is not None for one in ended)


def launch(launcher: Any, grid: Grid, swept: list[str], sweeper: Any) -> list[dict[str, str]]:
    """Run all points of a grid, each with every combination of what is swept over besides; the points' variants."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*params, *swept])
    (others,) = BasicSweeper.split_arguments(parsed, None)
    several = [one.get_key_element() for one in parsed if one.is_sweep_override()]
    points = [
        (names | dict(one.split("=", 1) for one in other if one.split("=", 1)[0] in several), [*settings, *other])
        for names, settings in grid.points()
        for other in others
    ]
    for one in launcher.launch([overrides for _, overrides in points], initial_job_idx=0):
        _ = one.return_value  # raises what a bug of ours raised
    return [names for names, _ in points]


def check_plugins(settings: Any) -> None:
    """Refuse sweepers and launchers that are no plugins of Hydra's, and what they would build of anything else.

    Raises
    ------
    ConfigError
    """
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper

    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # of optuna 2.10, which asks for that version itself

    for name, contract in (("sweeper", Sweeper), ("launcher", Launcher)):
        node: Any = settings[name]
        node = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
        path, target = f"hydra.{name}", node.get("_target_") if isinstance(node, dict) else None
        found = find(target, f"{path}._target_", PLUGINS) if isinstance(target, str) else None
        if not isinstance(found, type) or not issubclass(found, contract):
            raise ConfigError(f"{path}._target_ must be a {name} of Hydra's, got {as_written(target)}")
        for key, value in node.items():
            for below, inner in _targets(value, f"{path}.{key}"):
                if not isinstance(find(inner, below, SAMPLERS), type):
                    raise ConfigError(f"{below} must be a class, got {as_written(inner)}")


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key == "_target_":
            yield f"{path}.{key}", str(value)
        yield from _targets(value, f"{path}.{key}")


def _is_grid(settings: Any) -> bool:
    """Whether points are all combinations of what is given, so that something must be given."""
    return str(settings.sweeper._target_).endswith(".BasicSweeper")


@contextmanager
def _swept_folder(sweep: Path) -> Iterator[None]:
    """A sweep's folder; unmade if none of its points left anything."""
    with unmade_if_empty(sweep):
        try:
            yield
        finally:
            (sweep / "multirun.yaml").unlink(missing_ok=True)  # Hydra's, of its own settings


def _records(sweep: Path, token: str) -> list[Ended]:
    """How the points of this sweep ended, in their order."""
    found = []
    for path in (sweep / RECORDS).glob(f"{token}-*.json"):
        found.append(Ended(**json.loads(path.read_text(encoding="utf-8"))))
        path.unlink()
    with suppress(OSError):  # another sweep in the same folder
        (sweep / RECORDS).rmdir()
    return sorted(found)


def _summarise(sweep: Path, ended: list[Ended], grid: Grid | None) -> None:
    """Compare the runs that finished, if there are two or more; draw the map of points that belong to one."""
    from rich.console import Console

    from sim.report.compare import compare
    from sim.report.crossover import FILE, write_map

    console = Console()
    folders = [sweep / name for name in dict.fromkeys(one.folder for one in ended if one.folder is not None)]
    runs = [folder for folder in folders if (folder / "manifest.json").is_file()]
    crossings = [folder for folder in folders if (folder / FILE).is_file()]
    if grid is not None and runs:
        from sim.report.matrix import Cell, write_matrix

        cells = [
            Cell(one.variants or {}, sweep / one.folder) for one in ended if one.folder and sweep / one.folder in runs
        ]
        console.print(write_matrix(cells, grid.title, grid.metrics, grid.note, sweep))
        console.print(f"Page: {sweep / 'matrix.html'}", soft_wrap=True)
    elif len(runs) > 1:
        console.print(compare(runs, sweep))
        console.print(f"Page: {sweep / 'compare.html'}", soft_wrap=True)
    if len(crossings) > 1:
        console.print(write_map(crossings, sweep))
        console.print(f"Page: {sweep / 'swap_or_recompute.html'}", soft_wrap=True)
    if any(folder.is_dir() for folder in folders):
        rows = [one._asdict() for one in ended]
        for row in rows:
            del row["was_done"]
            if row["variants"] is None:
                del row["variants"]
        with replacing(sweep / "points.json") as path:
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    said: dict[str, list[int]] = {}
    for one in ended:
        if one.error is not None:
            said.setdefault(one.error, []).append(one.number)
    for words, numbers in said.items():
        which = f"job {', '.join(map(str, numbers[:5]))}" + (f" and {len(numbers) - 5} more" if numbers[5:] else "")
        print(
            f"kvtwin: {'all jobs' if len(numbers) == len(ended) > 1 else which}: {words}", file=sys.stderr, flush=True
        )
    n_failed, n_done = sum(one.error is not None for one in ended), sum(one.was_done for one in ended)
    words = f"{len(ended)} points" + (f", {n_done} done before" if n_done else "")
    console.print(words + (f", {n_failed} failed" if n_failed else ""), highlight=False)

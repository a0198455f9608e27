"""The task ``simulate``: one run with its report, or several that differ in their random numbers alone."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sim.check import unknown
from sim.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def run_and_report(
    *,
    config: Mapping[str, Any],
    out: Path,
    console: "Console",
    write: Literal["all", "tables", "summary"] = "all",
    objective: str | list[str] = "request_goodput",
    replications: int = 1,
    scrape_s: float | None = None,
) -> float | list[float] | None:
    """Simulate, write the results into ``out``, print one table.

    Parameters
    ----------
    write : {"all", "tables", "summary"}
        All files; without the page and the timeline, which take most of the disk; the numbers alone.
    objective : str or list of str
        Keys of ``summary.json``, dotted: what a sweep that optimises gets, the mean over replications.
    replications : int
        Runs, the first with the configuration's seed, the others with seeds that follow from it, so that configurations
        to be compared see the same random numbers. The report is the first one's; ``replications.json`` and its page
        have every number with its interval.
    scrape_s : float or None
        How often the replicas' gauges and counters are sampled, under vLLM's Prometheus names; None: not at all [s].

    Raises
    ------
    ConfigError
        If nothing was served; the results are written all the same.
    """
    import json

    from sim.build import Builder, contracts
    from sim.config import make, trusted_packages
    from sim.metrics import measure, summary, to_json
    from sim.metrics.replications import course, numbers_in
    from sim.report import write as write_results
    from sim.report.page import name_of
    from sim.report.replications import Replications, replication_table, write_replications
    from sim.report.terminal import table_of
    from sim.run import run

    if scrape_s is not None and not 1e-9 <= scrape_s < float("inf"):
        raise ConfigError(f"task.scrape_s must be > 0 and finite [s] or null, got {scrape_s!r}")
    slo = make(config["slo"], "slo", trusted_packages(config), contracts()["slo"])
    cost = Builder(config).cost if replications > 1 else None  # its tables serve all of them
    result = run(config, console=console, cost=cost)
    measures = measure(result, slo)
    numbers = json.loads(to_json(summary(result, slo, measures)))
    seeds = [replication_seed(config["seed"], i) for i in range(replications)]
    repeated: Replications | None = None
    if replications > 1 and len(result.requests):
        runs, courses = [numbers_in(numbers)], [course(result, measures)]
        for seed in seeds[1:]:
            other = run({**config, "seed": seed}, console=console, cost=cost)
            of_other = measure(other, slo)
            runs.append(numbers_in(summary(other, slo, of_other)))
            courses.append(course(other, of_other))
        repeated = Replications.of(seeds, runs, courses)
        write_replications(repeated, name_of(config), out)
    write_results(result, slo, out, measures, which=write, numbers=numbers, scrape_s=scrape_s)
    if write == "summary":
        console.print(f"{numbers['completed']:,} served: {out / 'summary.json'}", soft_wrap=True, highlight=False)
    else:
        console.print(table_of(numbers))
        if write == "all" and len(result.requests):
            from sim.capacity import could_hold

            if (said := could_hold(result)) is not None:
                console.print(said, soft_wrap=True, highlight=False)
        console.print(f"Report: {out / ('report.html' if write == 'all' else 'summary.json')}", soft_wrap=True)
    if repeated is not None:
        console.print(replication_table(repeated))
        console.print(f"Page: {out / 'replications.html'}", soft_wrap=True)
    keys = [objective] if isinstance(objective, str) else objective
    found = [number_of(numbers, key) for key in keys]
    if repeated is not None:
        found = [repeated.mean(key) for key in keys]
    if not len(result.requests):
        reasons = sorted(set(result.refusals.values()))
        raise ConfigError(f"no request was served: {reasons[0] if reasons else 'the scenario has none'}")
    if None in found:
        return None
    return found[0] if isinstance(objective, str) else [one for one in found if one is not None]


def replication_seed(seed: int, index: int) -> int:
    """The seed of one replication: the first has the run's own, and no two of different runs meet by counting on.

    Examples
    --------
    >>> replication_seed(7, 0), replication_seed(7, 1) == replication_seed(8, 0)
    (7, False)
    """
    if not index:
        return seed
    return int.from_bytes(sha256(f"replication {index} of {seed}".encode()).digest()[:8]) >> 1


def number_of(numbers: Mapping[str, Any], key: str) -> float | None:
    """A number of a summary by its dotted key; None where it has none.

    Raises
    ------
    ConfigError
        If the summary has no such key.
    """
    node: Any = numbers
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            known = list(node) if isinstance(node, Mapping) else []
            raise ConfigError(
                unknown(f"task.objective={key}", known).replace("is not a setting", "is not in summary.json")
            )
        node = node[name]
    if node is not None and (isinstance(node, bool) or not isinstance(node, int | float)):
        raise ConfigError(f"task.objective={key} must name a number of summary.json")
    return None if node is None else float(node)

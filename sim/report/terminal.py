"""What a run says on the terminal: one table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sim.metrics import Measures, Slo, measure, summary
from sim.record import Result
from sim.report.cache_facts import over_classes
from sim.report.pools import pool_rows
from sim.report.tier_figures import hits_by_tier, tier_words
from sim.report.verdict import overload, while_it_worked
from sim.report.words import count, duration, in_one_unit, objectives_words, percent, rate, requests

if TYPE_CHECKING:
    from rich.console import RenderableType

LATENCIES = {
    "TTFT": ("ttft_ms", "first token, engine"),
    "client TTFT": ("client_ttft_ms", "first token, client"),
    "TPOT": ("tpot_ms", "time per output token"),
    "ITL": ("itl_ms", "gap between tokens"),
    "E2EL": ("e2el_ms", "whole answer"),
}
KINDS = ("mean", "median", "p90", "p95", "p99")


def table(result: Result, slo: Slo, measures: Measures | None = None) -> "RenderableType":
    """The run's metrics as one table for a rich console."""
    return table_of(summary(result, slo, measures or measure(result, slo)))


def table_of(numbers: dict[str, Any]) -> "RenderableType":
    """The same from a summary, such as one read from ``summary.json``."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    latency = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    latency.add_column("latency")
    for heading in ("mean", "p50", "p90", "p95", "p99"):
        latency.add_column(heading, justify="right")
    latency.add_column("", style="dim")
    for name, (key, words) in LATENCIES.items():
        unit, cells = statistics(numbers, key)
        latency.add_row(Text(f"{name} [{unit}]"), *cells, words)  # what stands in brackets is markup elsewhere

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in fact_rows(numbers):
        facts.add_row(Text(name), Text(value))
    warned = [Text(f"! {warning}", style="yellow") for warning in numbers["kvtwin"]["warnings"]]
    over = overload(numbers)
    if over is not None:
        warned.insert(0, Text(f"! {over}", style="bold red"))
    return Group(latency, facts, *([Text(""), *warned] if warned else []))


def statistics(numbers: Mapping[str, Any], key: str) -> tuple[str, list[str]]:
    """A latency's mean and percentiles, a key of ``vllm bench serve`` or one of ours, in the unit that comes first."""
    source = numbers if f"mean_{key}" in numbers else numbers["kvtwin"]
    return in_one_unit([source.get(f"{kind}_{key}") for kind in KINDS])


def headline(numbers: dict[str, Any]) -> str:
    """A run in a line."""
    if not numbers["completed"]:
        return f"nobody served, {count(numbers['failed'])} refused"
    ours = numbers["kvtwin"]
    met = ours["slo_attainment_frac"]
    said = [
        f"{count(numbers['completed'])} served",
        f"TTFT p50 {duration(numbers['median_ttft_ms'])}, p99 {duration(numbers['p99_ttft_ms'])}",
        *([f"{percent(met)} within objectives"] if met is not None else []),
        *(["overloaded"] if ours["steady"]["is_saturated"] else []),
    ]
    return ", ".join(said)


def fact_rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """The run's other numbers in words."""
    ours, kv, steady = numbers["kvtwin"], numbers["kvtwin"]["kv"], numbers["kvtwin"]["steady"]
    goodput = "no objective set"
    if numbers["request_goodput"] is not None:
        goodput = (
            f"{rate(steady['goodput_per_s'])} requests/s; {percent(ours['slo_attainment_frac'])} of all within "
            f"{objectives_words(ours)}"
        )
    devices = f" ({rate(ours['total_token_throughput_per_device'])} per accelerator)" if ours["n_devices"] > 1 else ""
    return [
        (
            "requests",
            f"{count(numbers['completed'])} completed, {count(numbers['failed'])} refused, "
            f"in {rate(numbers['duration'])} s",
        ),
        *(
            [
                (
                    "served",
                    f"{rate(steady['served_per_s'])} requests/s of {rate(steady['offered_per_s'])} offered, "
                    f"{rate(steady['output_tokens_per_s'])} output tokens/s, {while_it_worked(numbers)}",
                )
            ]
            if numbers["completed"]
            else []
        ),
        (
            "whole run",
            f"{rate(numbers['request_throughput'])} requests/s, {rate(numbers['output_throughput'])} output tokens/s, "
            f"{rate(numbers['total_token_throughput'])} tokens/s{devices}",
        ),
        ("goodput", goodput),
        (
            "KV cache",
            f"{percent(kv['held_frac'])} of {count(kv['capacity_tokens'])} slots held while working, "
            f"{percent(kv['peak_held_frac'])} at most; {percent(kv['waste_frac'])} of it empty",
        ),
        ("prefix hit rate", f"{percent(ours['prefix_hit_frac'])} of prompt tokens"),
        *_sharing_rows(numbers),
        *_tier_rows(numbers),
        *pool_rows(ours),
    ]


def _sharing_rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """What several answers to one prompt share, where there are any."""
    ours = numbers["kvtwin"]
    n_copied = ours["counts"].get("copied_blocks", 0)
    if not n_copied:
        return []
    saved = percent(ours["kv"]["saved_frac"])
    return [("shared blocks", f"save {saved} of the slots; {count(n_copied)} copied when first written to")]


def _tier_rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """Preemptions, and what memory below the device has given back, where there is any."""
    ours, n_input = numbers["kvtwin"], max(1, numbers["total_input_tokens"])
    counts = over_classes(ours["counts"])
    preempted = f"{count(ours['preemptions'])}, of {requests(ours['preempted_requests'])}"
    found = hits_by_tier(ours)
    if ours["preemptions"]:
        again = f"{count(ours['recomputed_tokens'])} tokens computed again"
        loaded = (
            f"{count(ours['swaps'])} came back by swap, {count(counts['reloaded_tokens'])} tokens loaded, "
            if found
            else ""
        )
        preempted += f"; {loaded}{again}"
    if not found:
        return [("preemptions", preempted)]
    by_tier = ", ".join(f"{percent(n_tokens / n_input)} in {tier_words(name)}" for name, n_tokens in found.items())
    return [("found by tier", by_tier), ("preemptions", preempted)]

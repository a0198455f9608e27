"""The report of one run: the answer first, then what it rests on."""

from collections.abc import Iterator, Mapping
from typing import Any

from sim.metrics import Measures, Slo
from sim.metrics.slo import LIMITS
from sim.record import Result
from sim.report.cache_facts import cache_tables
from sim.report.fleet_figures import fleet_section
from sim.report.html import Page, Section, Table, Tile, render
from sim.report.latency_figures import distributions, gantt
from sim.report.load_figures import capacity, memory_split, over_time, shown_s
from sim.report.pools import pools_section
from sim.report.terminal import LATENCIES, statistics
from sim.report.tier_figures import tiers_section
from sim.report.verdict import verdict
from sim.report.words import (
    NOTHING,
    TERMS,
    class_words,
    count,
    duration,
    gibibytes,
    milliseconds,
    percent,
    rate,
    requests,
    signed,
    slo_words,
)
from sim.units import MS_PER_S, NS_PER_S

GOOD_FRAC, FAIR_FRAC = 0.99, 0.9  # share of requests within their objectives: MLPerf asks for 99 %
MAX_LISTED = 8


def report_page(result: Result, slo: Slo, measures: Measures, numbers: Mapping[str, Any]) -> str:
    """The report as HTML text."""
    ours = numbers["kvtwin"]
    memory = [figure for figure in (memory_split(result, measures), capacity(result)) if figure is not None]
    tiers, fleet = tiers_section(result, ours), fleet_section(result, ours)
    lives = gantt(result)
    attainment = ours["slo_attainment_frac"]
    mood = (
        "poor"
        if ours["steady"]["is_saturated"]
        else ""
        if attainment is None
        else "good"
        if attainment >= GOOD_FRAC
        else "fair"
        if attainment >= FAIR_FRAC
        else "poor"
    )
    page = Page(
        title=f"kvtwin: {name_of(result.config)}",
        heading=name_of(result.config),
        lead=choices(result.config),
        verdict=verdict(numbers),
        mood=mood,
        tiles=tiles(numbers),
        warnings=ours["warnings"],
        sections=[
            Section(
                "latency",
                "Latency",
                "What a user waits for. Each curve says what share was at least so fast: the further left, the better.",
                distributions(measures, slo),
                [latency_table(numbers), *stage_tables(numbers), *class_tables(numbers)],
            ),
            Section(
                "time",
                "Over time",
                "How the run went. Averages hide bursts, and these charts do not." + _axis_words(result, measures),
                over_time(result, shown_s(result, measures.steady)),
                [engine_table(ours)],
            ),
            *([fleet] if fleet else []),
            Section(
                "memory",
                "KV cache memory",
                "What the cache is made of, and how well it was used.",
                memory,
                cache_tables(ours, result.config),
            ),
            *(section for section in (tiers, pools_section(result, ours)) if section),
            Section("requests", "Single requests", "", [lives] if lives else []),
            Section(
                "configuration", "Configuration", "Everything that was chosen.", tables=configuration(result.config)
            ),
            Section("provenance", "Provenance", "Where the numbers come from.", tables=provenance(result, ours)),
            Section("words", "Words", "What the terms on this page mean.", tables=[Table(TERMS, style="facts")]),
        ],
    )
    return render(page)


def name_of(config: Mapping[str, Any]) -> str:
    """What was simulated, in a line: the model, the hardware and how many of it."""
    model = config.get("model", {}).get("name")
    hardware = config.get("hardware", {})
    device = hardware.get("device", {}).get("name") or hardware.get("name")
    n = int(config.get("replicas", 1)) * int(hardware.get("tensor_parallel", 1))
    n *= int(hardware.get("pipeline_parallel", 1))
    what = [str(model)] if model else []
    if device:
        what.append(f"on {n} × {device}" if n > 1 else f"on {device}")
    return " ".join(what) or "A simulated run"


def choices(config: Mapping[str, Any]) -> str:
    """What was chosen for each part: the names of the files, else the classes in words."""
    chosen = config.get("choices", {})
    parts = []
    swaps = () if chosen.get("preemption", "recompute") == "recompute" else ("preemption", "tiers")
    for group in ("scenario", "engine", "cache", *swaps, "eviction", "batching", "queue", "router", "scaler"):
        target = config.get(group, {}).get("_target_") if isinstance(config.get(group), Mapping) else None
        if group in chosen:
            parts.append(f"{group} {chosen[group]}")
        elif target:
            parts.append(f"{group} {class_words(group, str(target))}")
    return " · ".join(parts)


def tiles(numbers: Mapping[str, Any]) -> list[Tile]:
    """The headline numbers."""
    ours, kv, steady = numbers["kvtwin"], numbers["kvtwin"]["kv"], numbers["kvtwin"]["steady"]
    n_replicas = ours["n_replicas"]
    shown = [
        Tile(
            "Served, while the work lasts",
            rate(steady["served_per_s"]),
            "req/s",
            f"{rate(steady['offered_per_s'])} offered; {rate(numbers['request_throughput'])} over the whole run",
        )
    ]
    if numbers["request_goodput"] is not None:
        met = (
            f"{percent(ours['slo_attainment_frac'])} of requests; {rate(numbers['request_goodput'])} over the whole run"
        )
        shown.append(Tile("Goodput: answers in time", rate(steady["goodput_per_s"]), "req/s", met))
    for name, (key, words) in LATENCIES.items():
        if name not in ("ITL", "client TTFT"):
            value, _, unit = duration(numbers[f"median_{key}"]).partition(" ")
            detail = f"p99 {duration(numbers[f'p99_{key}'])}"
            if name == "TTFT" and ours["frontend_ms"]:
                detail += f"; {duration(ours['frontend_ms'])} more for a client"
            shown.append(Tile(f"{name}, median: {words}", value, unit, detail))
    each = steady["total_tokens_per_s"] / max(1, ours["n_devices"])
    per_device = f", {rate(each)} per accelerator" if ours["n_devices"] > 1 else ""
    shown += [
        Tile(
            "Output: tokens generated",
            rate(steady["output_tokens_per_s"]),
            "tok/s",
            f"{rate(steady['total_tokens_per_s'])} with prompts{per_device}",
        ),
        Tile(
            "KV cache held by requests, at most",
            *_split(percent(kv["peak_held_frac"])),
            f"{percent(kv['held_frac'])} while working, of {gibibytes(kv['capacity_tokens'] * kv['bytes_per_token'])}"
            f"{f' in each of {n_replicas} replicas' if n_replicas > 1 else ''}",
        ),
        Tile(
            "Prefix hit rate: prompts found in cache",
            *_split(percent(ours["prefix_hit_frac"])),
            f"{count(ours['cached_tokens'])} prompt tokens not computed",
        ),
        Tile(
            "Preemptions: requests put back",
            count(ours["preemptions"]),
            "",
            f"of {requests(ours['preempted_requests'])}",
        ),
    ]
    return shown


def _split(text: str) -> tuple[str, str]:
    value, _, unit = text.rpartition(" ")
    return (value, unit) if value else (text, "")


def latency_table(numbers: Mapping[str, Any]) -> Table:
    """The four latencies and the wait in the queue."""
    kinds = {**LATENCIES, "queue": ("queue_ms", "of TTFT, waiting to be scheduled")}
    rows = []
    for name, (key, words) in kinds.items():
        unit, cells = statistics(numbers, key)
        rows.append((f"{name}: {words}", *cells, unit))
    return Table(rows, ("of all requests", "mean", "p50", "p90", "p95", "p99", "unit"), style="wide")


def engine_table(ours: Mapping[str, Any]) -> Table:
    """What the engines did: iterations, what was computed for nobody, what memory was read."""
    hbm, steady = ours["hbm"], ours["steady"]
    n_computed = ours["padding_tokens"] + ours["prefill_tokens_computed"] + ours["decoded_tokens"]
    read = [("keys and values", hbm["kv_bytes"]), ("weights", hbm["weights_bytes"])]
    said = ", ".join(f"{gibibytes(n)} of {name}" for name, n in read if n is not None)
    if hbm["bandwidth_frac"] is not None:
        said += f"; {percent(hbm['bandwidth_frac'])} of what the memory can read in the time that engines worked"
    rows = [
        ("engines at work", f"{percent(steady['busy_frac'])} of the time that holds the work"),
        (
            "iterations",
            f"{count(ours['iterations'])}, with {rate(ours['mean_decode_seqs'])} answers each that decodes any",
        ),
        (
            "padding",
            f"{count(ours['padding_tokens'])} tokens computed for nobody, "
            f"{percent(ours['padding_tokens'] / n_computed if n_computed else None)} of all",
        ),
        ("read by decoding", said),
    ]
    return Table(rows, title="What the engines did", style="facts")


def _axis_words(result: Result, measures: Measures) -> str:
    """Where the axes of the charts over time end, if not with the run."""
    begin_s, end_s = shown_s(result, measures.steady)
    whole_s = result.duration_ns / NS_PER_S
    if end_s - begin_s >= whole_s:
        return ""
    shown = f"{duration(MS_PER_S * begin_s)} to {duration(MS_PER_S * end_s)}" if begin_s else ""
    return (
        f" They show {shown or f'the first {duration(MS_PER_S * end_s)}'}, where most of the work is; the run lasts "
        f"{duration(MS_PER_S * whole_s)}."
    )


def stage_tables(numbers: Mapping[str, Any]) -> list[Table]:
    """The run stage by stage, and after its warm-up, where it has such."""
    ours = numbers["kvtwin"]
    parts = [(f"{rate(of['rate'])} asked for", of) for of in ours["stages"]]
    if ours["after_warmup"]:
        parts.append(("after warm-up", ours["after_warmup"]))
    if not parts:
        return []
    rows = [
        (
            name,
            f"{of['begin_s']:,.5g}",
            count(of["completed"]),
            rate(of["request_rate"]),
            rate(of["request_throughput"]),
            rate(of["output_throughput"]),
            *(milliseconds(of[f"{kind}_{key}"]) for key in ("ttft_ms", "tpot_ms") for kind in ("median", "p99")),
            percent(of["attainment_frac"]),
        )
        for name, of in parts
    ]
    headings = (
        *("requests per second", "from [s]", "requests", "arrived/s", "served/s", "output [tok/s]"),
        *("TTFT p50 [ms]", "TTFT p99", "TPOT p50", "TPOT p99", "within objectives"),
    )
    return [Table(rows, headings, "By stage" if ours["stages"] else "After warm-up", style="wide")]


def class_tables(numbers: Mapping[str, Any]) -> list[Table]:
    """Goodput, waits and who starved, by class of requests and by tenant, where there are several."""
    tables = []
    for key, title in (("classes", "class"), ("tenants", "tenant")):
        groups = numbers["kvtwin"][key]
        if len(groups) < 2:
            continue
        rows = [
            (
                name,
                *([slo_words({limit: facts[limit] for limit in LIMITS}) or "none"] if key == "classes" else []),
                count(facts["completed"]),
                count(facts["failed"]),
                rate(facts["goodput"]),
                percent(facts["attainment_frac"]),
                milliseconds(facts["mean_queue_ms"]),
                milliseconds(facts["longest_queue_ms"]),
                NOTHING if facts["starved"] is None else count(facts["starved"]),
            )
            for name, facts in groups.items()
        ]
        objectives = ("objectives",) if key == "classes" else ()
        headings = (
            *(title, *objectives, "completed", "refused", "goodput [req/s]", "within objectives"),
            *("queue, mean [ms]", "queue, longest [ms]", "starved"),
        )
        tables.append(Table(rows, headings, "By class of requests" if key == "classes" else "By tenant"))
    return tables


def configuration(config: Mapping[str, Any]) -> list[Table]:
    """Every setting, a table per group."""
    single = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    tables = [Table(list(flat(single)), title="run", style="facts")] if single else []
    for group, settings in config.items():
        if isinstance(settings, Mapping) and group != "task":
            tables.append(Table(list(flat(settings)), title=group, style="facts", is_folded=True))
    return tables


def provenance(result: Result, ours: Mapping[str, Any]) -> list[Table]:
    """Where the costs come from, what else was counted, and who was refused."""
    from sim.report.files import config_hash

    known = dict(result.provenance)
    errors: Mapping[str, Any] = {}
    if isinstance(known.get("cost"), Mapping):
        errors = known["cost"].get("held_out_errors") or {}
        known["cost"] = {key: value for key, value in known["cost"].items() if key != "held_out_errors"}
    source = [
        ("seed", str(result.seed)),
        ("configuration, SHA-256", config_hash(result.config)),
        *((name.replace("_", " "), value) for name, value in flat(known)),
    ]
    tables = [Table(source, title="Source of the costs, versions", style="facts"), *_errors(errors)]
    counts = [
        ("iterations", count(ours["iterations"])),
        ("sequences per decode iteration, mean", rate(ours["mean_decode_seqs"])),
    ]
    counts += [
        (name.replace("_", " "), count(value) if value == int(value) else rate(value))
        for name, value in ours["counts"].items()
    ]
    tables.append(Table(counts, title="Counted along the way, all replicas", style="facts"))
    if result.refusals:
        refused = [
            (f"request {request_id}", reason) for request_id, reason in list(result.refusals.items())[:MAX_LISTED]
        ]
        if len(result.refused) > len(refused):
            refused.append((f"and {len(result.refused) - len(refused):,} more", ""))
        tables.append(Table(refused, title="Refused", style="facts"))
    return tables


def _errors(errors: Mapping[str, Any]) -> list[Table]:
    """How far the fitted times are off on measurements that were kept out of the fit; the manifest has more of it."""
    rows = [
        (
            name.replace("_", " "),
            count(found["n"]),
            percent(found["mape"]),
            percent(found["p90"]),
            signed(found["bias"]),
        )
        for name, found in ((name, of.get("held_out")) for name, of in errors.items() if isinstance(of, Mapping))
        if found
    ]
    headings = ("operation", "measurements kept out of the fit", "mean error", "9 of 10 within", "bias")
    return [Table(rows, headings, "How far the times of single operations are off")] if rows else []


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted key, value) pairs."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and len(value) > MAX_LISTED:
            first = ", ".join(str(item) for item in value[:MAX_LISTED])
            yield name, f"{first}, … ({len(value)} values)"
        else:
            yield name.replace("_target_", "class"), "none" if value is None or value in ([], {}) else str(value)

"""Memory below the device: what each tier gave back, what went over the links, what preempted sequences did."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.metrics.summary import recomputed_tokens
from sim.record import Result
from sim.report.cache_facts import class_names, over_classes
from sim.report.figure import Figure, coarse, line, numbers, shares, table_rows, time_axis, time_layout
from sim.report.html import Section, Table
from sim.report.links import LinkUse, link_uses
from sim.report.words import NOTHING, count, duration, gibibytes, percent, rate
from sim.units import MS_PER_S, NS_PER_S

N_BINS = 400
HITS = "hit_tokens_"
DEVICE = "device"
COLOURS = ("--blue", "--purple", "--orange", "--teal", "--red")
COMPUTED = "computed"
GB = 1e9


def tiers_section(result: Result, ours: Mapping[str, Any]) -> Section | None:
    """The tiers of a run, None without any.

    Parameters
    ----------
    result : Result
    ours : mapping
        The ``kvtwin`` part of the run's summary.
    """
    found = hits_by_tier(ours)
    if not found:
        return None
    counts = over_classes(ours["counts"])
    edges_ns = np.linspace(0, max(result.duration_ns, 1), N_BINS + 1)
    uses = link_uses(result, edges_ns)
    tables = [_tiers_table(result, counts, found), _links_table(uses)]
    found[COMPUTED] = int(result.requests.column("prompt_tokens").sum()) - sum(found.values())
    if len(result.preemptions):
        tables.append(_preempted_table(result, counts))
    if n_blocks := int(counts.get("prefetched_blocks", 0)):
        words = "blocks brought up to the first tier while their request waited"
        tables.append(Table([(words, count(n_blocks))], title="Prefetched", style="facts"))
    figures = [_found(found)]
    if any(use.n_transfers for use in uses):
        unit, unit_s = time_axis(edges_ns[-1] / NS_PER_S)
        x = numbers((edges_ns[1:] + edges_ns[:-1]) / 2 / NS_PER_S / unit_s)
        figures += [_traffic(uses, x, unit), _use(uses, x, unit)]
    return Section(
        "tiers",
        "Memory below the device",
        "KV that device memory has no room for goes down a tier and comes back over a link. That pays where loading "
        "takes less than computing again, and only the time lost or gained on the way tells: look at both.",
        figures,
        tables,
    )


def hits_by_tier(ours: Mapping[str, Any]) -> dict[str, int]:
    """Prompt tokens found in device memory and in each tier below, when requests were first admitted.

    Empty where there is no tier. Where classes have caches of their own, what those without a tier found was in device
    memory.

    Parameters
    ----------
    ours : mapping
        The ``kvtwin`` part of the run's summary.
    """
    counts = over_classes(ours["counts"])
    found = {name.removeprefix(HITS): int(n_tokens) for name, n_tokens in counts.items() if name.startswith(HITS)}
    below = {name: n_tokens for name, n_tokens in found.items() if name != DEVICE}
    if not below:
        return {}
    is_split = bool(class_names(ours["counts"]))
    return {DEVICE: ours["cached_tokens"] - sum(below.values()) if is_split else found[DEVICE], **below}


def found_below_frac(numbers: Mapping[str, Any]) -> float | None:
    """Share of a run's prompt tokens that were found in memory below the device, from its summary; None without any."""
    found = hits_by_tier(numbers["kvtwin"])
    if not found:
        return None
    below = sum(n_tokens for name, n_tokens in found.items() if name != DEVICE)
    return below / max(1, int(numbers["total_input_tokens"]))


def tier_words(name: str) -> str:
    """A tier as a reader knows it."""
    return "device memory" if name == DEVICE else name


def _found(found: Mapping[str, int]) -> Figure:
    """A bar of the prompts' tokens by where their KV came from."""
    total = max(1, sum(found.values()))
    parts = [
        (tier_words(name), n_tokens, "--line" if name == COMPUTED else COLOURS[i % len(COLOURS)])
        for i, (name, n_tokens) in enumerate(found.items())
    ]
    return Figure(
        "found",
        "Where prompts' keys and values came from",
        "Prompt tokens of all requests, when they were first admitted.",
        *shares([(name, n_tokens / total, colour) for name, n_tokens, colour in parts]),
        ("", "tokens", "share"),
        [(name, count(n_tokens), percent(n_tokens / total)) for name, n_tokens, _ in parts],
        height_px=170,
    )


def _tiers_table(result: Result, counts: Mapping[str, int | float], found: Mapping[str, int]) -> Table:
    n_prompt = max(1, int(result.requests.column("prompt_tokens").sum()))
    rows = []
    for name, hits in found.items():
        is_device = name == DEVICE
        rows.append(
            (
                tier_words(name),
                count(result.capacity_tokens * result.n_replicas if is_device else counts[f"room_tokens_{name}"]),
                NOTHING if is_device else count(counts[f"kept_tokens_{name}"]),
                count(hits),
                percent(hits / n_prompt),
                count(counts["evicted_blocks" if is_device else f"evicted_blocks_{name}"]),
            )
        )
    headings = ("", "room [tokens]", "kept at the end", "prompt tokens found", "hit rate", "evicted blocks")
    return Table(rows, headings, "Tiers", style="wide")


def _links_table(uses: Sequence[LinkUse]) -> Table:
    rows = [
        (
            use.name,
            count(use.n_transfers),
            gibibytes(use.n_bytes),
            percent(use.busy_frac),
            duration(None if np.isnan(use.p50_ms) else use.p50_ms),
            duration(None if np.isnan(use.p99_ms) else use.p99_ms),
        )
        for use in uses
    ]
    headings = ("", "transfers", "moved", "in use", "a transfer, median", "p99")
    return Table(rows, headings, "Links, each direction by itself", style="wide")


def _preempted_table(result: Result, counts: Mapping[str, int | float]) -> Table:
    """What preempted sequences came back to, and how long they were away."""
    preemptions = result.preemptions
    next_ns = preemptions.column("next_token_ns")
    away_ms = (next_ns - preemptions.column("preempted_ns")) * (MS_PER_S / NS_PER_S)
    rows = []
    for words, is_swap, tokens in (
        ("loaded from below (swap)", 1, f"{count(counts['reloaded_tokens'])} loaded"),
        (
            "computed again",
            0,
            f"{count(recomputed_tokens(preemptions))} computed again, those after a swap's last full block too",
        ),
    ):
        mine = preemptions.column("is_swap") == is_swap
        back = mine & (next_ns >= 0)  # the others were preempted again before their next token
        mean_ms = float(away_ms[back].mean()) if back.any() else None
        rows.append((words, count(int(mine.sum())), duration(mean_ms), tokens))
    rows.append(("saved below when they gave way", count(counts["swapped_out"]), NOTHING, NOTHING))
    return Table(rows, ("", "times", "away, mean", "tokens"), "Preempted sequences", style="wide")


def _traffic(uses: Sequence[LinkUse], x: list[float | None], unit: str) -> Figure:
    """Gigabytes per second over each link, towards the device above zero and away from it below."""
    traces = []
    for use, sign, colour in _styles(uses):
        traces.append(
            line(x, numbers(sign * use.bytes_per_s / GB), use.name, colour, line={"width": 1.5}, fill="tozeroy")
            | {"fillcolor": f"{colour}-soft", "customdata": numbers(use.bytes_per_s / GB)}
            | {"hovertemplate": "%{customdata:.3g} GB/s"}
        )
    return Figure(
        "traffic",
        "Traffic between memory tiers",
        "Gigabytes per second, towards the device above the line and away from it below.",
        traces,
        {"yaxis": {"ticksuffix": " GB/s", "zeroline": True}, **time_layout(unit)},
        (f"time [{unit}]", *(use.name for use in uses)),
        table_rows(x, [coarse(use.bytes_per_s / GB, np.mean) for use in uses], rate),
        height_px=250,
    )


def _use(uses: Sequence[LinkUse], x: list[float | None], unit: str) -> Figure:
    """Share of the time in which something was under way."""
    traces = [
        line(
            x,
            numbers(100 * use.busy_fracs),
            use.name,
            colour,
            line={"width": 1.5, "dash": "solid" if sign > 0 else "dot"},
        )
        for use, sign, colour in _styles(uses)
    ]
    return Figure(
        "link-use",
        "Links in use",
        "Share of the time in which a transfer was under way; several at once share the link.",
        traces,
        {"yaxis": {"range": [0, 103], "ticksuffix": " %"}, **time_layout(unit)},
        (f"time [{unit}]", *(use.name for use in uses)),
        table_rows(x, [coarse(100 * use.busy_fracs, np.mean) for use in uses], lambda v: f"{v:.1f} %"),
        height_px=230,
    )


def _styles(uses: Sequence[LinkUse]) -> list[tuple[LinkUse, int, str]]:
    """Each link with its direction and its tier's colour."""
    tiers = list(dict.fromkeys(use.name.partition(" ")[2] for use in uses))
    return [
        (
            use,
            -1 if use.name.startswith("to ") else 1,
            COLOURS[1 + tiers.index(use.name.partition(" ")[2]) % (len(COLOURS) - 1)],
        )
        for use in uses
    ]

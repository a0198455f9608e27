"""What a cache did and what it gave up, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from sim.report.html import Table
from sim.report.words import count, gibibytes, percent, rate

FACTS = {
    "evicted_blocks": (
        "blocks evicted",
        count,
        "their text has to be computed again, or loaded from below, if it returns",
    ),
    "evicted_sessions": (
        "conversations evicted",
        count,
        "whole, to make room; their next turn is computed from the start",
    ),
    "resizes": ("extents replaced by longer ones", count, "a sequence had filled its extent, or was about to"),
    "resizes_ahead": (
        "of these beside the decoding",
        count,
        "before the extent was full, so that nobody waited for the copy",
    ),
    "resizes_if_growing": (
        "resizes had they grown when full",
        count,
        "by the same factor without a prediction; of finished turns of conversations alone",
    ),
    "copied_bytes": (
        "copied by resizing",
        gibibytes,
        "inside each accelerator's memory; the old extent is held until the copy is made",
    ),
    "predictions": ("lengths predicted", count, "of conversations whose next turn came"),
    "prediction_error_frac": ("error of a prediction, mean", percent, "of the length that it turned out to be"),
    "compactions": ("compactions", count, "what is kept was moved together, or quantised"),
    "moved_tokens": (
        "tokens moved by compacting",
        count,
        "read and written inside device memory, at the iteration's cost",
    ),
    "attended_frac": (
        "attended fraction",
        percent,
        "of the tokens a finished sequence had seen, those it could still look at",
    ),
    "class_changes": ("conversations that changed class", count, "a turn looked like another class than the last"),
    "class_moves": ("of these with KV that moved", count, "others had none left, or none that the new cache can hold"),
    "class_moved_bytes": (
        "copied to the new class's cache",
        gibibytes,
        "in each accelerator's memory, at the cost of the iteration that took them up",
    ),
    "class_loaded_tokens": ("tokens loaded into it from below", count, "over the link, while others ran"),
    "bits_per_element": ("bits per element", rate, "of keys and values as they are stored, scales included"),
}
"""Counts of the caches that a reader wants explained: (name, how to write it, what it means)."""

UNSAID = {
    "class_loaded_tokens",
    "resizes",
    "resizes_ahead",
    "copied_bytes",
    "resizes_if_growing",
    "predictions",
    "prediction_error_frac",
}
"""Not worth a line where it is none."""

STREAMING_LLM = "Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024, table 1"
PUBLISHED = {
    "sim.kv.retention.Window": (
        ("4 sinks and the latest 1,020 tokens", "perplexity 5.40, Llama-2-13B on PG19", STREAMING_LLM),
        ("the latest 1,024 tokens, no sinks", "perplexity 5158.07, same model and text", STREAMING_LLM),
    ),
    "sim.kv.retention.Share": (
        ("20 % of the tokens, by importance", "the quality of all of them", "Zhang et al., H2O, NeurIPS 2023"),
        (
            "prompts of 16k tokens, compressed",
            "3.6 times the decoding speed, 8.2 times less memory",
            "Li et al., SnapKV, NeurIPS 2024",
        ),
        (
            "2 bits for each element",
            "nearly the same quality, 2.6 times less peak memory",
            "Liu et al., KIVI, ICML 2024",
        ),
    ),
}
"""What the papers say a retention does to answers, by its class."""


def cache_tables(ours: Mapping[str, Any], config: Mapping[str, Any]) -> list[Table]:
    """What the cache did, and what is published about answers where it keeps less than all.

    Parameters
    ----------
    ours : mapping
        The ``kvtwin`` part of the run's summary.
    config : mapping
        The run's configuration.
    """
    counts = ours["counts"]
    classes = ["", *(f"{name}_" for name in class_names(counts))]
    rows = [
        (f"{of.replace('_', ' ').strip()}: {name}".removeprefix(": "), words(counts[of + key]), meaning)
        for of in classes
        for key, (name, words, meaning) in FACTS.items()
        if counts.get(of + key) or (of + key in counts and key not in UNSAID)
    ]
    tables = [Table(rows, title="What the cache did", style="facts")] if rows else []
    quotes = [quote for retention in sorted(set(_retentions(config.get("cache")))) for quote in PUBLISHED[retention]]
    if quotes:
        title = "Published effect on answers: quoted, not simulated"
        tables.append(Table(quotes, ("what is kept", "what it did", "source"), title, style="facts"))
    return tables


def class_names(counts: Mapping[str, int | float]) -> list[str]:
    """Classes of requests that have a share of the cache each, from a run's counts."""
    return [name.removesuffix("_requests") for name in counts if name.endswith("_requests")]


def over_classes(counts: Mapping[str, int | float]) -> dict[str, int | float]:
    """A run's counts, those of the classes' caches added up under the names that a single cache gives them.

    Examples
    --------
    >>> over_classes({"code_requests": 2, "code_resizes": 3, "chat_requests": 1, "chat_resizes": 4})["resizes"]
    7
    """
    total = dict(counts)
    for name in class_names(counts):
        for key, value in counts.items():
            if key.startswith(f"{name}_"):
                of_one = key.removeprefix(f"{name}_")
                total[of_one] = total.get(of_one, 0) + value
    return total


def _retentions(node: Any) -> Iterator[str]:
    """Classes of the retentions anywhere in a part of the configuration, as far as something is published."""
    if isinstance(node, Mapping):
        if node.get("_target_") in PUBLISHED:
            yield node["_target_"]
        for inner in node.values():
            yield from _retentions(inner)

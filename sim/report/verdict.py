"""What came of a run, in words: whether it kept up, and what held it up."""

from collections.abc import Mapping
from typing import Any

from sim.metrics.steady import PLACES, TOKENS
from sim.report.cache_facts import class_names
from sim.report.words import count, duration, objectives_words, percent, rate, times
from sim.units import MS_PER_S

MUCH_EMPTY = 0.2  # of what is held: worth a word where memory is short


def overload(numbers: Mapping[str, Any]) -> str | None:
    """That more was offered than served, and what was used up; None where a run kept up."""
    steady = numbers["kvtwin"]["steady"]
    if not steady["is_saturated"]:
        return None
    return (
        f"Overloaded: {rate(steady['offered_per_s'])} requests/s were offered and {rate(steady['served_per_s'])} "
        f"served. {what_binds(numbers)}"
    )


def what_binds(numbers: Mapping[str, Any]) -> str:
    """What those who waited waited for, in a sentence."""
    steady, kv = numbers["kvtwin"]["steady"], numbers["kvtwin"]["kv"]
    held_up = steady["held_up_frac"]
    most = max(held_up, key=held_up.__getitem__)
    share = f"for {percent(held_up[most])} of that time"
    if not held_up[most]:
        return "Nobody had to wait for others."
    if most == PLACES:
        return f"What binds: all {count(steady['n_places'])} places of the batch were taken {share}."
    if most == TOKENS:
        return (
            f"What binds: iterations computed all the {count(steady['n_tokens'])} tokens that one may, {share}; the "
            "device has no more time for prompts."
        )
    empty = ""
    if kv["waste_frac"] > MUCH_EMPTY:
        empty = f", though {percent(kv['waste_frac'])} of what requests held was empty"
    return f"What binds: the KV cache had no room for the next prompt {share}{empty}."


def verdict(numbers: Mapping[str, Any]) -> list[str]:
    """The answer in a few sentences; what binds comes first."""
    ours, kv = numbers["kvtwin"], numbers["kvtwin"]["kv"]
    if not numbers["completed"]:
        return ["No request was served."]
    steady = ours["steady"]
    first = overload(numbers)
    if first is None:
        first = (
            f"It kept up: {rate(steady['offered_per_s'])} requests/s were offered and {rate(steady['served_per_s'])} "
            f"served, with {rate(steady['output_tokens_per_s'])} output tokens/s"
        )
        first += f", {while_it_worked(numbers)}."
    said = [f"{count(numbers['completed'])} requests in all, in {duration(MS_PER_S * numbers['duration'])}."]
    if ours["slo_attainment_frac"] is not None:
        said.append(f"{percent(ours['slo_attainment_frac'])} of all requests met {objectives_words(ours)}.")
    if numbers["mean_ttft_ms"] and ours["mean_queue_ms"] > numbers["mean_ttft_ms"] / 2:
        share = ours["mean_queue_ms"] / numbers["mean_ttft_ms"]
        said.append(f"{percent(share)} of the time to first token was spent waiting in the queue.")
        if not steady["is_saturated"]:
            said.append(what_binds(numbers))
    if ours["preemptions"]:
        full = "A class's share of the KV cache" if class_names(ours["counts"]) else "The KV cache"
        said.append(f"{full} ran full: running requests were preempted {times(ours['preemptions'])}.")
    else:
        said.append(
            f"Running requests held at most {percent(kv['peak_held_frac'])} of the KV cache; none was preempted."
        )
    return [first, " ".join(said)]


def while_it_worked(numbers: Mapping[str, Any]) -> str:
    """When the work was done, where that is not the whole run."""
    steady = numbers["kvtwin"]["steady"]
    from_s, to_s, whole_s = steady["begin_s"], steady["end_s"], numbers["duration"]
    if to_s - from_s > 0.7 * whole_s:
        return f"all along its {duration(MS_PER_S * whole_s)}"
    return f"in the {duration(MS_PER_S * (to_s - from_s))} of {duration(MS_PER_S * whole_s)} that hold the work"

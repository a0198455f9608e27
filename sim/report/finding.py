"""What a comparison found, in words: who serves better, by how much, how sure that is, and what it hangs on."""

from collections.abc import Mapping, Sequence
from typing import Any

from sim.metrics.steady import MEMORY, PLACES
from sim.report.points import Point, differences, shown
from sim.report.significance import Interval, Samples, difference, ratio
from sim.report.words import count, duration, gibibytes, percent, rate

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
KINDS = {
    "cache": "caches",
    "eviction": "eviction policies",
    "hardware": "devices",
    "model": "models",
    "batching": "schedulers",
    "queue": "orders of the queue",
    "router": "routers",
    "preemption": "ways of preempting",
    "scenario": "kinds of traffic",
    "engine": "engine versions",
    "tiers": "memories below the device",
    "rate": "rates",
    "seed": "seeds",
    "replicas": "numbers of replicas",
    "tensor_parallel": "degrees of tensor parallelism",
    "block_tokens": "block sizes",
}
TRAFFIC = {
    "chatbot": "a chatbot's traffic",
    "short_chat": "short chats",
    "long_document": "questions about long documents",
    "streaming": "answers without end",
    "code_completion": "code completion",
    "rag": "answers from retrieved text",
    "agentic": "agents at work",
    "replay": "replayed traffic",
    "burst": "traffic in bursts",
    "mixed": "mixed traffic",
    "mixed_sessions": "mixed sessions",
    "benchmark": "a load generator's traffic",
    "synthetic": "independent requests",
}
MUCH_EMPTY, FAR_HITS = 0.2, 0.1  # worth naming as a cause
MOST_GROUPS = 4


def number(n: int) -> str:
    """A small number in words.

    Examples
    --------
    >>> number(7), number(24)
    ('seven', '24')
    """
    return NUMBERS[n] if n < len(NUMBERS) else f"{n:,}"


def title(points: Sequence[Point]) -> str:
    """What is compared, on what.

    Parameters
    ----------
    points : sequence of Point
        Two or more, or one that is compared with nothing.
    """
    told = differences(points)
    values: dict[str, set[str]] = {}
    for mine in told:
        for key, value in mine.items():
            values.setdefault(key, set()).add(repr(value))
    scenarios = list(dict.fromkeys(str(point.settings.get("scenario._target_")) for point in points))
    of_traffic = {key for key in values if key == "scenario._target_"}
    kinds = {key: len(found) for key, found in values.items() if key not in of_traffic}
    if len(kinds) > 2 or not kinds:
        what = f"{number(len(points))} {'configurations' if kinds else 'runs'}"
    else:
        what = " × ".join(f"{number(n + (n == 1))} {_kind(key)}" for key, n in kinds.items())
    on = f"{number(len(scenarios))} kinds of traffic" if len(scenarios) > 1 else _traffic(scenarios[0])
    return f"{what} on {on}"[:1].upper() + f"{what} on {on}"[1:]


def _kind(key: str) -> str:
    *owners, last = key.split(".")
    name = owners[-1] if last in ("_target_", "name") and owners else last
    return KINDS.get(name, f"values of {name}")


def _traffic(name: str) -> str:
    if "." in name or name == "None":
        return "the same traffic"
    return TRAFFIC.get(name, f"{name.replace('_', ' ')} traffic")


def groups(points: Sequence[Point]) -> dict[str, list[int]]:
    """Points that may be compared with one another, because they serve the same traffic, by what that is."""
    found: dict[str, list[int]] = {}
    for i, mine in enumerate(differences(points)):
        traffic = {key: value for key, value in mine.items() if key.startswith("scenario.") or key == "seed"}
        words = ", ".join(
            _traffic(str(value)) if key == "scenario._target_" else f"{key.split('.')[-1]} {shown(key, value)}"
            for key, value in traffic.items()
        )
        found.setdefault(words, []).append(i)
    return found


def findings(points: Sequence[Point], names: Sequence[str], samples: Sequence[Samples | None]) -> list[str]:
    """What came out, the most important first; of each kind of traffic a sentence or two."""
    said = []
    apart = groups(points)
    for words, members in list(apart.items())[:MOST_GROUPS]:
        served = [i for i in members if points[i].numbers["completed"]]
        if len(served) < 2:
            continue
        before = f"With {words}: " if len(apart) > 1 and words else ""
        short = names
        if len(apart) > 1 and words:
            short = [name.replace(f", {words}", "").replace(f"{words}, ", "") for name in names]
        said.append(before + " ".join(_of_group(points, short, samples, served)))
    if len(apart) > MOST_GROUPS:
        said.append(f"And {len(apart) - MOST_GROUPS} more; the table has all.")
    over = [i for i, point in enumerate(points) if point.numbers["kvtwin"]["steady"]["is_saturated"]]
    if over:
        who = "all" if len(over) == len(points) else _listed(names, over)
        said.append(f"Overloaded: {who}. What they make of it depends on how long the load lasts.")
    return said


def _of_group(
    points: Sequence[Point], names: Sequence[str], samples: Sequence[Samples | None], members: Sequence[int]
) -> list[str]:
    ours = {i: points[i].numbers["kvtwin"] for i in members}
    said = []
    kept = {i: ours[i]["slo_attainment_frac"] for i in members if ours[i]["slo_attainment_frac"] is not None}
    is_told = False
    if kept:
        best = max(kept, key=kept.__getitem__)
        alike = [i for i in kept if i == best or not _differ(samples, i, best, "within", kept[best] - kept[i] > 0.02)]
        rest = [i for i in kept if i not in alike]
        if rest:
            worst = min(rest, key=kept.__getitem__)
            times = _times(kept[best], kept[worst], _ratio(samples, best, worst, "within"))
            verb = "keeps" if len(alike) == 1 else "keep"
            said.append(
                f"{_listed(names, alike)} {verb} the objectives for {percent(kept[best])} of requests, "
                f"{names[worst]} for {percent(kept[worst])}: {times}{_because(points, names, worst, best)}."
            )
            is_told = True
        else:
            all_of = "Both" if len(members) == 2 else f"All {number(len(members))}"
            said.append(f"{all_of} keep the objectives alike, for {percent(kept[best])} of requests.")
    for key, name, words in (("ttft", "ttft_p50", "half of the first tokens come"),):
        p50 = {i: points[i].numbers[f"median_{key}_ms"] for i in members if points[i].numbers[f"median_{key}_ms"]}
        if len(p50) < 2:
            continue
        best = min(p50, key=p50.__getitem__)
        alike = [i for i in p50 if i == best or not _differ(samples, best, i, name, p50[i] > 1.02 * p50[best])]
        rest = [i for i in p50 if i not in alike]
        if rest:
            worst = max(rest, key=p50.__getitem__)
            cause = "" if is_told else _because(points, names, worst, best)
            times = _times(p50[worst], p50[best], _ratio(samples, worst, best, name))
            said.append(
                f"With {_listed(names, alike)} {words} within {duration(p50[best])}, with {names[worst]} within "
                f"{duration(p50[worst])}, {times}{cause}."
            )
        else:
            said.append(f"Half of the first tokens come within {duration(p50[best])} with any.")
    held = {i: ours[i]["kv"]["held_bytes"] for i in members}
    least, most = min(held, key=held.__getitem__), max(held, key=held.__getitem__)
    if held[most] > 1.5 * held[least] > 0:
        said.append(
            f"While working, {names[least]} holds {gibibytes(held[least])} of KV and {names[most]} "
            f"{gibibytes(held[most])}."
        )
    return said


def _differ(samples: Sequence[Samples | None], one: int, other: int, name: str, is_far: bool) -> bool:
    """Whether two points differ beyond chance; where nothing says so, whether they are far apart."""
    a, b = samples[one], samples[other]
    found = None if a is None or b is None or not is_far else difference(a, b, name)
    return is_far if found is None else not found.low <= 0.0 <= found.high


def _ratio(samples: Sequence[Samples | None], one: int, other: int, name: str) -> Interval | None:
    a, b = samples[one], samples[other]
    return None if a is None or b is None else ratio(a, b, name)


def _times(one: float, other: float, interval: Interval | None) -> str:
    """How many times as much, and between what and what at 95 %."""
    if not other:
        return "and none there"
    words = f"{rate(one / other)} times as many" if one <= 1 and other <= 1 else f"{rate(one / other)} times as long"
    if interval is None or interval.high / max(interval.low, 1e-12) < 1.01:
        return words
    return f"{words} ({rate(interval.low)} to {rate(interval.high)} at 95 %)"


def _because(points: Sequence[Point], names: Sequence[str], worse: int, better: int) -> str:
    """What holds the worse one up, where the run says so; what else differs is only named beside it."""
    lost, won = points[worse].numbers["kvtwin"], points[better].numbers["kvtwin"]
    held_up = lost["steady"]["held_up_frac"]
    most = max(held_up, key=held_up.__getitem__)
    empty, hits = lost["kv"]["waste_frac"], lost["prefix_hit_frac"]
    if held_up[most] > max(0.05, 2.0 * won["steady"]["held_up_frac"][most]):
        if most == MEMORY and empty > won["kv"]["waste_frac"] + MUCH_EMPTY:
            return f", because requests wait for memory while {percent(empty)} of what {names[worse]} holds is empty"
        if most == MEMORY:
            return f", because requests wait for memory {percent(held_up[most])} of the time"
        if most == PLACES:
            return f", because all {count(lost['steady']['n_places'])} places of the batch are taken"
    found = won["prefix_hit_frac"]
    if hits is not None and found is not None and found - hits > FAR_HITS:
        return f", because it finds {percent(hits)} of the prompt tokens in its memory instead of {percent(found)}"
    if lost["preemptions"] > max(2 * won["preemptions"], 0.01 * points[worse].numbers["completed"]):
        return f", because requests were preempted {count(lost['preemptions'])} times"
    return ""


def _listed(names: Sequence[str], members: Sequence[int]) -> str:
    """Some of the points; where each takes several words, few of them."""
    if len(members) > 2 and any(", " in name for name in names):
        return f"{len(members)} of {len(names)} ({names[members[0]]}, …)"
    return listed([names[i] for i in members])


def listed(words: Sequence[str], most: int = 6) -> str:
    """Names in a line.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b", "c"]), listed(list("abcdefgh"))
    ('a', 'a, b and c', 'a, b, c, d, e, f and 2 more')
    """
    shown_words = list(words[:most])
    more = len(words) - len(shown_words)
    if more:
        return f"{', '.join(shown_words)} and {more} more"
    return shown_words[0] if len(shown_words) == 1 else f"{', '.join(shown_words[:-1])} and {shown_words[-1]}"


def settings_of(point: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Values of some settings, for a table with a column each."""
    return [shown(key, point[key]) if key in point else "" for key in keys]

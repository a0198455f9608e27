"""Numbers as people read them: three or four digits, a unit, and a dash for what is undefined."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sim.units import GIB, MS_PER_S

NOTHING = "–"
TERMS = (
    ("request", "a prompt that a client sends, and the answer to it; both are counted in tokens, pieces of words"),
    ("TTFT", "time to first token: from a request's arrival in the engine's queue until its answer begins there"),
    (
        "client TTFT",
        "the same as a client sees it, with HTTP, tokenising and the hand-over to the queue before, the way back after",
    ),
    ("TPOT", "time per output token: the mean gap between the tokens of one answer"),
    ("ITL", "inter-token latency: every single gap between two tokens of an answer"),
    ("E2EL", "end-to-end latency: from a request's arrival until its answer is complete"),
    ("p99", "what 99 % of the requests do not exceed; p50 is the median"),
    ("objective", "the longest that a client should wait; goodput counts only requests that met all their objectives"),
    (
        "iteration",
        "one step of the engine: it computes prompts or pieces of them, and one token for each answer under way",
    ),
    ("batch size", "answers that get a token in the same iteration"),
    (
        "KV cache",
        "keys and values that attention has computed for earlier tokens, kept so that they are not computed again",
    ),
    ("slot", "room for the keys and values of one token"),
    ("prefix hit", "the start of a prompt was found in the cache, left there by an earlier request with the same text"),
    ("kept for reuse", "left behind by finished requests for later ones to find; given up as soon as room is needed"),
    ("evicted", "given up to make room"),
    (
        "preempted",
        "a running request lost its memory to others; it is computed again, or brought back, and then goes on",
    ),
    ("starved", "a request that waited in the queue alone for longer than its whole time to first token may last"),
    ("replica", "one copy of the model with its own engine and cache, on one accelerator or several"),
)
"""Said on every page, for readers who have never seen one."""

SLO_NAMES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}


def rate(value: float | None) -> str:
    """Three significant digits, thousands separated.

    Examples
    --------
    >>> rate(7.96531), rate(1531.36), rate(0.0421), rate(None)
    ('7.97', '1,531', '0.0421', '–')
    """
    if value is None:
        return NOTHING
    if value and abs(value) < 0.1:
        return f"{value:.3g}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def count(value: float) -> str:
    """A whole number, thousands separated."""
    return f"{value:,.0f}"


def times(n: float) -> str:
    """How often something happened.

    Examples
    --------
    >>> times(1), times(2_000)
    ('once', '2,000 times')
    """
    return "once" if n == 1 else f"{count(n)} times"


def requests(n: float) -> str:
    """A number of requests.

    Examples
    --------
    >>> requests(1), requests(2_000)
    ('1 request', '2,000 requests')
    """
    return f"{count(n)} request{'' if n == 1 else 's'}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage; what is nearly none or nearly all does not read as none or all.

    Examples
    --------
    >>> percent(0.6712), percent(0.99999), percent(0.00001), percent(1), percent(0), percent(None)
    ('67.1 %', '> 99.9 %', '< 0.1 %', '100 %', '0 %', '–')
    """
    if fraction is None:
        return NOTHING
    if 0 < fraction < 0.001:
        return "< 0.1 %"
    if 0.999 < fraction < 1:
        return "> 99.9 %"
    return f"{100 * fraction:.0f} %" if fraction in (0, 1) else f"{100 * fraction:.1f} %"


def signed(fraction: float | None, digits: int = 1) -> str:
    """A change as a percentage with its sign; nothing is neither more nor less than nothing.

    Examples
    --------
    >>> signed(0.0123), signed(-0.2), signed(-0.0001), signed(None)
    ('+1.2 %', '−20.0 %', '0.0 %', '–')
    """
    if fraction is None:
        return NOTHING
    words = f"{100 * fraction:+z.{digits}f} %".replace("-", "−")
    return words[1:] if not words.strip("+0. %") else words


def milliseconds(value: float | None) -> str:
    """Milliseconds, without the unit."""
    return rate(value)


def duration(value_ms: float | None) -> str:
    """A time in the unit that suits it.

    Examples
    --------
    >>> duration(0.25), duration(21.04), duration(1234.5), duration(3_915_693), duration(86_400_000)
    ('0.25 ms', '21.0 ms', '1.23 s', '65.3 min', '24.0 h')
    """
    if value_ms is None:
        return NOTHING
    if value_ms == 0:
        return "0 s"
    for unit, size_ms, most in (("ms", 1, 1_000), ("s", MS_PER_S, 120), ("min", 60 * MS_PER_S, 120)):
        if value_ms / size_ms < most:
            return f"{rate(value_ms / size_ms)} {unit}"
    return f"{rate(value_ms / (3_600 * MS_PER_S))} h"


def is_wide_apart(values_ms: Sequence[float | None]) -> bool:
    """Whether some of these times would read as 0.0 something in a unit that suits the longest."""
    known = [value for value in values_ms if value]
    return bool(known) and max(known) >= MS_PER_S and min(known) < 0.05 * MS_PER_S


def in_one_unit(values_ms: Sequence[float | None]) -> tuple[str, list[str]]:
    """Times in one unit, so that they can be compared: the unit, and each without it.

    Examples
    --------
    >>> in_one_unit([14.6, 41.3, None]), in_one_unit([706.0, 3154.0])
    (('ms', ['14.6', '41.3', '–']), ('s', ['0.71', '3.15']))
    """
    longest = max((value for value in values_ms if value is not None), default=0.0)
    unit, size_ms = ("s", MS_PER_S) if longest >= MS_PER_S else ("ms", 1)
    return unit, [rate(None if value is None else value / size_ms) for value in values_ms]


def gibibytes(n_bytes: float) -> str:
    """Bytes in GiB.

    Examples
    --------
    >>> gibibytes(150_109_106_995), gibibytes(3_000_000), gibibytes(2**60)
    ('139.8 GiB', '0.003 GiB', '1,048,576 GiB')
    """
    value = n_bytes / GIB
    if abs(value) >= 1_000:
        return f"{value:,.0f} GiB"
    return f"{value:.1f} GiB" if abs(value) >= 0.1 else f"{value:.3f} GiB"


def class_words(group: str, target: str) -> str:
    """A chosen class in words, without the name of the part it was chosen for; a file's name as it is.

    Examples
    --------
    >>> class_words("cache", "sim.kv.paged.PagedCache"), class_words("router", "sim.router.RoundRobin")
    ('paged', 'round robin')
    """
    if "." not in target:
        return target
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", target.rsplit(".", 1)[-1]).lower()
    return words.removesuffix(f" {group}")


def slo_words(limits: Mapping[str, float | None]) -> str:
    """Objectives in a line, in the order of an answer's life.

    Examples
    --------
    >>> slo_words({"e2el_ms": None, "tpot_ms": 30, "ttft_ms": 500})
    'TTFT ≤ 500 ms, TPOT ≤ 30 ms'
    """
    return ", ".join(f"{name} ≤ {limits[key]:,g} ms" for key, name in SLO_NAMES.items() if limits.get(key) is not None)


def objectives_words(ours: Mapping[str, Any]) -> str:
    """What requests were judged by: the objectives, and those of the classes that have their own.

    Parameters
    ----------
    ours : mapping
        The ``kvtwin`` part of a run's summary.

    Examples
    --------
    >>> code = {"ttft_ms": 200, "tpot_ms": 30, "e2el_ms": None}
    >>> rest = {"ttft_ms": 500, "tpot_ms": 30, "e2el_ms": None}
    >>> objectives_words({"slo": rest, "classes": {"chat": rest, "code": code}})
    'TTFT ≤ 500 ms, TPOT ≤ 30 ms (code: TTFT ≤ 200 ms, TPOT ≤ 30 ms)'
    """
    limits = {name: {key: facts[key] for key in SLO_NAMES} for name, facts in ours["classes"].items()}
    own = {name: slo_words(of) or "none" for name, of in limits.items() if of != ours["slo"]}
    others = slo_words(ours["slo"])
    if not own:
        return others
    if not others or len(own) == len(limits):
        others = "the objectives of their class"
    return f"{others} ({'; '.join(f'{name}: {words}' for name, words in own.items())})"

"""Requests that know nothing of each other: arrivals x lengths, with or without shared heads."""

from collections.abc import Iterator
from dataclasses import dataclass

from scenarios.arrivals import Arrivals, stages_of_arrivals
from scenarios.classify import Classifier
from scenarios.distributions import require, require_positive
from scenarios.lengths import Lengths
from scenarios.prefixes import PROMPT, Prefixes, text_id
from sim.request import Request, Stage, new_tuple, stream
from sim.units import ns_from_s


def require_limits(key: str, n_limit: int | None, duration_s: float | None) -> int | None:
    """Refuse a stream without an end; returns the duration in ticks, or None [ns]."""
    if n_limit is None and duration_s is None:
        require(f"scenario.{key}", None, False, f"a whole number >= 1, unless scenario.duration_s ends the {key[2:]}")
    if n_limit is not None:
        is_whole = isinstance(n_limit, int) and not isinstance(n_limit, bool) and n_limit >= 1
        require(f"scenario.{key}", n_limit, is_whole, "a whole number >= 1")
    if duration_s is None:
        return None
    require_positive("scenario", duration_s=duration_s)
    return ns_from_s(duration_s)


def require_samples(n_samples: int) -> None:
    """Refuse a number of answers that is none."""
    is_whole = isinstance(n_samples, int) and not isinstance(n_samples, bool) and n_samples >= 1
    require("scenario.n_samples", n_samples, is_whole, "a whole number >= 1")


@dataclass(frozen=True, slots=True)
class Synthetic:
    """An open stream of independent requests.

    Parameters
    ----------
    rate : float
        Mean arrivals per second [1/s].
    arrivals : Arrivals
        How they are spread around that mean.
    lengths : Lengths
        Of prompts (without the head) and answers.
    n_requests, duration_s : int or None, float or None
        The stream ends with whichever comes first.
    prefixes : Prefixes or None
        What prompts begin with; None shares nothing.
    max_output_tokens : int or None
        Longest answer that the client allows; None asks for exactly the drawn length, as load generators do
        (vLLM's ``bench serve`` with ``ignore_eos``) [tokens].
    n_samples : int
        Answers sampled from each prompt at once, all of the drawn length.
    classify : bool
        Tag requests with what they look like, as their ``kind``.
    tenant : str
        Whose they all are.
    """

    rate: float
    arrivals: Arrivals
    lengths: Lengths
    n_requests: int | None = None
    duration_s: float | None = None
    prefixes: Prefixes | None = None
    max_output_tokens: int | None = None
    slo_class: str = ""
    priority: int = 0
    n_samples: int = 1
    classify: bool = False
    tenant: str = ""

    def __post_init__(self) -> None:
        require_positive("scenario", rate=self.rate)
        require_limits("n_requests", self.n_requests, self.duration_s)
        require_samples(self.n_samples)
        if self.max_output_tokens is not None:
            require_positive("scenario", max_output_tokens=self.max_output_tokens)

    @property
    def stages(self) -> list[Stage]:
        """Times of one rate each, where arrivals come in such."""
        return stages_of_arrivals(self.arrivals, self.rate)

    def requests(self, seed: int) -> Iterator[Request]:
        """Requests in order of arrival; the same seed gives the same ones."""
        drawn = self._drawn(seed)
        return map(Classifier().tagged, drawn) if self.classify else drawn

    def _drawn(self, seed: int) -> Iterator[Request]:
        end_ns = require_limits("n_requests", self.n_requests, self.duration_s)
        lengths_rng, prefixes_rng = stream(seed, "lengths"), stream(seed, "prefixes")
        slo_class, priority, n_samples = self.slo_class, self.priority, self.n_samples
        most, cap, tenant = self.n_requests, self.max_output_tokens, self.tenant
        number = 0
        for times in self.arrivals.times_ns(self.rate, stream(seed, "arrivals")):
            n = len(times)
            prompts, outputs = self.lengths.pairs(lengths_rng, n)
            heads = [None] * n if self.prefixes is None else self.prefixes.heads(prefixes_rng, n)
            if end_ns is not None:
                n = int(times.searchsorted(end_ns))
            if most is not None:
                n = min(n, most - number)
            drawn = zip(times[:n].tolist(), prompts.tolist(), outputs.tolist(), heads, strict=False)
            for arrival_ns, prompt, output, head in drawn:
                allowed = output if cap is None or output > cap else cap
                content, total = None, prompt
                if head is not None:
                    content = (*head, (text_id(PROMPT, number), prompt))
                    total = prompt + sum(n_tokens for _, n_tokens in head)
                facts = (
                    number,
                    arrival_ns,
                    total,
                    output,
                    allowed,
                    content,
                    None,
                    None,
                    0,
                    slo_class,
                    priority,
                    n_samples,
                    "",
                    tenant,
                )
                yield new_tuple(Request, facts)
                number += 1
            if n < len(times):
                return

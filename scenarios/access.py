"""Prompts about documents that are asked for in a pattern: what eviction policies are told apart by."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scenarios.classify import Classifier
from scenarios.distributions import require, require_positive
from scenarios.prefixes import DOCUMENT, PROMPT, text_id
from scenarios.synthetic import Synthetic
from sim.request import Request, stream

PATTERNS = ("sequential", "reverse", "strided", "local", "random", "scan")


@dataclass(frozen=True, slots=True)
class AccessPattern(Synthetic):
    """Independent requests, each with a document in front of its own prompt; which one, the pattern says.

    ``sequential`` and ``reverse`` go through all documents and begin again, which is the worst for LRU where not all of
    them fit; ``strided`` takes every ``stride``-th and moves on by one when it comes round; ``local`` stays near a
    place that moves on by one document every ``dwell`` requests; ``random`` takes any; ``scan`` asks for few hot ones
    at random, and after each ``scan_every`` requests once for all the others in order (Megiddo and Modha, "ARC: A
    Self-Tuning, Low Overhead Replacement Cache", FAST 2003, on what scans do to LRU).

    Parameters
    ----------
    pattern : str
        One of these.
    n_documents, document_tokens : int
        How many there are, and their length [tokens].
    stride : int
        Of ``strided`` [documents].
    spread : float
        Of ``local``: standard deviation of the distance from its place [documents].
    dwell : int
        Of ``local`` [requests].
    hot_frac : float
        Of ``scan``: share of the documents that are hot.
    scan_every : int
        Of ``scan`` [requests].
    """

    pattern: str = "sequential"
    n_documents: int = 64
    document_tokens: int = 1024
    stride: int = 7
    spread: float = 2.0
    dwell: int = 8
    hot_frac: float = 0.125
    scan_every: int = 128

    def __post_init__(self) -> None:
        Synthetic.__post_init__(self)
        require("scenario.pattern", self.pattern, self.pattern in PATTERNS, f"one of {', '.join(PATTERNS)}")
        require(
            "scenario.prefixes", self.prefixes, self.prefixes is None, "none: documents are what prompts begin with"
        )
        for key in ("n_documents", "document_tokens", "stride", "dwell", "scan_every"):
            value = getattr(self, key)
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(f"scenario.{key}", value, is_whole, "a whole number >= 1")
        require_positive("scenario", spread=self.spread)
        require("scenario.hot_frac", self.hot_frac, 0.0 < self.hot_frac < 1.0, "a number > 0 and < 1")

    def requests(self, seed: int) -> Iterator[Request]:
        """Requests in order of arrival; the same seed gives the same ones."""
        asked = zip(self._drawn(seed), self.documents(stream(seed, "accesses")), strict=False)
        drawn = (
            request._replace(
                prompt_tokens=self.document_tokens + request.prompt_tokens,
                content=(
                    (text_id(DOCUMENT, number), self.document_tokens),
                    (text_id(PROMPT, request.id), request.prompt_tokens),
                ),
            )
            for request, number in asked
        )
        return map(Classifier().tagged, drawn) if self.classify else drawn

    def documents(self, rng: np.random.Generator) -> Iterator[int]:
        """The documents that are asked for, one after the other, without end."""
        n = self.n_documents
        n_hot = max(1, round(self.hot_frac * n))
        strided = [number for first in range(self.stride) for number in range(first, n, self.stride)]
        i = 0
        while True:
            if self.pattern == "sequential":
                yield i % n
            elif self.pattern == "reverse":
                yield n - 1 - i % n
            elif self.pattern == "strided":
                yield strided[i % n]
            elif self.pattern == "local":
                yield (i // self.dwell + round(float(rng.normal(0.0, self.spread)))) % n
            elif self.pattern == "random":
                yield int(rng.integers(n))
            else:
                yield int(rng.integers(n_hot))
                if (i + 1) % self.scan_every == 0:
                    yield from range(n_hot, n)
            i += 1

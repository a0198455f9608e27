"""What the heads of prompts share: system prompts, tool descriptions, retrieved documents."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scenarios.distributions import Ints, is_number, require, require_room
from sim.request import Segment

MAX_ITEMS_KEY = "scenario.prefixes.max_items"
BATCH = 4096  # prompts drawn at once
SHARED, PROMPT, OUTPUT, DOCUMENT = range(4)


def text_id(kind: int, number: int) -> int:
    """Identity of a text: the kinds (shared head, prompt, output, document) never collide."""
    return 4 * number + kind


class Prefixes(Protocol):
    """Text in front of prompts."""

    def heads(self, rng: np.random.Generator, n: int) -> list[tuple[Segment, ...]]:
        """Heads of n prompts, piece by piece."""
        ...


def _popular(rng: np.random.Generator, n_items: int, zipf: float, n: int) -> Ints:
    """Items of 0..n_items-1, the k-th drawn in proportion to 1 / (k + 1)^zipf, shape (n,)."""
    weights = np.arange(1, n_items + 1, dtype=np.float64) ** -zipf
    return np.searchsorted(np.cumsum(weights / weights.sum())[:-1], rng.random(n), side="right")


def _require_whole(low: int = 1, **values: int) -> None:
    for key, value in values.items():
        is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
        require(f"scenario.prefixes.{key}", value, is_whole, f"a whole number >= {low}")


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Heads from a tree: a company's rules, then a product's, then a tool's, one level's text after the other's.

    Parameters
    ----------
    tokens : list of int
        Length of each level's text, from the root [tokens]. One level is a flat set of system prompts.
    fanout : int
        Children of every node, and roots.
    zipf : float
        How unequal the children are: the k-th is chosen in proportion to 1 / k^zipf; 0 is evenly.
    """

    tokens: list[int]
    fanout: int = 1
    zipf: float = 0.0
    max_items: int = 10_000_000

    def __post_init__(self) -> None:
        require_room("scenario.prefixes.fanout", self.fanout, self.max_items, "children", MAX_ITEMS_KEY)
        _require_whole(fanout=self.fanout, **{f"tokens[{i}]": n for i, n in enumerate(self.tokens)})
        require("scenario.prefixes.tokens", self.tokens, len(self.tokens) >= 1, "one length or more [tokens]")
        require("scenario.prefixes.zipf", self.zipf, is_number(self.zipf, 0.0), "a finite number >= 0")

    def heads(self, rng: np.random.Generator, n: int) -> list[tuple[Segment, ...]]:
        """One path from the root for each prompt."""
        node = np.zeros(n, dtype=np.int64)  # nodes are numbered level by level, children after parents
        levels = []
        for n_tokens in self.tokens:
            node = node * self.fanout + 1 + _popular(rng, self.fanout, self.zipf, n)
            levels.append([(text_id(SHARED, number), n_tokens) for number in node.tolist()])
        return list(zip(*levels, strict=True))


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Heads of retrieval-augmented prompts: one system prompt, then documents of a corpus, the best match first.

    Only a head counts as a prefix: two prompts that share documents in different order share none of their KV.
    """

    system_tokens: int
    n_documents: int
    documents_per_prompt: int
    document_tokens: int
    zipf: float = 1.0
    max_items: int = 10_000_000

    def __post_init__(self) -> None:
        require_room("scenario.prefixes.n_documents", self.n_documents, self.max_items, "documents", MAX_ITEMS_KEY)
        n_drawn = self.documents_per_prompt * BATCH
        require_room("scenario.prefixes.documents_per_prompt", n_drawn, self.max_items, "draws", MAX_ITEMS_KEY)
        _require_whole(
            system_tokens=self.system_tokens,
            n_documents=self.n_documents,
            documents_per_prompt=self.documents_per_prompt,
            document_tokens=self.document_tokens,
        )
        require("scenario.prefixes.zipf", self.zipf, is_number(self.zipf, 0.0), "a finite number >= 0")

    def heads(self, rng: np.random.Generator, n: int) -> list[tuple[Segment, ...]]:
        """The system prompt and the retrieved documents of each prompt; a document may repeat."""
        drawn = _popular(rng, self.n_documents, self.zipf, n * self.documents_per_prompt)
        system = (text_id(SHARED, 0), self.system_tokens)
        return [
            (system, *((text_id(DOCUMENT, number), self.document_tokens) for number in numbers))
            for numbers in drawn.reshape(n, self.documents_per_prompt).tolist()
        ]

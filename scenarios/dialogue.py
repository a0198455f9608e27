"""How a session unfolds: turns that grow a shared history, drawn in full before its first request is sent.

Nothing is drawn while the engine runs, so the order in which requests finish, and with it the cache, cannot change
what anybody says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from scenarios.arrivals import require_before_end, ticks_ns
from scenarios.distributions import Distribution, is_number, require, require_room
from scenarios.growth import Growth
from scenarios.lengths import MAX_TOKENS, Lengths, whole_tokens
from scenarios.prefixes import DOCUMENT, OUTPUT, PROMPT, Prefixes, text_id
from sim.request import Finished, Request, Segment, stream

MAX_TURNS_KEY = "scenario.dialogue.max_turns"
BATCH = 256  # sessions drawn at once; fixed, so that a longer run begins with the sessions of a shorter one


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a session will say, and when: one entry per turn in each list."""

    session_id: int
    first_id: int  # of its requests; turn k has id first_id + k
    head: tuple[Segment, ...]
    prompts: list[int]  # new text of the user [tokens]
    outputs: list[int]  # answer [tokens]
    gaps_ns: list[int]  # between the answer before and this turn
    parents: list[int] | None  # turn that each one continues; None: always the one before
    oldest: list[int] | None = None  # first turn still part of each one's history; None: all are

    def history(self, turn: int) -> tuple[Segment, ...]:
        """What precedes a turn's new text: the head, and the exchanges before it that are still kept."""
        pieces: list[Segment] = []
        for at in self._before(turn, 0 if self.oldest is None else self.oldest[turn]):
            number = self.first_id + at
            pieces.append((text_id(OUTPUT, number), self.outputs[at]))
            pieces.append((text_id(PROMPT, number), self.prompts[at]))
        return (*self.head, *reversed(pieces))

    def _before(self, turn: int, oldest: int) -> Iterator[int]:
        """The turns that a turn continues, the latest first."""
        at = turn - 1 if self.parents is None else self.parents[turn]
        while at >= oldest:
            yield at
            at = at - 1 if self.parents is None else self.parents[at]

    def compacted(self, most_tokens: int) -> "Plan":
        """The same session when its prompts may not exceed a length.

        A turn that would exceed it drops old exchanges until its history is half full, and those after it go on from
        there: dropping one exchange a turn would change the prompt's beginning every time, and no cache could help.
        """
        room = most_tokens - sum(n_tokens for _, n_tokens in self.head)
        kept = [0] * len(self.prompts)  # tokens of each turn's history
        oldest = [0] * len(self.prompts)  # first turn that is part of it
        for turn in range(1, len(self.prompts)):
            parent = turn - 1 if self.parents is None else self.parents[turn]
            if parent < 0:
                continue
            kept[turn] = kept[parent] + self.prompts[parent] + self.outputs[parent]
            oldest[turn] = oldest[parent]
            if kept[turn] + self.prompts[turn] > room:
                kept[turn], oldest[turn] = self._newest(turn, oldest[parent], (room - self.prompts[turn]) // 2)
        return replace(self, oldest=oldest) if any(oldest) else self

    def _newest(self, turn: int, oldest: int, room: int) -> tuple[int, int]:
        """As many of the latest exchanges before a turn as fit, in tokens, and the first turn of them."""
        tokens, first = 0, turn
        for at in self._before(turn, oldest):
            if tokens + self.prompts[at] + self.outputs[at] > room:
                break
            tokens += self.prompts[at] + self.outputs[at]
            first = at
        return tokens, first


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What sessions are like.

    Parameters
    ----------
    turns : Distribution
        Turns per session, rounded to 1 or more.
    lengths : Lengths
        New text of a turn and its answer.
    think : Distribution
        From an answer to the next turn [s].
    prefixes : Prefixes or None
        Shared head of sessions, such as a system prompt.
    document : Distribution or None
        Length of a text that belongs to the session alone and stands in front of every turn [tokens].
    keeps_history : bool
        Whether earlier turns and answers are part of a turn's prompt.
    growth : Growth or None
        How much each turn says relative to ``lengths``.
    branch_frac : float
        Share of turns, from the third on, that continue from an earlier point instead of the last answer: an edited
        message or a second attempt.
    max_prompt_tokens : int
        Clients drop their oldest exchanges to stay within this, half of the history at a time [tokens].
    max_output_tokens : int or None
        Longest answer that the client allows; None asks for exactly the drawn length [tokens].
    max_document_tokens : int
        Documents are cut to this [tokens].
    max_turns : int
        A session of more is refused, for all of it is planned before its first request.
    """

    turns: Distribution
    lengths: Lengths
    think: Distribution
    prefixes: Prefixes | None = None
    document: Distribution | None = None
    keeps_history: bool = True
    growth: Growth | None = None
    branch_frac: float = 0.0
    max_prompt_tokens: int = MAX_TOKENS
    max_output_tokens: int | None = None
    max_document_tokens: int = MAX_TOKENS
    max_turns: int = 100_000

    def __post_init__(self) -> None:
        require("scenario.dialogue.branch_frac", self.branch_frac, is_number(self.branch_frac, 0, 1), "between 0 and 1")
        is_allowed = is_number(self.max_prompt_tokens, 1, MAX_TOKENS)
        require("scenario.dialogue.max_prompt_tokens", self.max_prompt_tokens, is_allowed, f"from 1 to {MAX_TOKENS}")
        is_allowed = is_number(self.max_document_tokens, 1, self.max_prompt_tokens) or self.document is None
        require(
            "scenario.dialogue.max_document_tokens", self.max_document_tokens, is_allowed, "within max_prompt_tokens"
        )
        if self.max_output_tokens is not None:
            is_allowed = is_number(self.max_output_tokens, 1)
            require("scenario.dialogue.max_output_tokens", self.max_output_tokens, is_allowed, "at least 1 [tokens]")

    def plans(self, seed: int) -> Iterator[Plan]:
        """Endless sessions; each purpose has its own random numbers."""
        turns_rng, lengths_rng, think_rng = stream(seed, "turns"), stream(seed, "lengths"), stream(seed, "think")
        prefixes_rng, document_rng = stream(seed, "prefixes"), stream(seed, "documents")
        growth_rng, branch_rng = stream(seed, "growth"), stream(seed, "branches")
        session_id = first_id = 0
        while True:
            drawn = np.maximum(np.rint(self.turns.draw(turns_rng, BATCH)), 1)
            most = min(float(drawn.max()), 1e18)
            require_room("scenario.dialogue.turns", int(most), self.max_turns, "turns of one session", MAX_TURNS_KEY)
            counts = drawn.astype(np.int64)
            total = int(counts.sum())
            starts = np.cumsum(counts) - counts
            turn = np.arange(total) - np.repeat(starts, counts)
            prompts, outputs = self.lengths.pairs(lengths_rng, total)
            if self.growth is not None:
                prompts = whole_tokens(prompts * self.growth.factors(turn, growth_rng), MAX_TOKENS)
            gaps_ns = ticks_ns(self.think.draw(think_rng, total))
            require_before_end("scenario.dialogue.think", gaps_ns)
            heads: list[tuple[Segment, ...]] = [()] * BATCH
            if self.prefixes is not None:
                heads = self.prefixes.heads(prefixes_rng, BATCH)
            if self.document is not None:
                documents = whole_tokens(self.document.draw(document_rng, BATCH), self.max_document_tokens).tolist()
                heads = [
                    (*head, (text_id(DOCUMENT, session_id + k), n_tokens))
                    for k, (head, n_tokens) in enumerate(zip(heads, documents, strict=True))
                ]
            parents = self._parents(turn, branch_rng) if self.branch_frac else None
            for start, count, head in zip(starts.tolist(), counts.tolist(), heads, strict=True):
                turns = slice(start, start + count)
                room = max(1, self.max_prompt_tokens - sum(n_tokens for _, n_tokens in head))
                plan = Plan(
                    session_id,
                    first_id,
                    head,
                    np.minimum(prompts[turns], room).tolist(),
                    outputs[turns].tolist(),
                    gaps_ns[turns].tolist(),
                    None if parents is None else parents[turns].tolist(),
                )
                yield plan.compacted(self.max_prompt_tokens) if self.keeps_history and count > 1 else plan
                session_id += 1
                first_id += count

    def _parents(self, turn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Turn that each one continues: the one before, or any earlier one if it branches."""
        earlier = np.floor(rng.random(len(turn)) * np.maximum(turn - 1, 1)).astype(np.int64)
        is_branch = (rng.random(len(turn)) < self.branch_frac) & (turn >= 2)
        return np.where(is_branch, earlier, turn - 1)

    def request(
        self, plan: Plan, turn: int, arrival_ns: int, slo_class: str, priority: int, n_samples: int = 1
    ) -> Request:
        """One turn of a session as the engine receives it."""
        number = plan.first_id + turn
        new = plan.prompts[turn]
        history = plan.history(turn) if self.keeps_history else plan.head
        is_shared = bool(history) or len(plan.prompts) > 1
        content = (*history, (text_id(PROMPT, number), new)) if is_shared else None
        output, cap = plan.outputs[turn], self.max_output_tokens
        return Request(
            number,
            arrival_ns,
            new + sum(n_tokens for _, n_tokens in history),
            output,
            output if cap is None or output > cap else cap,
            content,
            text_id(OUTPUT, number) if is_shared and self.keeps_history else None,
            plan.session_id,
            turn,
            slo_class,
            priority,
            n_samples,
        )


def answer_at_ns(finished: Finished, gap_ns: int) -> int:
    """When a client speaks again: at the earliest one tick after the answer.

    Never in the same tick, so that whoever replays the traffic from a file sees arrivals and finishes in the order
    in which they happened.
    """
    return finished.finish_ns + max(1, gap_ns)

"""What the engine knows of one request while serving it."""

from typing import Any

from sim.request import Request, Segment, text_of
from sim.units import FAR


class Sequence:
    """One request's state in a replica.

    While it decodes, its counters stand still and the `DecodeLedger` knows how far it is; they are written back when
    it leaves the ledger.
    """

    __slots__ = (
        "cached_tokens",  # of the prompt, found resident at first admission; None before
        "coming_tokens",  # of the computed ones, those that came with it or that it waits for
        "computed_tokens",  # tokens whose KV has been computed; drops to 0 on recompute
        "dropped_tokens",  # of the computed ones, those whose KV was discarded (window, compaction)
        "first_token_ns",
        "found_tokens",  # of its text so far, found when it was admitted again
        "generated_tokens",  # never decreases, not even when preempted
        "holding",  # what the cache holds for it; the cache's own business
        "is_finished",  # it has its answer
        "is_swapped_in",  # when it last came back, KV was loaded and not computed anew
        "joined_step",  # the ledger's step when it started decoding
        "joined_tokens",  # and its resident tokens then
        "last_token_ns",  # its last token before it was preempted
        "loading",  # the event that ends its wait for KV from elsewhere; None: it does not wait
        "lost_tokens",  # whose KV it had when it was preempted
        "n_preemptions",
        "n_samples",  # sequences that it becomes when its prompt is complete: of a `Sample` there may be more
        "order",  # admission number in its replica, new at every admission
        "output_tokens",  # of its request: for the engine alone
        "padding_tokens",  # its prompt is padded by, in a request-level batch
        "placed_ns",  # when it came to its replica
        "preempted_ns",  # since when it waits to come back
        "reach_tokens",  # that a token of its prompt attends to at most; what the cache keeps may bound it
        "request",
        "room_tokens",  # resident tokens it can reach, sliding over none, before the cache must attend to it alone
        "samples",  # those that answer its request together, where there are several
        "scheduled_ns",
        "target_tokens",  # prefill is complete when so many tokens are computed
        "transit",  # of its KV from the replica that computed its prompt, until its next token; None: none
        "unnamed_tokens",  # of the computed ones, the last, which nobody may find yet; -1: one more has room and a name
        "was_decoding",  # when it was preempted
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.target_tokens = request.prompt_tokens
        self.output_tokens = request.output_tokens
        self.order = self.n_preemptions = 0
        self.computed_tokens = self.dropped_tokens = self.generated_tokens = self.padding_tokens = 0
        self.joined_step = self.joined_tokens = self.unnamed_tokens = 0
        self.coming_tokens = self.lost_tokens = self.found_tokens = 0
        self.is_finished = self.is_swapped_in = self.was_decoding = False
        self.cached_tokens: int | None = None
        self.room_tokens: int | None = None
        self.placed_ns = request.arrival_ns
        self.scheduled_ns: int | None = None
        self.first_token_ns: int | None = None
        self.preempted_ns: int | None = None
        self.last_token_ns: int | None = None
        self.n_samples = 1
        self.reach_tokens = FAR
        self.samples: Any = None
        self.loading: Any = None
        self.transit: Any = None
        self.holding: Any = None

    @property
    def resident_tokens(self) -> int:
        """Tokens whose KV is kept."""
        return self.computed_tokens - self.dropped_tokens

    @property
    def prefill_left_tokens(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return self.target_tokens - self.computed_tokens

    @property
    def preempted_at_tokens(self) -> int | None:
        """How much of its answer it had when it was preempted or handed over; None: it was neither."""
        return self.generated_tokens if self.n_preemptions or self.generated_tokens else None

    def onward(self) -> "Sequence":
        """The same for the replica that goes on with it; what it holds here stays this one's."""
        other = self._twin()
        for name in GOES_ALONG:
            setattr(other, name, getattr(self, name))
        other.target_tokens = self.request.prompt_tokens + self.generated_tokens
        return other

    def _twin(self) -> "Sequence":
        return Sequence(self.request)

    def start_at(self, n_tokens: int, dropped_tokens: int, coming_tokens: int) -> None:
        """It is admitted with so many tokens computed, of which the last are to come from elsewhere."""
        self.computed_tokens, self.dropped_tokens, self.coming_tokens = n_tokens, dropped_tokens, coming_tokens

    def stop_loading(self) -> None:
        """It waits for KV no more: what has not come is not computed."""
        if self.loading is not None:
            self.computed_tokens -= self.coming_tokens
            self.loading = None

    def lose(self, n_tokens: int) -> None:
        """The last tokens that it waited for are lost: they are computed after all.

        So is all the text before them of which only the end was taken over, as a window asks: that begins earlier now.
        """
        if self.dropped_tokens:
            n_tokens, self.dropped_tokens = self.computed_tokens, 0
        self.computed_tokens -= n_tokens
        if self.n_preemptions:
            self.found_tokens -= n_tokens
        elif not self.generated_tokens and self.cached_tokens is not None:
            self.cached_tokens -= n_tokens

    def text(self) -> tuple[Segment, ...]:
        """Identity of its prompt and of what it has generated, as far as they have one."""
        return text_of(self.request, self.generated_tokens)


GOES_ALONG = (
    "generated_tokens",
    "cached_tokens",
    "scheduled_ns",
    "first_token_ns",
    "last_token_ns",
    "n_preemptions",
)
"""What a sequence takes along to another replica."""

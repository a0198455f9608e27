"""Which of a sequence's KV stays: all, sinks and a window, or a share of it.

A retention speaks when a prompt is complete and whenever a decoding sequence has reached the number of resident tokens
that it named before. What was dropped is attended no more; what that does to answers is not simulated.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

from sim.errors import ConfigError
from sim.spec import known


class Kept(NamedTuple):
    """What stays, and when to ask again."""

    n_tokens: int  # resident from now on
    room_tokens: int | None  # resident tokens at which to ask again; None: never
    n_moved_tokens: int = 0  # read and written to move it together


class Retention(Protocol):
    """What a sequence keeps.

    ``window_tokens``: it stops growing there, each new token in an old one's place. ``most_tokens``: it never has more
    (None: no bound), so that a prompt too is cut piece by piece, and none of its tokens attends to more.
    ``cuts_pieces``: whether it is asked after every piece of a prompt, or when the prompt is complete.
    """

    window_tokens: int | None
    most_tokens: int | None
    cuts_pieces: bool

    def kept(self, computed_tokens: int, resident_tokens: int, room_tokens: int | None, pressure_frac: float) -> Kept:
        """What stays of a sequence.

        Parameters
        ----------
        computed_tokens : int
            All it has seen.
        resident_tokens : int
            What it still has of that.
        room_tokens : int or None
            What it named the last time; None: its prompt has just been computed.
        pressure_frac : float
            Share of the device's blocks in use, 0 to 1.
        """
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Attention sinks and the latest tokens: generation without end in constant memory.

    Three ways to move on, once ``sinks`` + ``window`` tokens are resident: ``overlap=None`` slides, each new token in
    the place of the oldest (a ring); ``overlap=k`` lets the window run full and then keeps its last k tokens;
    ``dynamic`` does the same with a window that doubles while less than ``low_frac`` of the memory is used and halves
    while more than ``high_frac`` is, between half and twice the base. A sequence looks at the pressure whenever its
    window is full.

    Two ways to compute a prompt. ``windowed``: each of its tokens attends to the sinks and the window before it, and
    that is all that is ever kept, so a text has no end. ``dense``: every token attends to all before it, so the whole
    prompt is held until it is complete, and must fit; then the rest is dropped.

    Parameters
    ----------
    window, sinks : int
        [tokens]. StreamingLLM: 4 sinks suffice.
    prompt : str
        ``windowed``, as vLLM computes prompts of models that have a window, or ``dense``, as StreamingLLM's own code
        does: it drops between turns, and one forward pass computes a whole prompt.
    overlap : int or None
        Tokens of a full window that stay; None slides.
    dynamic : bool
        Needs an overlap.
    low_frac, high_frac : float
        Share of the blocks in use.

    References
    ----------
    Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024. Perplexity of Llama-2-13B on
    PG19: 5.40 with 4 sinks and 1,020 tokens, 5158.07 with a window of 1,024 and no sinks (table 1 there).
    """

    window: int = 1020
    sinks: int = 4
    overlap: int | None = None
    dynamic: bool = False
    low_frac: float = 0.5
    high_frac: float = 0.9
    prompt: str = "windowed"

    cuts_pieces = False

    def __post_init__(self) -> None:
        known("cache.retention", ("windowed", "dense"), prompt=self.prompt)
        if self.sinks < 0:
            raise ConfigError(f"cache.retention.sinks must be >= 0 [tokens], got {self.sinks}")
        if self.window < max(1, self.sinks):
            raise ConfigError(
                f"cache.retention.window must be >= 1 and >= cache.retention.sinks ({self.sinks}) [tokens], "
                f"got {self.window}"
            )
        if self.overlap is not None and not 0 <= self.overlap < self._least:
            raise ConfigError(
                f"cache.retention.overlap must be null, or >= 0 and < {self._least} [tokens]"
                f"{', half the window, for it is dynamic' if self.dynamic else ', the window'}, got {self.overlap}"
            )
        if self.dynamic and self.overlap is None:
            raise ConfigError("cache.retention.overlap must be given for a dynamic window, got null")
        if not 0.0 <= self.low_frac < self.high_frac <= 1.0:
            raise ConfigError(
                f"cache.retention.low_frac and high_frac must be 0 <= low < high <= 1, "
                f"got {self.low_frac} and {self.high_frac}"
            )

    @property
    def _least(self) -> int:
        """The smallest the window gets [tokens]."""
        return max(1, self.window // 2) if self.dynamic else self.window

    @property
    def window_tokens(self) -> int | None:
        """Resident tokens of a ring; None where the window runs full and is cut."""
        return self.sinks + self.window if self.overlap is None else None

    @property
    def most_tokens(self) -> int | None:
        """Sinks and the largest window; None where a dense prompt is held as a whole [tokens]."""
        if self.prompt == "dense":
            return None
        return self.sinks + (2 if self.dynamic else 1) * self.window

    def kept(
        self,
        computed_tokens: int,  # noqa: ARG002
        resident_tokens: int,
        room_tokens: int | None,
        pressure_frac: float,
    ) -> Kept:
        """Everything until the window is full, then the sinks and the overlap, or as much as slides."""
        if self.overlap is None:
            return Kept(min(resident_tokens, self.sinks + self.window), None)
        room = self._room(room_tokens, pressure_frac)
        if resident_tokens < room:
            return Kept(resident_tokens, room)
        return Kept(self.sinks + self.overlap, room)

    def _room(self, room_tokens: int | None, pressure_frac: float) -> int:
        """Sinks and window, as large as the memory in use allows."""
        window = self.window
        if not self.dynamic:
            return self.sinks + window
        if room_tokens is not None:
            window = room_tokens - self.sinks
        if pressure_frac < self.low_frac:
            window = min(2 * self.window, 2 * window)
        elif pressure_frac > self.high_frac:
            window = max(self._least, window // 2)
        return self.sinks + window


@dataclass(frozen=True, slots=True)
class Share:
    """The most important ``keep_ratio`` of the tokens, and ``bits`` for each of their elements.

    Scores are attention's, as H2O and SnapKV compute them along the way; moving what is kept together is charged, and
    so is quantising, once for each token: both every ``every`` tokens of a sequence, and when its prompt is complete. A
    fused kernel dequantises as it reads; reading is charged as if elements had their full width, so decoding gains
    room, not speed.

    Two ways to compute a prompt. ``dense``: every token attends to all before it, and the share is taken when the
    prompt is complete. ``by_piece``: it is taken after each piece that the scheduler makes of a prompt, so the next
    piece attends to the share alone, and no more is held beside it.

    Parameters
    ----------
    prompt : str
        ``dense``, as H2O, SnapKV and NVIDIA's kvpress do, or ``by_piece``, as KeyDiff does.
    keep_ratio : float
        Share of a sequence's tokens that stays, above 0 and at most 1.
    bits : int
        Per element: 16 keeps them as they are; 8, 4 or 2.
    every : int
        Tokens between two compactions. KIVI keeps its last 128 unquantised.
    group : int
        Elements that share a 16-bit scale and a 16-bit zero point; KIVI's is 32.

    References
    ----------
    Published quality, inputs and no results of ours. H2O (Zhang et al., NeurIPS 2023): 20 % of the KV keeps the
    quality of all. SnapKV (Li et al., NeurIPS 2024): 3.6 times the decoding speed and 8.2 times less memory at 16k
    tokens. KIVI (Liu et al., ICML 2024): 2 bits, 2.6 times less peak memory, nearly the same quality. KeyDiff (Park et
    al., 2025, arXiv 2504.15364): prompts in blocks, each followed by eviction; 30 % less latency than without.
    """

    keep_ratio: float = 0.5
    bits: int = 16
    every: int = 128
    group: int = 32
    prompt: str = "dense"

    def __post_init__(self) -> None:
        known("cache.retention", ("dense", "by_piece"), prompt=self.prompt)
        if not 0.0 < self.keep_ratio <= 1.0:
            raise ConfigError(f"cache.retention.keep_ratio must be > 0 and <= 1, got {self.keep_ratio}")
        if self.bits not in (2, 4, 8, 16):
            raise ConfigError(f"cache.retention.bits must be 2, 4, 8 or 16 [bits], got {self.bits}")
        if self.every < 1:
            raise ConfigError(f"cache.retention.every must be >= 1 [tokens], got {self.every}")
        if self.group < 1:
            raise ConfigError(f"cache.retention.group must be >= 1 [elements], got {self.group}")

    @property
    def window_tokens(self) -> int | None:
        """None: what is kept grows with the text."""
        return None

    @property
    def most_tokens(self) -> int | None:
        """None."""
        return None

    @property
    def cuts_pieces(self) -> bool:
        """Whether the share is taken after every piece."""
        return self.prompt == "by_piece"

    @property
    def bits_per_element(self) -> float:
        """Scales and zero points included."""
        return float(self.bits) if self.bits == 16 else self.bits + 32 / self.group

    def kept(
        self,
        computed_tokens: int,
        resident_tokens: int,
        room_tokens: int | None,  # noqa: ARG002
        pressure_frac: float,  # noqa: ARG002
    ) -> Kept:
        """The share of all that was seen, moved together."""
        n_kept = min(resident_tokens, ceil(self.keep_ratio * computed_tokens))
        n_moved = n_kept if n_kept < resident_tokens else 0
        is_lossless = self.keep_ratio == 1.0 and self.bits == 16
        return Kept(n_kept, None if is_lossless else n_kept + self.every, n_moved)

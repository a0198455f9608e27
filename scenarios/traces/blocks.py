"""Prompts of hashed blocks: equal ids name equal text up to the block's end, and the last block may be partial."""

from typing import Any

from scenarios.traces.row import MAX_IDENTITY, identity, shown
from scenarios.traces.text import Place, Reading
from sim.request import Segment


class Blocks:
    """Makes texts of a file's ``hash_ids``.

    n ids for p tokens are blocks of p / n to (p - 1) / (n - 1) tokens, among which there is at most one power of two.
    So the first row with several ids tells the size where nobody has said it.

    Parameters
    ----------
    own_tokens : int
        The format's own block size [tokens].
    """

    def __init__(self, own_tokens: int, reading: Reading) -> None:
        self._own_tokens = own_tokens
        self._tokens = reading.hash_block_tokens
        self._why = "scenario.hash_block_tokens"
        self._longest, self._longest_line = 0, 0  # of prompts with a single id, before the size is known
        self._notes = reading.notes

    def text(self, hash_ids: Any, prompt_tokens: int, place: Place) -> tuple[Segment, ...] | None:
        """The prompt, block by block; None where nothing is hashed.

        Raises
        ------
        TraceError
            If the ids are none, or not as many as the prompt has blocks.
        """
        if hash_ids is None:
            return None
        ids = _identities(hash_ids)
        if ids is None:
            problem = f"must be a list of whole numbers from 0 to {MAX_IDENTITY - 1} or of hexadecimal texts"
            raise place.error(f"{problem}, got {shown(hash_ids)}", "hash_ids")
        if not ids:
            return None
        n_ids = len(ids)
        size = self._tokens or self._learnt(n_ids, prompt_tokens, place)
        last = prompt_tokens - (n_ids - 1) * size
        if not 0 < last <= size:
            needed = -(-prompt_tokens // size)
            raise place.error(f"must be {needed} of {size} tokens each ({self._why}), got {n_ids}", "hash_ids")
        return (*[(one, size) for one in ids[:-1]], (ids[-1], last))

    def _learnt(self, n_ids: int, prompt_tokens: int, place: Place) -> int:
        """The size that a row tells; of a single block the prompt's own length, which says nothing yet."""
        if n_ids == 1:
            if prompt_tokens > self._longest:
                self._longest, self._longest_line = prompt_tokens, place.line
            return max(1, prompt_tokens)
        low, high = -(-prompt_tokens // n_ids), (prompt_tokens - 1) // (n_ids - 1)
        size = 1 << max(0, high).bit_length() - 1 if high > 0 else 0
        if not low <= size:
            needed = -(-prompt_tokens // self._own_tokens)
            hint = (
                f"; blocks of {low} to {high} would fit: scenario.hash_block_tokens says which" if low <= high else ""
            )
            raise place.error(f"must be {needed} of {self._own_tokens} tokens each, got {n_ids}{hint}", "hash_ids")
        if size < self._longest:
            raise place.error(
                f"must name blocks of one size, got {n_ids} for {prompt_tokens} tokens after 1 for {self._longest} in "
                f"line {self._longest_line}",
                "hash_ids",
            )
        self._tokens, self._why = size, f"as in line {place.line}; scenario.hash_block_tokens says otherwise"
        if size != self._own_tokens:
            self._notes.append(
                f"hash_ids are read as blocks of {size} tokens, the only power of two that fits line {place.line} "
                f"({self._own_tokens} is the format's own; scenario.hash_block_tokens says otherwise)."
            )
        return size


def _identities(hash_ids: Any) -> list[int] | None:
    """The identities in a list; None if that is none."""
    if not isinstance(hash_ids, list):
        return None
    found = [one for one in map(identity, hash_ids) if one is not None]
    return found if len(found) == len(hash_ids) else None

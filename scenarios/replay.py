"""Traffic that happened: the rows of a trace, at their times."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice

import numpy as np

from scenarios.classify import Classifier
from scenarios.distributions import is_number, require, require_positive
from scenarios.traces.detect import UNITS as UNITS_OF
from scenarios.traces.detect import detect, rows
from scenarios.traces.row import UNITS, Row
from scenarios.traces.text import CHARS_PER_TOKEN, MAX_LINE_BYTES, MAX_ROWS, MAX_TEXT_BYTES, Reading
from sim.errors import TraceError
from sim.request import Request, new_tuple, stream
from sim.units import LAST_NS, NS_PER_S, ns_from_s

WHOLE = ("limit", "max_output_tokens", "n_samples", "hash_block_tokens", "max_rows", "max_text_bytes", "max_line_bytes")
"""Settings that are whole numbers from 1 on."""
MOST_PER_S, SHORTEST_S, LONGEST_S = 1_000, 0.1, 365 * 86_400
"""Prompts a second, and lengths of a trace, beyond which its unit is in doubt: the busiest public traces have tens of
prompts a second, and the longest lasts months."""


@dataclass(slots=True)
class Replay:
    """A trace file, row by row, in constant memory.

    Parameters
    ----------
    path : str
        The file; gzip is recognised by its first bytes.
    format : str or None
        How it is written; None looks at the first line.
    rate_scale : float
        2 sends the same requests twice as fast.
    time_range : list of two floats or None
        Only what arrives in [start, end) of the file's own time [s]; the run starts at its start.
    limit : int or None
        Only the first so many rows (of those in ``time_range``).
    shuffle : bool
        Deal the requests anew over the arrival times; sessions lose their order, all rows are held in memory.
    sort : bool
        Bring rows that stand out of order into order, held in memory; otherwise they are an error.
    skip_empty : bool
        Leave out rows without prompt or answer, as of failed requests; otherwise they are an error.
    max_output_tokens : int or None
        Longest answer that clients allow; None asks for exactly the answer of the row, which is what replaying load
        generators do [tokens].
    n_samples : int or None
        Answers sampled from each prompt at once; None as the row says, which is one in most formats.
    classify : bool
        Tag requests with what their session looks like, as their ``kind``, instead of what the file says.
    time_unit : str or None
        Unit of the file's times (s, ms, us, ns); None is its format's own.
    hash_block_tokens : int or None
        Block size of the file's ``hash_ids``; None is its format's own, or the one power of two that fits them
        [tokens].
    chars_per_token : float
        What a token is taken for in formats that hold texts [characters].
    max_rows, max_text_bytes, max_line_bytes : int
        Beyond these a file is refused.

    Attributes
    ----------
    notes : list of str
        What was taken for granted when the rows were last read.
    """

    path: str
    format: str | None = None
    rate_scale: float = 1.0
    time_range: list[float] | None = None
    limit: int | None = None
    shuffle: bool = False
    sort: bool = False
    skip_empty: bool = False
    max_output_tokens: int | None = None
    slo_class: str = ""
    n_samples: int | None = None
    classify: bool = False
    time_unit: str | None = None
    hash_block_tokens: int | None = None
    chars_per_token: float = CHARS_PER_TOKEN
    max_rows: int = MAX_ROWS
    max_text_bytes: int = MAX_TEXT_BYTES
    max_line_bytes: int = MAX_LINE_BYTES
    notes: list[str] = field(init=False, default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        require("scenario.path", self.path, isinstance(self.path, str) and self.path != "", "the path of a trace file")
        require_positive("scenario", rate_scale=self.rate_scale, chars_per_token=self.chars_per_token)
        is_unit = self.time_unit is None or self.time_unit in UNITS
        require("scenario.time_unit", self.time_unit, is_unit, f"null or one of {', '.join(UNITS)}")
        for key in WHOLE:
            value = getattr(self, key)
            if value is not None:
                is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
                require(f"scenario.{key}", value, is_whole, "a whole number >= 1")
        if self.time_range is not None:
            ends = self.time_range
            is_range = isinstance(ends, list | tuple) and len(ends) == 2 and all(is_number(end, 0.0) for end in ends)
            is_range = is_range and ends[0] < ends[1]
            require("scenario.time_range", self.time_range, is_range, "[start, end] with 0 <= start < end [s]")

    def requests(self, seed: int) -> Iterator[Request]:
        """Requests in order of arrival; the seed only shuffles.

        Raises
        ------
        TraceError
            If the file cannot be read, at the row at fault; rows before it have been emitted by then.
        """
        own_ids: bool | None = None
        line_of: dict[int, int] = {}  # of ids that the file gives
        classifier = Classifier() if self.classify else None
        cap, slo_class, asked_samples = self.max_output_tokens, self.slo_class, self.n_samples
        for number, row in enumerate(self.rows(seed)):
            (
                arrival_ns,
                prompt,
                output,
                line,
                content,
                session_id,
                turn,
                own_id,
                most,
                output_id,
                row_class,
                priority,
                n_samples,
                kind,
                tenant,
            ) = row
            if own_ids is None:
                own_ids = own_id is not None
            if own_ids is not (own_id is not None):
                raise TraceError(f"{self.path}:{line}: an id must be in every row or in none")
            if own_id is not None and line_of.setdefault(own_id, line) != line:
                raise TraceError(f"{self.path}:{line}: id must be new, {own_id} is in line {line_of[own_id]} too")
            if most is None or most < output:
                most = output if cap is None or output > cap else cap
            request = new_tuple(
                Request,
                (
                    number if own_id is None else own_id,
                    arrival_ns,
                    prompt,
                    output,
                    most,
                    content,
                    output_id,
                    session_id,
                    turn,
                    row_class or slo_class,
                    priority,
                    asked_samples or n_samples,
                    kind,
                    tenant,
                ),
            )
            yield request if classifier is None else classifier.tagged(request)

    def rows(self, seed: int, is_served: bool = True) -> Iterator[Row]:
        """The rows wanted, at the times of the run.

        Parameters
        ----------
        is_served : bool
            Whether they have to make sense as traffic: in order, each with a prompt and an answer. A look at a trace
            takes them as they are.

        Raises
        ------
        TraceError
            If the file cannot be read, or none of its rows is wanted.
        """
        name = self.format or detect(self.path)
        chosen = self._in_order(name, is_served)
        if self.time_range is not None:
            chosen = _within(chosen, *map(ns_from_s, self.time_range))
        wanted: Iterator[Row] = islice(chosen, self.limit)
        first = next(wanted, None)
        if first is None:
            raise TraceError(f"{self.path}: no row is left{self._reasons()}")
        wanted = self._noted(chain((first,), wanted), UNITS_OF.get(name))
        if self.shuffle:
            held = list(wanted)
            dealt = stream(seed, "shuffle").permutation(len(held)).tolist()
            wanted = (held[i]._replace(arrival_ns=row.arrival_ns) for i, row in zip(dealt, held, strict=True))
        return self._scaled(wanted, first.arrival_ns)

    def _scaled(self, wanted: Iterator[Row], first_ns: int) -> Iterator[Row]:
        """The rows at the times of the run.

        What lies between them is scaled, so that the same rows come at the same distances wherever their clock begins.
        """
        scale = Fraction(self.rate_scale)
        origin_ns = max(0, round(first_ns / scale))
        if origin_ns > LAST_NS // 2:
            origin_ns = first_ns
        if scale == 1 and origin_ns == first_ns:
            return wanted
        return (row._replace(arrival_ns=origin_ns + round((row.arrival_ns - first_ns) / scale)) for row in wanted)

    def _reasons(self) -> str:
        """Settings that leave rows out, for an error message."""
        set_here = [
            f"scenario.{key}={getattr(self, key)}" for key in ("time_range", "skip_empty") if getattr(self, key)
        ]
        return f" within {' and '.join(set_here)}" if set_here else ""

    def _in_order(self, name: str, is_served: bool) -> Iterator[Row]:
        read = rows(self.path, name, self.reading())
        if is_served:
            read = self._filled(read)
        if self.sort:
            held = list(read)
            order = np.argsort(np.array([row.arrival_ns for row in held], dtype=np.int64), kind="stable")
            return (held[i] for i in order.tolist())
        return self._ascending(read) if is_served else read

    def reading(self) -> Reading:
        """How the file is read; what readers take for granted is noted here."""
        self.notes.clear()
        caps = self.max_rows, self.max_text_bytes, self.max_line_bytes
        return Reading(*caps, self.time_unit, self.hash_block_tokens, self.chars_per_token, self.notes)

    def _noted(self, read: Iterator[Row], unit: str | None) -> Iterator[Row]:
        """The rows; at their end, a note of times that can only be in another unit."""
        n_rows, first_ns, last_ns = 0, LAST_NS, 0
        for row in read:
            n_rows += 1
            arrival_ns = row[0]
            if arrival_ns < first_ns:
                first_ns = arrival_ns
            if arrival_ns > last_ns:
                last_ns = arrival_ns
            yield row
        if self.time_unit is None:
            said = doubtful_unit(unit, n_rows, last_ns - first_ns)
            self.notes.extend([said] if said else [])

    def _ascending(self, read: Iterator[Row]) -> Iterator[Row]:
        first_ns = last_ns = None
        most_ns = LAST_NS // 2 * min(self.rate_scale, 1.0)
        for row in read:
            arrival_ns = row[0]
            if last_ns is None or first_ns is None:
                first_ns = last_ns = arrival_ns
            if arrival_ns < last_ns:
                raise TraceError(
                    f"{self.path}:{row.line}: arrives {(last_ns - arrival_ns) / NS_PER_S} s before the row "
                    f"above it (scenario.sort=true brings rows into order)"
                )
            if arrival_ns - first_ns > most_ns:
                raise TraceError(
                    f"{self.path}:{row.line}: arrives {(arrival_ns - first_ns) / NS_PER_S:.0f} s after the first row"
                )
            last_ns = arrival_ns
            yield row

    def _filled(self, read: Iterator[Row]) -> Iterator[Row]:
        for row in read:
            if row.prompt_tokens and row.output_tokens:
                yield row
            elif not self.skip_empty:
                raise TraceError(
                    f"{self.path}:{row.line}: must have at least 1 token of prompt and of answer, got "
                    f"{row.prompt_tokens} and {row.output_tokens} (scenario.skip_empty=true leaves such rows out)"
                )


def _within(read: Iterator[Row], start_ns: int, end_ns: int) -> Iterator[Row]:
    """Rows that arrive in [start, end), counted from the start."""
    for row in read:
        if row.arrival_ns >= end_ns:
            return
        if row.arrival_ns >= start_ns:
            yield row._replace(arrival_ns=row.arrival_ns - start_ns)


def doubtful_unit(unit: str | None, n_rows: int, span_ns: int) -> str | None:
    """What to say of a trace whose times can hardly be in the unit they were taken in; None if nothing.

    Parameters
    ----------
    unit : str or None
        None where the format says no times, or dates.
    span_ns : int
        From the first row to the last [ns].
    """
    if unit is None or n_rows < 2 or not span_ns:
        return None
    span_s, per_s = span_ns / NS_PER_S, (n_rows - 1) * NS_PER_S / span_ns
    rate = f"{per_s:,.{0 if per_s > 10 else 3}f}"
    if per_s < MOST_PER_S and SHORTEST_S <= span_s <= LONGEST_S:
        return None
    others = ", ".join(other for other in UNITS if other != unit)
    return (
        f"Times are taken in {unit}: {n_rows:,} requests in {span_s:,.3g} s, {rate} a second. "
        f"If they are in another unit, scenario.time_unit says so ({others})."
    )

"""The facts of a run: what the engine writes down, and nothing added up.

Rows live in flat arrays of 64-bit integers (`Table`), because a million requests make several million rows. A run of
iterations is one row: `n_steps` iterations starting at ``start_ns``, their durations an arithmetic series in
picoseconds. Metrics and reports are computed from these tables afterwards.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from librt.strings import BytesWriter

from sim.errors import InvariantError
from sim.request import Request, Stage
from sim.units import PS_PER_NS

Ints = npt.NDArray[np.int64]

REQUEST_COLUMNS = (
    "id",
    "replica",
    "arrival_ns",
    "scheduled_ns",  # first admitted into the running batch
    "first_token_ns",
    "finish_ns",
    "prompt_tokens",
    "output_tokens",  # of all its answers
    "cached_tokens",  # of the prompt, found resident when first admitted
    "n_preemptions",
    "session_id",  # -1: none
    "turn",
    "slo_class",  # index into Result.slo_classes
    "n_samples",  # answers sampled from its prompt at once, each of output_tokens / n_samples
    "apart_tokens",  # of the same prompt, not found by further answers that compute it for themselves (vLLM v1)
)
ITERATION_COLUMNS = (
    "replica",
    "start_ns",
    "carry_ps",  # what the clock's rounding owes when the run of iterations starts, 0 to 999
    "n_steps",
    "first_ps",
    "growth_ps",
    "prefill_tokens",  # new prompt tokens computed, 0 in a run of several
    "joined_seqs",  # sequences whose prefill completes in this iteration and that go on decoding
    "decode_seqs",
    "decode_context_tokens",
    "waiting_seqs",  # when its last iteration has ended, before anybody is admitted
    "partial_seqs",  # admitted, prompt not yet completely computed
    "held_tokens",  # token slots held by admitted sequences
    "live_tokens",  # KV entries of admitted sequences; one that several share counts for each
    "idle_tokens",  # slots holding reusable KV that no sequence references
    "preempted_seqs",  # preempted while planning this iteration
    "padding_seqs",  # computed with the batch although their answer has ended (request-level batches)
    "internal_tokens",  # held slots that rounding added and no token is meant for: ends of blocks, powers of two
    "external_tokens",  # free slots outside the longest hole, where an extent must lie in one piece
    "shared_tokens",  # live ones that share a slot with another sequence's: live - shared slots hold KV
    "padding_tokens",  # computed beside prefill_tokens, to pad prompts to the batch's longest (request-level batches)
)
PREEMPTION_COLUMNS = (
    "request_id",
    "replica",
    "preempted_ns",
    "last_token_ns",  # -1: it had none yet
    "next_token_ns",  # -1: none after it
    "is_swap",
    "lost_tokens",  # whose KV it had, or was waiting for, when it gave way
    "is_decoding",  # it gave way while decoding: the token it sampled last is computed with those
    "found_tokens",  # of its text so far, found when it was admitted again: others may have computed more of it
)
NOBODYS: Final = -1
"""In place of a replica where all share what there is."""
TRANSFER_COLUMNS = (
    "replica",  # whose link it is; `NOBODYS` of one that all share
    "link",  # index into Result.links
    "start_ns",
    "end_ns",
    "n_bytes",
    "n_pieces",
)
CELL_BYTES: Final = 8
MOST_UNKEPT_BYTES: Final = 1 << 16
HANDOVER_COLUMNS = (
    "request_id",
    "source",  # replica that computed the prompt
    "replica",  # that goes on with it
    "ready_ns",  # its prompt is computed, and its first token has been returned
    "admitted_ns",  # its KV has room where it goes on
    "come_ns",  # all of it is there, and gone where it was; -1: lost, or not waited for
    "next_token_ns",  # -1: none before it was preempted
    "n_tokens",  # sent
    "found_tokens",  # there already
    "n_bytes",
)
FLEET_COLUMNS = ("at_ns", "replica", "event")  # event: an index into FLEET_EVENTS
FLEET_EVENTS = ("started", "opened", "drained", "failed", "cancelled")
"""What happens to a replica: it was asked for, takes requests, takes no more; is lost, or is not needed after all."""
MAX_REASONS = 100  # refusals kept in words; all are counted
REFUSED_COLUMNS = ("id", "arrival_ns", "prompt_tokens", "output_tokens", "session_id", "slo_class")


class Table:
    """Rows of integers under fixed column names.

    The engine writes a row cell by cell, ``write_i64_le(table.row, ...)`` in the order of `columns`, and then says
    ``table.keep()``: compiled, a cell is one store, and no integer becomes an object on the way.
    """

    __slots__ = ("_cells", "columns", "row")

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self.row = BytesWriter()  # rows on their way
        self._cells = array("q")

    def add(self, *row: int) -> None:
        """Append a row of whole numbers, in the order of `columns`.

        Raises
        ------
        InvariantError
            If it has more or fewer cells.
        """
        if len(row) != len(self.columns):
            raise self._misshapen()
        self.row.write(array("q", row).tobytes())
        self.keep()

    def keep(self) -> None:
        """A row has been written: many of them are moved to where they stay."""
        if len(self.row) >= MOST_UNKEPT_BYTES:
            self._move()

    def _move(self) -> None:
        if len(self.row) % (CELL_BYTES * len(self.columns)):
            raise self._misshapen()
        self._cells.frombytes(self.row.getvalue())
        self.row.truncate(0)

    def _misshapen(self) -> InvariantError:
        return InvariantError(f"a row has no cell, or more than one, for one of {', '.join(self.columns)}")

    def __reduce__(self) -> tuple[object, ...]:
        """As pickled and copied: the columns' names and the cells."""
        self._move()
        return table_of, (self.columns, self._cells)

    def __len__(self) -> int:
        return (len(self._cells) + len(self.row) // CELL_BYTES) // len(self.columns)

    def rows(self) -> Ints:
        """The table, shape (n_rows, n_columns); a view, and while one is held no row can be added."""
        self._move()
        return np.frombuffer(self._cells, dtype=np.int64).reshape(-1, len(self.columns))

    def column(self, name: str) -> Ints:
        """One column, shape (n_rows,); a view of `rows`."""
        return self.rows()[:, self.columns.index(name)]

    def frame(self) -> Any:
        """The table as a pandas DataFrame (a copy)."""
        import pandas as pd

        return pd.DataFrame(self.rows().copy(), columns=list(self.columns))


def table_of(columns: tuple[str, ...], cells: "array[int]") -> Table:
    """A table of these cells, row by row."""
    table = Table(columns)
    table._cells.extend(cells)
    return table


@dataclass(slots=True)
class Recorder:
    """Where the engine writes its facts while it runs."""

    requests: Table = field(default_factory=lambda: Table(REQUEST_COLUMNS))
    iterations: Table = field(default_factory=lambda: Table(ITERATION_COLUMNS))
    preemptions: Table = field(default_factory=lambda: Table(PREEMPTION_COLUMNS))
    transfers: Table = field(default_factory=lambda: Table(TRANSFER_COLUMNS))
    refused: Table = field(default_factory=lambda: Table(REFUSED_COLUMNS))
    handovers: Table = field(default_factory=lambda: Table(HANDOVER_COLUMNS))
    fleet: Table = field(default_factory=lambda: Table(FLEET_COLUMNS))
    refusals: dict[int, str] = field(default_factory=dict)  # request id -> why, for the first MAX_REASONS
    slo_classes: dict[str, int] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)
    tenant_of: dict[int, int] = field(default_factory=dict)  # request id -> index of its tenant, where it has one

    def belongs(self, request: Request) -> None:
        """A request has a tenant."""
        self.tenant_of[request.id] = self.tenants.setdefault(request.tenant, len(self.tenants))

    def refuse(self, request: Request, reason: str) -> None:
        """A request that could never be served."""
        session_id = -1 if request.session_id is None else request.session_id
        n_output = request.n_samples * request.output_tokens
        slo_class = self.slo_class(request.slo_class)
        self.refused.add(request.id, request.arrival_ns, request.prompt_tokens, n_output, session_id, slo_class)
        if len(self.refusals) < MAX_REASONS:
            self.refusals[request.id] = reason

    def slo_class(self, name: str) -> int:
        """Index of a class of requests."""
        return self.slo_classes.setdefault(name, len(self.slo_classes))


class PoolFacts(NamedTuple):
    """Replicas that are alike, and do the same part of a request."""

    name: str  # empty where there is one pool alone
    replicas: tuple[int, ...]
    device: str
    n_devices: int  # accelerators of one replica
    capacity_tokens: int  # KV slots of one replica


@dataclass(frozen=True, slots=True)
class Result:
    """Everything a run left behind. Metrics and reports are pure functions of it.

    ``counts`` are facts of the parts (admissions, evictions, resizes, ...), one mapping per replica. ``memory`` is the
    derivation of the KV capacity, term by term, of one accelerator [B]. ``provenance`` says where the iteration times
    come from and how many runs of iterations they are extrapolated for, and counts SimPy events.
    """

    requests: Table
    iterations: Table
    preemptions: Table
    transfers: Table
    refused: Table
    refusals: Mapping[int, str]
    slo_classes: tuple[str, ...]
    links: tuple[str, ...]
    n_replicas: int
    n_devices: int  # accelerators in all, tensor-parallel ranks times replicas
    capacity_tokens: int  # KV slots of one replica; of the largest, where pools differ
    kv_bytes_per_token: float  # on all accelerators of a replica, at full width [B]
    end_ns: int  # the last request's finish; 0 where none was served
    seed: int
    config: Mapping[str, Any]
    memory: Mapping[str, float]
    counts: tuple[Mapping[str, int | float], ...]
    provenance: Mapping[str, Any]
    handovers: Table = field(default_factory=lambda: Table(HANDOVER_COLUMNS))
    pools: tuple[PoolFacts, ...] = ()
    fleet: Table = field(default_factory=lambda: Table(FLEET_COLUMNS))  # empty: all were there all along
    stages: tuple[Stage, ...] = ()  # in which traffic came, where it came in some
    n_unfinished: int = 0  # requests still under way when the run was stopped
    tenants: tuple[str, ...] = ()
    tenant_of: Mapping[int, int] = field(default_factory=dict)  # request id -> index of its tenant, where it has one

    @property
    def start_ns(self) -> int:
        """Arrival of the first request that was served, where every axis and every share of time begins; 0 if none."""
        return int(self.requests.column("arrival_ns").min()) if len(self.requests) else 0

    @property
    def duration_ns(self) -> int:
        """From there to the last request's finish."""
        return self.end_ns - self.start_ns

    def __reduce__(self) -> tuple[object, ...]:
        """As pickled and copied, plain or compiled: what it was made of."""
        return Result, tuple(getattr(self, one.name) for one in fields(self))


def durations_ps(n_steps: Ints, first_ps: Ints, growth_ps: Ints) -> Ints:
    """How long runs of iterations last: a first one, and each longer by the same than the one before.

    Parameters
    ----------
    n_steps, first_ps, growth_ps : int array, of one shape
        As in the iterations table; fewer steps give the time until so many have ended.

    Returns
    -------
    int array of that shape
        [ps]

    Examples
    --------
    >>> durations_ps(np.array([3]), np.array([10]), np.array([2])).tolist()  # 10 + 12 + 14
    [36]
    """
    return n_steps * first_ps + n_steps * (n_steps - 1) // 2 * growth_ps


def iteration_ends_ns(iterations: Table, first_row: int = 0, stop_row: int | None = None) -> Ints:
    """End of every single iteration of some rows, in row order [ns].

    Returns
    -------
    array, shape (sum of n_steps,)

    The engine's clock follows the same integer formula, so these are its very ticks.
    """
    rows = iterations.rows()[first_row:stop_row]
    name = {column: i for i, column in enumerate(iterations.columns)}
    n_steps = rows[:, name["n_steps"]]
    row_of = np.repeat(np.arange(len(rows)), n_steps)
    k = np.arange(len(row_of)) - np.repeat(np.cumsum(n_steps) - n_steps, n_steps) + 1
    elapsed_ps = durations_ps(k, rows[row_of, name["first_ps"]], rows[row_of, name["growth_ps"]])
    ends_ns: Ints = rows[row_of, name["start_ns"]] + (rows[row_of, name["carry_ps"]] + elapsed_ps) // PS_PER_NS
    return ends_ns


def row_ends_ns(iterations: Table) -> Ints:
    """When each row's last iteration ends, by the engine's clock, shape (n_rows,) [ns]."""
    n_steps, first_ps, growth_ps = (iterations.column(name) for name in ("n_steps", "first_ps", "growth_ps"))
    owed_ps = iterations.column("carry_ps") + durations_ps(n_steps, first_ps, growth_ps)
    ends_ns: Ints = iterations.column("start_ns") + owed_ps // PS_PER_NS
    return ends_ns

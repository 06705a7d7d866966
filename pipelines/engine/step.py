"""The contract of a curation step, and the fates of rows.

A step maps an Arrow table to an Arrow table with the same rows and more columns. It never removes a row: it marks the
row, and later steps skip marked rows. There are three contracts:

- `Step` adds columns or marks to each row (scan, keep, scores, caption, encode).
- `Expand` turns one row into several (cut). It starts a new segment.
- `Global` decides over a few columns of all rows (dedup). It starts a new segment.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from cluster.plugins import Plugin
from cluster.resources import Resources
from cluster.storage import digest
from cluster.unreadable import cannot_be_read, may_pass_soon
from pipelines.engine.shuffle import Rows

FOLDER = "pipelines.steps"

Fate = Literal["kept", "dropped", "failed", "duplicate"]
FATES: tuple[Fate, ...] = ("kept", "dropped", "failed", "duplicate")

PendingFate = Literal["unreadable", "pending"]
PENDING: tuple[PendingFate, ...] = ("unreadable", "pending")
"""Fates of rows that a worker leaves out of its part, so that the next run takes them again. One that is unreadable is
tried again first, since what keeps it from being read may pass soon."""

FATE_FIELDS = (
    pa.field("fate", pa.string(), metadata={"doc": "kept, dropped, failed or duplicate"}),
    pa.field(
        "fate_step", pa.string(), metadata={"doc": "label of the step that marked the row; null while it is kept"}
    ),
    pa.field(
        "fate_reason", pa.string(), metadata={"doc": "why, in words; for a failure the error's class and message"}
    ),
    pa.field("fate_value", pa.float64(), metadata={"doc": "for a threshold, the measured value"}),
    pa.field("fate_bound", pa.float64(), metadata={"doc": "for a threshold, the bound it broke"}),
)
FATE_COLUMNS = tuple(field.name for field in FATE_FIELDS)


TableFunction = Callable[[pa.Table], pa.Table]


class RunError(RuntimeError):
    """An error that no row causes, such as a full disk. It ends the run; the next run resumes from what is done."""


@dataclass(frozen=True)
class Mark:
    """The fate of a row that is no longer kept, and the reason."""

    fate: Fate | PendingFate
    reason: str
    value: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Context:
    """Settings of a run that a step may need besides its rows."""

    tables_uri: str
    seed: int
    lineage: str = ""
    state: Any = None
    """The value that the step's `prepare` returned on the driver."""


class Step(Plugin):
    """A curation step. Its settings are its whole state; `open` returns the function that does the work."""

    version: ClassVar[int] = 1
    """Increase it when the same settings give other results, so that stored results are not reused."""
    rows_per_part: ClassVar[int] = 256
    """Largest number of rows of a task if this step is the first of its segment."""

    @abc.abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Return the columns that the step's values depend on."""

    def requires(self) -> tuple[str, ...]:
        """Return the columns that earlier steps must have written: those it reads, and others its results need."""
        return self.reads()

    @abc.abstractmethod
    def writes(self) -> tuple[pa.Field, ...]:
        """Return the columns that the step adds, each with a `doc` in its field's metadata."""

    def uid_columns(self) -> tuple[str, ...]:
        """Return the written columns that follow from the row's uid, such as its span, size and time base."""
        return ()

    def weights(self) -> str:
        """Return the identity of the weights that the results depend on; empty if there are none."""
        return ""

    def resources(self) -> Resources:
        """Return what one worker of the step holds."""
        return Resources()

    def starts_segment(self) -> bool:
        """Return whether a new table begins here: for work that is expensive or must not be repeated with others."""
        return False

    def prepare(self, context: Context, pending: Collection[str]) -> Any:
        """Run once on the driver before the segment; return a value that every worker gets as `context.state`.

        `pending` holds the uids of the rows that the segment has not done.
        """
        return None

    def on_complete(self, context: Context) -> None:
        """Remove what only unfinished work needs. Runs on the driver whenever the segment's table is complete."""
        return

    @abc.abstractmethod
    def open(self, context: Context) -> TableFunction:
        """Load what the work needs, once per worker. The returned function maps live rows to as many rows, in order."""

    def settings_digest(self) -> str:
        """Return a hash of all that the step's results depend on besides its input."""
        return digest(self.name, str(self.version), self.model_dump_json(), self.weights())


@dataclass(frozen=True)
class Piece:
    """Piece `number` of `count` of a long row's work."""

    number: int
    count: int
    spec: dict[str, Any]
    """Description of the piece for the step, as JSON types."""
    cost: float
    """Approximate cost, in any unit: the costliest pieces start first."""


class Divisible(Step):
    """A step that can divide a long row's work into pieces, so that one row does not delay a run.

    It must be the first of its segment. Joined pieces give the same result as the undivided row.
    """

    @abc.abstractmethod
    def divide(self, row: Mapping[str, Any]) -> Sequence[Piece]:
        """Return the pieces of a row's work, in order; none if the row is not divided."""

    @abc.abstractmethod
    def run_piece(self, row: Mapping[str, Any], piece: Piece) -> bytes:
        """Return the result of a piece as bytes for `read_piece`. An exception fails the row."""

    @abc.abstractmethod
    def read_piece(self, data: bytes) -> Any:
        """Return the result of a piece from its bytes. Whoever may write to the storage may have written them.

        Raises `ValueError` for bytes that are no result of this version; the piece is then run again.
        """

    @abc.abstractmethod
    def join(self, row: Mapping[str, Any], results: Sequence[Any]) -> Mapping[str, Any] | Mark:
        """Return the written columns of a row from the results of its pieces, in order."""


class Expand(Step):
    """A step that turns each row into several rows, each for a part of its source."""

    def open(self, context: Context) -> TableFunction:
        raise AssertionError("an Expand step is driven through expand()")

    @abc.abstractmethod
    def expand(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | Mark:
        """Return the written columns of each clip of a source row, or a mark if it gives no clip.

        Each clip has its own `uid`, and the `source_uid` of its source row.
        """

    @abc.abstractmethod
    def consumes(self) -> tuple[str, ...]:
        """Return the columns of the source row that clips do not inherit."""


class Global(Step):
    """A step that decides over all rows together."""

    def open(self, context: Context) -> TableFunction:
        raise AssertionError("a Global step is driven through solve()")

    @abc.abstractmethod
    def solve(self, rows: Rows) -> pa.Table:
        """Decide over `uid` and the read columns of every live row.

        The result has `uid`, the written columns and `FATE_FIELDS` of the rows that change. Other rows are kept, with
        the written columns that `defaults` returns.
        """

    @abc.abstractmethod
    def defaults(self, rows: pa.Table) -> pa.Table:
        """Return the written columns of live rows that `solve` left out, from their `uid` and read columns."""


Limits = tuple[float | None, float | None]
"""Least and greatest value that a column can have; None where there is none."""


def column(
    name: str, kind: pa.DataType, doc: str, *, within: Limits | None = None, values: Sequence[str] = ()
) -> pa.Field:
    """Return the field of a documented column, with the limits of its numbers or the values of its text if known.

    `keep` refuses bounds outside of them, which would keep every row or none.
    """
    metadata = {"doc": doc}
    if within is not None:
        metadata["within"] = json.dumps(within)
    if values:
        metadata["values"] = json.dumps(values)
    return pa.field(name, kind, metadata=metadata)


def limits_of(field: pa.Field) -> Limits:
    """Return the limits of a column; (None, None) if they are not known."""
    low, high = json.loads((field.metadata or {}).get(b"within", b"[null, null]"))
    return low, high


def values_of(field: pa.Field) -> tuple[str, ...]:
    """Return all values that a column of text can have; () if they are not known."""
    return tuple(json.loads((field.metadata or {}).get(b"values", b"[]")))


def map_rows(
    table: pa.Table, writes: Sequence[pa.Field], function: Callable[[dict[str, Any]], Mapping[str, Any] | Mark]
) -> pa.Table:
    """Apply a function to each row of a table of live rows. An exception marks its row (`failure`) and no other."""
    values: list[Mapping[str, Any]] = []
    marks: list[Mark | None] = []
    for row in table.to_pylist():
        try:
            result = function(row)
        except RunError:
            raise
        except Exception as error:  # recorded in the row: its class and message are in the table and in the ledger
            result = failure(error)
        values.append({} if isinstance(result, Mark) else result)
        marks.append(result if isinstance(result, Mark) else None)
    for field in writes:
        table = set_column(table, field, [value.get(field.name) for value in values])
    return set_marks(table, marks)


def failure(error: BaseException) -> Mark:
    """Return the mark of a row whose work raised an error: pending if its source cannot be read, else failed."""
    fate: Fate | PendingFate = "failed"
    if cannot_be_read(error):
        fate = "unreadable" if may_pass_soon(error) else "pending"
    return Mark(fate, f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:2000])


def set_column(table: pa.Table, field: pa.Field, values: Sequence[Any] | pa.Array | pa.ChunkedArray) -> pa.Table:
    """Add a column to a table, or replace the column of that name in its position."""
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(values, field.type)
    position = table.schema.get_field_index(field.name)
    return table.append_column(field, values) if position < 0 else table.set_column(position, field, values)


def set_marks(table: pa.Table, marks: Sequence[Mark | None]) -> pa.Table:
    """Write marks into the fate columns of a table of live rows; `None` leaves a row live."""
    if not any(marks):
        return table
    columns = {
        "fate": [mark.fate if mark else "kept" for mark in marks],
        "fate_reason": [mark.reason if mark else None for mark in marks],
        "fate_value": [mark.value if mark else None for mark in marks],
        "fate_bound": [mark.bound if mark else None for mark in marks],
    }
    for field in FATE_FIELDS:
        if field.name in columns:
            table = set_column(table, field, columns[field.name])
    return table


def start_fates(table: pa.Table) -> pa.Table:
    """Add the fate columns to a table, with every row kept."""
    for field in FATE_FIELDS:
        values = (
            pa.array(["kept"] * len(table), field.type) if field.name == "fate" else pa.nulls(len(table), field.type)
        )
        table = set_column(table, field, values)
    return table


def is_live(table: pa.Table) -> pa.ChunkedArray:
    """Return a mask of the rows that are kept so far."""
    return pc.equal(table["fate"], "kept")

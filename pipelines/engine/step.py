"""The contract of a curation step, and the fates of rows.

A step maps an Arrow table to an Arrow table with the same rows and more columns. It never drops a row: it marks it, and a
marked row skips the work of all later steps. Three contracts cover all there is:

- `Step`: the same rows with more columns or marks (scan, keep, a score, caption, encode).
- `Expand`: one row becomes several (cut). It starts a new segment.
- `Global`: needs all rows at once, but only a few columns of them (dedup). It starts a new segment.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from cluster.plugins import Plugin
from cluster.resources import Resources
from cluster.storage import digest
from pipelines.engine.shuffle import Rows

FOLDER = "pipelines.steps"

Fate = Literal["kept", "dropped", "failed", "duplicate"]
FATES: tuple[Fate, ...] = ("kept", "dropped", "failed", "duplicate")

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
    """A fault that is no row's, as a disk that is full: it ends the run, and the next run goes on from what is done."""


@dataclass(frozen=True)
class Mark:
    """What ends a row's way: its fate and why."""

    fate: Fate
    reason: str
    value: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Context:
    """What a step may need besides its rows. `state` is what its `prepare` returned on the driver."""

    tables_uri: str
    seed: int
    lineage: str = ""
    state: Any = None


class Step(Plugin):
    """A step's settings are its whole state; `open` gives the function that does the work."""

    version: ClassVar[int] = 1
    """Raise it when the same settings give other results, so that stored results are not taken for new ones."""
    rows_per_part: ClassVar[int] = 256
    """How many rows one task takes at most when this step is the first of its segment."""

    @abc.abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Columns the step's values depend on."""

    def requires(self) -> tuple[str, ...]:
        """Columns an earlier step must have written: those it reads, and any that only go along with its results."""
        return self.reads()

    @abc.abstractmethod
    def writes(self) -> tuple[pa.Field, ...]:
        """Columns the step adds, with a `doc` in each field's metadata."""

    def uid_columns(self) -> tuple[str, ...]:
        """Written columns that follow from the row's uid alone, whatever the settings: its span, its size, its time base."""
        return ()

    def weights(self) -> str:
        """Identity of the weights the results depend on; empty where there are none."""
        return ""

    def resources(self) -> Resources:
        return Resources()

    def starts_segment(self) -> bool:
        """Whether what comes before is to be in a table first: where the step's work is dear, or must not depend on doing theirs again."""
        return False

    def prepare(self, context: Context, pending: Collection[str]) -> Any:
        """Runs once on the driver before the segment; what it returns travels to every worker as `context.state`.

        `pending` are the uids of the rows that the segment still has to take.
        """
        return None

    def on_complete(self, context: Context) -> None:
        """Runs on the driver when the segment's table is complete, also where it was so before: removes what only unfinished work needs."""
        return

    @abc.abstractmethod
    def open(self, context: Context) -> TableFunction:
        """Load what the work needs, once a worker. The function gets live rows only and returns as many, in order."""

    def settings_digest(self) -> str:
        """Hash of what the step's results depend on, besides its input."""
        return digest(self.name, str(self.version), self.model_dump_json(), self.weights())


@dataclass(frozen=True)
class Piece:
    """Part number `number` of `count` of a long row's work, what the step says of it, and about what it costs, in any unit."""

    number: int
    count: int
    spec: dict[str, Any]
    cost: float


class Divisible(Step):
    """A step that can do a long row's work in pieces, so that one row does not hold up a run.

    It has to be the first of its segment. Its pieces, joined, give what the whole would.
    """

    @abc.abstractmethod
    def divide(self, row: Mapping[str, Any]) -> Sequence[Piece]:
        """Pieces of a row's work, in order; none for a row that is done whole."""

    @abc.abstractmethod
    def run_piece(self, row: Mapping[str, Any], piece: Piece) -> bytes:
        """The result of a piece, for `join` alone to read. What it raises fails the row."""

    @abc.abstractmethod
    def join(self, row: Mapping[str, Any], results: Sequence[bytes]) -> Mapping[str, Any] | Mark:
        """The written columns of a row from the results of its pieces."""


class Expand(Step):
    """A step after which one row stands for part of its source."""

    def open(self, context: Context) -> TableFunction:
        raise AssertionError("an Expand step is driven through expand()")

    @abc.abstractmethod
    def expand(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | Mark:
        """The written columns of each clip of one source row, or the mark of a source that gives none.

        Each clip carries its own `uid`, and the `source_uid` of the row it came from.
        """

    @abc.abstractmethod
    def consumes(self) -> tuple[str, ...]:
        """Columns of the source row that its clips do not inherit; all others they do."""


class Global(Step):
    """A step that decides over all rows at once."""

    def open(self, context: Context) -> TableFunction:
        raise AssertionError("a Global step is driven through solve()")

    @abc.abstractmethod
    def solve(self, rows: Rows) -> pa.Table:
        """From `uid` and the read columns of every live row to what is decided of some: `uid`, the written columns and `FATE_FIELDS`.

        Rows that are not in the result stay as they are, with the written columns that `defaults` gives them.
        """

    @abc.abstractmethod
    def defaults(self, rows: pa.Table) -> pa.Table:
        """The written columns of live rows of which `solve` said nothing; gets `uid` and the read columns."""


def column(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    """A documented column."""
    return pa.field(name, kind, metadata={"doc": doc})


def map_rows(
    table: pa.Table, writes: Sequence[pa.Field], function: Callable[[dict[str, Any]], Mapping[str, Any] | Mark]
) -> pa.Table:
    """Apply a function to each row of a table of live rows; what one row raises marks that row as failed and no other."""
    values: list[Mapping[str, Any]] = []
    marks: list[Mark | None] = []
    for row in table.to_pylist():
        try:
            result = function(row)
        except Exception as error:  # the row carries it: its class and message are in the table and in the ledger
            result = failure(error)
        values.append({} if isinstance(result, Mark) else result)
        marks.append(result if isinstance(result, Mark) else None)
    for field in writes:
        table = set_column(table, field, [value.get(field.name) for value in values])
    return set_marks(table, marks)


def failure(error: BaseException) -> Mark:
    """The mark of a row whose work raised an error."""
    return Mark("failed", f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:2000])


def set_column(table: pa.Table, field: pa.Field, values: Sequence[Any] | pa.Array | pa.ChunkedArray) -> pa.Table:
    """Add a column, or replace it where it is."""
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(values, field.type)
    position = table.schema.get_field_index(field.name)
    return table.append_column(field, values) if position < 0 else table.set_column(position, field, values)


def set_marks(table: pa.Table, marks: Sequence[Mark | None]) -> pa.Table:
    """Write marks over the fates of a table of live rows; `None` leaves a row live."""
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
    """Give every row of a table the fate `kept`."""
    for field in FATE_FIELDS:
        values = (
            pa.array(["kept"] * len(table), field.type) if field.name == "fate" else pa.nulls(len(table), field.type)
        )
        table = set_column(table, field, values)
    return table


def is_live(table: pa.Table) -> pa.ChunkedArray:
    return pc.equal(table["fate"], "kept")

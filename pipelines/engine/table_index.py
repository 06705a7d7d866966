"""Index of a table: which part holds which row, and with which fate.

Reading a table is idempotent. If two writers did the same input row, because a worker was taken for dead or a run was
started twice, the rows in the first part by name count and the others do not, whoever reads them.

The index of all parts is stored beside them (`cluster.part_index`), so that a command opens one file for a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from cluster import part_index, storage
from cluster.large_tables import is_among, positions, sort_by, take_column
from cluster.part_index import PartRows
from pipelines.engine import tables

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("input_uid", pa.string()),
        ("fate", pa.string()),
        ("fate_step", pa.string()),
        ("part", pa.string()),
    ]
)
"""Columns of an index; `part` is the URI of a part."""


@dataclass(frozen=True)
class Index:
    """An index of rows of a table: uid, uid of the input row (`input_uid`), fate, step that gave it, and part."""

    rows: pa.Table
    n_doubled: int = 0
    """Number of rows of the table that are left out, since an earlier part has the rows of the same input row."""
    is_stored: bool = True
    """Whether no part had to be opened for it, or only one."""

    @property
    def uids(self) -> pa.ChunkedArray:
        return self.rows["uid"]

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def of_inputs(self, uids: pa.ChunkedArray) -> Index:
        """Return the index of rows that came from these input rows."""
        return Index(self.rows.filter(is_among(self.rows["input_uid"], uids)))

    def live(self) -> Index:
        """Return the index of kept rows."""
        return Index(self.rows.filter(pc.equal(self.rows["fate"], "kept")))

    def without_inputs(self, done: pa.ChunkedArray) -> Index:
        """Return the index of rows whose uid is not in `done`."""
        return Index(self.rows.filter(pc.invert(is_among(self.uids, done))))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows, sorted by uid, so that the result does not depend on how rows are divided into parts."""
        by_part = list(self.by_part())
        with ThreadPoolExecutor(storage.READER_THREADS) as pool:
            parts = list(pool.map(lambda item: tables.read_rows(item[0], item[1], columns), by_part))
        return (
            sort_by(pa.concat_tables(parts), "uid")
            if parts
            else pa.table({name: pa.array([], pa.string()) for name in columns or ["uid"]})
        )

    def by_part(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (part, uids of its rows), sorted by part."""
        grouped: dict[str, list[str]] = {}
        for part, uid in zip(self.rows["part"].to_pylist(), self.uids.to_pylist(), strict=True):
            grouped.setdefault(part, []).append(uid)
        yield from sorted(grouped.items())

    def tasks(self, rows_per_part: int) -> list[pa.Table]:
        """Return tasks for these rows: about `TARGET_TASKS`, or more if `rows_per_part` is smaller."""
        size = tables.task_size(len(self), rows_per_part)
        tasks: list[pa.Table] = []
        pending: dict[str, list[str]] = {}
        n_pending = 0
        for part, uids in self.by_part():
            for uid in uids:
                pending.setdefault(part, []).append(uid)
                n_pending += 1
                if n_pending == size:
                    tasks.append(tables.task_of(pending))
                    pending, n_pending = {}, 0
        return [*tasks, tables.task_of(pending)] if pending else tasks


def index_table(folder: str, input_column: str = "uid") -> Index:
    """Return the index of every row in a table's visible parts, an input row's rows once."""
    found = _read_parts(folder, input_column)
    first = _first_of_each_input(found.rows)
    return Index(first, len(found.rows) - len(first), found.is_stored)


def fates_of_table(folder: str) -> pa.Table:
    """Return uid, fate, step that gave it, and part of every row of a table, for tables of any step."""
    return _read_parts(folder, None).rows.drop_columns(["input_uid"])


def repair(folder: str, input_column: str) -> int:
    """Remove the rows of input rows that an earlier part holds already; return their number.

    Only a command that holds the lease of the tables may call it.
    """
    rows = _read_parts(folder, input_column).rows
    first = _first_of_each_input(rows)
    kept, found = dict(Index(first).by_part()), dict(Index(rows).by_part())
    for part in (part for part in found if len(found[part]) > len(kept.get(part, []))):
        table = storage.read_table(part)
        tables.replace_part(part, table.filter(pc.is_in(table["uid"], pa.array(kept.get(part, []), pa.string()))))
    return len(rows) - len(first)


def store_index(folder: str, input_column: str) -> None:
    """Store the index of a table beside its parts. Only a command that holds the lease of the tables may call it."""
    part_index.store(folder, _read_parts(folder, input_column), input_column)


def _read_parts(folder: str, input_column: str | None) -> PartRows:
    """Return a row for each row of each part. Without an input column, `input_uid` is undefined."""
    return part_index.read_parts(folder, SCHEMA, partial(_rows_of_part, input_column or "uid"), input_column)


def _rows_of_part(input_column: str, part: str) -> pa.Table:
    columns = storage.read_table(part, list(dict.fromkeys(["uid", input_column, "fate", "fate_step"])))
    values = [columns["uid"], columns[input_column], columns["fate"], columns["fate_step"]]
    return pa.table(values, names=SCHEMA.names[:-1])


def _first_of_each_input(rows: pa.Table) -> pa.Table:
    """Return the rows without those of an input row that an earlier part, by name, also holds."""
    ordered = sort_by(rows, "part")
    first_part = take_column(ordered["part"], positions(ordered["input_uid"], ordered["input_uid"]))
    return ordered.filter(pc.equal(ordered["part"], first_part))

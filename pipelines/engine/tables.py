"""Tables on disk: parts that are complete or absent, an index of their rows, and tasks for work on some of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage

METADATA_KEY = b"worldloom"

PART_SUFFIX = ".parquet"

TASK_SCHEMA = pa.schema([("part", pa.string()), ("rows", pa.list_(pa.int64()))])
"""A task for stored rows: row numbers by part. A task for new sources holds their rows themselves."""

TARGET_TASKS = 16
"""Approximate number of tasks for a small input, so that all cores have work and a kill costs little."""


@dataclass(frozen=True)
class Index:
    """An index of the rows of a table: uid, uid of the input row (`input_uid`), fate, part and row number."""

    rows: pa.Table

    @property
    def uids(self) -> pa.ChunkedArray:
        return self.rows["uid"]

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def of_inputs(self, uids: pa.ChunkedArray | pa.Array) -> Index:
        """Return the index of rows that came from these input rows."""
        return Index(self.rows.filter(pc.is_in(self.rows["input_uid"], pa.array(uids.to_pylist(), pa.string()))))

    def live(self) -> Index:
        """Return the index of kept rows."""
        return Index(self.rows.filter(pc.equal(self.rows["fate"], "kept")))

    def without_inputs(self, done: pa.ChunkedArray) -> Index:
        """Return the index of rows whose uid is not in `done`."""
        return Index(self.rows.filter(pc.invert(pc.is_in(self.rows["uid"], pa.array(done.to_pylist(), pa.string())))))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows, sorted by uid, so that the result does not depend on how rows are divided into parts."""
        tables = [read_rows(part, rows, columns) for part, rows in self.by_part()]
        return (
            pa.concat_tables(tables).sort_by("uid")
            if tables
            else pa.table({name: pa.array([], pa.string()) for name in columns or ["uid"]})
        )

    def by_part(self) -> Iterator[tuple[str, list[int]]]:
        """Yield (part, row numbers), sorted by part."""
        parts = self.rows["part"].to_pylist()
        rows = self.rows["row"].to_pylist()
        grouped: dict[str, list[int]] = {}
        for part, row in zip(parts, rows, strict=True):
            grouped.setdefault(part, []).append(row)
        yield from sorted(grouped.items())

    def tasks(self, rows_per_part: int) -> list[pa.Table]:
        """Return tasks for these rows: about `TARGET_TASKS`, or more if `rows_per_part` is smaller."""
        size = task_size(len(self), rows_per_part)
        tasks: list[pa.Table] = []
        pending: dict[str, list[int]] = {}
        for part, rows in self.by_part():
            for row in rows:
                pending.setdefault(part, []).append(row)
                if sum(map(len, pending.values())) == size:
                    tasks.append(_task(pending))
                    pending = {}
        return [*tasks, _task(pending)] if pending else tasks


def task_size(n_rows: int, rows_per_part: int) -> int:
    """Return the number of rows per task."""
    return max(1, min(rows_per_part, -(-n_rows // TARGET_TASKS)))


def _task(rows_of_parts: Mapping[str, list[int]]) -> pa.Table:
    return pa.table({"part": list(rows_of_parts), "rows": list(rows_of_parts.values())}, TASK_SCHEMA)


def split_task(task: pa.Table) -> list[pa.Table]:
    """Split a task into tasks of one row each."""
    if task.schema != TASK_SCHEMA:
        return [task.slice(i, 1) for i in range(len(task))]
    return [_task({item["part"]: [row]}) for item in task.to_pylist() for row in item["rows"]]


def read_task(task: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a task, all columns or some."""
    if task.schema != TASK_SCHEMA:
        return task
    return pa.concat_tables(
        read_rows(item["part"], item["rows"], columns) for item in task.to_pylist()
    ).combine_chunks()


def read_rows(part: str, rows: Sequence[int], columns: Sequence[str] | None) -> pa.Table:
    """Read rows of a part by their numbers, all columns or some."""
    return storage.read_table(part, list(columns) if columns is not None else None).take(pa.array(rows, pa.int64()))


def index_table(folder: str, input_column: str = "uid") -> Index:
    """Return the index of every row in a table's visible parts."""
    parts = [entry.uri for entry in storage.list_files(folder, PART_SUFFIX)]
    tables = []
    for part in parts:
        columns = storage.read_table(part, ["uid", "fate"] + ([input_column] if input_column != "uid" else []))
        tables.append(
            pa.table(
                {
                    "uid": columns["uid"],
                    "input_uid": columns[input_column],
                    "fate": columns["fate"],
                    "part": pa.array([part] * len(columns), pa.string()),
                    "row": pa.array(np.arange(len(columns)), pa.int64()),
                }
            )
        )
    empty = pa.table({name: pa.array([], kind) for name, kind in _INDEX_TYPES.items()})
    return Index(pa.concat_tables([empty, *tables]))


_INDEX_TYPES = {
    "uid": pa.string(),
    "input_uid": pa.string(),
    "fate": pa.string(),
    "part": pa.string(),
    "row": pa.int64(),
}


def write_part(folder: str, table: pa.Table, metadata: Mapping[str, object]) -> str:
    """Write one part and return its URI. It is named by its rows: the same work done twice gives one file."""
    name = f"part-{storage.digest(*table['uid'].to_pylist())}{PART_SUFFIX}"
    uri = storage.join(folder, name)
    storage.write_table(
        uri, table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()}), compression="zstd"
    )
    return uri


def read_metadata(part: str) -> dict[str, object]:
    """Read the metadata of a part's footer; empty for a file without."""
    metadata = storage.read_schema(part).metadata or {}
    loaded: dict[str, object] = json.loads(metadata.get(METADATA_KEY, b"{}"))
    return loaded


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with exactly the columns of the schema: missing ones are null, others are left out."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def replace_part(part: str, table: pa.Table) -> None:
    """Replace the rows of a part under the same name and footer; without rows, remove the part.

    The change is one atomic rename, so a kill leaves all old rows or all new rows. A new name would show rows twice
    between writing the new part and removing the old one. The name remains the digest of the original rows. That is
    safe: a task only has rows that no part holds, and a part of exactly those rows would have been removed.
    """
    if not len(table):
        storage.remove(part)
        return
    # Reading adds a field id to the metadata of each column, which would be written back as metadata of our own.
    fields = [
        field.with_metadata({k: v for k, v in (field.metadata or {}).items() if k != b"PARQUET:field_id"})
        for field in table.schema
    ]
    schema = pa.schema(fields, table.schema.metadata)
    storage.write_table(part, pa.Table.from_arrays(table.columns, schema=schema), compression="zstd")


def remove_rows(part: str, values: pa.Array, column: str = "uid") -> int:
    """Rewrite a part without the rows whose `column` is one of the values; return their number."""
    gone = pc.is_in(storage.read_table(part, [column])[column], values)
    count = int(pc.sum(gone).as_py() or 0)
    if count:
        replace_part(part, storage.read_table(part).filter(pc.invert(gone)))
    return count

"""Tables on disk: parts that are complete or absent, and tasks for work on some of their rows."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from pipelines.engine.step import RunError

METADATA_KEY = b"worldloom"

PART_SUFFIX = ".parquet"

TASK_SCHEMA = pa.schema([("part", pa.string()), ("uids", pa.list_(pa.string()))])
"""A task for stored rows: their uids by part. A task for new sources holds their rows themselves."""

END_SUFFIX = ".ended"
"""Suffix of the file that ends a stream of tasks: while it exists, no worker of that stream writes a part."""

FEW_ROWS = 4096
"""Rows up to which the others of their part, with the images of 200,000 clips perhaps, are not held in memory."""

TARGET_TASKS = 16
"""Approximate number of tasks for a small input, so that all cores have work and a kill costs little."""


DATA_SET_FOLDERS = ("latents-", "texts-", "manifest-")
"""Beginnings of the names of folders below `tables` that are no tables of steps. There may be 100,000 shards."""

MANIFEST_FILE = "_manifest.parquet"


def step_folders(tables_uri: str) -> list[str]:
    """Return the URIs of the folders of all tables of steps."""
    names = storage.list_folders(tables_uri)
    return [storage.join(tables_uri, name) for name in names if not name.startswith(DATA_SET_FOLDERS)]


def step_parts(tables_uri: str) -> list[str]:
    """Return the URIs of the parts of all tables of steps."""
    folders = step_folders(tables_uri)
    return [entry.uri for folder in folders for entry in storage.list_files(folder, PART_SUFFIX)]


def manifests(tables_uri: str) -> list[str]:
    """Return the URIs of all manifests."""
    names = [name for name in storage.list_folders(tables_uri) if name.startswith("manifest-")]
    return [entry.uri for name in names for entry in storage.list_files(storage.join(tables_uri, name), MANIFEST_FILE)]


def task_size(n_rows: int, rows_per_part: int) -> int:
    """Return the number of rows per task."""
    return max(1, min(rows_per_part, -(-n_rows // TARGET_TASKS)))


def task_of(uids_of_parts: Mapping[str, Sequence[str] | pa.Array]) -> pa.Table:
    """Return the task for these rows of these parts."""
    uids = [pa.array(uids, pa.string()) for uids in uids_of_parts.values()]
    starts = pa.array([0, *itertools.accumulate(map(len, uids))], pa.int32())
    lists = pa.ListArray.from_arrays(starts, pa.concat_arrays(uids))
    return pa.table([pa.array(uids_of_parts), lists], TASK_SCHEMA)


def split_task(task: pa.Table) -> list[pa.Table]:
    """Split a task into tasks of one row each."""
    if task.schema != TASK_SCHEMA:
        return [task.slice(i, 1) for i in range(len(task))]
    return [task_of({item["part"]: [uid]}) for item in task.to_pylist() for uid in item["uids"]]


def uids_of(task: pa.Table) -> list[str]:
    """Return the uids of a task's rows."""
    if task.schema != TASK_SCHEMA:
        return list(task["uid"].to_pylist())
    return [uid for item in task.to_pylist() for uid in item["uids"]]


def read_task(task: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a task, all columns or some. Raises `RunError` if one is gone."""
    if task.schema != TASK_SCHEMA:
        return task
    parts = zip(task["part"].to_pylist(), task["uids"], strict=True)
    return pa.concat_tables(read_rows(part, uids.values, columns) for part, uids in parts).combine_chunks()


def read_rows(part: str, uids: Sequence[str] | pa.Array, columns: Sequence[str] | None) -> pa.Table:
    """Read rows of a part by their uids, in this order, all columns or some.

    Rows are not named by number: a part may be rewritten without some of its rows. Raises `RunError` if a row is gone.
    """
    names = None if columns is None else list(dict.fromkeys([*columns, "uid"]))
    wanted = pa.array(uids, pa.string())
    try:
        if len(wanted) > FEW_ROWS:
            table = storage.read_table(part, names)
        else:
            batches = storage.read_batches(part, names, FEW_ROWS)
            table = pa.concat_tables(rows.filter(pc.is_in(rows["uid"], wanted)) for rows in batches)
    except FileNotFoundError as error:
        raise RunError(f"{part}: was removed while this command ran; run it again") from error
    stored = table["uid"].combine_chunks()
    if not wanted.equals(stored):
        position = pc.index_in(wanted, stored)
        if position.null_count:
            gone = f"{position.null_count} of its rows were removed while this command ran"
            raise RunError(f"{part}: {gone}; run it again")
        table = table.take(position)
    return table if columns is None else table.select(list(columns))


def new_end_marker(folder: str) -> str:
    """Return the URI of the file that would end a new stream of tasks."""
    return storage.join(folder, f"stream-{secrets.token_hex(8)}{END_SUFFIX}")


def remove_end_markers(folder: str) -> None:
    """Remove the files that ended streams, before the first stream of a run: those of earlier runs are over."""
    for entry in storage.list_files(folder, END_SUFFIX):
        storage.remove(entry.uri)


def write_part(folder: str, table: pa.Table, metadata: Mapping[str, object]) -> str:
    """Write one part and return its URI. It is named by its rows: the same work done twice gives one file."""
    name = f"part-{storage.digest(*table['uid'].to_pylist())}{PART_SUFFIX}"
    uri = storage.join(folder, name)
    storage.write_table(
        uri, table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()}), compression="zstd"
    )
    return uri


def read_metadata(part: str) -> dict[str, object]:
    """Read the metadata of a part's footer; empty for a file without. Raises `DamagedFileError` if it is no JSON."""
    return storage.parse_metadata(part, storage.read_schema(part), METADATA_KEY)


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

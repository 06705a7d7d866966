"""Index of a table: which part holds which row, and with which fate.

Reading a table is idempotent. If two writers did the same input row, because a worker was taken for dead or a run was
started twice, the rows in the first part by name count and the others do not, whoever reads them.

The index of all parts is stored beside them, so that a command opens one file for a table and not each part. It names
the parts that it was made from, with their sizes and times: a part that has changed since is read itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.telemetry import log
from pipelines.engine import tables
from pipelines.engine.tables import PART_SUFFIX

INDEX_FILE = "_index.arrow"
"""Name of the stored index, an Arrow IPC file."""
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("input_uid", pa.string()),
        ("fate", pa.string()),
        ("fate_step", pa.string()),
        ("part", pa.string()),
    ]
)
"""Columns of an index; `part` is the URI of a part, and its name alone in a stored index."""
COVERED_KEY = b"worldloom_parts"
"""Metadata of a stored index: the input column, and the size and version of each part by name."""


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
        parts = [tables.read_rows(part, uids, columns) for part, uids in self.by_part()]
        return (
            pa.concat_tables(parts).sort_by("uid")
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
    rows, is_stored = _all_rows(folder, input_column)
    first = _first_of_each_input(rows)
    return Index(first, len(rows) - len(first), is_stored)


def fates_of_table(folder: str) -> pa.Table:
    """Return uid, fate, step that gave it, and part of every row of a table, for tables of any step."""
    return _all_rows(folder, None)[0].drop_columns(["input_uid"])


def repair(folder: str, input_column: str) -> int:
    """Remove the rows of input rows that an earlier part holds already; return their number.

    Only a command that holds the lease of the tables may call it.
    """
    rows, _ = _all_rows(folder, input_column)
    first = _first_of_each_input(rows)
    kept, found = dict(Index(first).by_part()), dict(Index(rows).by_part())
    for part in (part for part in found if len(found[part]) > len(kept.get(part, []))):
        table = storage.read_table(part)
        tables.replace_part(part, table.filter(pc.is_in(table["uid"], pa.array(kept.get(part, []), pa.string()))))
    return len(rows) - len(first)


def store_index(folder: str, input_column: str) -> None:
    """Store the index of a table beside its parts. Only a command that holds the lease of the tables may call it."""
    covered = _covered(storage.list_files(folder, PART_SUFFIX), input_column)
    rows, _ = _all_rows(folder, input_column)
    names = pc.utf8_slice_codeunits(rows["part"], len(folder) + 1)
    rows = rows.set_column(rows.schema.get_field_index("part"), "part", names)
    sink = pa.BufferOutputStream()
    schema = rows.schema.with_metadata({COVERED_KEY: json.dumps(covered).encode()})
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows.replace_schema_metadata(schema.metadata))
    storage.write_bytes(storage.join(folder, INDEX_FILE), sink.getvalue().to_pybytes())


def remove_stored_indexes(tables_uri: str) -> int:
    """Remove the stored index of every table; return their number. The next run writes them again."""
    entries = storage.list_files(tables_uri, INDEX_FILE)
    for entry in entries:
        storage.remove(entry.uri)
    return len(entries)


def _all_rows(folder: str, input_column: str | None) -> tuple[pa.Table, bool]:
    """Return a row for each row of each part, from the stored index as far as it is current, and whether it all is.

    Without an input column, `input_uid` is undefined.
    """
    listed = storage.list_files(folder)
    entries = [entry for entry in listed if entry.uri.endswith(PART_SUFFIX)]
    has_index = any(_name(entry) == INDEX_FILE for entry in listed)
    stored, metadata = _read_stored(folder) if has_index and len(entries) > 1 else _nothing_stored()
    known = metadata.get("parts", {}) if input_column in (None, metadata.get("input_column")) else {}
    found = [SCHEMA.empty_table()]
    current = {_name(entry) for entry in entries if known.get(_name(entry)) == _version(entry)}
    if current:
        rows = stored.filter(pc.is_in(stored["part"], pa.array(sorted(current), pa.string())))
        parts = pc.binary_join_element_wise(folder.rstrip("/"), rows["part"], "/")
        found.append(rows.set_column(rows.schema.get_field_index("part"), "part", parts).cast(SCHEMA))
    found += [_rows_of_part(entry.uri, input_column or "uid") for entry in entries if _name(entry) not in current]
    return pa.concat_tables(found).replace_schema_metadata(), len(current) == len(entries) or len(entries) < 2


def _rows_of_part(part: str, input_column: str) -> pa.Table:
    columns = storage.read_table(part, list(dict.fromkeys(["uid", input_column, "fate", "fate_step"])))
    values = [columns["uid"], columns[input_column], columns["fate"], columns["fate_step"]]
    return pa.table([*values, pa.array([part] * len(columns), pa.string())], schema=SCHEMA)


def _first_of_each_input(rows: pa.Table) -> pa.Table:
    """Return the rows without those of an input row that an earlier part, by name, also holds."""
    ordered = rows.sort_by("part")
    inputs = ordered["input_uid"].combine_chunks()
    first_part = ordered["part"].take(pc.index_in(inputs, inputs))
    return ordered.filter(pc.equal(ordered["part"], first_part))


def _read_stored(folder: str) -> tuple[pa.Table, dict[str, Any]]:
    """Return the stored index and its metadata, or an empty one if it cannot be read."""
    uri = storage.join(folder, INDEX_FILE)
    try:
        with pa.ipc.open_file(pa.py_buffer(storage.read_bytes(uri))) as reader:
            table = reader.read_all()
        if not table.schema.remove_metadata().equals(SCHEMA):
            return _nothing_stored()
        return table, storage.parse_metadata(uri, table.schema, COVERED_KEY)
    except FileNotFoundError:
        return _nothing_stored()
    except (pa.ArrowException, OSError, ValueError) as error:
        log.warning(f"{uri}: cannot be read, the parts are read instead: {error}")
        return _nothing_stored()


def _nothing_stored() -> tuple[pa.Table, dict[str, Any]]:
    # Not a constant: the first table that pyarrow makes imports pandas, which takes 0.3 s that other commands save.
    return SCHEMA.empty_table(), {}


def _covered(entries: Sequence[storage.Entry], input_column: str) -> dict[str, Any]:
    return {"input_column": input_column, "parts": {_name(entry): _version(entry) for entry in entries}}


def _name(entry: storage.Entry) -> str:
    return entry.uri.rpartition("/")[2]


def _version(entry: storage.Entry) -> list[str]:
    return [str(entry.size_bytes), entry.version]

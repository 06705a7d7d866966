"""Index of the parts of a folder: some columns of all their rows in one file beside them.

A command opens one file for a folder and not each part. The stored index names the parts that it was made from, with
their sizes and times: a part that is new or has changed since is read itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.storage import Entry
from cluster.telemetry import log

FILE = "_index.arrow"
"""Name of the stored index, an Arrow IPC file."""
PART_SUFFIX = ".parquet"
PARTS_KEY = b"worldloom_parts"
"""Metadata of a stored index: what its rows are `about`, and the size and version of each part by name."""
PART = pa.dictionary(pa.int32(), pa.string())
"""Type of the column `part`: as text of its own in each row, URIs would take more memory than all other columns."""


@dataclass(frozen=True)
class PartRows:
    """The rows of all parts of a folder; the column `part` has the URI of each row's part."""

    rows: pa.Table
    parts: Sequence[Entry]
    """The parts as they were listed, sorted by URI."""
    is_stored: bool
    """Whether no part had to be opened for it, or only one."""


def read_parts(
    folder: str, schema: pa.Schema, read_part: Callable[[str], pa.Table], about: str | None = None
) -> PartRows:
    """Return the rows of all parts, from the stored index as far as it is current.

    `schema` is that of the rows, with `part` of type `PART`. `read_part` returns the rows of one part without it, and
    is called by several threads. A stored index about something else than `about` is not used; None takes any.
    """
    listed = storage.list_files(folder)
    parts = [entry for entry in listed if entry.uri.endswith(PART_SUFFIX)]
    has_index = any(_name(entry) == FILE for entry in listed)
    stored, metadata = _read_stored(folder, schema) if has_index and len(parts) > 1 else (schema.empty_table(), {})
    known = metadata.get("parts", {}) if about in (None, metadata.get("about")) else {}
    current = {_name(entry) for entry in parts if known.get(_name(entry)) == _version(entry)}
    found = [schema.empty_table()]
    if current:
        rows = stored
        if current != known.keys():
            rows = stored.filter(pc.is_in(stored["part"], pa.array(sorted(current), pa.string())))
        uris = renamed(rows["part"], lambda names: pc.binary_join_element_wise(folder.rstrip("/"), names, "/"))
        found.append(rows.set_column(schema.get_field_index("part"), "part", uris))

    def read(entry: Entry) -> pa.Table:
        table = read_part(entry.uri)
        zeros = pa.array(np.zeros(len(table), np.int32))
        table = table.append_column("part", pa.DictionaryArray.from_arrays(zeros, pa.array([entry.uri])))
        return table.select(schema.names).cast(schema)

    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        found += pool.map(read, [entry for entry in parts if _name(entry) not in current])
    rows = pa.concat_tables(found).replace_schema_metadata().unify_dictionaries()
    return PartRows(rows, parts, len(current) == len(parts) or len(parts) < 2)


def store(folder: str, found: PartRows, about: str | None = None) -> None:
    """Store the rows of all parts beside them. Only a command that holds the lease of the folder may call it."""
    names = relative_to(folder, found.rows["part"])
    rows = found.rows.set_column(found.rows.schema.get_field_index("part"), "part", names)
    covered = {"about": about, "parts": {_name(entry): _version(entry) for entry in found.parts}}
    rows = rows.replace_schema_metadata({PARTS_KEY: json.dumps(covered).encode()})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        storage.atomic_output(storage.join(folder, FILE)) as handle,
        pa.ipc.new_file(handle, rows.schema, options=options) as writer,
    ):
        writer.write_table(rows)


def renamed(parts: pa.ChunkedArray, rename: Callable[[pa.Array], pa.Array]) -> pa.DictionaryArray:
    """Return a column `part` with other names.

    Its dictionary has the parts of its rows and no others, in the order of their first rows.
    """
    column = parts.combine_chunks()
    used = column.indices.dictionary_encode()
    return pa.DictionaryArray.from_arrays(used.indices, rename(column.dictionary.take(used.dictionary)))


def relative_to(folder: str, parts: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return a column `part` of URIs as names relative to their folder."""
    return renamed(parts, lambda uris: pc.utf8_slice_codeunits(uris, len(folder.rstrip("/")) + 1))


def remove_all(root: str) -> int:
    """Remove every stored index below a folder; return their number. The next run writes them again."""
    entries = [entry for entry in storage.list_files(root, FILE) if _name(entry) == FILE]
    for entry in entries:
        storage.remove(entry.uri)
    return len(entries)


def _read_stored(folder: str, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]]:
    """Return the stored rows and their metadata; none if they cannot be read, or have another schema."""
    uri = storage.join(folder, FILE)
    try:
        with pa.ipc.open_file(pa.py_buffer(storage.read_bytes(uri))) as reader:
            table = reader.read_all()
        if table.schema.remove_metadata().equals(schema):
            return table, storage.parse_metadata(uri, table.schema, PARTS_KEY)
    except FileNotFoundError:
        pass
    except (pa.ArrowException, OSError, ValueError) as error:
        log.warning(f"{uri}: cannot be read, the parts are read instead: {error}")
    return schema.empty_table(), {}


def _name(entry: Entry) -> str:
    return entry.uri.rpartition("/")[2]


def _version(entry: Entry) -> list[str]:
    return [str(entry.size_bytes), entry.version]

"""Proof of a removal: read every file under `out` and every cell of every table, and list where a trace is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster import storage
from cluster.telemetry import progress
from pipelines.engine import exclusions
from pipelines.forgetting.removal_list import CAPTION_COLUMNS, RemovalList
from pipelines.forgetting.traces import Identifiers, is_in, payloads, text_cells

CHUNK_BYTES = 64 << 20
OVERLAP_BYTES = 8192
"""Longer than any URI, so that none is missed between two chunks."""
THREADS = min(8, os.cpu_count() or 1)
"""Reading, hashing and searching bytes release Python's lock; each thread holds one row group or one chunk."""
TEXT_SUFFIXES = (
    ".json",
    ".jsonl",
    ".html",
    ".htm",
    ".yaml",
    ".yml",
    ".txt",
    ".md",
    ".svg",
    ".csv",
    ".log",
    ".err",
    ".out",
)


@dataclass
class Proof:
    """Counts of what was read, and the traces that were found."""

    files: int = 0
    tables: int = 0
    cells: int = 0
    bytes: int = 0
    shared: int = 0
    """Cells with the same bytes in rows of other files, which are exact copies and stay."""
    left: list[str] = field(default_factory=list)
    """Traces, as `path: where in the file`."""

    def add(self, other: Proof) -> None:
        for name in ("files", "tables", "cells", "bytes", "shared"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.left += other.left

    def counts(self) -> dict[str, int]:
        return {
            "files": self.files,
            "tables": self.tables,
            "cells": self.cells,
            "bytes": self.bytes,
            "shared": self.shared,
            "left": len(self.left),
        }


def prove_removed(out_uri: str, removal: RemovalList) -> Proof:
    """Search every file under `out` except the records for identifiers, captions and payloads of what was removed.

    Tables are read cell by cell, decompressed, with their statistics and footers; other files are read byte by byte.
    Paths are searched too.
    """
    proof = Proof()
    records = storage.join(out_uri, exclusions.FOLDER) + "/"
    files = [entry for entry in storage.list_files(out_uri) if not entry.uri.startswith(records)]
    with progress("proving", len(files)) as bar, ThreadPoolExecutor(THREADS) as pool:
        for of_file in pool.map(lambda entry: _search_file(entry, out_uri, removal), files):
            proof.add(of_file)
            bar.advance()
    proof.left += [f"{uri.removeprefix(out_uri + '/')}: a partly written file" for uri in temporary_files(out_uri)]
    return proof


def _search_file(entry: storage.Entry, out_uri: str, removal: RemovalList) -> Proof:
    path = entry.uri.removeprefix(out_uri + "/")
    proof = Proof(files=1, bytes=entry.size_bytes)
    found = {"its path"} if removal.identifiers.occur_in_text(path) else set[str]()
    if path.endswith(".parquet"):
        proof.tables = 1
        found |= set(_search_table(entry.uri, removal, proof))
    elif occur_in_file(removal.identifiers, entry.uri):
        found.add("its content")
    proof.left = [f"{path}: {trace}" for trace in sorted(found)]
    return proof


def _search_table(uri: str, removal: RemovalList, proof: Proof) -> Iterator[str]:
    with storage.open_input(uri) as handle:
        file = pq.ParquetFile(handle)
        yield from _search_footer(file, removal.identifiers)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            for name in table.column_names:
                proof.cells += len(table)
                for column in table[name].chunks:
                    yield from _search_texts(name, column, removal)
            yield from _search_payloads(table, removal, proof)


def _search_footer(file: pq.ParquetFile, identifiers: Identifiers) -> Iterator[str]:
    metadata = file.metadata.metadata or {}
    values = [data.decode("utf-8", "replace") for key, data in metadata.items() if key != b"ARROW:schema"]
    if any(map(identifiers.occur_in_text, values)):
        yield "its footer"
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for i in range(group.num_columns):
            column = group.column(i)
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, str):
                continue
            if identifiers.occur_in_text(statistics.min) or identifiers.occur_in_text(statistics.max):
                yield f"statistics of {column.path_in_schema}"


def _search_texts(name: str, column: pa.Array, removal: RemovalList) -> Iterator[str]:
    for cells, _ in text_cells(column):
        if pc.any(removal.identifiers.occur_in_column(cells)).as_py():
            yield f"column {name} has its URI or a uid"
        if name in CAPTION_COLUMNS and removal.captions and pc.any(is_in(cells, removal.captions)).as_py():
            yield f"column {name} has one of its captions"


def _search_payloads(table: pa.Table, removal: RemovalList, proof: Proof) -> Iterator[str]:
    if not removal.payloads:
        return
    is_other: list[bool] | None = None
    for name in table.column_names:
        for row, digest in payloads(table[name]):
            if digest not in removal.payloads:
                continue
            is_other = _belong_to_others(table, removal) if is_other is None else is_other
            same_shot = (
                not removal.is_whole_file
                and name in ("thumbnails", "shots")
                and table["source"][row].as_py() == removal.uri
            )
            if is_other[row] and not same_shot:
                proof.shared += 1
            else:
                yield f"column {name} has its bytes"


def _belong_to_others(table: pa.Table, removal: RemovalList) -> list[bool]:
    """Return for each row whether it belongs to another file or clip.

    Another file or clip with the same bytes is a copy, whose removal nobody requested.
    """
    names = table.column_names
    if removal.is_whole_file and "source" in names:
        return [uri != removal.uri for uri in table["source"].to_pylist()]
    if "uid" in names:
        return [uid not in removal.uids for uid in table["uid"].to_pylist()]
    if "key" in names:
        return [key not in removal.text_keys for key in table["key"].to_pylist()]
    return [False] * len(table)


def occur_in_file(identifiers: Identifiers, uri: str) -> bool:
    """Return whether an identifier occurs in a file that is not a table."""
    if is_text(uri):
        return identifiers.occur_in_bytes(storage.read_bytes(uri), is_text=True)
    with storage.open_input(uri) as handle:
        end = b""
        while chunk := handle.read(CHUNK_BYTES):
            if identifiers.occur_in_bytes(end + chunk, is_text=False):
                return True
            end = chunk[-OVERLAP_BYTES:]
    return False


def is_text(uri: str) -> bool:
    return uri.endswith(TEXT_SUFFIXES)


def temporary_files(out_uri: str) -> list[str]:
    """Return the files that killed writers left partly written; `storage.list_files` does not show them."""
    filesystem, path = storage.resolve(out_uri)
    prefix = "" if storage.is_local(out_uri) else out_uri.partition("://")[0] + "://"
    infos: list[Any] = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(
        prefix + info.path for info in infos if info.is_file and info.base_name.startswith(storage.TEMPORARY_PREFIX)
    )

"""Prove that something is gone: read every file under a folder, and every cell of every table, and say where it still is."""

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
from pipelines.forgetting.traces import Names, is_in, payloads, text_cells
from pipelines.forgetting.work import CAPTION_COLUMNS

CHUNK_BYTES = 64 << 20
OVERLAP_BYTES = 8192
"""More than any name, so that none is missed between two chunks."""
THREADS = min(8, os.cpu_count() or 1)
"""Reading, hashing and looking for bytes release Python's lock; each thread holds a row group or a chunk."""
TEXTS = (".json", ".jsonl", ".html", ".htm", ".yaml", ".yml", ".txt", ".md", ".svg", ".csv", ".log", ".err", ".out")


@dataclass
class Proof:
    """What was read, and what was found. `shared` are cells of other files' rows with the very same bytes: exact copies."""

    files: int = 0
    tables: int = 0
    cells: int = 0
    bytes: int = 0
    shared: int = 0
    left: list[str] = field(default_factory=list)

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


@dataclass(frozen=True)
class _Wanted:
    names: Names
    whole: bool
    uri: str
    payloads: frozenset[str]
    captions: frozenset[str]
    keys: frozenset[str]


def prove(
    out_uri: str,
    names: Names,
    whole: bool,
    uri: str,
    payloads: frozenset[str],
    captions: frozenset[str],
    keys: frozenset[str] = frozenset(),
) -> Proof:
    """Look for names, captions and the bytes of pictures, latents and embeddings in every file under a folder but the records.

    Tables are read cell by cell, decompressed, with their statistics and footers; any other file byte by byte, and every path.
    """
    wanted, proof = _Wanted(names, whole, uri, payloads, captions, keys), Proof()
    files = [
        entry
        for entry in storage.list_files(out_uri)
        if not entry.uri.startswith(storage.join(out_uri, exclusions.FOLDER) + "/")
    ]
    with progress("proving", len(files)) as bar, ThreadPoolExecutor(THREADS) as pool:
        for of_file in pool.map(lambda entry: _prove_file(entry, out_uri, wanted), files):
            proof.add(of_file)
            bar.advance()
    proof.left += [
        f"{leftover.removeprefix(out_uri + '/')}: a file that was being written" for leftover in leftovers(out_uri)
    ]
    return proof


def _prove_file(entry: storage.Entry, out_uri: str, wanted: _Wanted) -> Proof:
    path = entry.uri.removeprefix(out_uri + "/")
    proof = Proof(files=1, bytes=entry.size_bytes)
    found = {"its name"} if wanted.names.in_text(path) else set[str]()
    if path.endswith(".parquet"):
        proof.tables = 1
        found |= set(_in_table(entry.uri, wanted, proof))
    elif _in_file(entry.uri, wanted.names):
        found.add("its content")
    proof.left = [f"{path}: {what}" for what in sorted(found)]
    return proof


def _in_table(uri: str, wanted: _Wanted, proof: Proof) -> Iterator[str]:
    with storage.open_input(uri) as handle:
        file = pq.ParquetFile(handle)
        yield from _in_footer(file, wanted.names)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            for name in table.column_names:
                proof.cells += len(table)
                for column in table[name].chunks:
                    yield from _in_column(name, column, wanted)
            yield from _in_payloads(table, wanted, proof)


def _in_footer(file: pq.ParquetFile, names: Names) -> Iterator[str]:
    metadata = file.metadata.metadata or {}
    if any(names.in_text(data.decode("utf-8", "replace")) for key, data in metadata.items() if key != b"ARROW:schema"):
        yield "its footer"
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for i in range(group.num_columns):
            column = group.column(i)
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, str):
                continue
            if names.in_text(statistics.min) or names.in_text(statistics.max):
                yield f"statistics of {column.path_in_schema}"


def _in_column(name: str, column: pa.Array, wanted: _Wanted) -> Iterator[str]:
    for cells, _ in text_cells(column):
        if pc.any(wanted.names.in_column(cells)).as_py():
            yield f"column {name} names it"
        if name in CAPTION_COLUMNS and wanted.captions and pc.any(is_in(cells, wanted.captions)).as_py():
            yield f"column {name} has a caption of it"


def _in_payloads(table: pa.Table, wanted: _Wanted, proof: Proof) -> Iterator[str]:
    if not wanted.payloads:
        return
    others: list[bool] | None = None
    for name in table.column_names:
        for row, digest in payloads(table[name]):
            if digest not in wanted.payloads:
                continue
            others = _of_others(table, wanted) if others is None else others
            same_shot = (
                not wanted.whole and name in ("thumbnails", "shots") and table["source"][row].as_py() == wanted.uri
            )
            if others[row] and not same_shot:
                proof.shared += 1
            else:
                yield f"column {name} has its bytes"


def _of_others(table: pa.Table, wanted: _Wanted) -> list[bool]:
    """Which rows belong to something else: another file that has the same bytes is a copy, and nobody asked to forget it."""
    names = table.column_names
    if wanted.whole and "source" in names:
        return [uri != wanted.uri for uri in table["source"].to_pylist()]
    if "uid" in names:
        return [uid not in wanted.names.uids for uid in table["uid"].to_pylist()]
    if "key" in names:
        return [key not in wanted.keys for key in table["key"].to_pylist()]
    return [False] * len(table)


def _in_file(uri: str, names: Names) -> bool:
    if is_text(uri):
        return names.in_bytes(storage.read_bytes(uri), is_text=True)
    with storage.open_input(uri) as handle:
        end = b""
        while chunk := handle.read(CHUNK_BYTES):
            if names.in_bytes(end + chunk, is_text=False):
                return True
            end = chunk[-OVERLAP_BYTES:]
    return False


def is_text(uri: str) -> bool:
    return uri.endswith(TEXTS)


def leftovers(out_uri: str) -> list[str]:
    """Files that were being written when their writer was killed; no listing shows them."""
    filesystem, path = storage.resolve(out_uri)
    prefix = "" if storage.is_local(out_uri) else out_uri.partition("://")[0] + "://"
    infos: list[Any] = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(prefix + info.path for info in infos if info.is_file and info.base_name.startswith(storage.TEMPORARY))

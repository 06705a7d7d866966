"""Removal of everything on a removal list.

Each file is rewritten or removed atomically, so a killed removal can be repeated.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.dialogue import journal
from cluster import part_index, storage
from cluster.large_tables import in_chunks
from cluster.telemetry import log, progress
from pipelines.dataset import current
from pipelines.engine import exclusions, tables
from pipelines.engine.exclusions import Exclusions
from pipelines.engine.pieces import PIECE_SUFFIX, PLAN_SUFFIX
from pipelines.engine.step import set_column
from pipelines.forgetting.proof import is_text, occur_in_file, temporary_files
from pipelines.forgetting.removal_list import RemovalList, listed_sources, parquet_files, table_kind, table_name
from pipelines.forgetting.traces import Identifiers, holds_text, is_in, payload_digest, text_cells
from pipelines.recipe import Recipe, write_resolved
from training.data import shards, text_tables
from training.data.footer import DamagedError
from training.data.index import index_uri
from training.data.manifest import read_manifest, tables_root, update_row_references
from training.data.manifest_writer import write_manifest
from training.data.row_groups import read_scalars

IMAGE_COLUMNS = ("thumbnails", "shots")
"""Columns in which clips of one shot, and the row of their source, hold the same thumbnails."""
SUMMARIES = (current.FILE, "ledger.json", "report.html")
"""Files under `out` that describe the curated data; the next curation writes them."""


def remove(recipe: Recipe, removal: RemovalList) -> tuple[Counter[str], int]:
    """Rewrite or remove every file with something on the list.

    Returns the number of redacted cells by table, and the number of removed files. Shards and text
    tables are rewritten before the manifests, whose indexes say where their rows are.
    """
    out = recipe.out_uri
    redacted = Counter[str]()
    n_files = _remove_files(recipe, removal) + _remove_exports(out, removal)
    n_files += part_index.remove_all(recipe.tables_uri)
    for folder in sorted({entry.uri.rpartition("/")[0] for entry in storage.list_files(out, journal.SUFFIX)}):
        journal.filter_records(
            folder,
            lambda record: (
                record["uid"] not in removal.uids and not removal.identifiers.occur_in_text(json.dumps(record))
            ),
        )
    parts: dict[str, list[str]] = {}
    for part in parquet_files(out):
        parts.setdefault(table_kind(part), []).append(part)
    with progress("forgetting", sum(map(len, parts.values()))) as bar:
        with ThreadPoolExecutor(storage.READER_THREADS) as pool:
            for _ in pool.map(lambda part: shards.remove_rows(part, removal.uids), parts.get("latents", [])):
                bar.advance()
            for _ in pool.map(lambda part: text_tables.remove_keys(part, removal.text_keys), parts.get("texts", [])):
                bar.advance()
        for part in parts.get("manifest", []):
            redacted[table_name(out, part)] += _rewrite_manifest(part, removal)
            bar.advance()
        for part in parts.get("", []):
            redacted[table_name(out, part)] += _rewrite_part(part, removal)
            bar.advance()
    return +redacted, n_files


def _rewrite_manifest(uri: str, removal: RemovalList) -> int:
    """Rewrite a manifest without the listed rows, with the new positions of the others; returns the redacted cells."""
    try:
        table, info = read_manifest(uri)
    except DamagedError as error:
        # Where its rows are in the rewritten shards cannot be known; the next run writes a new manifest.
        log.warning(f"{error}; it is removed as a whole")
        _remove_manifest(uri)
        return 0
    root = tables_root(uri, info)
    # In pieces, whose columns are single arrays, of less than 2 GB.
    kept = (piece.filter(pc.invert(removal.row_mask(piece))) for piece in in_chunks(table))
    redacted = [_redact(piece, removal.identifiers) for piece in kept]
    left = pa.concat_tables([table.schema.empty_table(), *(piece for piece, _ in redacted)])
    n_redacted = sum(count for _, count in redacted)
    if not len(left):
        _remove_manifest(uri)
        return n_redacted
    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        found = pool.map(partial(_row_references, root), pc.unique(left["file"]).to_pylist())
        indices = [index for index in found if index is not None]
    updated = update_row_references(left, pa.concat_tables(indices)) if indices else left
    # Also if all its rows stay: those of its shards and text tables may have moved.
    write_manifest(uri, updated, info)
    return n_redacted


def _row_references(root: str, file: str) -> pa.Table | None:
    """Return where the rows of a shard are, None if it was removed as a whole."""
    if not storage.exists(storage.join(root, file)):
        return None
    index = read_scalars(storage.join(root, file), ["uid"])
    return index.append_column("file", pa.array([file] * len(index), pa.string()))


def _remove_manifest(uri: str) -> None:
    for file in (index_uri(uri), uri):
        storage.remove(file)


def _rewrite_part(part: str, removal: RemovalList) -> int:
    """Rewrite a part of a table without the listed rows, the others redacted; returns the number of redacted cells."""
    schema = storage.read_schema(part)
    text_columns = [field.name for field in schema if holds_text(field.type) and field.name not in IMAGE_COLUMNS]
    image_columns = [name for name in IMAGE_COLUMNS if name in schema.names and not removal.is_whole_file]
    texts = storage.read_table(part, text_columns)
    mask = removal.row_mask(texts)
    needs_redaction = any(_rows_to_redact(column, removal.identifiers) for column in texts.columns)
    has_source = "source" in text_columns and pc.any(pc.equal(texts["source"], removal.uri)).as_py()
    if not (pc.any(mask).as_py() or needs_redaction or (image_columns and has_source)):
        return 0
    table = storage.read_table(part)
    left, n_redacted = _redact(table.filter(pc.invert(mask)), removal.identifiers)
    if image_columns and has_source:
        left = _without_images(left, image_columns, removal)
    if not left.equals(table):
        tables.replace_part(part, left)
    return n_redacted


def _redact(table: pa.Table, identifiers: Identifiers) -> tuple[pa.Table, int]:
    """Return the table without the identifiers in its cells, and how many cells had one.

    A cell that is a uid and nothing else becomes null, except in `cluster`, which every clip has and which becomes the
    clip's own uid. Steps that decide over all clips (dedup) run again anyway, since their set of clips has changed.
    """
    n_redacted = 0
    for field in table.schema:
        if not holds_text(field.type):
            continue
        rows = _rows_to_redact(table[field.name], identifiers)
        if not rows:
            continue
        values = table[field.name].to_pylist()
        for i in rows:
            if field.name == "cluster" and "uid" in table.column_names:
                values[i] = table["uid"][i].as_py()
            elif not isinstance(values[i], str) or (values[i] in identifiers.uids and field.nullable):
                values[i] = None
            else:
                values[i] = identifiers.redact(values[i])
        table = set_column(table, field, values)
        n_redacted += len(rows)
    return table, n_redacted


def _rows_to_redact(column: pa.ChunkedArray, identifiers: Identifiers) -> list[int]:
    """Return the indices of a column's rows in which an identifier occurs, in nested cells too."""
    found: set[int] = set()
    for cells, rows in text_cells(column):
        found |= set(rows.filter(identifiers.occur_in_column(cells)).to_pylist())
    return sorted(found)


def _without_images(table: pa.Table, columns: list[str], removal: RemovalList) -> pa.Table:
    """Return the table with the thumbnails removed that rows of the file share with the removed span."""
    assert removal.span is not None
    excluded = Exclusions(spans={exclusions.uri_digest(removal.uri): (removal.span,)})
    table = excluded.redact_shots(table)
    is_own = is_in(table["source"], [removal.uri]).to_pylist()
    for name in columns:
        values = [
            _without_payloads(value, removal.payloads) if own else value
            for own, value in zip(is_own, table[name].to_pylist(), strict=True)
        ]
        table = set_column(table, table.schema.field(name), values)
    return table


def _without_payloads(value: Any, digests: frozenset[str]) -> Any:
    """Return a nested value without the binary items whose digests are listed."""
    if isinstance(value, list):
        kept = [item for item in value if not (isinstance(item, bytes) and payload_digest(item) in digests)]
        return [_without_payloads(item, digests) for item in kept]
    if isinstance(value, dict):
        return {key: _without_payloads(item, digests) for key, item in value.items()}
    return value


def _remove_exports(out: str, removal: RemovalList) -> int:
    """Remove the exported files of its clips, which the exports' `index.parquet` list; returns how many.

    A file that holds other clips too (a tar, a Parquet file with videos) is removed as a whole, with the other clips'
    rows of the index, so that the next export writes these clips again.
    """
    n_files = 0
    for entry in storage.list_files(out, "/index.parquet"):
        index = storage.read_table(entry.uri)
        if not entry.uri.removeprefix(out).startswith("/export") or "file" not in index.column_names:
            continue
        mask = removal.row_mask(index)
        if not pc.any(mask).as_py():
            continue
        files = sorted(set(index.filter(mask)["file"].to_pylist()) - {None})
        folder = entry.uri.rpartition("/")[0]
        for file in files:
            uri = storage.join(folder, file)
            n_files += storage.exists(uri)
            storage.remove(uri)
        in_files = pc.or_(mask, is_in(index["file"], files))
        n_others = int(pc.sum(in_files).as_py() or 0) - int(pc.sum(mask).as_py() or 0)
        if n_others:
            log.info(f"{folder}: {n_others} other clips were in the same files; the next export writes them again")
        # The index is rewritten last: after a kill before this, the files are found again.
        tables.replace_part(entry.uri, index.filter(pc.invert(in_files)))
    return n_files


def _remove_files(recipe: Recipe, removal: RemovalList) -> int:
    """Remove the files with something on the list that are not tables, and partly written ones; returns how many.

    These are plans and pieces of long files, unfinished exports, summaries, previews and logs. `run.yaml` is rewritten.
    """
    out, n_files = recipe.out_uri, 0
    listed = set(listed_sources(recipe).values())
    for entry in storage.list_files(out):
        path = entry.uri.removeprefix(out + "/")
        if not path.startswith(f"{exclusions.FOLDER}/") and _is_to_be_removed(entry.uri, path, listed, removal):
            storage.remove(entry.uri)
            n_files += 1
    for uri in temporary_files(out):
        storage.remove(uri)
        n_files += 1
    run = storage.join(out, "run.yaml")
    if storage.exists(run) and occur_in_file(removal.identifiers, run):
        write_resolved(recipe)
    return n_files


def _is_to_be_removed(uri: str, path: str, listed: set[str], removal: RemovalList) -> bool:
    """Return whether a file is removed as a whole.

    `path` is its path relative to `out`, and `listed` are the uids of all source files.
    """
    name = path.rpartition("/")[2]
    if path in SUMMARIES or removal.identifiers.occur_in_text(name):
        return True
    if name.endswith((PIECE_SUFFIX, PLAN_SUFFIX)) and listed:
        uid = name.partition("~")[0] if name.endswith(PIECE_SUFFIX) else name.removesuffix(PLAN_SUFFIX)
        if uid not in listed:
            # A source that is no longer listed may be an earlier version of this file; no table tells.
            return True
    if path.startswith("run-"):
        is_log = "/ray/" in path or "/previews/" in path or name == "failure.txt"
        return is_log and occur_in_file(removal.identifiers, uri)
    # The next export writes both: an unfinished export's clips, and lists of clips.
    return path.startswith("export") and (
        "/.work/" in path or (is_text(path) and occur_in_file(removal.identifiers, uri))
    )

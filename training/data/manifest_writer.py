"""Writing of a manifest with its index. Loads without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.large_tables import in_chunks, sort_by
from training.data.footer import metadata
from training.data.index import SPLITS
from training.data.index_writer import write_index
from training.data.manifest import MANIFEST_SCHEMA, DatasetInfo


def write_manifest(uri: str, table: pa.Table, info: DatasetInfo) -> None:
    """Write a manifest atomically, sorted by uid, so that it does not depend on the order in which shards were written.

    Its index is written after it, by the shards and text tables that are there. Raises `ValueError` for a missing
    column or value, a repeated uid, or an unknown kind or split.
    """
    missing = [name for name in MANIFEST_SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(f"{uri}: the manifest lacks columns {missing}")
    table = sort_by(table.select(MANIFEST_SCHEMA.names), "uid")
    write_manifest_pieces(uri, in_chunks(table), info)
    write_index(uri)


def write_manifest_pieces(uri: str, pieces: Iterable[pa.Table], info: DatasetInfo) -> None:
    """Write a manifest atomically without its index, from tables of at most `ROWS_PER_CHUNK` rows each.

    Their rows, in the columns of `MANIFEST_SCHEMA`, are sorted by uid over all tables. Raises `ValueError` for a row
    without a value, a repeated uid, uids that are not sorted, or an unknown kind or split.
    """
    schema = MANIFEST_SCHEMA.with_metadata(metadata("manifest", dataclasses.asdict(info)))
    last = pa.array([], pa.string())
    # Arrow reads no row group with more than 2 GB of strings in lists.
    with storage.atomic_output(uri) as handle, pq.ParquetWriter(handle, schema) as writer:
        for rows in pieces:
            _check_values(uri, rows)
            piece = rows.cast(MANIFEST_SCHEMA)
            uids = pa.concat_arrays([last, *piece["uid"].chunks])
            _check_order(uri, uids)
            last = uids[-1:]
            writer.write_table(piece.replace_schema_metadata(schema.metadata))


def _check_values(uri: str, rows: pa.Table) -> None:
    empty = [field.name for field in MANIFEST_SCHEMA if not field.nullable and rows[field.name].null_count]
    if empty:
        raise ValueError(f"{uri}: columns {empty} have rows without a value")
    for name, known in (("kind", {"image", "video"}), ("split", set(SPLITS))):
        unknown = set(pc.unique(rows[name]).to_pylist()) - known
        if unknown:
            raise ValueError(f"{uri}: {name} holds {sorted(unknown)}; it is one of {sorted(known)}")


def _check_order(uri: str, uids: pa.Array) -> None:
    before, after = uids[:-1], uids[1:]
    repeated = after.filter(pc.equal(before, after))
    if len(repeated):
        raise ValueError(f"{uri}: uid {repeated[0]} is in several rows; each sample has one row")
    wrong = after.filter(pc.greater(before, after))
    if len(wrong):
        raise ValueError(f"{uri}: the rows are not sorted by uid: {wrong[0]} is after a larger one")

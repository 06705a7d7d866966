"""Writing of a manifest with its index. Loads without torch."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.large_tables import ROWS_PER_CHUNK, one_array, sort_by
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
    empty = [field.name for field in MANIFEST_SCHEMA if not field.nullable and table[field.name].null_count]
    if empty:
        raise ValueError(f"{uri}: columns {empty} have rows without a value")
    counts = pc.value_counts(one_array(table["uid"]))
    if len(counts) < len(table):
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        raise ValueError(
            f"{uri}: uid {repeated[0]['values']} is in {repeated[0]['counts']} rows; each sample has one row"
        )
    for name, known in (("kind", {"image", "video"}), ("split", set(SPLITS))):
        unknown = set(pc.unique(table[name]).to_pylist()) - known
        if unknown:
            raise ValueError(f"{uri}: {name} holds {sorted(unknown)}; it is one of {sorted(known)}")
    table = table.cast(MANIFEST_SCHEMA)
    described = table.replace_schema_metadata(metadata("manifest", dataclasses.asdict(info)))
    # Arrow reads no row group with more than 2 GB of strings in lists.
    storage.write_table(uri, described, row_group_size=ROWS_PER_CHUNK)
    write_index(uri, table, info)

"""The index of an export: a row per selected clip, with its file, or with the reason or error for which it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cluster import storage
from pipelines.engine.step import column
from pipelines.engine.tables import conform
from pipelines.export.format import CUT_COLUMNS

FILE = "index.parquet"

METADATA_KEY = b"worldloom.export"
"""Key of the settings of the export in the metadata of its Parquet files."""

SCHEMA = pa.schema(
    [
        column("uid", pa.string(), "identity of the clip"),
        column("source_uid", pa.string(), "identity of the source file"),
        column("source", pa.string(), "URI of the source file"),
        column("kind", pa.string(), "video or image"),
        column("split", pa.string(), "train, val or test"),
        column("caption", pa.string(), "caption, if any"),
        column("start_pts", pa.int64(), "start of the span in the source, in units of its time base"),
        column("end_pts", pa.int64(), "end of the span, exclusive"),
        column("time_base_num", pa.int64(), "numerator of the time base in seconds"),
        column("time_base_den", pa.int64(), "denominator of the time base"),
        column("crop", pa.list_(pa.int32()), "x0, y0, x1, y1 of the content in pixels of the source as displayed"),
        column(
            "file",
            pa.string(),
            "path of the clip's file, or of its shard, in the export's folder; null for a clip that has none",
        ),
        column(
            "member", pa.string(), "name of the clip's file inside its shard; null for a clip that is not in a shard"
        ),
        column("mode", pa.string(), "copied (the source's own packets) or encoded; null for a clip that has no file"),
        column("reason", pa.string(), "why it was encoded, or why it was left out"),
        column("n_frames", pa.int64(), "frames of the clip"),
        column("first_pts", pa.int64(), "PTS in the source of the clip's first frame"),
        column("width", pa.int64(), "width in pixels as displayed"),
        column("height", pa.int64(), "height in pixels as displayed"),
        column("fps", pa.float64(), "average frame rate of the clip; null for an image"),
        column("size_bytes", pa.int64(), "size of the clip's file"),
        column("error", pa.string(), "class and message of the error for which the clip has no file"),
        column(
            "description_digest", pa.string(), "digest of the clip's description: caption, split and measured columns"
        ),
    ]
)


def read(folder: str) -> tuple[pa.Table, dict[str, Any]]:
    """Return the index of an export and its settings; both are empty if there is no export."""
    uri = storage.join(folder, FILE)
    if not storage.exists(uri):
        return SCHEMA.empty_table(), {}
    table = storage.read_table(uri)
    return conform(table, SCHEMA), storage.parse_metadata(uri, table.schema, METADATA_KEY)


def write(folder: str, rows: pa.Table, settings: Mapping[str, Any]) -> None:
    """Write the index, sorted by uid."""
    table = conform(rows, SCHEMA).sort_by("uid")
    metadata = {METADATA_KEY: json.dumps(settings, sort_keys=True).encode()}
    storage.write_table(storage.join(folder, FILE), table.replace_schema_metadata(metadata))


def without_cut_prefix(rows: pa.Table) -> pa.Table:
    """Return rows of clips with `CUT_COLUMNS` under their names in the index; they replace columns of these names."""
    replaced = {field.name.removeprefix("cut_") for field in CUT_COLUMNS}
    names = [name for name in rows.column_names if name not in replaced]
    return rows.select(names).rename_columns([name.removeprefix("cut_") for name in names])

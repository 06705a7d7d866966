"""The index of an export: one row a clip that was wanted, with its file, or with the error for which it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cluster import storage
from pipelines.engine.step import column
from pipelines.engine.tables import conform
from pipelines.export.format import CUT

FILE = "index.parquet"

KEY = b"worldloom.export"
"""Metadata of the index: the settings that the export was made with."""

INDEX = pa.schema(
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
        column(
            "file",
            pa.string(),
            "path of the clip's file, or of its shard, in the export's folder; null for a clip that has none",
        ),
        column("member", pa.string(), "name of the clip's file inside its shard; null where it is a file of its own"),
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
            "described", pa.string(), "digest of what is said of the clip: of its caption, split and measured columns"
        ),
    ]
)


def read(folder: str) -> tuple[pa.Table, dict[str, Any]]:
    """The index of an export and its settings; empty ones where there is no export."""
    uri = storage.join(folder, FILE)
    if not storage.exists(uri):
        return INDEX.empty_table(), {}
    table = storage.read_table(uri)
    settings: dict[str, Any] = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    return conform(table, INDEX), settings


def write(folder: str, rows: pa.Table, settings: Mapping[str, Any]) -> None:
    """Write the index, sorted by uid."""
    table = conform(rows, INDEX).sort_by("uid")
    storage.write_table(
        storage.join(folder, FILE), table.replace_schema_metadata({KEY: json.dumps(settings, sort_keys=True).encode()})
    )


def named_as_in_index(rows: pa.Table) -> pa.Table:
    """Rows of clips with the columns of cutting under the names that the index gives them."""
    taken = {field.name.removeprefix("cut_") for field in CUT}
    others = [name for name in rows.column_names if name not in taken]
    return rows.select(others).rename_columns([name.removeprefix("cut_") for name in others])

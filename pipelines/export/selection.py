"""Selection of the clips to export: the kept clips of a complete curation with their splits and descriptions."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from cluster.large_tables import positions, take_column
from pipelines.curation import SegmentState
from pipelines.engine.segments import is_heavy
from pipelines.engine.step import FATE_COLUMNS, set_column
from pipelines.export.format import describe

SPLITS = ("train", "val", "test")

OMITTED_COLUMNS = frozenset({*FATE_COLUMNS, "sidecar", "source_caption", "timed_captions"})
"""Columns that are not exported: they describe the source file, or repeat what other columns hold."""

LIST_COLUMNS = frozenset({"crop"})
"""List columns that are exported; other nested and binary columns (thumbnails, hashes, embeddings) are not."""


def select_clips(state: SegmentState, splits_uri: str, split: str) -> pa.Table:
    """Return the kept clips of a split, or of all, with `caption`, `split` and `description_digest`, sorted by uid.

    If no splits are stored, all clips are `train`. With `all`, clips that are in no split have a null one. Raises
    `ConfigError` if the stored splits lack a clip.
    """
    schema = state.segment.schema
    names = [field.name for field in schema if _is_exported(field)]
    caption = "caption" if "caption" in schema.names else "source_caption"
    columns = list(dict.fromkeys(["uid", "clip_index", *names, caption]))
    clips = state.rows.live().read(columns)
    if not len(clips):  # which has no types
        clips = pa.schema([schema.field(name) for name in columns]).empty_table()
    clips = clips.filter(pc.is_valid(clips["clip_index"]))
    captions = clips[caption]
    clips = set_column(clips.select(names), pa.field("caption", pa.string()), captions)
    clips = set_column(clips, pa.field("split", pa.string()), _splits_of(clips["uid"], splits_uri))
    if split != "all":
        clips = clips.filter(pc.fill_null(pc.equal(clips["split"], split), False))
    digests = [storage.digest(repr(describe(clip))) for clip in clips.to_pylist()]
    return set_column(clips, pa.field("description_digest", pa.string()), digests)


def _is_exported(field: pa.Field) -> bool:
    if is_heavy(field) or field.name in OMITTED_COLUMNS:
        return False
    return field.name in LIST_COLUMNS or not (
        pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    )


def _splits_of(uids: pa.ChunkedArray, splits_uri: str) -> pa.Array | pa.ChunkedArray:
    if not storage.exists(splits_uri):
        return pa.array(["train"] * len(uids), pa.string())
    splits = storage.read_table(splits_uri, ["uid", "split"])
    row = positions(uids, splits["uid"])
    if row.null_count:
        raise ConfigError(
            f"{splits_uri}: has no split for {row.null_count} of {len(uids)} kept clips; run `worldloom curate` first"
        )
    return take_column(splits["split"], row)

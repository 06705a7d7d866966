"""Which clips an export is of, and what is said of them: the kept clips of a complete curation, with their splits."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from pipelines.curation import SegmentState
from pipelines.engine.segments import is_heavy
from pipelines.engine.step import FATE_COLUMNS, set_column
from pipelines.export.format import describe

SPLITS = ("train", "val", "test")

UNSAID = frozenset({*FATE_COLUMNS, "version", "sidecar", "size_bytes", "source_caption", "timed_captions"})
"""Columns that say nothing of a clip: they are about its file, or hold what other columns hold."""

LISTS = frozenset({"crop"})
"""Columns of lists that are said; other nested and binary columns (thumbnails, hashes, embeddings) stay in the tables."""


def wanted_clips(state: SegmentState, splits_uri: str, split: str) -> pa.Table:
    """The kept clips of a split, or of all, with their plain columns, `caption`, `split` and `described`, sorted by uid.

    Without a table of splits all are `train`. Of `all`, clips that are in no split have a null one. Raises `ConfigError`.
    """
    schema = state.segment.schema
    names = [field.name for field in schema if _is_said(field)]
    caption = "caption" if "caption" in schema.names else "source_caption"
    clips = state.rows.live().read(list(dict.fromkeys(["uid", "clip_index", *names, caption])))
    clips = clips.filter(pc.is_valid(clips["clip_index"]))
    captions = clips[caption]
    clips = set_column(clips.select(names), pa.field("caption", pa.string()), captions)
    clips = set_column(clips, pa.field("split", pa.string()), _splits_of(clips["uid"], splits_uri))
    if split != "all":
        clips = clips.filter(pc.fill_null(pc.equal(clips["split"], split), False))
    return set_column(
        clips, pa.field("described", pa.string()), [storage.digest(repr(describe(clip))) for clip in clips.to_pylist()]
    )


def _is_said(field: pa.Field) -> bool:
    if is_heavy(field) or field.name in UNSAID:
        return False
    return field.name in LISTS or not (
        pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    )


def _splits_of(uids: pa.ChunkedArray, splits_uri: str) -> pa.Array:
    if not storage.exists(splits_uri):
        return pa.array(["train"] * len(uids), pa.string())
    splits = storage.read_table(splits_uri, ["uid", "split"])
    place = pc.index_in(uids.combine_chunks(), value_set=splits["uid"].combine_chunks())
    if place.null_count:
        raise ConfigError(
            f"{splits_uri} does not know {place.null_count} of {len(uids)} kept clips; `worldloom run --only curate` brings it up to date"
        )
    return splits["split"].combine_chunks().take(place)

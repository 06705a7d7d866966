"""The contract of an export format, and the description of a clip that all formats share.

A clip is a mapping: the plain columns of its row in the curated table, its `split`, and `CUT_COLUMNS` once it is cut.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from cluster import plugins
from cluster.plugins import Plugin
from pipelines.engine.source_versions import VERSION_COLUMNS
from pipelines.engine.step import FATE_COLUMNS, column
from pipelines.export.clip_files import image_suffix

FOLDER = "pipelines.export.formats"

Clip = Mapping[str, Any]

CUT_COLUMNS = (
    column("cut_mode", pa.string(), "copied (the source's own packets) or encoded"),
    column("cut_reason", pa.string(), "why it was not copied"),
    column("cut_n_frames", pa.int64(), "frames of the clip"),
    column(
        "cut_first_pts", pa.int64(), "PTS in the source of the clip's first frame, in units of the source's time base"
    ),
    column("cut_width", pa.int64(), "width in pixels as displayed"),
    column("cut_height", pa.int64(), "height in pixels as displayed"),
    column("cut_fps", pa.float64(), "average frame rate of the clip; null for an image"),
    column("cut_size_bytes", pa.int64(), "size of the clip's file"),
)

LEADING_KEYS = (
    "uid",
    "source_uid",
    "source",
    "kind",
    "split",
    "caption",
    "cluster",
    "start_pts",
    "end_pts",
    "time_base_num",
    "time_base_den",
    "duration_s",
)
"""Columns that a clip's description lists first; all others are listed under `scores`."""

INTERNAL_COLUMNS = frozenset(
    {
        *(*FATE_COLUMNS, *VERSION_COLUMNS, "description_digest", "left_out_reason", "error"),
        *("pending_shard", "current_file", "final_file"),
    }
)
"""Columns that only the export itself needs; no description lists them."""


class Format(Plugin):
    """A format with a file per clip."""

    kinds: ClassVar[tuple[str, ...]] = ("video", "image")
    """Kinds of sources that the format can hold; clips of others are left out, with a reason in the index."""

    @abc.abstractmethod
    def clip_file(self, clip: Clip) -> str:
        """Return the path of a clip's file in the export's folder."""

    def sidecars(self, clip: Clip) -> dict[str, bytes]:
        """Return the contents of a clip's other files, by path in the export's folder."""
        return {}

    def write_metadata(self, folder: str, index: pa.Table) -> None:
        """Write the files that describe the export as a whole, from its index (`index.SCHEMA`)."""


class ShardedFormat(Format):
    """A format that packs clips into shards. Clips are first cut to temporary files, and each shard is written once."""

    shard_mb: int = Field(
        512, ge=1, description="Largest shard, in MB of 10^6 bytes; a larger clip gets a shard of its own."
    )

    def clip_file(self, clip: Clip) -> str:
        return f"{clip['uid']}{clip_suffix(clip)}"

    @abc.abstractmethod
    def shard_file(self, split: str, number: int, count: int) -> str:
        """Return the path in the export's folder of shard `number` of a split's `count` shards."""

    @abc.abstractmethod
    def write_shard(self, uri: str, clips: pa.Table, contents: Iterator[bytes]) -> None:
        """Write a shard atomically. `contents` are the bytes of the clips' files, in the order of the rows."""

    @abc.abstractmethod
    def read_shard(self, uri: str) -> Iterator[tuple[str, bytes]]:
        """Yield the uid and the bytes of each clip's file, in the order in which they were written."""


def find_format(name: str, settings: Mapping[str, Any]) -> Format:
    """Return a format by name, in which `-` stands for `_`; settings that it does not have are ignored.

    Raises `ValueError` for an unknown name.
    """
    module = name.replace("-", "_")
    fields = plugins.load(FOLDER, module, Format).model_fields
    known = {key: value for key, value in settings.items() if key in fields}
    return plugins.build(FOLDER, Format, {**known, "name": module})


def clip_suffix(clip: Clip) -> str:
    """Return the suffix of a clip's file: .mp4 for videos, and for images the source's if every reader takes it."""
    return image_suffix(clip["source"]) if clip["kind"] == "image" else ".mp4"


def uid_of(path: str) -> str:
    """Return the uid of the clip that a file holds, from the file's path."""
    return PurePosixPath(path).stem


def describe(clip: Clip) -> dict[str, Any]:
    """Return a clip's description: its source, span, caption, size and split, and all measured columns as `scores`."""
    named = {name: clip[name] for name in LEADING_KEYS if name in clip}
    named["caption"] = clip.get("caption") or ""
    named |= {field.name.removeprefix("cut_"): clip[field.name] for field in CUT_COLUMNS if field.name in clip}
    scores = {
        name: clip[name]
        for name in sorted(clip)
        if name not in named and name not in INTERNAL_COLUMNS and not name.startswith(("cut_", "stored_"))
    }
    return {**named, "scores": scores}


def description_json(clip: Clip) -> bytes:
    return (json.dumps(describe(clip), ensure_ascii=False, indent=1, default=str) + "\n").encode()


def caption_bytes(clip: Clip) -> bytes:
    """Return the caption as a text file holds it; empty if the clip has none."""
    return str(clip.get("caption") or "").encode()

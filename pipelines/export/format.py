"""The contract of an export's layout, and what is said of each clip in every one of them.

A clip is a mapping: the columns of its row in the curated table that are plain values, its `split`, and `CUT` once it is cut.
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
from pipelines.engine.step import FATE_COLUMNS, column
from pipelines.export.clip_files import image_suffix

FOLDER = "pipelines.export.formats"

Clip = Mapping[str, Any]

CUT = (
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

IDENTITY = (
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
"""Columns that every description of a clip begins with; all others are listed as its scores."""

UNSAID = frozenset({*FATE_COLUMNS, "described", "left_out", "error", "shard", "old", "final"})
"""Columns that only the export itself needs."""


class Format(Plugin):
    """A layout with a file of its own for each clip."""

    kinds: ClassVar[tuple[str, ...]] = ("video", "image")
    """Kinds of sources that the layout can hold; clips of others are left out, with a reason in the index."""

    @abc.abstractmethod
    def clip_file(self, clip: Clip) -> str:
        """Path of a clip's file in the export's folder."""

    def beside(self, clip: Clip) -> dict[str, bytes]:
        """Further files of a clip, by path in the export's folder."""
        return {}

    def finish(self, folder: str, index: pa.Table) -> None:
        """Write what is said of the export as a whole, from its index (`INDEX`)."""


class Sharded(Format):
    """A layout that packs clips into shards. A shard is written at once, and its clips are cut to files that do not stay."""

    shard_mb: int = Field(
        512, ge=1, description="Largest shard, in MB of 10^6 bytes; a clip that is larger has one for itself."
    )

    def clip_file(self, clip: Clip) -> str:
        return f"{clip['uid']}{suffix(clip)}"

    @abc.abstractmethod
    def shard_file(self, split: str, number: int, count: int) -> str:
        """Path of shard `number` of `count` of a split, in the export's folder."""

    @abc.abstractmethod
    def write_shard(self, uri: str, clips: pa.Table, contents: Iterator[bytes]) -> None:
        """Write a shard atomically: clips, and the bytes of each one's file, in order."""

    @abc.abstractmethod
    def read_shard(self, uri: str) -> Iterator[tuple[str, bytes]]:
        """The uid and the bytes of each clip's file, in order."""


def find(name: str, settings: Mapping[str, Any]) -> Format:
    """A layout by name; `-` stands for `_`. Settings that it does not have are left out. Raises `ValueError` for an unknown name."""
    kind = plugins.load(FOLDER, name.replace("-", "_"), Format)
    known = {key: value for key, value in settings.items() if key in kind.model_fields}
    return plugins.build(FOLDER, Format, {**known, "name": name.replace("-", "_")})


def suffix(clip: Clip) -> str:
    """Suffix of a clip's file: videos are MP4, images keep what they are where every reader takes it."""
    return image_suffix(clip["source"]) if clip["kind"] == "image" else ".mp4"


def stem(member: str) -> str:
    """The uid of a clip's file."""
    return PurePosixPath(member).stem


def describe(clip: Clip) -> dict[str, Any]:
    """What is said of a clip beside its file: where it comes from, its caption, size and split, and all measured columns as `scores`."""
    named = {name: clip[name] for name in IDENTITY if name in clip}
    named["caption"] = clip.get("caption") or ""
    named |= {field.name.removeprefix("cut_"): clip[field.name] for field in CUT if field.name in clip}
    scores = {
        name: clip[name]
        for name in sorted(clip)
        if name not in named and name not in UNSAID and not name.startswith(("cut_", "stored_"))
    }
    return {**named, "scores": scores}


def as_json(clip: Clip) -> bytes:
    """`describe` as JSON."""
    return (json.dumps(describe(clip), ensure_ascii=False, indent=1, default=str) + "\n").encode()


def caption_of(clip: Clip) -> bytes:
    """The caption as a text file has it; empty where there is none."""
    return str(clip.get("caption") or "").encode()

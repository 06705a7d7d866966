"""Source files of a recipe: listing them, their identity, and the sidecar files that hold their captions."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from cluster import storage
from cluster.config import ConfigError, Settings
from pipelines.engine.step import column

FIELDS = (
    column("uid", pa.string(), "identity of the row: of the source file, and from cut on of the clip"),
    column("source", pa.string(), "URI of the source file"),
    column("kind", pa.string(), "video or image"),
    column("size_bytes", pa.int64(), "size of the source file"),
    column("version", pa.string(), "etag or modification time (ns) of the source file"),
    column("sidecar", pa.string(), "URI of the file beside it that holds its caption, if any"),
)
SCHEMA = pa.schema(FIELDS)

SIDECARS = (".txt", ".json")


class SourceSettings(Settings):
    """One entry of `sources`: a pattern of videos or of images."""

    videos: str | None = Field(
        None, description="Pattern of video files: *, **, ? and {a,b} are understood; local, s3:// or gs://."
    )
    images: str | None = Field(None, description="Pattern of still images.")
    captions: Literal["sidecar", "none"] = Field(
        "none", description="sidecar: captions are in clip.txt or clip.json beside clip.mp4."
    )

    @model_validator(mode="after")
    def _one_pattern(self) -> SourceSettings:
        if (self.videos is None) == (self.images is None):
            raise ValueError("give either videos or images")
        return self


def list_sources(settings: tuple[SourceSettings, ...]) -> pa.Table:
    """Return every source file once, sorted by URI. Its uid is a hash of URI, size, version and its sidecar's version.

    Raises `ConfigError` for a pattern that matches nothing, or a file that two patterns claim as different kinds.
    """
    rows: dict[str, dict[str, object]] = {}
    for entry in settings:
        kind, pattern = ("video", entry.videos) if entry.videos is not None else ("image", entry.images or "")
        files = storage.glob(pattern)
        if not files:
            raise ConfigError(f"sources: no file matches {kind}s: {storage.absolute(pattern)}")
        beside = _sidecars(files) if entry.captions == "sidecar" else {}
        for file in files:
            if file.uri in rows and rows[file.uri]["kind"] != kind:
                raise ConfigError(
                    f"sources: {file.uri} is named as a video and as an image; narrow one of the patterns"
                )
            sidecar = beside.get(os.path.splitext(file.uri)[0])
            rows[file.uri] = {
                "uid": storage.digest(file.uri, str(file.size_bytes), file.version, sidecar.version if sidecar else ""),
                "source": file.uri,
                "kind": kind,
                "size_bytes": file.size_bytes,
                "version": file.version,
                "sidecar": sidecar.uri if sidecar else None,
            }
    return pa.Table.from_pylist([rows[uri] for uri in sorted(rows)], SCHEMA)


def _sidecars(files: list[storage.Entry]) -> dict[str, storage.Entry]:
    """Return the caption files beside these files by path without suffix; a .txt is preferred to a .json."""
    folders = {file.uri.rpartition("/")[0] for file in files}
    found: dict[str, storage.Entry] = {}
    for suffix in reversed(SIDECARS):
        for folder in sorted(folders):
            found.update({entry.uri.removesuffix(suffix): entry for entry in storage.list_files(folder, suffix)})
    return found


@dataclass(frozen=True)
class TimedCaption:
    """The caption of a span of a file, in seconds from its first frame."""

    start_s: float
    end_s: float
    caption: str


@dataclass(frozen=True)
class Sidecar:
    """The captions of a file: one of the whole file, and any of spans."""

    caption: str
    timed: tuple[TimedCaption, ...] = ()


def read_sidecar(uri: str) -> Sidecar:
    """Read a caption file, which is text or JSON.

    JSON has the form `{"caption": "...", "shots": [{"start_s": 0, "end_s": 2.5, "caption": "..."}]}`; `shots` is
    optional. Raises `ValueError` naming the file if it holds no caption.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8")
        if not uri.endswith(".json"):
            return Sidecar(_folded(text))
        data = json.loads(text)
        timed = [
            TimedCaption(float(shot["start_s"]), float(shot["end_s"]), _folded(shot["caption"]))
            for shot in data.get("shots", [])
        ]
        return Sidecar(_folded(data["caption"]), tuple(timed))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        form = '{"caption": "...", "shots": [{"start_s": 0, "end_s": 2.5, "caption": "..."}]}, shots optional'
        raise ValueError(f"{uri}: no caption in it: {type(error).__name__}: {error}; a .json is {form}") from error


def _folded(text: str) -> str:
    """Return text on one line. Raises `TypeError` for anything else."""
    if not isinstance(text, str):
        raise TypeError(f"a caption is {type(text).__name__}, not text")
    return " ".join(text.split())

"""Source files of a recipe: listing them, and their identity."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import pyarrow as pa
from pydantic import Field, model_validator

from cluster import listing, storage
from cluster.config import ConfigError, Settings
from cluster.stores import check_uri
from cluster.telemetry import log
from pipelines.engine.sidecars import SUFFIXES, find_sidecars
from pipelines.engine.source_hints import why_nothing_matches
from pipelines.engine.source_lists import is_list, read_list
from pipelines.engine.step import column

FIELDS = (
    column("uid", pa.string(), "identity of the row: of the source file, and from cut on of the clip"),
    column("source", pa.string(), "URI of the source file"),
    column("kind", pa.string(), "video or image", values=("video", "image")),
    column("size_bytes", pa.int64(), "size of the source file", within=(0, None)),
    column("version", pa.string(), "etag or modification time (ns) of the source file"),
    column("sidecar", pa.string(), "URI of the file beside it that holds its caption, if any"),
    column("listed_caption", pa.string(), "caption in the list that names the file, if any"),
)
SCHEMA = pa.schema(FIELDS)


class SourceSettings(Settings):
    """One entry of `sources`: a pattern of videos or of images, or a list of their paths."""

    videos: str | None = Field(
        None,
        description="Pattern of video files: *, **, ?, [ab] and {a,b} are understood, hidden files only if the pattern "
        "names them; local, s3:// or gs://. Or a list of paths or URIs: a .txt with one per line, or a .csv or "
        ".parquet with a column source, path or url, and an optional column caption.",
    )
    images: str | None = Field(None, description="Pattern or list of still images.")
    captions: Literal["sidecar", "none"] = Field(
        "none", description="sidecar: captions are in clip.txt, clip.caption or clip.json beside clip.mp4."
    )

    @model_validator(mode="after")
    def _one_pattern(self) -> SourceSettings:
        if (self.videos is None) == (self.images is None):
            raise ValueError("give either videos or images")
        if not storage.is_local(self.pattern):
            check_uri(self.pattern)
        return self

    @property
    def kind(self) -> Literal["video", "image"]:
        return "image" if self.videos is None else "video"

    @property
    def pattern(self) -> str:
        """The pattern, or the path of the list."""
        return self.images or "" if self.videos is None else self.videos


def list_sources(settings: tuple[SourceSettings, ...]) -> pa.Table:
    """Return every source file once, sorted by URI, a file behind several links too.

    Its uid is a hash of URI, size, version, its sidecar's version and its caption in a list. Raises `ConfigError` for a
    pattern that matches nothing, a bad row of a list, or a file that two entries claim as different kinds.
    """
    rows: dict[str, _Row] = {}
    for entry in settings:
        files = list(_files_of(entry))
        if not files:
            raise ConfigError(_no_file(entry))
        beside: Mapping[str, storage.Entry] = {}
        if entry.captions == "sidecar":
            beside = find_sidecars(file.uri for file, _ in files)
            _log_sidecars(entry, sum(_stem(file) in beside for file, _ in files), len(files))
        files.reverse()
        while files:  # each is let go when its row is made
            file, caption = files.pop()
            identity = file.real or file.uri
            known = rows.get(identity)
            if known and known.kind != entry.kind:
                raise ConfigError(
                    f"sources: {file.uri} is named as a video and as an image; narrow one of the patterns"
                )
            if known and known.source != file.uri and file.uri != file.real:
                continue  # another link to a file that is listed
            rows[identity] = _row(file, entry.kind, beside.get(_stem(file)), caption)
    ordered = sorted(rows.values(), key=lambda row: row.source)
    columns = [pa.array([row[i] for row in ordered], field.type) for i, field in enumerate(FIELDS)]
    return pa.table(columns, SCHEMA)


class _Row(NamedTuple):
    """A row of the table of sources, in the order of `FIELDS`."""

    uid: str
    source: str
    kind: str
    size_bytes: int
    version: str
    sidecar: str | None
    listed_caption: str | None


def _stem(file: storage.Entry) -> str:
    return os.path.splitext(file.uri)[0]


def _row(file: storage.Entry, kind: str, sidecar: storage.Entry | None, caption: str) -> _Row:
    identity = [file.uri, str(file.size_bytes), file.version, sidecar.version if sidecar else ""]
    uid = storage.digest(*identity, *([caption] if caption else []))
    sidecar_uri = sidecar.uri if sidecar else None
    return _Row(uid, file.uri, kind, file.size_bytes, file.version, sidecar_uri, caption or None)


def _files_of(entry: SourceSettings) -> Iterator[tuple[storage.Entry, str]]:
    """Yield the files of an entry, each with its caption in the list, which is empty for none.

    Raises `ConfigError` if a list gives a file two captions.
    """
    if not is_list(entry.pattern):
        yield from ((file, "") for file in listing.glob(entry.pattern))
        return
    captions: dict[str, tuple[str, str]] = {}
    for listed in read_list(entry.pattern):
        caption, position = captions.setdefault(listed.entry.uri, (listed.caption, listed.position))
        if caption != listed.caption:
            raise ConfigError(f"sources: {listed.position}: {listed.entry.uri} has another caption than in {position}")
        if position == listed.position:
            yield listed.entry, listed.caption


def _no_file(entry: SourceSettings) -> str:
    uri = storage.absolute(entry.pattern)
    if is_list(entry.pattern):
        return f"sources: {uri}: the list names no file"
    brackets = "; [ab] means a or b, write [[] for a bracket" if "[" in uri else ""
    why = why_nothing_matches(uri)
    return f"sources: no file matches {entry.kind}s: {uri}{': ' if why else ''}{why}{brackets}"


def _log_sidecars(entry: SourceSettings, n_found: int, n_files: int) -> None:
    counts = f"sources: {entry.pattern}: sidecars for {n_found:,} of {n_files:,} files"
    if n_found:
        log.info(counts)
    else:
        log.warning(f"{counts}: no caption file ({', '.join(SUFFIXES)}) beside any; without, write captions: none")

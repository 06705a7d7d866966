"""Clips of raw footage for training an autoencoder: decoded once, at the sizes of training, split by source file.

Training then reads random crops at the speed of memory, on machines without a decoder. The price is disk space: a clip
of 33 frames at 256x256 pixels takes 6.5 MB.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from cluster import storage
from cluster.config import ConfigError, Settings
from cluster.telemetry import log, progress
from pipelines.dataset.splits import assign
from pipelines.engine.sources import SourceSettings, list_sources
from pipelines.recipe import SplitSettings
from pipelines.video.decode import DecodeError, probe
from pipelines.video.spans import FrameGrid, read_span
from pipelines.video.still_images import read_image

INDEX = "clips.json"
"""Index file, written last: a folder without it is incomplete."""

THREADS = 4


class ClipSettings(Settings):
    """Number, size and length of the clips that are cut from each source file."""

    sizes: tuple[int, ...] = Field(
        (256, 512), min_length=1, description="Side of the square whose area a clip has; no clip is enlarged."
    )
    frames: int = Field(33, ge=1, description="Largest number of frames of a clip.")
    fps: float = Field(24.0, gt=0, description="Frames per second, or the file's own rate if that is lower.")
    per_source: int = Field(
        8, ge=1, description="Largest number of clips of each size from one file, spread evenly without overlap."
    )


@dataclass(frozen=True)
class Source:
    """A source file and the split it is in."""

    uid: str
    uri: str
    kind: str
    split: str


def sources_of(patterns: tuple[SourceSettings, ...], shares: SplitSettings) -> list[Source]:
    """Return the files of splits train and val. Raises `ConfigError` if no file is left for one of them."""
    table = list_sources(patterns)
    rows = pa.table(
        {
            "uid": table["uid"],
            "source_uid": table["uid"],
            "cluster": pa.nulls(len(table), pa.string()),
            "content_hash": pa.nulls(len(table), pa.string()),
            "kept": pa.array([True] * len(table)),
        }
    )
    split = {row["uid"]: row["split"] for row in assign(rows, shares).to_pylist()}
    found = [Source(row["uid"], row["source"], row["kind"], split[row["uid"]]) for row in table.to_pylist()]
    if not {"train", "val"} <= {source.split for source in found}:
        raise ConfigError(
            f"sources: {len(found)} file(s) and splits.val {shares.val:g} leave "
            "none to train on or none to validate on; add files"
        )
    return [source for source in found if source.split != "test"]


def check_local(out_uri: str) -> None:
    """Raise `ConfigError` if the folder of clips is not local, because they are memory-mapped."""
    if not storage.is_local(out_uri):
        raise ConfigError(f"out {out_uri}: clips are memory-mapped, so out must be a folder that all workers can reach")


def make_clips(
    patterns: tuple[SourceSettings, ...], shares: SplitSettings, settings: ClipSettings, out_uri: str
) -> Path:
    """Write the clips of all sources under `out_uri` and return their folder; a complete folder is returned as it is.

    A file that cannot be decoded is named with its error in the log and in the index. Raises `ConfigError` if `out_uri`
    is not local, because clips are memory-mapped.
    """
    check_local(out_uri)
    sources = sources_of(patterns, shares)
    key = storage.digest(settings.model_dump_json(), *(f"{source.uid} {source.split}" for source in sources))
    folder = storage.local_path(storage.join(out_uri, f"clips-{key[:12]}"))
    if (folder / INDEX).exists():
        return folder
    failures: dict[str, str] = {}
    written = 0
    with progress("clips", len(sources)) as bar, ThreadPoolExecutor(THREADS) as pool:
        for source, found in zip(sources, pool.map(lambda one: _write(one, settings, folder), sources), strict=True):
            if isinstance(found, str):
                log.warning("%s: no clip: %s", source.uri, found)
                failures[source.uri] = found
            else:
                written += found
            bar.advance(1, source.uri)
    for split in ("train", "val"):
        if not any(source.split == split and source.uri not in failures for source in sources):
            raise ConfigError(
                f"sources: no file of split {split} gives a clip ({len(failures)} of {len(sources)} failed); add files"
            )
    index = {"clips": written, "sources": {source.uri: source.split for source in sources}, "failures": failures}
    storage.write_bytes(str(folder / INDEX), json.dumps(index, indent=1).encode())
    return folder


def _write(source: Source, settings: ClipSettings, folder: Path) -> int | str:
    """Write the clips of a source; return their number, or the error for which it has none."""
    number = -1
    try:
        for number, pixels in enumerate(_clips(source, settings)):
            buffer = io.BytesIO()
            np.save(buffer, pixels)
            storage.write_bytes(
                str(folder / source.split / f"{Path(source.uri).stem}-{source.uid[:8]}-{number:04d}.npy"),
                buffer.getvalue(),
            )
    except (DecodeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return number + 1


def _clips(source: Source, settings: ClipSettings) -> Iterator[NDArray[np.uint8]]:
    if source.kind == "image":
        image = read_image(source.uri)
        for width, height in fitting_sizes(image.width, image.height, settings.sizes):
            grid = FrameGrid(fps=1, frames=1, width=width, height=height)
            yield read_span(source.uri, 0, 1, grid, kind="image").frames
        return
    info = probe(source.uri)
    fps = min(settings.fps, info.fps or settings.fps)
    duration_s = info.duration_s or 0.0
    for start_s, frames in spans(duration_s, fps, settings.frames, settings.per_source):
        start_pts = info.start_pts + math.floor(start_s / info.time_base)
        end_pts = info.start_pts + math.ceil((start_s + frames / fps) / info.time_base)
        for width, height in fitting_sizes(info.width, info.height, settings.sizes):
            yield read_span(
                source.uri, start_pts, end_pts, FrameGrid(fps=fps, frames=frames, width=width, height=height)
            ).frames


def spans(duration_s: float, fps: float, frames: int, max_clips: int) -> list[tuple[float, int]]:
    """Return (start in seconds, number of frames) of at most `max_clips` clips, spread evenly over a file.

    A file that is too short for one clip gives one shorter clip.
    """
    available = max(1, math.floor(duration_s * fps + 1e-6))
    if available < frames:
        return [(0.0, available)]
    length_s = frames / fps
    count = min(max_clips, math.floor(duration_s / length_s + 1e-6)) or 1
    spare_s = max(0.0, duration_s - count * length_s)
    return [(index * length_s + spare_s * (index + 0.5) / count, frames) for index in range(count)]


def fitting_sizes(width: int, height: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (width, height) with about the area of each square that is no larger than the frame.

    If all squares are larger, return the frame's own size.
    """
    area = width * height
    scales = [size / math.sqrt(area) for size in sizes if size * size <= area] or [1.0]
    return [(max(1, round(width * scale)), max(1, round(height * scale))) for scale in scales]

"""Footage of the drawn world: any number of files of a stream, drawn in parallel, with their captions and truth.

A folder has a subfolder and a Parquet file with the truth for every `FILES_PER_PART` files. Drawing resumes: a file
that is there is whole, and is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from cluster import storage
from cluster.config import ConfigError
from cluster.resources import Resources
from cluster.telemetry import ProgressBar
from pipelines.engine.executor import Executor
from pipelines.scenes.footage import MTIME_S
from pipelines.scenes.stream import VERSION, WORLD, Selection, Stream, StreamFile
from pipelines.video.still_images import encode_jpeg
from training.evaluation.truth import TRUTH_PREFIX, write_truth
from training.sampling.media import write_mp4, write_png

FILES_PER_PART = 64
"""Files of a subfolder, and rows of a Parquet file of truth."""
STREAM_FILE = "stream.json"
"""Name of the file that says which stream a folder has."""


def draw_world(
    folder: str, stream: Stream, selection: Selection, executor: Executor, progress: ProgressBar | None = None
) -> int:
    """Draw files of a stream into a folder, and return how many of them were there before.

    `00000/clip_0000000.mp4` has its caption in the `.txt` beside it, and `truth-00000.parquet` has the truth of all
    files of `00000` (`training.evaluation.truth`). A file depends on the stream and its index alone, so more files can
    be added later. Raises `ConfigError` if the folder has another stream.
    """
    folder = storage.absolute(folder)
    _claim(folder, stream)
    there = {entry.uri.removeprefix(f"{folder}/") for entry in storage.list_files(folder)}
    wanted = selection.indices()
    kept = sum(_path(stream.file(index)) in there for index in wanted)
    if progress is not None:
        progress.advance(kept, note="kept")
    tasks = list(_unfinished_parts(folder, stream, wanted, there))
    # Without tasks, no executor has to start.
    for drawn in executor.map_tables(partial(PartDrawer, folder, stream), tasks, Resources()) if tasks else ():
        if progress is not None:
            progress.advance(int(drawn["drawn"][0].as_py()))
    return kept


def _claim(folder: str, stream: Stream) -> None:
    """Write which stream a folder has. Raises `ConfigError` if it has another."""
    uri, wanted = storage.join(folder, STREAM_FILE), dataclasses.asdict(stream) | {"version": VERSION}
    if not storage.exists(uri):
        storage.write_bytes(uri, f"{json.dumps(wanted)}\n".encode())
    elif (found := storage.read_json(uri)) != wanted:
        raise ConfigError(f"{folder}: has the footage of {found}, not of {wanted}; draw it into another folder")


def _unfinished_parts(folder: str, stream: Stream, wanted: list[int], there: set[str]) -> Iterator[pa.Table]:
    """Yield the parts with a file or a truth that is not there: the indices of a part, and which are to be drawn."""
    for part, chosen in itertools.groupby(wanted, lambda index: index // FILES_PER_PART):
        start = part * FILES_PER_PART
        paths = {index: _path(stream.file(index)) for index in range(start, start + FILES_PER_PART)}
        # Files that are not wanted stay part of the truth if they were drawn before.
        indices = sorted({*chosen} | {index for index, path in paths.items() if path in there})
        missing = [paths[index] not in there for index in indices]
        truth = _truth_name(start)
        listed = storage.read_table(storage.join(folder, truth), ["file"])["file"] if truth in there else []
        if any(missing) or len(listed) < len(indices):
            yield pa.table({"index": pa.array(indices, pa.int64()), "missing": missing})


class PartDrawer:
    """A function that draws the missing files of a part of a folder, then writes the truth of the part."""

    def __init__(self, folder: str, stream: Stream) -> None:
        self._folder, self._stream = folder, stream

    def __call__(self, part: pa.Table) -> pa.Table:
        truths = []
        for index, missing in zip(part["index"].to_pylist(), part["missing"].to_pylist(), strict=True):
            file = self._stream.file(index)
            if missing:
                draw_file(self._folder, file)
            truths.append(file.truth(_path(file)))
        write_truth(storage.join(self._folder, _truth_name(part["index"][0].as_py())), WORLD, truths)
        return pa.table({"drawn": [sum(part["missing"].to_pylist())]})


def draw_file(folder: str, file: StreamFile) -> None:
    """Draw a file of a stream with its sidecar into a folder. The sidecar comes first: a file that is there has one."""
    uri, plan = storage.join(folder, _path(file)), file.plan
    sidecar = os.path.splitext(uri)[0] + ".txt"
    frames = file.motion.frames(plan.width, plan.height, file.backdrop)
    storage.write_bytes(sidecar, f"{plan.caption}\n".encode())
    if not file.is_image:
        write_mp4(uri, frames, plan.fps, preset="veryfast")
    elif uri.endswith(".png"):
        write_png(uri, next(frames))
    else:
        storage.write_bytes(uri, encode_jpeg(next(frames), quality=92))
    if storage.is_local(uri):
        # The identity of a source includes it.
        for path in (sidecar, uri):
            os.utime(storage.local_path(path), (MTIME_S, MTIME_S))


def _path(file: StreamFile) -> str:
    """Return the path of a file in the folder of its stream."""
    return f"{file.index // FILES_PER_PART:05d}/{file.name}"


def _truth_name(index: int) -> str:
    """Return the name of the Parquet file with the truth of this file and its neighbours."""
    return f"{TRUTH_PREFIX}-{index // FILES_PER_PART:05d}.parquet"

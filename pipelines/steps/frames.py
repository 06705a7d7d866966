"""frames: a few images of every clip, decoded once, for all scores and captioners after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from pipelines.engine.segments import HEAVY
from pipelines.engine.source_versions import VERSION_COLUMNS, ChangedSourceError, unchanged_source
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.video import frame_images
from pipelines.video.content import crop_of
from pipelines.video.frame_images import FrameChoice, FrameImages, FrameSampling

FRAMES = pa.field(
    "frames", pa.list_(pa.binary()), metadata={"doc": "JPEG images of the clip, upright, in time order", HEAVY: b"1"}
)
FRAME_TIMES_S = column(
    "frame_times_s",
    pa.list_(pa.float64()),
    "time of each of the frames in seconds from the clip's start; 0 for an image",
)


class Frames(Step):
    """Decodes each live clip once and stores one frame of each equal part as JPEG. A clip that does not decode fails.

    Images show the clip's content, without letterbox. Scores and captioners read them and never open the video. With
    the defaults an image takes about 23 kB and a clip 100 kB in the table of this step's segment. Later tables carry
    the images only as far as a step reads them.
    """

    name: str = "frames"
    version = 2
    fps: float = Field(1.0, gt=0, le=60, description="Frames per second of a clip; a clip has at least one.")
    max_frames: int = Field(
        8, ge=1, le=256, description="Most frames per clip; those of a longer clip are further apart."
    )
    long_side: int = Field(
        448, ge=32, le=4096, description="Long side of an image in pixels; smaller sources are not enlarged."
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality.")
    at: FrameChoice = Field(
        "middles",
        description="Which frame of each equal part: the one at its middle, or at its peak of change (for captions).",
    )

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "start_pts", "end_pts", "crop"

    def requires(self) -> tuple[str, ...]:
        return (*self.reads(), *VERSION_COLUMNS)

    def writes(self) -> tuple[pa.Field, ...]:
        return FRAMES, FRAME_TIMES_S

    def open(self, context: Context) -> TableFunction:
        sampling = FrameSampling(self.fps, self.max_frames, self.long_side, self.quality, self.at)

        def apply(table: pa.Table) -> pa.Table:
            names = [name for name in table.column_names if name in self.requires()]
            taken = iter(take(table.select(names).to_pylist(), sampling))

            def attach(_: dict[str, Any]) -> dict[str, Any]:
                result = next(taken)
                if isinstance(result, Exception):
                    raise result
                return {"frames": result.images, "frame_times_s": result.times_s}

            return map_rows(table, self.writes(), attach)

        return apply


def take(rows: list[dict[str, Any]], sampling: FrameSampling) -> list[FrameImages | Exception]:
    """Return the images of each row, or the error it fails with. Clips of one video share the opened file."""
    results: dict[int, FrameImages | Exception] = {}
    indices_by_source: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["kind"] == "image":
            try:
                with unchanged_source(row):
                    results[i] = frame_images.images_of_still(row["source"], sampling, crop_of(row))
            except Exception as error:  # recorded in the row's mark
                results[i] = error
        else:
            indices_by_source.setdefault(row["source"], []).append(i)
    for source, indices in indices_by_source.items():
        indices.sort(key=lambda i: (rows[i]["start_pts"], rows[i]["end_pts"]))
        spans = [(rows[i]["start_pts"], rows[i]["end_pts"]) for i in indices]
        found: Sequence[FrameImages | Exception]
        try:
            with unchanged_source(rows[indices[0]]):
                found = frame_images.images_of_spans(source, spans, sampling, [crop_of(rows[i]) for i in indices])
        except ChangedSourceError as error:
            found = [error] * len(indices)
        results |= zip(indices, found, strict=True)
    return [results[i] for i in range(len(rows))]


def stored_images(row: Mapping[str, Any], column: Literal["frames", "thumbnails"]) -> Sequence[bytes]:
    """Return the JPEG files in an image column of a row. Raises `ValueError` if there are none."""
    images: Sequence[bytes] | None = row[column]
    if not images:
        fix = "; set thumbnail_px of scan and thumbnails of cut above 0" if column == "thumbnails" else ""
        raise ValueError(f"the clip has no {column}{fix}")
    return images

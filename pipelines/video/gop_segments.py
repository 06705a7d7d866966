"""Split a video into GOP segments: runs of whole groups of pictures (GOPs) that can be decoded without the others.

A segment starts at an anchor, the first key frame of each interval of five seconds, with a decoder whose state is
empty. So a film that is split over workers at anchors gives the same frames as one that is decoded in one go.

In a segment of H.264 or HEVC, the loop filter and frames that no other frame refers to are skipped; where there are
B-frames, these are half of the frames or more. It is known which frames were skipped, and they can be decoded later
from the packets that the segment keeps.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.video.content_hash import PacketDigests
from pipelines.video.decode import MAX_BAD_PACKETS, DecodedFrame, DecodeError, Video, VideoPacket, decode_error
from pipelines.video.gaps import max_frame_pts

ANCHOR_INTERVAL_S = 5
"""Seconds of the intervals whose first key frames are anchors. Decoding an anchor twice, for both segments it joins,
then costs 1%, and the packets of five seconds fit into memory."""

MAX_UNFILTERED_GOP_FRAMES = 300
"""Longest GOP, in frames, that is decoded without the loop filter. The differences add up until the next key frame: 1
to 3 of 255 over the usual 250 frames, but 9 in fades after 600."""

MAX_KEPT_BYTES = 64 << 20
"""Largest total of packets that a segment keeps; a larger segment is decoded in full."""

DENSE_START_S = Fraction(1, 4)
"""Seconds after an anchor in which every frame is decoded: flicker and repeated frames can only be seen between
neighbours."""

DENSE_CUT_FRAMES = 8
"""Frames that are all decoded on either side of a packet that looks like a cut."""

SPIKE_RATIO, SPIKE_REACH_PACKETS = 2.0, 12
"""A packet looks like a cut if it is at least twice as large as any other of the 12 packets before and after it."""

Window = tuple[int, int]
"""PTS of two decoded frames with skipped frames between them."""


class NotSplittableError(DecodeError):
    """An error of a stream whose key frames cannot be relied on: it has to be decoded from end to end."""


@dataclass(frozen=True)
class SegmentFrame:
    """A decoded frame, and whether the loop filter was applied to it.

    `n_skipped` frames before it were not decoded; `n_misplaced` were, but are not shown, as their PTS does not rise.
    """

    decoded: DecodedFrame
    n_skipped: int
    loop_filtered: bool
    n_misplaced: int = 0


@dataclass(frozen=True)
class GopSegment:
    """Packets from an anchor to the next one, that one included.

    They include the frames that are stored after the next anchor but shown before it. If `packets` is a list, frames
    may be skipped; otherwise it reads them from the file. `anchor_pts` is None for the start of the file.
    """

    anchor_pts: int | None
    packets: Iterable[VideoPacket]

    @property
    def kept_packets(self) -> list[VideoPacket] | None:
        """The packets of a segment that keeps them, else None."""
        return self.packets if isinstance(self.packets, list) else None

    @property
    def skips_frames(self) -> bool:
        """Whether frames may be skipped, since they can be decoded later."""
        return self.kept_packets is not None


class Decoders:
    """The two decoders of a video, with and without the loop filter, each made when it is first used."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self._made: dict[bool, VideoCodecContext] = {}

    def get(self, loop_filter: bool) -> VideoCodecContext:
        """Return the decoder with or without the loop filter."""
        if loop_filter not in self._made:
            self._made[loop_filter] = self.video.decoder(loop_filter)
        return self._made[loop_filter]


class GopSegments:
    """The segments of a video, or of its intervals of five seconds from `first` to `end` (exclusive).

    Each segment must be read to its end. `skip=False` skips no frames. `split=False` takes the whole video as one
    segment, for streams without reliable key frames.
    """

    def __init__(
        self, video: Video, first: int = 0, end: int | None = None, *, skip: bool = True, split: bool = True
    ) -> None:
        self._video = video
        self._skip = skip and split and video.can_skip
        self._end = end
        self._split = split and video.has_pts
        self._pushed_back: VideoPacket | None = None
        self._digests = PacketDigests()
        self._n_groups: int | None = None
        start_pts = video.info.start_pts + round(first * ANCHOR_INTERVAL_S / video.info.time_base)
        self._packets = video.packets_from(start_pts) if first else video.packets()
        if first:
            # Packets before the anchor belong to the piece before.
            self._packets = itertools.dropwhile(
                lambda packet: not (packet.is_keyframe and self._interval(packet) >= first), self._packets
            )
        self._anchor: VideoPacket | None = self._read()
        if first and self._anchor is not None:
            # Frames shown before the anchor are in the segment before.
            list(self._leading(self._anchor))

    def __iter__(self) -> Iterator[GopSegment]:
        first = True
        while self._anchor is not None and not (self._end is not None and self._is_past_end(self._anchor)):
            anchor, self._anchor = self._anchor, None
            packets = self._until_next_anchor(anchor)
            kept, complete = _keep(packets) if self._skip else ([], False)
            anchor_pts = None if first and self._is_start(anchor) else anchor.pts
            first = False
            yield GopSegment(anchor_pts, kept if complete else itertools.chain(kept, packets))

    @property
    def packet_digests(self) -> bytes:
        """Digests of the packets of all segments, once these have been read.

        The anchor that starts the next piece is not included.
        """
        return self._digests.digests(None if self._anchor is None else self._n_groups)

    def _is_start(self, anchor: VideoPacket) -> bool:
        return not self._split or anchor.pts is None or self._interval(anchor) <= 0

    def _is_past_end(self, anchor: VideoPacket) -> bool:
        assert self._end is not None
        return self._split and self._interval(anchor) >= self._end

    def _interval(self, packet: VideoPacket) -> int:
        """Return the index of the interval of five seconds in which a packet is shown."""
        if packet.pts is None:
            raise NotSplittableError("a packet has no PTS")
        return int((packet.pts - self._video.info.start_pts) * self._video.info.time_base // ANCHOR_INTERVAL_S)

    def _until_next_anchor(self, anchor: VideoPacket) -> Iterator[VideoPacket]:
        yield anchor
        while (packet := self._next()) is not None:
            if self._split and packet.is_keyframe and self._interval(packet) > self._interval(anchor):
                self._anchor = packet
                # The last group has begun with the anchor.
                self._n_groups = self._digests.n_groups - 1
                yield packet
                yield from self._leading(packet)
                return
            yield packet

    def _leading(self, anchor: VideoPacket) -> Iterator[VideoPacket]:
        """Yield the packets stored after an anchor that are shown before it."""
        assert anchor.pts is not None
        while (packet := self._next()) is not None:
            if packet.pts is None:
                raise NotSplittableError("a packet has no PTS")
            if packet.pts > anchor.pts:
                self._pushed_back = packet
                return
            yield packet

    def _next(self) -> VideoPacket | None:
        packet, self._pushed_back = self._pushed_back, None
        return self._read() if packet is None else packet

    def _read(self) -> VideoPacket | None:
        packet = next(self._packets, None)
        if packet is not None:
            self._digests.push(packet)
        return packet


def _keep(packets: Iterator[VideoPacket]) -> tuple[list[VideoPacket], bool]:
    """Return packets as a list, and whether the list is complete.

    A segment too large to keep, or with too long a GOP, is cut short.
    """
    kept: list[VideoPacket] = []
    size, gop_frames = 0, 0
    for packet in packets:
        kept.append(packet)
        size += packet.size
        gop_frames = 1 if packet.is_keyframe else gop_frames + 1
        if gop_frames > MAX_UNFILTERED_GOP_FRAMES or size > MAX_KEPT_BYTES:
            return kept, False
        if packet.pts is None:
            return kept, False
    return kept, True


def decode_segment(decoders: Decoders, segment: GopSegment) -> Iterator[SegmentFrame]:
    """Yield the frames of a segment that are decoded, PTS strictly rising. Raises `DecodeError`.

    A packet that fails fails the file, except for up to 64 before a video's first frame, as at the start of a
    broadcast.
    """
    video = decoders.video
    shown_pts: list[int] = []
    dense: frozenset[int] = frozenset()
    if segment.kept_packets is not None:
        shown_pts = _shown_pts(segment.kept_packets)
        dense_pts = int(DENSE_START_S / video.info.time_base)
        dense = always_decoded(segment.kept_packets, shown_pts, dense_pts) | _beside_gaps(video, shown_pts)
    failures, n_misplaced, n_reported = 0, 0, 0
    last: DecodedFrame | None = None
    decoder = decoders.get(loop_filter=not segment.skips_frames)
    for frame in _decode_packets(decoder, segment.packets, lambda pts: not segment.skips_frames or pts in dense):
        if isinstance(frame, av.error.FFmpegError):
            failures += 1
            if segment.anchor_pts is not None or last is not None or failures > MAX_BAD_PACKETS:
                raise decode_error(video.uri, frame) from frame
            continue
        decoded = video.with_pts(frame, last)
        if last is None and segment.anchor_pts is not None and decoded.pts != segment.anchor_pts:
            raise NotSplittableError(
                f"{video.uri}: the key frame at PTS {segment.anchor_pts} cannot be decoded without the frames before it"
            )
        if last is not None and decoded.pts <= last.pts:
            n_misplaced += 1
            video.check_step_back(last.pts, decoded.pts, n_misplaced)
            continue
        n_skipped = 0
        if shown_pts and last is not None:
            n_skipped = bisect_left(shown_pts, decoded.pts) - bisect_right(shown_pts, last.pts)
        loop_filtered = not segment.skips_frames or frame.key_frame
        yield SegmentFrame(decoded, max(0, n_skipped), loop_filtered, n_misplaced - n_reported)
        n_reported, last = n_misplaced, decoded


def decode_windows(
    decoders: Decoders, packets: Iterable[VideoPacket], windows: Sequence[Window]
) -> Iterator[tuple[Window, DecodedFrame]]:
    """Yield each window with all of its frames, the first and last included.

    `packets` begin with a key frame shown at or before the first window. Windows are in order and do not overlap,
    except at their ends; a frame at which two meet is yielded for both. Raises `DecodeError`.
    """
    ends = [end for _, end in windows]
    last: DecodedFrame | None = None

    def windows_at(pts: int) -> list[Window]:
        index = bisect_left(ends, pts)
        return [window for window in windows[index : index + 2] if window[0] <= pts]

    needed = _until_shown(packets, ends[-1])
    decoder = decoders.get(loop_filter=False)
    for frame in _decode_packets(decoder, needed, lambda pts: pts is not None and bool(windows_at(pts))):
        if isinstance(frame, av.error.FFmpegError):
            raise decode_error(decoders.video.uri, frame) from frame
        last = decoders.video.with_pts(frame, last)
        for window in windows_at(last.pts):
            yield window, last


def key_frame_index(packets: Sequence[VideoPacket], pts: int) -> int:
    """Return the index of the last key frame shown at `pts` or earlier, 0 if there is none."""
    return max(
        (i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts is not None and packet.pts <= pts),
        default=0,
    )


def _until_shown(packets: Iterable[VideoPacket], pts: int) -> Iterator[VideoPacket]:
    """Yield packets until all that are shown up to `pts` have come."""
    for packet in packets:
        # Decoding timestamps are never later than presentation timestamps: any packet from here on is shown later.
        if packet.dts is not None and packet.dts > pts:
            return
        yield packet


def _decode_packets(
    decoder: VideoCodecContext, packets: Iterable[VideoPacket], is_needed: Callable[[int | None], bool]
) -> Iterator[VideoFrame | av.error.FFmpegError]:
    """Yield the frames of packets in presentation order, from a decoder without state; errors come between the frames.

    Frames that no other frame refers to are decoded only if `is_needed` is true for their PTS.
    """
    decoder.flush_buffers()
    skipping = None
    for packet in packets:
        skip = not is_needed(packet.pts)
        if skip is not skipping:
            decoder.skip_frame = "NONREF" if skip else "DEFAULT"
            skipping = skip
        yield from _decode_packet(decoder, packet)
    yield from _decode_packet(decoder, None)


def _decode_packet(
    decoder: VideoCodecContext, packet: VideoPacket | None
) -> Iterator[VideoFrame | av.error.FFmpegError]:
    try:
        yield from decoder.decode(packet)
    except av.error.EOFError:
        return
    except av.error.FFmpegError as error:
        yield error


def always_decoded(packets: Sequence[VideoPacket], shown_pts: Sequence[int], dense_pts: int) -> frozenset[int]:
    """Return the PTS of the frames of a segment that are never skipped.

    These are the frames of its first `dense_pts` units of PTS, its last frame, and those around each packet that looks
    like a cut. An encoder that meets a cut starts a GOP there, shorter than the others, or writes one packet that is
    much larger than those around it. To decode these frames in the first pass costs a few frames; to come back for them
    costs their GOP again.
    """
    sizes = np.array([0 if packet.is_keyframe else packet.size for packet in packets], np.int64)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    gop_lengths = np.diff(keys)
    is_short = (gop_lengths < gop_lengths.max(initial=0)) | (len(gop_lengths) == 1)
    likely_cuts = [keys[i + 1] for i in np.flatnonzero(is_short)]
    if len(sizes) > 2 * SPIKE_REACH_PACKETS:
        around = sliding_window_view(np.pad(sizes, SPIKE_REACH_PACKETS), 2 * SPIKE_REACH_PACKETS + 1)
        second_largest = np.partition(around, -2, axis=1)[:, -2]
        likely_cuts += np.flatnonzero((sizes > 0) & (sizes >= SPIKE_RATIO * second_largest)).tolist()
    first_pts = itertools.takewhile(lambda pts: pts < shown_pts[0] + dense_pts, shown_pts)
    dense = {*first_pts, *shown_pts[-1:]}
    for i in likely_cuts:
        at = bisect_left(shown_pts, packets[i].pts or 0)
        dense.update(shown_pts[max(0, at - DENSE_CUT_FRAMES) : at + DENSE_CUT_FRAMES])
    return frozenset(dense)


def _beside_gaps(video: Video, shown_pts: Sequence[int]) -> frozenset[int]:
    """Return the PTS of the frames on either side of each gap, which tell where it is."""
    pts_N = np.array(shown_pts, np.int64)
    before_N = np.flatnonzero(np.diff(pts_N) > max_frame_pts(video.info.time_base))
    return frozenset(pts_N[np.concatenate([before_N, before_N + 1])].tolist())


def _shown_pts(packets: Iterable[VideoPacket]) -> list[int]:
    """Return the PTS of the packets that are shown, sorted."""
    return sorted({packet.pts for packet in packets if packet.pts is not None and not packet.is_discard})

"""A video in stretches: runs of whole groups of pictures, each decoded on its own, so that any of them can be done anywhere.

A stretch starts at an anchor, the first key frame of each five seconds, with a decoder that knows nothing of what was
before; so a film that is split over workers at anchors gives the same frames as one that is read through.

In a stretch of H.264 or HEVC, frames that no other refers to (half of them or more, where there are B-frames) and the loop
filter are passed over. What is passed over is known, and can be decoded afterwards from the packets, which a stretch keeps.
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

ANCHOR_S = 5
"""Anchors lie at least about this far apart: decoding one twice, for both stretches it joins, then costs 1%, and the packets of
five seconds fit into memory."""

LONGEST_GROUP = 300
"""Frames of a group of pictures up to which the loop filter is left out. What it would have changed adds up until the next key
frame: 1 to 3 levels of 255 over the usual 250 frames, but 9 in fades after 600."""

MOST_BYTES = 64 << 20
"""Packets of a stretch that are kept; a stretch with more is decoded whole."""

DENSE_S = Fraction(1, 4)
"""Every frame is decoded this long after an anchor: flicker and repeated frames can only be seen between neighbours."""

DENSE_FRAMES = 8
"""Frames decoded on either side of a packet that looks like a cut."""

SPIKE, SPIKE_REACH = 2.0, 12
"""A packet twice as large as any other of the 12 before and after it looks like a cut."""

Window = tuple[int, int]
"""PTS of two frames looked at, with frames between them that were passed over."""


class NotSplittableError(DecodeError):
    """Key frames of this stream cannot be relied on: it has to be decoded from end to end."""


@dataclass(frozen=True)
class Seen:
    """A decoded frame and how many of the source's frames were passed over since the one before; `filtered`: by the loop filter."""

    picture: DecodedFrame
    passed_over: int
    filtered: bool


@dataclass(frozen=True)
class Stretch:
    """Packets from an anchor up to the next one, that one included, with the frames that are shown before it but stored after.

    Where all packets are in a list, frames may be passed over. Otherwise they are read as they are asked for.
    """

    anchor_pts: int | None
    packets: Iterable[VideoPacket]

    @property
    def kept(self) -> list[VideoPacket] | None:
        """The packets of a stretch that keeps them."""
        return self.packets if isinstance(self.packets, list) else None

    @property
    def thin(self) -> bool:
        """Whether frames may be passed over: they can be decoded afterwards."""
        return self.kept is not None


class Decoders:
    """The decoders of a video, one with the loop filter and one without, each made when it is first wanted."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self._made: dict[bool, VideoCodecContext] = {}

    def get(self, loop_filter: bool) -> VideoCodecContext:
        if loop_filter not in self._made:
            self._made[loop_filter] = self.video.decoder(loop_filter)
        return self._made[loop_filter]


class Stretches:
    """The stretches of a video, or of cells `first` to `end` (exclusive) of five seconds of it. Each has to be read to its end.

    `thin=False` passes over nothing. `split=False` takes the whole video for one stretch, for streams without reliable key frames.
    """

    def __init__(
        self, video: Video, first: int = 0, end: int | None = None, *, thin: bool = True, split: bool = True
    ) -> None:
        self._video = video
        self._thin = thin and split and video.can_skip
        self._end = end
        self._split = split and video.has_pts
        self._pushed: VideoPacket | None = None
        self._payload = PacketDigests()
        self._groups: int | None = None
        start_pts = video.info.start_pts + round(first * ANCHOR_S / video.info.time_base)
        self._packets = video.packets_from(start_pts) if first else video.packets()
        if first:
            # What lies before the anchor is in the piece before.
            self._packets = itertools.dropwhile(
                lambda packet: not (packet.is_keyframe and self._cell(packet) >= first), self._packets
            )
        self._anchor: VideoPacket | None = self._read()
        if first and self._anchor is not None:
            # Shown before the anchor: the stretch before has them.
            list(self._leading(self._anchor))

    def __iter__(self) -> Iterator[Stretch]:
        first = True
        while self._anchor is not None and not (self._end is not None and self._is_past(self._anchor)):
            anchor, self._anchor = self._anchor, None
            packets = self._until_next(anchor)
            kept, whole = _take(packets) if self._thin else ([], False)
            anchor_pts = None if first and self._anchor_is_start(anchor) else anchor.pts
            first = False
            yield Stretch(anchor_pts, kept if whole else itertools.chain(kept, packets))

    @property
    def payload(self) -> bytes:
        """Digests of the packets of all stretches, when they have been read: without those of the anchor the next piece begins with."""
        return self._payload.digests(None if self._anchor is None else self._groups)

    def _anchor_is_start(self, anchor: VideoPacket) -> bool:
        return not self._split or anchor.pts is None or self._cell(anchor) <= 0

    def _is_past(self, anchor: VideoPacket) -> bool:
        assert self._end is not None
        return self._split and self._cell(anchor) >= self._end

    def _cell(self, packet: VideoPacket) -> int:
        if packet.pts is None:
            raise NotSplittableError("a packet has no PTS")
        return int((packet.pts - self._video.info.start_pts) * self._video.info.time_base // ANCHOR_S)

    def _until_next(self, anchor: VideoPacket) -> Iterator[VideoPacket]:
        yield anchor
        while (packet := self._next()) is not None:
            if self._split and packet.is_keyframe and self._cell(packet) > self._cell(anchor):
                self._anchor = packet
                # The anchor has begun one.
                self._groups = self._payload.n_groups - 1
                yield packet
                yield from self._leading(packet)
                return
            yield packet

    def _leading(self, anchor: VideoPacket) -> Iterator[VideoPacket]:
        assert anchor.pts is not None
        while (packet := self._next()) is not None:
            if packet.pts is None:
                raise NotSplittableError("a packet has no PTS")
            if packet.pts > anchor.pts:
                self._pushed = packet
                return
            yield packet

    def _next(self) -> VideoPacket | None:
        packet, self._pushed = self._pushed, None
        return self._read() if packet is None else packet

    def _read(self) -> VideoPacket | None:
        packet = next(self._packets, None)
        if packet is not None:
            self._payload.push(packet)
        return packet


def _take(packets: Iterator[VideoPacket]) -> tuple[list[VideoPacket], bool]:
    """Packets into a list, and whether these are all: not those of a stretch too large to keep, or with too long a group."""
    kept: list[VideoPacket] = []
    size, group = 0, 0
    for packet in packets:
        kept.append(packet)
        size += packet.size
        group = 1 if packet.is_keyframe else group + 1
        if group > LONGEST_GROUP or size > MOST_BYTES:
            return kept, False
        if packet.pts is None:
            return kept, False
    return kept, True


def decode(decoders: Decoders, stretch: Stretch) -> Iterator[Seen]:
    """The frames of a stretch that are looked at, PTS strictly rising. Raises `DecodeError`.

    A packet that fails fails the file, except up to 64 before a video's first frame, as at the start of a broadcast.
    """
    video = decoders.video
    shown: list[int] = []
    dense: frozenset[int] = frozenset()
    if stretch.kept is not None:
        shown = _shown(stretch.kept)
        dense = likely_cuts(stretch.kept, shown, int(DENSE_S / video.info.time_base))
    failures, steps_back = 0, 0
    last: DecodedFrame | None = None
    decoder = decoders.get(loop_filter=not stretch.thin)
    for outcome in _run(decoder, stretch.packets, lambda pts: not stretch.thin or pts in dense):
        if isinstance(outcome, av.error.FFmpegError):
            failures += 1
            if stretch.anchor_pts is not None or last is not None or failures > MAX_BAD_PACKETS:
                raise decode_error(video.uri, outcome) from outcome
            continue
        picture = video.with_pts(outcome, last)
        if last is None and stretch.anchor_pts is not None and picture.pts != stretch.anchor_pts:
            raise NotSplittableError(
                f"{video.uri}: the key frame at PTS {stretch.anchor_pts} does not decode on its own"
            )
        if last is not None and picture.pts <= last.pts:
            steps_back += 1
            if steps_back > MAX_BAD_PACKETS:
                raise DecodeError(f"{video.uri}: time stamps step back at PTS {last.pts}")
            continue
        passed_over = (
            bisect_left(shown, picture.pts) - bisect_right(shown, last.pts) if shown and last is not None else 0
        )
        yield Seen(picture, max(0, passed_over), not stretch.thin or outcome.key_frame)
        last = picture


def decode_windows(
    decoders: Decoders, packets: Iterable[VideoPacket], windows: Sequence[Window]
) -> Iterator[tuple[Window, DecodedFrame]]:
    """For each window, all frames from its first to its last. `packets` begin with a key frame shown no later than the first.

    Windows are in order and do not overlap, except at their ends; such a frame comes for both.
    """
    ends = [end for _, end in windows]
    last: DecodedFrame | None = None

    def at(pts: int) -> list[Window]:
        position = bisect_left(ends, pts)
        return [window for window in windows[position : position + 2] if window[0] <= pts]

    for outcome in _run(
        decoders.get(loop_filter=False), _up_to(packets, ends[-1]), lambda pts: pts is not None and bool(at(pts))
    ):
        if isinstance(outcome, av.error.FFmpegError):
            raise decode_error(decoders.video.uri, outcome) from outcome
        last = decoders.video.with_pts(outcome, last)
        for window in at(last.pts):
            yield window, last


def group_start(packets: Sequence[VideoPacket], pts: int) -> int:
    """Position of the last key frame shown at `pts` or before it."""
    return max(
        (i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts is not None and packet.pts <= pts),
        default=0,
    )


def _up_to(packets: Iterable[VideoPacket], pts: int) -> Iterator[VideoPacket]:
    """Packets until all that are shown up to `pts` have come: until one group of frames in decoding order lies past it."""
    for packet in packets:
        # Decoding times never run ahead of presentation times: whatever comes now is shown later.
        if packet.dts is not None and packet.dts > pts:
            return
        yield packet


def _run(
    decoder: VideoCodecContext, packets: Iterable[VideoPacket], whole: Callable[[int | None], bool]
) -> Iterator[VideoFrame | av.error.FFmpegError]:
    """Decode packets to the end with a decoder that knows nothing, in presentation order; errors come between the frames.

    Frames no other refers to are decoded where `whole` says so of their PTS.
    """
    decoder.flush_buffers()
    skipping = None
    for packet in packets:
        skip = not whole(packet.pts)
        if skip is not skipping:
            decoder.skip_frame = "NONREF" if skip else "DEFAULT"
            skipping = skip
        yield from _decoded(decoder, packet)
    yield from _decoded(decoder, None)


def _decoded(decoder: VideoCodecContext, packet: VideoPacket | None) -> Iterator[VideoFrame | av.error.FFmpegError]:
    try:
        yield from decoder.decode(packet)
    except av.error.EOFError:
        return
    except av.error.FFmpegError as error:
        yield error


def likely_cuts(packets: Sequence[VideoPacket], shown: Sequence[int], start: int) -> frozenset[int]:
    """PTS of the frames of a stretch that are decoded in any case: its first ones, its last, and those around each packet that looks like a cut.

    An encoder that meets a cut starts a group of pictures there, shorter than the others, or writes one packet that is much
    larger than those around it. To decode these frames at once costs a few of them; to come back for them costs their group again.
    """
    sizes = np.array([0 if packet.is_keyframe else packet.size for packet in packets], np.int64)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    groups = np.diff(keys)
    likely = [keys[i + 1] for i in np.flatnonzero((groups < groups.max(initial=0)) | (len(groups) == 1))]
    if len(sizes) > 2 * SPIKE_REACH:
        around = sliding_window_view(np.pad(sizes, SPIKE_REACH), 2 * SPIKE_REACH + 1)
        likely += np.flatnonzero((sizes > 0) & (sizes >= SPIKE * np.partition(around, -2, axis=1)[:, -2])).tolist()
    dense = {*itertools.takewhile(lambda pts: pts < shown[0] + start, shown), *shown[-1:]}
    for i in likely:
        at = bisect_left(shown, packets[i].pts or 0)
        dense.update(shown[max(0, at - DENSE_FRAMES) : at + DENSE_FRAMES])
    return frozenset(dense)


def _shown(packets: Iterable[VideoPacket]) -> list[int]:
    return sorted({packet.pts for packet in packets if packet.pts is not None and not packet.is_discard})

"""Rewrite the video packets of a file with some of them changed: damage that a container's checks do not detect."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import av.error
from av.packet import Packet
from av.stream import Stream

TICK_PARTS = 4
"""Parts of a tick. Muxers refuse two packets with one timestamp, so an added packet is a quarter of a tick later."""


def remuxed(data: bytes, change: Callable[[bytes], list[bytes]], *, jump_s: int = 0, jump_at: int = 0) -> bytes:
    """Return a file of the same format, in which each packet is replaced by the packets that `change` returns for it.

    The format is Matroska if the source's cannot be written. From packet `jump_at` on, timestamps are `jump_s`
    seconds later. A file that cannot be read or written is returned unchanged: it may be damaged already.
    """
    buffer = io.BytesIO()
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as source:
            stream = source.streams.best("video")
            if stream is None or stream.time_base is None:
                return data
            names = source.format.name.split(",")
            target = "mp4" if "mp4" in names else names[0] if names[0] in ("avi", "mpegts") else "matroska"
            # Bit-exact, as Matroska would otherwise write a random identifier.
            with av.open(buffer, "w", format=target, options={"fflags": "bitexact"}) as output:
                copy = output.add_stream_from_template(stream, opaque=True)
                copy.time_base = stream.time_base / TICK_PARTS
                for n, packet in enumerate(_changed(source.demux(stream), change, stream.time_base)):
                    later = TICK_PARTS * int(jump_s / stream.time_base) if n >= jump_at else 0
                    packet.stream = copy
                    packet.pts = None if packet.pts is None else packet.pts + later
                    packet.dts = None if packet.dts is None else packet.dts + later
                    output.mux(packet)
    except (av.error.FFmpegError, ValueError, OverflowError):
        return data
    return buffer.getvalue()


def _changed(
    packets: Iterable[Packet[Any]], change: Callable[[bytes], list[bytes]], time_base: Fraction
) -> Iterator[Packet[Stream]]:
    for packet in packets:
        for k, payload in enumerate(change(bytes(packet)) if packet.size else []):
            changed: Packet[Stream] = Packet(payload)
            changed.time_base, changed.is_keyframe = time_base / TICK_PARTS, packet.is_keyframe
            changed.pts = None if packet.pts is None else packet.pts * TICK_PARTS + k
            changed.dts = None if packet.dts is None else packet.dts * TICK_PARTS + k
            yield changed

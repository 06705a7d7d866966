"""Rewrite the frame size in an H.264 stream: files of a few kilobytes that claim frames of gigabytes.

Sequence parameter sets follow ITU-T H.264, 7.3.2.1.1. The slices are unchanged; a decoder reads the size before the
slices.
"""

from __future__ import annotations

import io

import av
import av.error
from av.bitstream import BitStreamFilterContext

SPS_TYPE = 7
START_CODE = b"\x00\x00\x01"
HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128})


class _Bits:
    """A reader of the bits of an unescaped payload, which copies the bits that it reads."""

    def __init__(self, payload: bytes) -> None:
        self.bits = "".join(f"{byte:08b}" for byte in payload)
        self.position = 0
        self.copied = ""

    def fixed(self, n: int) -> int:
        """Read an unsigned number of n bits."""
        value = self.bits[self.position : self.position + n]
        self.position += n
        self.copied += value
        return int(value or "0", 2)

    def golomb(self) -> int:
        """Read an exponential-Golomb number (7.2: ue(v))."""
        zeros = self.bits.index("1", self.position) - self.position
        return self.fixed(2 * zeros + 1) - 1

    def replace_golomb(self, value: int) -> None:
        """Read an exponential-Golomb number and write `value` to the copy instead."""
        before = self.copied
        self.golomb()
        code = f"{value + 1:b}"
        self.copied = before + "0" * (len(code) - 1) + code


def huge_sps(sps: bytes, side_px: int) -> bytes:
    """Return a sequence parameter set (with its header byte) that claims `side_px` x `side_px`, in 16 px macroblocks.

    Raises `ValueError` if `sps` has scaling lists or a picture order count of type 1, which no common encoder writes.
    """
    bits = _Bits(sps.replace(b"\x00\x00\x03", b"\x00\x00"))
    bits.fixed(8)
    profile = bits.fixed(8)
    bits.fixed(16)
    bits.golomb()
    if profile in HIGH_PROFILES:
        if bits.golomb() == 3:
            bits.fixed(1)
        bits.golomb()
        bits.golomb()
        if bits.fixed(2) & 1:
            raise ValueError("scaling lists are not read")
    bits.golomb()
    order_count_type = bits.golomb()
    if order_count_type == 1:
        raise ValueError("picture order count of type 1 is not read")
    if order_count_type == 0:
        bits.golomb()
    bits.golomb()
    bits.fixed(1)
    for _ in range(2):
        bits.replace_golomb(side_px // 16 - 1)
    changed = bits.copied + bits.bits[bits.position :]
    changed += "0" * (-len(changed) % 8)
    return _escaped(bytes(int(changed[k : k + 8], 2) for k in range(0, len(changed), 8)))


def raw_h264(data: bytes, edit: str = "") -> bytes | None:
    """Return the H.264 packets of a file as a raw stream with start codes, or None if the file has no H.264.

    `edit` names further bitstream filters of FFmpeg, separated by commas.
    """
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None or stream.codec_context.name != "h264":
                return None
            filters = BitStreamFilterContext(",".join(name for name in ("h264_mp4toannexb", edit) if name), stream)
            return b"".join(
                bytes(raw) for packet in container.demux(stream) if packet.size for raw in filters.filter(packet)
            )
    except (av.error.FFmpegError, ValueError):
        return None


def with_huge_sps(data: bytes, side_px: int) -> bytes | None:
    """Return the H.264 of a file as a raw stream that claims frames of `side_px` x `side_px`, or None if that fails."""
    raw = raw_h264(data)
    if raw is None:
        return None
    units = raw.split(START_CODE)
    try:
        return START_CODE.join(huge_sps(unit, side_px) if unit and unit[0] & 31 == SPS_TYPE else unit for unit in units)
    except ValueError:
        return None


def _escaped(payload: bytes) -> bytes:
    """Insert the emulation prevention bytes, which keep start codes out of a payload (7.4.1.1)."""
    out, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)

"""Make damaged variants of a video file: damage by storage and downloads, and headers written to do harm.

A variant follows from the bytes of its source, its kind and a random generator, so a seed is enough to make it again.
Nothing here uses the network. No variant is larger than three times its source and 100 kB, whichever is more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.remux import remuxed
from benchmarks.sps import raw_h264, with_huge_sps

Rng = np.random.Generator
Damage = Callable[[bytes, Rng], bytes]

HEADER_BYTES = 4096
"""Bytes at the start of a container other than MP4 that are taken for its header."""

BOXES_WITH_BOXES = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex"})
"""MP4 boxes that hold other boxes; ISO/IEC 14496-12."""

SIGNATURES = (
    b"\x00\x00\x00\x20ftypisom",
    b"RIFF\xff\xff\xff\x7fAVI LIST",
    b"\x1aE\xdf\xa3\x9fB\x86\x81\x01",
    b"G@\x00\x10" + bytes(12),
    b"FLV\x01\x05\x00\x00\x00\x09",
    b"GIF89a\xff\xff\xff\xff",
    b"OggS\x00\x02" + bytes(8),
    b"\x00\x00\x01\xba\x44\x00",
    b"0&\xb2u\x8ef\xcf\x11",
    b"\x89PNG\r\n\x1a\n",
)
"""First bytes of containers and image formats that FFmpeg knows."""

TEXTS = (
    b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    b'{"error": "access denied"}\n',
    b"just a text\n" * 200,
    b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nmissing.ts\n",
    b"ffconcat version 1.0\nfile missing.mp4\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    b";FFMETADATA1\ntitle=x\n",
)
"""Texts that a failed download stores under a video's name, and playlists and session descriptions."""


@dataclass(frozen=True)
class Box:
    """An MP4 box: `data[start:body]` is its header, `data[body:end]` its content."""

    kind: bytes
    start: int
    body: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yield the boxes of an MP4 file, nested ones included. Stop without an error where the bytes are no box."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1 and start + 16 <= end:
            size, body = struct.unpack_from(">Q", data, body)[0], start + 16
        stop = end if size == 0 else start + size
        if stop < body or stop > end:
            return
        yield Box(kind, start, body, stop)
        if kind in BOXES_WITH_BOXES:
            yield from boxes(data, body, stop)
        start = stop


def is_mp4(data: bytes) -> bool:
    """Return True if the bytes are an MP4 or QuickTime file with an index."""
    return any(box.kind == b"moov" for box in boxes(data))


# Damage to any file: bytes lost, changed, moved.


def truncated(data: bytes, rng: Rng) -> bytes:
    """Cut the file off at a random byte."""
    return data[: int(rng.integers(len(data)))]


def beheaded(data: bytes, rng: Rng) -> bytes:
    """Drop the bytes before a random byte."""
    return data[int(rng.integers(1, len(data))) :]


def few_flips(data: bytes, rng: Rng) -> bytes:
    """Change 1 to 8 bytes anywhere."""
    return _flipped(data, rng, 0, len(data), int(rng.integers(1, 9)))


def many_flips(data: bytes, rng: Rng) -> bytes:
    """Change up to 2 % of all bytes."""
    return _flipped(data, rng, 0, len(data), int(len(data) * rng.uniform(0.0005, 0.02)) + 1)


def header_flips(data: bytes, rng: Rng) -> bytes:
    """Change 1 to 16 bytes of the header or the index."""
    box = next((box for box in boxes(data) if box.kind == b"moov"), None)
    start, end = (box.body, box.end) if box else (0, min(len(data), HEADER_BYTES))
    return _flipped(data, rng, start, end, int(rng.integers(1, 17)))


def payload_flips(data: bytes, rng: Rng) -> bytes:
    """Change up to 1 % of the bytes of the frames; the header stays whole."""
    box = next((box for box in boxes(data) if box.kind == b"mdat"), None)
    start, end = (box.body, box.end) if box else (min(HEADER_BYTES, len(data) // 2), len(data))
    return _flipped(data, rng, start, end, int((end - start) * rng.uniform(0.0001, 0.01)) + 1)


def wrong_signature(data: bytes, rng: Rng) -> bytes:
    """Replace the first bytes by those of another format."""
    signature = SIGNATURES[int(rng.integers(len(SIGNATURES)))]
    return signature + data[len(signature) :]


def swapped(data: bytes, rng: Rng) -> bytes:
    """Swap two neighbouring ranges of bytes."""
    a, b, c = _offsets(data, rng, 3)
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def zeroed(data: bytes, rng: Rng) -> bytes:
    """Fill a range with zeros, as in a sparse or unfinished download."""
    a, b = _offsets(data, rng, 2)
    return data[:a] + bytes(b - a) + data[b:]


def doubled(data: bytes, rng: Rng) -> bytes:
    """Repeat a range of bytes."""
    a, b = _offsets(data, rng, 2)
    return data[:b] + data[a:]


def cut_out(data: bytes, rng: Rng) -> bytes:
    """Remove a range of bytes."""
    a, b = _offsets(data, rng, 2)
    return data[:a] + data[b:]


def empty(data: bytes, rng: Rng) -> bytes:
    """Return no bytes."""
    return b""


def text(data: bytes, rng: Rng) -> bytes:
    """Return a text instead of a video."""
    return TEXTS[int(rng.integers(len(TEXTS)))]


def noise(data: bytes, rng: Rng) -> bytes:
    """Return up to 100 kB of random bytes."""
    return rng.bytes(int(rng.integers(1, 100_000)))


def garbage_after(data: bytes, rng: Rng) -> bytes:
    """Append random bytes."""
    return data + rng.bytes(int(rng.integers(1, len(data) + 1)))


def twice(data: bytes, rng: Rng) -> bytes:
    """Append a second copy of the whole file."""
    return data + data


# Damage to an MP4 file's index: fields with absurd values.


def huge_duration(data: bytes, rng: Rng) -> bytes:
    """Claim durations of years for the movie and its tracks; the frames are unchanged."""
    return _durations(data, int(rng.choice([0x7FFFFFFF, 0xFFFFFFF0])))


def zero_duration(data: bytes, rng: Rng) -> bytes:
    """Claim a duration of zero for the movie and its tracks."""
    return _durations(data, 0)


def negative_duration(data: bytes, rng: Rng) -> bytes:
    """Claim durations with the sign bit set, which are negative for a reader of signed numbers."""
    return _durations(data, int(rng.choice([0xFFFFFFFF, 0x80000000])))


def absurd_time_base(data: bytes, rng: Rng) -> bytes:
    """Claim none, one or billions of ticks per second."""
    return _patched(data, b"mdhd", 12, 20, struct.pack(">I", int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))))


def time_jumps(data: bytes, rng: Rng) -> bytes:
    """Make the first frames last for years or go back in time.

    The steps between decoding times (stts) or the offsets to them (ctts) become huge.
    """
    step = struct.pack(">I", int(rng.choice([0x7FFFFFFF, 0xFFFFFFFF, 0x40000000, 0])))
    return _patched(data, bytes(rng.choice([b"stts", b"ctts"])), 12, 12, step)


def huge_counts(data: bytes, rng: Rng) -> bytes:
    """Claim more entries of a table than the file has bytes."""
    kind = bytes(rng.choice([b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss", b"elst", b"stsd"]))
    count = struct.pack(">I", int(rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0x0FFFFFFF, 0x00FFFFFF])))
    if kind == b"stsz":
        return _patched(data, kind, 4, 4, struct.pack(">I", int(rng.integers(0, 3))) + count)
    return _patched(data, kind, 4, 4, count)


def huge_entries(data: bytes, rng: Rng) -> bytes:
    """Make the first entries of a table absurd: a billion repeats, a size of 2 GB, an offset outside the file."""
    kind = bytes(rng.choice([b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"elst"]))
    return _patched(
        data,
        kind,
        12 if kind == b"stsz" else 8,
        8,
        struct.pack(">I", int(rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0x0FFFFFFF]))),
    )


def huge_header_size(data: bytes, rng: Rng) -> bytes:
    """Claim frames of up to 65535 x 65535 in the track header and the sample description."""
    side = int(rng.choice([16384, 30000, 65535, 0]))
    return _patched(
        _patched(data, b"tkhd", 76, 88, struct.pack(">II", side << 16, side << 16)),
        b"stsd",
        40,
        40,
        struct.pack(">HH", side, side),
    )


def odd_aspect(data: bytes, rng: Rng) -> bytes:
    """Claim pixels that are thousands of times as wide as high, or the reverse, where the index has an aspect."""
    width, height = (int(side) for side in rng.choice([0, 1, 1, 4000, 60000, 0x7FFFFFFF], 2))
    return _after_each(data, b"pasp", 4, struct.pack(">II", width, height)) if is_mp4(data) else data


def missing_index(data: bytes, rng: Rng) -> bytes:
    """Remove the index (moov), as in a recording that was never finished."""
    return _renamed(data, [box for box in boxes(data) if box.kind == b"moov"])


def missing_box(data: bytes, rng: Rng) -> bytes:
    """Remove one box of the index."""
    inner = [box for box in boxes(data) if box.kind not in (b"moov", b"mdat", b"ftyp")]
    return _renamed(data, [inner[int(rng.integers(len(inner)))]]) if inner else data


# Damage to coded frames and packets.


def huge_image(data: bytes, rng: Rng) -> bytes:
    """Claim up to 65500 x 65500 in the coded frames.

    The headers of JPEG and VP8 are patched; H.264 is rewritten as a raw stream.
    """
    side = int(rng.choice([16000, 16383, 30000, 65500]))
    for marker, skip, layout in ((b"\xff\xc0\x00\x11\x08", 5, ">HH"), (b"\x9d\x01\x2a", 3, "<HH")):
        if marker in data:
            return _after_each(
                data, marker, skip, struct.pack(layout, min(side, 16383 if layout == "<HH" else side), min(side, 16383))
            )
    return with_huge_sps(data, side) or data


def absurd_metadata(data: bytes, rng: Rng) -> bytes:
    """Return a well-formed raw H.264 stream with absurd aspects and rotations, and undefined colour codes."""
    aspect = str(rng.choice(["1/1", "65535/1", "1/65535", "100/1"]))
    settings = {
        "sample_aspect_ratio": aspect,
        "rotate": float(rng.choice([0, 45, 90, 179, -90])),
        "matrix_coefficients": int(rng.integers(0, 256)),
        "colour_primaries": int(rng.integers(0, 256)),
        "transfer_characteristics": int(rng.integers(0, 256)),
        "tick_rate": str(rng.choice(["1/1", "4294967295/1", "1/4294967295", "60/1"])),
    }
    chosen = [f"{name}={value}" for name, value in settings.items() if rng.random() < 0.5]
    return raw_h264(data, "h264_metadata=" + ":".join(chosen or [f"sample_aspect_ratio={aspect}"])) or data


def odd_matrix(data: bytes, rng: Rng) -> bytes:
    """Rotate, shear or flatten the image by the display matrix of the tracks."""
    return _patched(
        data,
        b"tkhd",
        40,
        52,
        rng.choice([0, 1, 0x10000, 0x7FFFFFFF, 0xFFFF0000, 0x80000000], 9).astype(">u4").tobytes(),
    )


def doubled_packets(data: bytes, rng: Rng) -> bytes:
    """Repeat some packets with the same timestamps."""
    share = rng.uniform(0.02, 0.5)
    return remuxed(data, lambda payload: [payload, payload] if rng.random() < share else [payload])


def zeroed_packets(data: bytes, rng: Rng) -> bytes:
    """Fill some packets with zeros."""
    share = rng.uniform(0.02, 0.5)
    return remuxed(data, lambda payload: [bytes(len(payload)) if rng.random() < share else payload])


def lost_packets(data: bytes, rng: Rng) -> bytes:
    """Drop some packets, and with them frames that others refer to."""
    share = rng.uniform(0.02, 0.9)
    return remuxed(data, lambda payload: [] if rng.random() < share else [payload])


def years_between(data: bytes, rng: Rng) -> bytes:
    """Move all timestamps from some packet on by up to years."""
    return remuxed(
        data, lambda payload: [payload], jump_s=int(rng.choice([10**4, 10**7, 10**9])), jump_at=int(rng.integers(1, 40))
    )


KINDS: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        truncated, beheaded, few_flips, many_flips, header_flips, payload_flips, wrong_signature, swapped, zeroed,
        doubled, cut_out, empty, text, noise, garbage_after, twice, huge_duration, zero_duration, negative_duration,
        absurd_time_base, time_jumps, huge_counts, huge_entries, huge_header_size, missing_index, missing_box,
        huge_image, absurd_metadata, odd_matrix, odd_aspect, doubled_packets, zeroed_packets, lost_packets,
        years_between,
    )
}  # fmt: skip
"""All kinds of damage by name."""

MP4_KINDS = frozenset(
    {"huge_duration", "zero_duration", "negative_duration", "absurd_time_base", "time_jumps", "huge_counts",
     "huge_entries", "huge_header_size", "missing_index", "missing_box", "odd_matrix", "odd_aspect"}
)  # fmt: skip
"""Kinds that change nothing in a file that is not MP4."""

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".ts", ".mpg", ".gif", ".h264", ".y4m")
"""Suffixes of the variants that are renamed, one in four. FFmpeg reads the suffix if the first bytes do not decide."""


@dataclass(frozen=True)
class Variant:
    """A damaged file: its source, kind of damage, file suffix and bytes."""

    source: str
    kind: str
    suffix: str
    data: bytes


def make_variant(source: str, data: bytes, suffix: str, kind: str, rng: Rng) -> Variant:
    """Damage a file once and rename one in four. The same arguments and state of `rng` give the same variant."""
    damaged = KINDS[kind](data, rng) if data else data
    renamed = rng.random() < 0.25
    return Variant(source, kind, str(rng.choice(SUFFIXES)) if renamed else suffix, damaged)


def _offsets(data: bytes, rng: Rng, n: int) -> list[int]:
    return sorted(int(offset) for offset in rng.integers(0, len(data) + 1, n))


def _flipped(data: bytes, rng: Rng, start: int, end: int, n: int) -> bytes:
    if end <= start:
        return data
    changed = np.frombuffer(data, np.uint8).copy()
    offsets = rng.integers(start, end, n)
    changed[offsets] ^= rng.integers(1, 256, n).astype(np.uint8)
    return changed.tobytes()


def _patched(data: bytes, kind: bytes, offset: int, offset_v1: int, value: bytes) -> bytes:
    """Write a value into each box of a kind, `offset` bytes into its content (`offset_v1` for 64-bit times)."""
    changed = bytearray(data)
    for box in boxes(data):
        start = box.body + (offset_v1 if data[box.body : box.body + 1] == b"\x01" else offset)
        if box.kind == kind and start + len(value) <= box.end:
            changed[start : start + len(value)] = value
    return bytes(changed)


def _durations(data: bytes, value: int) -> bytes:
    packed = struct.pack(">I", value)
    for kind, offset, offset_v1 in ((b"mvhd", 16, 24), (b"mdhd", 16, 24), (b"tkhd", 20, 28)):
        data = _patched(data, kind, offset, offset_v1, packed)
    return data


def _renamed(data: bytes, gone: list[Box]) -> bytes:
    changed = bytearray(data)
    # The type "free" would not do: FFmpeg looks for an index inside such boxes.
    for box in gone:
        changed[box.start + 4 : box.start + 8] = b"gone"
    return bytes(changed)


def _after_each(data: bytes, marker: bytes, skip: int, value: bytes) -> bytes:
    changed, found = bytearray(data), data.find(marker)
    while found >= 0 and found + skip + len(value) <= len(data):
        changed[found + skip : found + skip + len(value)] = value
        found = data.find(marker, found + 1)
    return bytes(changed)

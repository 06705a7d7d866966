"""Damaged variants of a video file, from the damage that storage and downloads do to headers made to do harm.

A variant follows from the bytes of its source, its kind and a random generator, so a seed is enough to make it again. Nothing
here uses the network, and no variant is larger than three times its source, or 100 kB where that is more.
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
"""Where a container other than MP4 keeps its header, for flips that aim at it."""

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
"""First bytes of containers and pictures that FFmpeg knows, to be written over those of another."""

TEXTS = (
    b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    b'{"error": "access denied"}\n',
    b"just a text\n" * 200,
    b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nmissing.ts\n",
    b"ffconcat version 1.0\nfile missing.mp4\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    b";FFMETADATA1\ntitle=x\n",
)
"""What lies under a video's name when a download went wrong, and playlists and session descriptions, which name other sources."""


@dataclass(frozen=True)
class Box:
    """An MP4 box: `data[start:body]` is its header, `data[body:end]` its content."""

    kind: bytes
    start: int
    body: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes of an MP4 file, those inside others too; ends without error where the bytes are no boxes."""
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
    """Whether the bytes are an MP4 or QuickTime file with its index."""
    return any(box.kind == b"moov" for box in boxes(data))


# Damage to any file: bytes lost, changed, moved.


def truncated(data: bytes, rng: Rng) -> bytes:
    """The file ends somewhere."""
    return data[: int(rng.integers(len(data)))]


def beheaded(data: bytes, rng: Rng) -> bytes:
    """The file starts somewhere."""
    return data[int(rng.integers(1, len(data))) :]


def few_flips(data: bytes, rng: Rng) -> bytes:
    """1 to 8 bytes changed, anywhere."""
    return _flipped(data, rng, 0, len(data), int(rng.integers(1, 9)))


def many_flips(data: bytes, rng: Rng) -> bytes:
    """Up to 2 % of all bytes changed."""
    return _flipped(data, rng, 0, len(data), int(len(data) * rng.uniform(0.0005, 0.02)) + 1)


def header_flips(data: bytes, rng: Rng) -> bytes:
    """1 to 16 bytes of the header or the index changed."""
    box = next((box for box in boxes(data) if box.kind == b"moov"), None)
    start, end = (box.body, box.end) if box else (0, min(len(data), HEADER_BYTES))
    return _flipped(data, rng, start, end, int(rng.integers(1, 17)))


def payload_flips(data: bytes, rng: Rng) -> bytes:
    """Up to 1 % of the bytes of the pictures changed, the header whole."""
    box = next((box for box in boxes(data) if box.kind == b"mdat"), None)
    start, end = (box.body, box.end) if box else (min(HEADER_BYTES, len(data) // 2), len(data))
    return _flipped(data, rng, start, end, int((end - start) * rng.uniform(0.0001, 0.01)) + 1)


def wrong_signature(data: bytes, rng: Rng) -> bytes:
    """The first bytes are those of another format."""
    signature = SIGNATURES[int(rng.integers(len(SIGNATURES)))]
    return signature + data[len(signature) :]


def swapped(data: bytes, rng: Rng) -> bytes:
    """Two neighbouring stretches change places."""
    a, b, c = _places(data, rng, 3)
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def zeroed(data: bytes, rng: Rng) -> bytes:
    """A stretch of zeros, as a sparse or unfinished download has."""
    a, b = _places(data, rng, 2)
    return data[:a] + bytes(b - a) + data[b:]


def doubled(data: bytes, rng: Rng) -> bytes:
    """A stretch is there twice."""
    a, b = _places(data, rng, 2)
    return data[:b] + data[a:]


def cut_out(data: bytes, rng: Rng) -> bytes:
    """A stretch is missing."""
    a, b = _places(data, rng, 2)
    return data[:a] + data[b:]


def empty(data: bytes, rng: Rng) -> bytes:
    """No bytes at all."""
    return b""


def text(data: bytes, rng: Rng) -> bytes:
    """A text instead of a video."""
    return TEXTS[int(rng.integers(len(TEXTS)))]


def noise(data: bytes, rng: Rng) -> bytes:
    """Random bytes, up to 100 kB of them."""
    return rng.bytes(int(rng.integers(1, 100_000)))


def garbage_after(data: bytes, rng: Rng) -> bytes:
    """Random bytes after the end."""
    return data + rng.bytes(int(rng.integers(1, len(data) + 1)))


def twice(data: bytes, rng: Rng) -> bytes:
    """The whole file twice, one after the other."""
    return data + data


# Damage to an MP4 file's index: fields that say something absurd.


def huge_duration(data: bytes, rng: Rng) -> bytes:
    """The movie and its tracks claim to last for years; the frames are those there were."""
    return _durations(data, int(rng.choice([0x7FFFFFFF, 0xFFFFFFF0])))


def zero_duration(data: bytes, rng: Rng) -> bytes:
    """The movie and its tracks claim to last for no time."""
    return _durations(data, 0)


def negative_duration(data: bytes, rng: Rng) -> bytes:
    """Durations with the sign bit set: negative for a reader that takes them as signed."""
    return _durations(data, int(rng.choice([0xFFFFFFFF, 0x80000000])))


def absurd_time_base(data: bytes, rng: Rng) -> bytes:
    """Ticks a second: none, one, or billions."""
    return _patched(data, b"mdhd", 12, 20, struct.pack(">I", int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))))


def time_jumps(data: bytes, rng: Rng) -> bytes:
    """The first frames last for years or go back in time: huge steps between decoding times (stts) or offsets to them (ctts)."""
    step = struct.pack(">I", int(rng.choice([0x7FFFFFFF, 0xFFFFFFFF, 0x40000000, 0])))
    return _patched(data, bytes(rng.choice([b"stts", b"ctts"])), 12, 12, step)


def huge_counts(data: bytes, rng: Rng) -> bytes:
    """A table claims more entries than the file has bytes."""
    kind = bytes(rng.choice([b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss", b"elst", b"stsd"]))
    count = struct.pack(">I", int(rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0x0FFFFFFF, 0x00FFFFFF])))
    if kind == b"stsz":
        return _patched(data, kind, 4, 4, struct.pack(">I", int(rng.integers(0, 3))) + count)
    return _patched(data, kind, 4, 4, count)


def huge_entries(data: bytes, rng: Rng) -> bytes:
    """The first entries of a table say something absurd: repeated a billion times, of 2 GB, far outside of the file."""
    kind = bytes(rng.choice([b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"elst"]))
    return _patched(
        data,
        kind,
        12 if kind == b"stsz" else 8,
        8,
        struct.pack(">I", int(rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0x0FFFFFFF]))),
    )


def huge_header_size(data: bytes, rng: Rng) -> bytes:
    """Track header and sample description claim a picture of up to 65535 x 65535."""
    side = int(rng.choice([16384, 30000, 65535, 0]))
    return _patched(
        _patched(data, b"tkhd", 76, 88, struct.pack(">II", side << 16, side << 16)),
        b"stsd",
        40,
        40,
        struct.pack(">HH", side, side),
    )


def odd_aspect(data: bytes, rng: Rng) -> bytes:
    """Pixels thousands of times as wide as high, or as high as wide, where the index says how wide they are."""
    width, height = (int(side) for side in rng.choice([0, 1, 1, 4000, 60000, 0x7FFFFFFF], 2))
    return _after_each(data, b"pasp", 4, struct.pack(">II", width, height)) if is_mp4(data) else data


def missing_index(data: bytes, rng: Rng) -> bytes:
    """No moov, as in a recording that was never finished."""
    return _renamed(data, [box for box in boxes(data) if box.kind == b"moov"])


def missing_box(data: bytes, rng: Rng) -> bytes:
    """One box of the index is missing."""
    inner = [box for box in boxes(data) if box.kind not in (b"moov", b"mdat", b"ftyp")]
    return _renamed(data, [inner[int(rng.integers(len(inner)))]]) if inner else data


# Damage to pictures and packets.


def huge_picture(data: bytes, rng: Rng) -> bytes:
    """The coded pictures themselves claim up to 65500 x 65500: JPEG and VP8 headers patched, H.264 rewritten as a raw stream."""
    side = int(rng.choice([16000, 16383, 30000, 65500]))
    for marker, skip, order in ((b"\xff\xc0\x00\x11\x08", 5, ">HH"), (b"\x9d\x01\x2a", 3, "<HH")):
        if marker in data:
            return _after_each(
                data, marker, skip, struct.pack(order, min(side, 16383 if order == "<HH" else side), min(side, 16383))
            )
    return with_huge_sps(data, side) or data


def absurd_metadata(data: bytes, rng: Rng) -> bytes:
    """A raw stream of well-formed H.264 that says odd things of itself: pixels 65535 times as wide as high, any rotation, colours nobody defined."""
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
    """The display matrix of the tracks turns, shears or flattens the picture."""
    return _patched(
        data,
        b"tkhd",
        40,
        52,
        rng.choice([0, 1, 0x10000, 0x7FFFFFFF, 0xFFFF0000, 0x80000000], 9).astype(">u4").tobytes(),
    )


def doubled_packets(data: bytes, rng: Rng) -> bytes:
    """Some packets are there twice, at the same time."""
    share = rng.uniform(0.02, 0.5)
    return remuxed(data, lambda payload: [payload, payload] if rng.random() < share else [payload])


def zeroed_packets(data: bytes, rng: Rng) -> bytes:
    """Some packets hold zeros only."""
    share = rng.uniform(0.02, 0.5)
    return remuxed(data, lambda payload: [bytes(len(payload)) if rng.random() < share else payload])


def lost_packets(data: bytes, rng: Rng) -> bytes:
    """Some packets are missing, and with them the frames others refer to."""
    share = rng.uniform(0.02, 0.9)
    return remuxed(data, lambda payload: [] if rng.random() < share else [payload])


def years_between(data: bytes, rng: Rng) -> bytes:
    """From some packet on, all times are years later."""
    return remuxed(
        data, lambda payload: [payload], jump_s=int(rng.choice([10**4, 10**7, 10**9])), jump_at=int(rng.integers(1, 40))
    )


KINDS: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        truncated, beheaded, few_flips, many_flips, header_flips, payload_flips, wrong_signature, swapped, zeroed, doubled, cut_out, empty,
        text, noise, garbage_after, twice, huge_duration, zero_duration, negative_duration, absurd_time_base, time_jumps, huge_counts,
        huge_entries, huge_header_size, missing_index, missing_box, huge_picture, absurd_metadata, odd_matrix, odd_aspect, doubled_packets,
        zeroed_packets, lost_packets, years_between,
    )
}  # fmt: skip
"""All kinds of damage by name."""

MP4_KINDS = frozenset(
    {"huge_duration", "zero_duration", "negative_duration", "absurd_time_base", "time_jumps", "huge_counts", "huge_entries", "huge_header_size",
     "missing_index", "missing_box", "odd_matrix",
     "odd_aspect"}
)  # fmt: skip
"""Kinds that change nothing in a file that is not MP4."""

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".ts", ".mpg", ".gif", ".h264", ".y4m")
"""A variant in four comes under another suffix: FFmpeg looks at it when the first bytes do not decide."""


@dataclass(frozen=True)
class Variant:
    """A damaged file: which source and what was done, the suffix it is stored under, and its bytes."""

    source: str
    kind: str
    suffix: str
    data: bytes


def make_variant(source: str, data: bytes, suffix: str, kind: str, rng: Rng) -> Variant:
    """Damage a file once; one in four is renamed as well. The same arguments and state of `rng` give the same variant."""
    damaged = KINDS[kind](data, rng) if data else data
    renamed = rng.random() < 0.25
    return Variant(source, kind, str(rng.choice(SUFFIXES)) if renamed else suffix, damaged)


def _places(data: bytes, rng: Rng, n: int) -> list[int]:
    return sorted(int(place) for place in rng.integers(0, len(data) + 1, n))


def _flipped(data: bytes, rng: Rng, start: int, end: int, n: int) -> bytes:
    if end <= start:
        return data
    changed = np.frombuffer(data, np.uint8).copy()
    where = rng.integers(start, end, n)
    changed[where] ^= rng.integers(1, 256, n).astype(np.uint8)
    return changed.tobytes()


def _patched(data: bytes, kind: bytes, offset: int, offset_v1: int, value: bytes) -> bytes:
    """Write a value into each box of a kind, `offset` bytes into its content (`offset_v1` for boxes of version 1, with 64-bit times)."""
    changed = bytearray(data)
    for box in boxes(data):
        at = box.body + (offset_v1 if data[box.body : box.body + 1] == b"\x01" else offset)
        if box.kind == kind and at + len(value) <= box.end:
            changed[at : at + len(value)] = value
    return bytes(changed)


def _durations(data: bytes, value: int) -> bytes:
    packed = struct.pack(">I", value)
    for kind, offset, offset_v1 in ((b"mvhd", 16, 24), (b"mdhd", 16, 24), (b"tkhd", 20, 28)):
        data = _patched(data, kind, offset, offset_v1, packed)
    return data


def _renamed(data: bytes, gone: list[Box]) -> bytes:
    changed = bytearray(data)
    # Not "free": FFmpeg looks for an index in there.
    for box in gone:
        changed[box.start + 4 : box.start + 8] = b"gone"
    return bytes(changed)


def _after_each(data: bytes, marker: bytes, skip: int, value: bytes) -> bytes:
    changed, at = bytearray(data), data.find(marker)
    while at >= 0 and at + skip + len(value) <= len(data):
        changed[at + skip : at + skip + len(value)] = value
        at = data.find(marker, at + 1)
    return bytes(changed)

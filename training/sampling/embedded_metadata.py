"""Metadata inside media files: the blocks that hold content credentials and XMP, found and added without decoding.

Containers: PNG (W3C PNG 3), GIF89a, WebP (RFC 9649), JPEG (ITU-T T.81) and MP4 (ISO/IEC 14496-12); XMP in them by the
XMP specification part 3, content credentials by C2PA 2.2, section A.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

MAX_BLOCK_BYTES = 64 << 20
"""Largest block that is read; credentials have a few kB for each file that a file was made from."""

_PNG, _GIF, _JPEG = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"\xff\xd8"
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_GIF_XMP, _GIF_C2PA = b"XMP DataXMP", b"C2PA_GIF"
_GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])
"""Bytes after XMP in a GIF: wherever a reader that skips sub-blocks enters them, it leaves at their end."""
_MP4_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_MP4_C2PA = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")

Kind = Literal["c2pa", "xmp"]


class Block(NamedTuple):
    """A block of metadata: content credentials in JUMBF, or XMP."""

    kind: Kind
    data: bytes


def blocks(file: BinaryIO) -> Iterator[Block]:
    """Yield the blocks of credentials and XMP of a file, whose other parts are skipped; none for unknown containers.

    A file that is damaged or cut off yields the blocks before the damage.
    """
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    try:
        if head.startswith(_PNG):
            yield from _png_blocks(file)
        elif head[:6] in _GIF:
            yield from _gif_blocks(file)
        elif head.startswith(_JPEG):
            yield from _jpeg_blocks(file)
        elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
            yield from _webp_blocks(file)
        elif head[4:8] == b"ftyp":
            yield from _mp4_blocks(file)
    except (struct.error, IndexError):  # cut off inside of a header
        return


def add_xmp(path: Path, packet: bytes) -> None:
    """Add an XMP packet to a file that has none. An mp4 is not read; files of other kinds are, as a whole.

    Raises `ValueError` for a file of another kind.
    """
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        with path.open("ab") as file:
            file.write(struct.pack(">I", 24 + len(packet)) + b"uuid" + _MP4_XMP + packet)
        return
    adders = {".png": _png_with_xmp, ".gif": _gif_with_xmp, ".webp": _webp_with_xmp, ".jpg": _jpeg_with_xmp}
    if suffix not in adders:
        raise ValueError(f"{path.name}: XMP is added to mp4, {', '.join(kind[1:] for kind in adders)}")
    path.write_bytes(adders[suffix](path.read_bytes(), packet))


def _read(file: BinaryIO, size: int) -> bytes:
    """Read a block; one that is larger than any that is expected is not read and gives nothing."""
    if size > MAX_BLOCK_BYTES:
        file.seek(size, io.SEEK_CUR)
        return b""
    return file.read(size)


def _png_blocks(file: BinaryIO) -> Iterator[Block]:
    file.seek(len(_PNG))
    while len(header := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", header)
        if kind in (b"caBX", b"iTXt"):
            data = _read(file, size)
            if kind == b"caBX":
                yield Block("c2pa", data)
            elif data.startswith(_PNG_XMP[:18]):
                yield Block("xmp", data[len(_PNG_XMP) :])
        else:
            file.seek(size, io.SEEK_CUR)
        file.seek(4, io.SEEK_CUR)


def _png_with_xmp(data: bytes, packet: bytes) -> bytes:
    end = len(_PNG) + 25  # after IHDR, which comes first
    content = _PNG_XMP + packet
    chunk = struct.pack(">I", len(content)) + b"iTXt" + content
    return data[:end] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[end:]


def _gif_header(file: BinaryIO) -> None:
    """Move to the first block of a GIF, after its header and colour table."""
    flags = file.read(13)[10]
    file.seek(3 << ((flags & 7) + 1) if flags & 0x80 else 0, io.SEEK_CUR)


def _skip_sub_blocks(file: BinaryIO) -> None:
    while size := file.read(1)[0]:
        file.seek(size, io.SEEK_CUR)


def _gif_blocks(file: BinaryIO) -> Iterator[Block]:
    _gif_header(file)
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b",":
            flags = file.read(9)[8]
            file.seek((3 << ((flags & 7) + 1) if flags & 0x80 else 0) + 1, io.SEEK_CUR)
            _skip_sub_blocks(file)
            continue
        label = file.read(1)
        name = file.read(file.read(1)[0]) if label == b"\xff" else b""
        start = file.tell()
        if name[:8] == _GIF_C2PA:
            parts = []
            while size := file.read(1)[0]:
                parts.append(file.read(size))
            yield Block("c2pa", b"".join(parts))
            continue
        _skip_sub_blocks(file)
        if name == _GIF_XMP:
            end = file.tell()
            file.seek(start)
            yield Block("xmp", _read(file, end - start)[: -len(_GIF_TRAILER)])


def _gif_with_xmp(data: bytes, packet: bytes) -> bytes:
    file = io.BytesIO(data)
    _gif_header(file)
    end = file.tell()
    extension = b"!\xff" + bytes([len(_GIF_XMP)]) + _GIF_XMP + packet + _GIF_TRAILER
    return b"GIF89a" + data[6:end] + extension + data[end:]


def _webp_blocks(file: BinaryIO) -> Iterator[Block]:
    file.seek(12)
    while len(header := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", header)
        if kind in (b"C2PA", b"XMP "):
            yield Block("c2pa" if kind == b"C2PA" else "xmp", _read(file, size))
            file.seek(size % 2, io.SEEK_CUR)
        else:
            file.seek(size + size % 2, io.SEEK_CUR)


def _webp_with_xmp(data: bytes, packet: bytes) -> bytes:
    """Return an animated WebP with XMP; it has the chunk VP8X, with the flags of what else there is."""
    chunk = b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2)
    flags = bytes([data[20] | 0x04])
    return b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:20] + flags + data[21:] + chunk


def _jpeg_blocks(file: BinaryIO) -> Iterator[Block]:
    file.seek(2)
    credentials = []
    while (marker := file.read(2))[:1] == b"\xff" and marker[1] != 0xDA:  # the image begins there
        (size,) = struct.unpack(">H", file.read(2))
        data = file.read(size - 2)
        if marker[1] == 0xE1 and data.startswith(_JPEG_XMP):
            yield Block("xmp", data[len(_JPEG_XMP) :])
        if marker[1] == 0xEB and data[:2] == b"JP":
            credentials.append(data[8:])
    if credentials:
        yield Block("c2pa", b"".join(credentials))


def _jpeg_with_xmp(data: bytes, packet: bytes) -> bytes:
    content = _JPEG_XMP + packet
    # After APP0, which JFIF wants first.
    end = 4 + struct.unpack(">H", data[4:6])[0] if data[2:4] == b"\xff\xe0" else 2
    return data[:end] + b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content + data[end:]


def _mp4_blocks(file: BinaryIO) -> Iterator[Block]:
    while len(header := file.read(8)) == 8:
        start = file.tell() - 8
        size, kind = struct.unpack(">I4s", header)
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
        if size != 0 and size < 8:
            return
        if kind == b"uuid":
            uuid = file.read(16)
            data = b"" if size == 0 or uuid not in (_MP4_XMP, _MP4_C2PA) else _read(file, start + size - file.tell())
            if uuid == _MP4_XMP:
                yield Block("xmp", data)
            elif uuid == _MP4_C2PA:
                yield Block("c2pa", data)
        if size == 0:  # to the end of the file
            return
        file.seek(start + size)

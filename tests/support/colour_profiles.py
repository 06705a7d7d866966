"""Colour profiles (ICC) for tests, written from the specification, and the sRGB values that they stand for."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

D50 = (0.9642, 1.0, 0.8249)

SRGB_XYZ = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
ADOBE_XYZ = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])
"""Columns are the primaries in XYZ relative to D50, of sRGB and of Adobe RGB."""


def rgb_profile(xyz: NDArray[np.float64], gamma: float) -> bytes:
    """Return a matrix profile with these primaries."""
    tags = {name: _xyz(xyz[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return _profile(b"RGB ", b"XYZ ", {**tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma))})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile(corners: NDArray[np.uint8]) -> bytes:
    """Return a profile that interpolates between the CIELAB values `[2, 2, 2, 2, 3]` of no ink and full ink of each."""
    ramp = bytes(range(256))
    unit = struct.pack(">9i", *(int(value * 65536) for value in np.eye(3).ravel()))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + unit + ramp * 4 + corners.tobytes() + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table}, b"prtr")


def srgb_of_rgb(values: NDArray[np.uint8], xyz: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Return the sRGB values of pixels `[..., 3]` in the colour space of `rgb_profile`, in 8-bit values."""
    linear = (values / 255.0) ** gamma
    return srgb_of_linear(linear @ (np.linalg.inv(SRGB_XYZ) @ xyz).T)


def srgb_of_linear(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 8-bit sRGB values of linear light (IEC 61966-2-1)."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """Return a version 2 profile (ICC.1:2001-04): a header of 128 bytes, the table of tags, and the tags."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78), b"wtpt": _xyz(D50), **tags}
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content
    header = struct.pack(">I4sI4s4s4s", start + len(data), bytes(4), 0x02400000, kind, space, connection)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
    header += bytes(68 - len(header)) + _numbers(D50)
    return header + bytes(128 - len(header)) + table + data


def _numbers(values: NDArray[np.float64] | tuple[float, ...]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _xyz(values: NDArray[np.float64] | tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + _numbers(values)


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))

"""Stream copy: NAL unit types, and decoding timestamps of reordered frames."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.export.stream_copy import decoding_timestamps, nal_types


def test_nal_types_with_prefixes_and_start_codes() -> None:
    units = [b"\x67abc", b"\x68d", b"\x65pic"]
    prefixed = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    start_codes = b"\0\0\0\1" + b"\0\0\1".join(units)
    assert nal_types(prefixed, b"\x01\x64\x00\x1f\xff", "h264") == [7, 8, 5] == nal_types(start_codes, b"", "h264")
    hevc = [bytes([19 << 1, 1]) + b"idr", bytes([35 << 1, 1])]
    assert nal_types(
        b"".join(len(unit).to_bytes(2, "big") + unit for unit in hevc), b"\x01" + bytes(20) + b"\x01", "hevc"
    ) == [19, 35]


@pytest.mark.slow
@given(st.permutations(list(range(12))))
def test_decoding_timestamps_rise_and_are_not_after_the_pts(pts: list[int]) -> None:
    times = decoding_timestamps(pts)
    assert all(one < other for one, other in itertools.pairwise(times))
    gaps = [shown - decoded for shown, decoded in zip(pts, times, strict=True)]
    assert min(gaps) == 0, "any later ones would be after the PTS of a frame"
